//! A repository that leads nowhere: git reads what is in its directory, and follows nothing out of it.
//!
//! What the host's git may read is more than the bottle may: a link, a `commondir` or an alternate that an earlier bottle
//! left in a repository would have the host's git put another repository into the clone.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollTimeout, poll};

use crate::fault::{Attempted, Fault};
use crate::git::beyond;
use crate::workdir::shown;

/// How long another bottle that is starting on the repository, or cloning it, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const INTERVAL_MS: u16 = 50;
/// More than this is no `commondir` that says "here".
const COMMONDIR_MAX: u64 = 16;

/// Holds the git directory of `source`, so that no bottle works in it meanwhile, and looks whether it leads out of itself.
///
/// # Errors
/// When it does, or when a bottle has it.
pub(super) fn hold(source: &Path) -> Result<Flock<File>, Fault> {
    let git = source.join(".git");
    let told = || format!("cannot look at {}", shown(&git));
    match fs::symlink_metadata(&git) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let hint = match beyond(source, None) {
                Some(above) => format!("its repository is {}: --cwd is for that", shown(&above)),
                None => "--mount DIR gives the bottle the directory itself".to_owned(),
            };
            let message = format!("{} is not a git working copy", shown(source));
            return Err(Fault::refused(message).with_hint(hint));
        }
        found => {
            if !found.refusing(told)?.is_dir() {
                return Err(leads_out(source, &git));
            }
        }
    }
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let open = File::options().read(true).custom_flags(flags).open(&git).refusing(told)?;
    let held = lock(open, source, PATIENCE)?;
    match first_way_out(&git).refusing(told)? {
        Some(way) => Err(leads_out(source, &way)),
        None => Ok(held),
    }
}

fn leads_out(source: &Path, way: &Path) -> Fault {
    Fault::refused(format!(
        "the repository {} leads out of itself, by {}: linked worktrees, submodules and what `git clone --shared` made \
         are not cloned",
        shown(source),
        shown(way)
    ))
    .with_hint("clone it yourself, and give the bottle that; --mount DIR gives it the files, without git")
}

fn lock(mut file: File, source: &Path, patience: Duration) -> Result<Flock<File>, Fault> {
    let deadline = Instant::now() + patience;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(held) => return Ok(held),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                file = back;
                let _ = poll(&mut [], PollTimeout::from(INTERVAL_MS));
            }
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(Fault::refused(format!("a bottle is at work in {}", shown(source)))
                    .with_hint("stop it first: what it writes while git reads could lead git elsewhere"));
            }
            Err((_, errno)) => return Err(errno).failing(|| format!("cannot lock {}", shown(source))),
        }
    }
}

/// What in the git directory could send git elsewhere.
fn first_way_out(git: &Path) -> io::Result<Option<PathBuf>> {
    let mut left = vec![git.to_path_buf()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let (kind, path) = (entry.file_type()?, entry.path());
            if kind.is_dir() {
                left.push(path);
            } else if !kind.is_file() {
                return Ok(Some(path));
            }
        }
    }
    for name in ["objects/info/alternates", "objects/info/http-alternates"] {
        let path = git.join(name);
        if is_there(&path)? {
            return Ok(Some(path));
        }
    }
    let commondir = git.join("commondir");
    if is_there(&commondir)? {
        let mut text = String::new();
        File::open(&commondir)?.take(COMMONDIR_MAX).read_to_string(&mut text)?;
        if text.trim_end_matches(['\r', '\n']) != "." {
            return Ok(Some(commondir));
        }
    }
    Ok(None)
}

fn is_there(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::git::WorkingCopy;

    #[test]
    fn a_repository_that_a_bottle_works_in_is_not_read() {
        let root = tempfile::tempdir().unwrap();
        let git = root.path().join(".git");
        fs::create_dir(&git).unwrap();
        let open = || File::open(&git).unwrap();
        let bottle = WorkingCopy::prepare(root.path(), &[]).unwrap();
        let fault = lock(open(), root.path(), Duration::ZERO).unwrap_err();
        assert!(fault.to_string().starts_with("a bottle is at work in "), "{fault}");
        assert_eq!(bottle.close(), Vec::<String>::new());
        let held = hold(root.path()).unwrap();
        // Nor does one start meanwhile.
        assert!(WorkingCopy::prepare(root.path(), &[]).is_err());
        // One that is cloning is waited for.
        let waiting = std::thread::spawn({
            let (file, path) = (open(), root.path().to_path_buf());
            move || lock(file, &path, Duration::from_secs(60)).is_ok()
        });
        let _ = poll(&mut [], PollTimeout::from(2 * INTERVAL_MS));
        drop(held);
        assert!(waiting.join().unwrap());
    }
}
