//! The git directories of submodules, as far as an agent cannot make them look like something else.

use std::fs;
use std::path::{Path, PathBuf};

use super::{GitError, Kind, SUBMODULES_MAX, kind, prepare};

/// One of them is enough: an agent may have taken the others away. `config` it cannot.
const SIGNS: [&str; 4] = ["config", "HEAD", "objects", "hooks"];
/// What git fills with names of its users, or what is read-only: no git directory is in there.
const NOT_LOOKED_INTO: [&str; 5] = ["refs", "logs", "hooks", "info", "worktrees"];

/// What a directory lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Around {
    /// In directories that are parts of the names of submodules.
    Names,
    /// In a git directory, or what an agent made look like one: a submodule whose name begins with that of another may
    /// be there.
    Git,
}

/// The git directories below `modules`, by paths relative to `root`, outer ones first.
pub(super) fn git_directories(root: &Path, modules: &Path) -> Result<Vec<PathBuf>, GitError> {
    let mut found = Vec::new();
    let mut queue = children(root, modules, Around::Names)?;
    while let Some((directory, around)) = queue.pop() {
        let full = root.join(&directory);
        let has = |name: &str| full.join(name).symlink_metadata().is_ok();
        let is_git = match around {
            Around::Names => SIGNS.into_iter().any(has),
            Around::Git => has("config"),
        };
        if is_git {
            let inner = children(root, &directory.join("modules"), Around::Names)?;
            queue.extend(inner);
            found.push(directory.clone());
            if found.len() > SUBMODULES_MAX {
                return Err(GitError::TooMany(root.join(modules)));
            }
        }
        let around = if is_git { Around::Git } else { around };
        queue.extend(children(root, &directory, around)?);
    }
    found.sort();
    Ok(found)
}

/// The directories in `directory`, if it is one.
fn children(root: &Path, directory: &Path, around: Around) -> Result<Vec<(PathBuf, Around)>, GitError> {
    let full = root.join(directory);
    if kind(&full)? != Some(Kind::Directory) {
        return Ok(Vec::new());
    }
    let mut children = Vec::new();
    for entry in fs::read_dir(&full).map_err(|source| prepare(&full, source))? {
        let entry = entry.map_err(|source| prepare(&full, source))?;
        let is_directory = match around {
            Around::Names => kind(&entry.path())? == Some(Kind::Directory),
            Around::Git => {
                let found = entry.file_type().map_err(|source| prepare(&entry.path(), source))?;
                let name = entry.file_name();
                found.is_dir() && name != "modules" && !NOT_LOOKED_INTO.iter().any(|other| name == *other)
            }
        };
        if is_directory {
            children.push((directory.join(entry.file_name()), around));
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(paths: &[&str]) -> Vec<String> {
        let root = tempfile::tempdir().expect("a directory");
        for path in paths {
            let path = root.path().join("modules").join(path);
            fs::create_dir_all(path.parent().expect("it lies in one")).expect("directories");
            fs::write(path, "").expect("a file");
        }
        let found = git_directories(root.path(), Path::new("modules")).expect("looked at");
        found.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn a_git_directory_without_a_head_still_is_one() {
        for sign in ["config", "HEAD", "objects/pack/x", "hooks/post-commit"] {
            assert_eq!(found(&[&format!("a/b/{sign}")]), ["modules/a/b"], "{sign}");
        }
        assert_eq!(found(&["a/b/notes"]), Vec::<String>::new());
    }

    #[test]
    fn a_directory_that_looks_like_git_does_not_hide_the_submodules_below_it() {
        assert_eq!(found(&["HEAD", "a/HEAD", "a/b/config"]), ["modules/a", "modules/a/b"]);
        assert_eq!(found(&["a/config", "a/b/c/config"]), ["modules/a", "modules/a/b/c"]);
        assert_eq!(found(&["a/config", "a/modules/b/HEAD"]), ["modules/a", "modules/a/modules/b"]);
    }

    #[test]
    fn what_git_keeps_in_a_git_directory_is_no_git_directory() {
        let kept = ["a/config", "a/refs/heads/config", "a/logs/refs/heads/config", "a/lfs/objects/00/x"];
        assert_eq!(found(&kept), ["modules/a"]);
    }
}
