//! The private keys of repositories. Where git-gate has a user of its own, it cannot read those of whoever starts the
//! bottle: they are put on a file system in memory that only the daemons' mount namespace has.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use repos::{Allow, Repos, Upstream};
use zeroize::Zeroizing;

use super::c_string;
use crate::fault::{Attempted, Fault};
use crate::sys::credentials;

/// Where git-gate finds the keys when they are placed for it, below the bundle's root.
const CREDENTIALS: &str = "git-gate/creds";

/// The text of repos.yaml as the bundle gets it, and the keys that it names.
#[derive(Debug)]
pub struct Identities {
    repos: String,
    keys: Vec<(PathBuf, Zeroizing<Vec<u8>>)>,
    elsewhere: Vec<PathBuf>,
}

impl Identities {
    /// `text` as it is: git-gate is the same user, and reads the keys where they are.
    #[must_use]
    pub fn in_place(text: String, repos: &Repos) -> Identities {
        Identities { repos: text, keys: Vec::new(), elsewhere: identities(repos).collect() }
    }

    /// Keys outside the bundle's root, which git-gate's walls have to let it read.
    #[must_use]
    pub fn elsewhere(&self) -> &[PathBuf] {
        &self.elsewhere
    }

    /// Reads the keys that `text` names, and names them where they will be placed, below `root` as the daemons see it.
    pub fn placed(text: &str, repos: &Repos, root: &Path) -> Result<Identities, Fault> {
        let mut places: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        for path in identities(repos) {
            let next = root.join(CREDENTIALS).join(format!("key-{}", places.len()));
            places.entry(path).or_insert(next);
        }
        let keys = places
            .iter()
            .map(|(path, place)| {
                let key =
                    fs::read(path).refusing(|| format!("cannot read the identity {}", path.display()))?;
                Ok((place.clone(), Zeroizing::new(key)))
            })
            .collect::<Result<_, Fault>>()?;
        let moved = rename(text, &places);
        let wanted: Vec<&PathBuf> =
            identities(repos).filter_map(|path| places.get(&path)).collect::<Vec<_>>();
        let again = Repos::parse("repos.yaml", &moved, Allow::SshUpstream).ok();
        if again.is_none_or(|again| identities(&again).ne(wanted.into_iter().cloned())) {
            return Err(Fault::refused("the identities in repos.yaml cannot be told from other text in it")
                .with_hint("write each identity as a plain absolute path, as it is on disk"));
        }
        Ok(Identities { repos: moved, keys, elsewhere: Vec::new() })
    }

    /// The keys to be placed, each with its place as the daemons see it.
    pub(crate) fn keys(&self) -> &[(PathBuf, Zeroizing<Vec<u8>>)] {
        &self.keys
    }

    /// The text of repos.yaml for the bundle.
    #[must_use]
    pub fn repos(&self) -> &str {
        &self.repos
    }

    /// `root`, to be seen at `seen` with the keys in it for `user`, by a process between fork and exec.
    pub(super) fn mount(self, root: &Path, seen: &Path, user: u32) -> Result<credentials::Mount, Fault> {
        use std::os::unix::ffi::OsStrExt;
        let path = |path: &Path| c_string(path.as_os_str().as_bytes());
        let files = self
            .keys
            .into_iter()
            .map(|(place, key)| Ok((path(&place)?, key)))
            .collect::<Result<_, Fault>>()?;
        Ok(credentials::Mount {
            root: path(root)?,
            seen: path(seen)?,
            directory: path(&seen.join(CREDENTIALS))?,
            user,
            files,
        })
    }
}

/// The identity of each repository that has one, in order.
fn identities(repos: &Repos) -> impl Iterator<Item = PathBuf> {
    repos.iter().filter_map(|repo| match &repo.upstream {
        Upstream::Ssh(ssh) => Some(ssh.identity.clone()),
        Upstream::Https(_) | Upstream::File(_) => None,
    })
}

/// Names each path by its place; longer paths first, for one may begin like another.
fn rename(text: &str, places: &BTreeMap<PathBuf, PathBuf>) -> String {
    let mut pairs: Vec<(String, String)> =
        places.iter().map(|(from, to)| (from.display().to_string(), to.display().to_string())).collect();
    pairs.sort_by_key(|(from, _)| std::cmp::Reverse(from.len()));
    let mut renamed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        match pairs.iter().find(|(from, _)| rest.starts_with(from.as_str())) {
            Some((from, to)) => {
                renamed.push_str(to);
                rest = &rest[from.len()..];
            }
            None => {
                renamed.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    renamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_begins_like_another_is_renamed_as_a_whole() {
        let places = BTreeMap::from([
            (PathBuf::from("/k/id"), PathBuf::from("/c/key-0")),
            (PathBuf::from("/k/id2"), PathBuf::from("/c/key-1")),
        ]);
        assert_eq!(
            rename("identity: /k/id2\nidentity: \"/k/id\"\n", &places),
            "identity: /c/key-1\nidentity: \"/c/key-0\"\n"
        );
    }
}
