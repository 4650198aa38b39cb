//! The three things a journal does to its file, so that a test can let each of them fail.

use std::fs::{File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};

pub(crate) trait Storage: Send {
    /// Writes at the end.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to `length` and continues there.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

/// A file that nobody else may write (flock(2)).
#[derive(Debug)]
pub(crate) struct Locked(File);

impl Locked {
    pub(crate) fn new(file: File) -> Result<Locked, TryLockError> {
        file.try_lock()?;
        Ok(Locked(file))
    }
}

impl Drop for Locked {
    /// The lock belongs to the open file, of which a child has a copy from its fork to its exec: closing ours would leave it locked so
    /// long.
    fn drop(&mut self) {
        // It fails for no file that could be locked, and the lock goes with the last copy at the latest.
        self.0.unlock().ok();
    }
}

impl Storage for Locked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.0.set_len(length)?;
        self.0.seek(SeekFrom::Start(length)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_a_child_holds_keeps_no_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.jsonl");
        let locked = Locked::new(File::create(&path).unwrap()).unwrap();
        let copy = locked.0.try_clone().unwrap();
        assert!(matches!(Locked::new(File::open(&path).unwrap()), Err(TryLockError::WouldBlock)));
        drop(locked);
        Locked::new(File::open(&path).unwrap()).unwrap();
        drop(copy);
    }
}
