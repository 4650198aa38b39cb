//! The file of the routes, read whole: never half of what someone is still writing.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Error;
use crate::sys;

/// A file of routes larger than this is a mistake.
const LIMIT: u64 = 8 * 1024 * 1024;
/// What was written a shorter time ago may be in the middle of being written.
const QUIET: Duration = Duration::from_millis(50);
/// How often it is looked at before it is given up.
const ATTEMPTS: usize = 20;

/// routes.yaml, and which file it was.
pub(super) struct RoutesFile {
    path: PathBuf,
    last: Option<Stamp>,
}

/// What changes when a file is written, or another takes its place.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: SystemTime,
}

impl Stamp {
    fn of(file: &File) -> io::Result<Stamp> {
        let metadata = file.metadata()?;
        Ok(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: metadata.modified()?,
        })
    }

    fn is_same_file(&self, other: &Stamp) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// How long it still has to stay as it is; `last` is what was read before. A file that was changed in its place is waited for whatever
    /// its time says: the clock that wrote it may be another.
    fn unsettled(&self, last: Option<&Stamp>) -> Option<Duration> {
        if last == Some(self) {
            return None;
        }
        let is_rewritten = last.is_some_and(|last| last.is_same_file(self));
        let age = self.modified.elapsed().ok().filter(|_| !is_rewritten);
        QUIET.checked_sub(age.unwrap_or_default()).filter(|rest| !rest.is_zero())
    }
}

impl RoutesFile {
    pub(super) fn new(path: PathBuf) -> RoutesFile {
        RoutesFile { path, last: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it, once it stays the same: what was written a moment ago may be in the middle of it. A file that was renamed into place
    /// cannot be told from a new one that is being written, so it is waited for too, if it is that young.
    pub(super) async fn read(&mut self) -> Result<Vec<u8>, Error> {
        self.read_with(async |rest| tokio::time::sleep(rest).await).await
    }

    async fn read_with(&mut self, mut pause: impl AsyncFnMut(Duration)) -> Result<Vec<u8>, Error> {
        let mut before = read(&self.path)?;
        for _ in 0..ATTEMPTS {
            let (_, stamp) = &before;
            if let Some(rest) = stamp.unsettled(self.last.as_ref()) {
                pause(rest).await;
            }
            let after = read(&self.path)?;
            if after == before {
                self.last = Some(after.1);
                return Ok(after.0);
            }
            before = after;
        }
        let source = io::Error::new(
            io::ErrorKind::ResourceBusy,
            "it is still being written; rename a whole file into place",
        );
        Err(Error::ReadRoutes { path: self.path.clone(), source })
    }
}

/// What is in it now.
pub(super) fn read_once(path: &Path) -> Result<Vec<u8>, Error> {
    read(path).map(|(bytes, _)| bytes)
}

fn read(path: &Path) -> Result<(Vec<u8>, Stamp), Error> {
    let failed = |source| Error::ReadRoutes { path: path.to_owned(), source };
    let file = sys::with_reserve(|| File::open(path)).map_err(failed)?;
    let stamp = Stamp::of(&file).map_err(failed)?;
    let mut bytes = Vec::new();
    (&file).take(LIMIT + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LIMIT {
        let reason = format!("larger than {LIMIT} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, reason)));
    }
    Ok((bytes, stamp))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    const WHOLE: &str = "routes:\n  - {host: a.test}\n  - {host: a.test, deny: true}\n";
    const HALF: &str = "routes:\n  - {host: a.test}\n";

    /// Writes `text` as if it had been a while ago.
    fn write_long_ago(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        let then = SystemTime::now() - 2 * QUIET;
        File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
    }

    /// A file that was read once, with `text` in it.
    async fn known(text: &str) -> (tempfile::TempDir, RoutesFile) {
        let directory = tempfile::tempdir().unwrap();
        let mut file = RoutesFile::new(directory.path().join("routes.yaml"));
        write_long_ago(&file.path, text);
        assert_eq!(file.read_with(async |_| panic!("nothing to wait for")).await.unwrap(), text.as_bytes());
        (directory, file)
    }

    /// What is read when the first half of it is there now, and the rest comes within the first pause.
    async fn read_while_written(file: &mut RoutesFile) -> (Vec<u8>, usize) {
        let path = file.path.clone();
        let mut pauses = 0;
        let text = file.read_with(async |rest| {
            assert!(rest <= QUIET);
            pauses += 1;
            if pauses == 1 {
                fs::write(&path, WHOLE).unwrap();
            }
        });
        (text.await.unwrap(), pauses)
    }

    #[tokio::test]
    async fn a_file_that_is_written_in_its_place_is_read_once_it_stays_the_same() {
        let (_directory, mut file) = known("routes: []\n").await;
        fs::write(&file.path, HALF).unwrap();
        assert_eq!(read_while_written(&mut file).await, (WHOLE.into(), 2));
        // Whatever the clock says that it was written by.
        write_long_ago(&file.path, HALF);
        assert_eq!(read_while_written(&mut file).await, (WHOLE.into(), 2));
    }

    #[tokio::test]
    async fn a_new_file_that_is_being_written_is_read_once_it_stays_the_same() {
        let (_directory, mut file) = known("routes: []\n").await;
        fs::remove_file(&file.path).unwrap();
        fs::write(&file.path, HALF).unwrap();
        assert_eq!(read_while_written(&mut file).await, (WHOLE.into(), 2));

        let directory = tempfile::tempdir().unwrap();
        let mut first = RoutesFile::new(directory.path().join("routes.yaml"));
        fs::write(&first.path, HALF).unwrap();
        assert_eq!(read_while_written(&mut first).await, (WHOLE.into(), 2));
    }

    #[tokio::test]
    async fn a_file_is_waited_for_no_longer_than_it_is_young() {
        let (directory, mut file) = known("routes: []\n").await;
        let new = directory.path().join("new");
        write_long_ago(&new, WHOLE);
        fs::rename(&new, &file.path).unwrap();
        assert_eq!(file.read_with(async |_| panic!("nothing to wait for")).await.unwrap(), WHOLE.as_bytes());

        fs::write(&new, HALF).unwrap();
        fs::rename(&new, &file.path).unwrap();
        let mut paused = Duration::ZERO;
        let text = file.read_with(async |rest| paused += rest);
        assert_eq!(text.await.unwrap(), HALF.as_bytes());
        assert!(paused <= QUIET);
        // What was read is not waited for again.
        assert_eq!(file.read_with(async |_| panic!("nothing to wait for")).await.unwrap(), HALF.as_bytes());
    }

    #[tokio::test]
    async fn a_file_that_does_not_stay_the_same_is_refused() {
        let (_directory, mut file) = known("routes: []\n").await;
        fs::write(&file.path, HALF).unwrap();
        let path = file.path.clone();
        let mut length = 0;
        let text = file.read_with(async |_| {
            length += 1;
            fs::write(&path, format!("{HALF}{}", "#".repeat(length))).unwrap();
        });
        assert!(matches!(text.await, Err(Error::ReadRoutes { .. })));
    }
}
