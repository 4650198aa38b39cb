//! Repositories that a working directory belongs to and does not contain: the bottle's git does not find them.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// No path is longer.
const LINE_MAX: u64 = 4096 + 16;

/// Where the repository of `workdir` is, when that is outside of it. What is right in `home`, such as one of dotfiles, is not meant.
#[must_use]
pub fn beyond(workdir: &Path, home: Option<&Path>) -> Option<PathBuf> {
    let dot_git = workdir.join(".git");
    match fs::symlink_metadata(&dot_git) {
        Ok(found) if found.is_file() => {
            let place = fs::canonicalize(workdir.join(named(&dot_git)?)).ok()?;
            (!place.starts_with(workdir)).then_some(place)
        }
        Ok(_) => None,
        Err(_) => {
            let above = workdir.ancestors().skip(1).find(|path| path.join(".git").exists())?;
            (Some(above) != home).then(|| above.to_path_buf())
        }
    }
}

/// What a file named `.git` leads to.
fn named(file: &Path) -> Option<PathBuf> {
    let opened =
        File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(file).ok()?;
    let mut text = String::new();
    opened.take(LINE_MAX).read_to_string(&mut text).ok()?;
    text.strip_prefix("gitdir:").map(|path| PathBuf::from(path.trim()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_outside_is_found_and_one_inside_is_none() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        for name in ["app/.git/worktrees/wt", "app/src", "app/sub", "app/.git/modules/sub", "wt", "plain"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("wt/.git"), format!("gitdir: {}\n", at("app/.git/worktrees/wt").display())).unwrap();
        fs::write(at("app/sub/.git"), "gitdir: ../.git/modules/sub\n").unwrap();
        assert_eq!(beyond(&at("app"), None), None);
        assert_eq!(beyond(&at("plain"), None), None);
        assert_eq!(beyond(&at("wt"), None), Some(at("app/.git/worktrees/wt")));
        assert_eq!(beyond(&at("app/sub"), None), Some(at("app/.git/modules/sub")));
        assert_eq!(beyond(&at("app/src"), None), Some(at("app")));
        assert_eq!(beyond(&at("app/src"), Some(&at("app"))), None, "dotfiles");
        // One that leads nowhere is git's to complain of.
        fs::write(at("plain/.git"), "gitdir: /nonexistent\n").unwrap();
        assert_eq!(beyond(&at("plain"), None), None);
    }
}
