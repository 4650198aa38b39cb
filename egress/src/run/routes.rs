//! The file of the routes, read whole: never half of what someone is still writing.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Error;

/// A file of routes larger than this is a mistake.
const LIMIT: u64 = 8 * 1024 * 1024;
/// A file that is changed in its place must stay as it is for so long.
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
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> io::Result<Stamp> {
        let metadata = file.metadata()?;
        Ok(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }

    fn is_same_file(&self, other: &Stamp) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl RoutesFile {
    pub(super) fn new(path: PathBuf) -> RoutesFile {
        RoutesFile { path, last: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The text. What was renamed into place is whole; what is the same file as before may be in the middle of being written,
    /// and is read again until it stays the same.
    pub(super) async fn read(&mut self) -> Result<String, Error> {
        self.read_with(async || tokio::time::sleep(QUIET).await).await
    }

    async fn read_with(&mut self, mut pause: impl AsyncFnMut()) -> Result<String, Error> {
        let mut before = read(&self.path)?;
        for _ in 0..ATTEMPTS {
            let (_, stamp) = &before;
            if self.last.is_some_and(|last| last.is_same_file(stamp) && last != *stamp) {
                pause().await;
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

/// The text as it is now.
pub(super) fn read_once(path: &Path) -> Result<String, Error> {
    read(path).map(|(text, _)| text)
}

fn read(path: &Path) -> Result<(String, Stamp), Error> {
    let failed = |source| Error::ReadRoutes { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let stamp = Stamp::of(&file).map_err(failed)?;
    let mut text = String::new();
    (&file).take(LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LIMIT {
        let reason = format!("larger than {LIMIT} bytes");
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, reason)));
    }
    Ok((text, stamp))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    const WHOLE: &str = "routes:\n  - {host: a.test}\n  - {host: a.test, deny: true}\n";
    const HALF: &str = "routes:\n  - {host: a.test}\n";

    /// A file that was read once, with `text` in it.
    async fn known(text: &str) -> (tempfile::TempDir, RoutesFile) {
        let directory = tempfile::tempdir().unwrap();
        let mut file = RoutesFile::new(directory.path().join("routes.yaml"));
        fs::write(&file.path, text).unwrap();
        assert_eq!(file.read_with(async || panic!("nothing to wait for")).await.unwrap(), text);
        (directory, file)
    }

    #[tokio::test]
    async fn a_file_that_is_written_in_its_place_is_read_once_it_stays_the_same() {
        let (_directory, mut file) = known("routes: []\n").await;
        fs::write(&file.path, HALF).unwrap();
        let path = file.path.clone();
        let mut pauses = 0;
        let text = file.read_with(async || {
            pauses += 1;
            if pauses == 1 {
                fs::write(&path, WHOLE).unwrap();
            }
        });
        assert_eq!(text.await.unwrap(), WHOLE);
        assert_eq!(pauses, 2);
    }

    #[tokio::test]
    async fn a_file_that_is_renamed_into_place_is_not_waited_for() {
        let (directory, mut file) = known("routes: []\n").await;
        let new = directory.path().join("new");
        fs::write(&new, WHOLE).unwrap();
        fs::rename(&new, &file.path).unwrap();
        assert_eq!(file.read_with(async || panic!("nothing to wait for")).await.unwrap(), WHOLE);
    }

    #[tokio::test]
    async fn a_file_that_does_not_stay_the_same_is_refused() {
        let (_directory, mut file) = known("routes: []\n").await;
        fs::write(&file.path, HALF).unwrap();
        let path = file.path.clone();
        let mut length = 0;
        let text = file.read_with(async || {
            length += 1;
            fs::write(&path, format!("{HALF}{}", "#".repeat(length))).unwrap();
        });
        assert!(matches!(text.await, Err(Error::ReadRoutes { .. })));
    }
}
