//! From the path of a request to a repository on disk, by the rules of git daemon.

use std::fs;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

const PORT: &str = "9418";

/// Which repositories there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Paths {
    pub(super) base: Option<PathBuf>,
    pub(super) relaxed: bool,
    pub(super) interpolated: Option<String>,
    pub(super) strict: bool,
    pub(super) export_all: bool,
    pub(super) listed: Vec<PathBuf>,
}

/// Where the client thinks it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Host<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) port: Option<&'a str>,
    pub(super) address: Option<IpAddr>,
}

impl Paths {
    /// The repository, or why there is none.
    pub(super) fn find(&self, asked: &str, host: &Host<'_>) -> Result<PathBuf, String> {
        if is_alias(asked) {
            return Err(format!("'{asked}': aliased"));
        }
        if asked.starts_with('~') {
            return Err(format!("'{asked}': User-path not allowed"));
        }
        let place = match (&self.interpolated, host.name, &self.base) {
            (Some(pattern), Some(name), _) => PathBuf::from(expand(pattern, asked, name, host)),
            (_, _, Some(base)) => base.join(asked.trim_start_matches('/')),
            (_, _, None) => PathBuf::from(asked),
        };
        let found = self.enter(&place).or_else(|| {
            let relaxed = self.base.is_some() && self.relaxed;
            if relaxed { self.enter(Path::new(asked)) } else { None }
        });
        let found =
            found.ok_or_else(|| format!("'{}' does not appear to be a git repository", place.display()))?;
        let listed = |directory: &PathBuf| {
            let rest = found.as_os_str().as_bytes().strip_prefix(directory.as_os_str().as_bytes());
            rest.is_some_and(|rest| {
                rest.is_empty()
                    || (!self.strict && (rest[0] == b'/' || directory.as_os_str().as_bytes().ends_with(b"/")))
            })
        };
        let free = self.listed.is_empty() && !self.strict;
        if free || self.listed.iter().any(listed) {
            Ok(found)
        } else {
            Err(format!("'{}': not in directory list", found.display()))
        }
    }

    fn enter(&self, place: &Path) -> Option<PathBuf> {
        if self.strict {
            return is_repository(place).then(|| place.to_owned());
        }
        let trimmed = place.as_os_str().to_string_lossy();
        let trimmed = trimmed.trim_end_matches('/');
        let candidates =
            ["/.git", "", ".git/.git", ".git"].map(|suffix| PathBuf::from(format!("{trimmed}{suffix}")));
        candidates.into_iter().find_map(|candidate| {
            if candidate.is_file() {
                let text = fs::read_to_string(&candidate).ok()?;
                let target = text.trim_end().strip_prefix("gitdir: ")?;
                let target = candidate.parent()?.join(target);
                return is_repository(&target).then_some(target);
            }
            is_repository(&candidate).then_some(candidate)
        })
    }
}

fn is_repository(path: &Path) -> bool {
    let common = fs::read_to_string(path.join("commondir"));
    let common = common.map_or_else(|_| path.to_owned(), |text| path.join(text.trim_end()));
    path.join("HEAD").symlink_metadata().is_ok()
        && common.join("objects").is_dir()
        && common.join("refs").is_dir()
}

fn expand(pattern: &str, asked: &str, name: &str, host: &Host<'_>) -> String {
    let mut out = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let address = host.address.map(|a| a.to_string()).unwrap_or_default();
        let known = [
            ("CH", name),
            ("IP", address.as_str()),
            ("H", name),
            ("P", host.port.unwrap_or(PORT)),
            ("D", asked),
            ("%", "%"),
        ];
        let found = known.iter().find_map(|(key, value)| Some((after.strip_prefix(key)?, *value)));
        let (next, value) = found.unwrap_or((after, "%"));
        out.push_str(value);
        rest = next;
    }
    out + rest
}

/// Whether a path could name the same place as another one: `//`, `/./` and `/../` in it.
fn is_alias(path: &str) -> bool {
    let Some(rest) = path.strip_prefix(['/', '~']) else {
        return true;
    };
    let parts: Vec<&str> = rest.split('/').collect();
    let last = parts.len() - 1;
    parts.iter().enumerate().any(|(at, part)| match *part {
        "" => at != last,
        "." | ".." => true,
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host<'_> = Host { name: Some("h.example"), port: None, address: None };

    #[test]
    fn paths_that_climb_are_refused() {
        for path in ["/../x", "/a/../b", "/a/..", "//a", "/a//b", "/./a", "a", ""] {
            assert!(is_alias(path), "{path}");
        }
        for path in ["/a", "/a/", "/a/b.git", "/...", "~u/x"] {
            assert!(!is_alias(path), "{path}");
        }
    }

    #[test]
    fn a_pattern_is_filled_in() {
        assert_eq!(expand("/srv/%H/%P%D%%%x", "/a.git", "h.example", &HOST), "/srv/h.example/9418/a.git%%x");
        assert_eq!(expand("%CH%D", "/a", "h", &HOST), "h/a");
    }

    #[test]
    fn repositories_are_found_below_the_base_and_in_the_list_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let (base, other) = (dir.path().join("base"), dir.path().join("other"));
        for repository in [base.join("a.git"), base.join("w/.git"), other.join("b.git")] {
            git2::Repository::init_bare(repository).expect("a repository");
        }
        let paths = Paths { base: Some(base.clone()), listed: vec![base.clone()], ..Paths::default() };
        let find = |paths: &Paths, path: &str| paths.find(path, &HOST);
        assert_eq!(find(&paths, "/a.git"), Ok(base.join("a.git")));
        assert_eq!(find(&paths, "/a"), Ok(base.join("a.git")));
        assert_eq!(find(&paths, "/w"), Ok(base.join("w/.git")));
        assert!(find(&paths, "/missing").is_err());
        let relaxed = Paths { relaxed: true, ..paths.clone() };
        let outside = other.join("b.git").display().to_string();
        assert!(find(&relaxed, &outside).is_err_and(|e| e.contains("not in directory list")));
        let strict = Paths { strict: true, listed: vec![base.join("a.git")], ..paths };
        assert_eq!(find(&strict, "/a.git"), Ok(base.join("a.git")));
        assert!(find(&strict, "/a").is_err());
    }
}
