//! What the bundle reads its secrets from when it starts, whenever that is: a pipe among its sockets, which root alone may open.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread::Builder;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use zeroize::Zeroizing;

use super::compose::SECRETS_PIPE;
use crate::fault::{Attempted, Fault};

/// The pipe, gone when dropped.
#[derive(Debug)]
pub(super) struct Feed(PathBuf);

impl Feed {
    /// A pipe in `directory` that nobody writes to yet.
    pub(super) fn new(directory: &Path) -> Result<Feed, Fault> {
        let path = directory.join(SECRETS_PIPE);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).failing(|| format!("cannot make {}", path.display()))?;
        Ok(Feed(path))
    }

    /// Gives `lines` to the first who reads, if `may_have` says so when they come; else they read nothing.
    pub(super) fn begin(
        &self,
        lines: Zeroizing<Vec<u8>>,
        may_have: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<(), Fault> {
        let path = self.0.clone();
        let write = move || {
            // Waits for the reader. One that ends before it has read all is seen by what it does not do then.
            let Ok(mut pipe) = File::options().write(true).open(path) else { return };
            if may_have() {
                let _ = pipe.write_all(&lines);
            }
        };
        let writer = Builder::new().name("secrets".into()).spawn(write);
        writer.failing(|| "cannot start a thread".to_owned()).map(drop)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        // Nobody comes for it any more. A writer that nobody came for ends with this process, which a start that failed ends.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_first_who_reads_gets_all_of_it_and_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let feed = Feed::new(directory.path()).unwrap();
        let path = directory.path().join(SECRETS_PIPE);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        // More than a pipe holds.
        let lines = vec![b'x'; 100_000];
        feed.begin(Zeroizing::new(lines.clone()), || true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), lines);
        drop(feed);
        assert!(!path.exists());
    }

    #[test]
    fn who_may_not_have_it_reads_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let feed = Feed::new(directory.path()).unwrap();
        feed.begin(Zeroizing::new(b"KEY c2VjcmV0\n".to_vec()), || false).unwrap();
        assert_eq!(fs::read(directory.path().join(SECRETS_PIPE)).unwrap(), b"");
    }
}
