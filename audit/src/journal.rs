//! Appending to a journal.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

use crate::Error;
use crate::chain::{Hash, Link};
use crate::event::Recovered;
use crate::read::{Head, Lines};
use crate::storage::Storage;

/// No event of ours comes near it; it keeps one line readable and one read bounded.
const EVENT_LIMIT: usize = 1 << 20;

/// An open journal: exclusively locked, positioned after its last record. Appending takes `&self`; records do not interleave.
pub struct Journal {
    writer: Mutex<Writer>,
}

/// What has to be true when [`Journal::append`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The record survives a power cut.
    Synced,
    /// The record is with the kernel: it survives a crash of the process.
    Buffered,
}

/// Where an event went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub seq: u64,
    /// Its time.
    pub time: Timestamp,
    /// Its hash.
    pub hash: Hash,
}

/// What [`Journal::open`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Every line was whole.
    Clean,
    /// The last line was unfinished and was dropped.
    TornTail {
        /// Its size.
        dropped_bytes: u64,
    },
}

impl Journal {
    /// Opens the journal at `path`, or makes it (file 0600, its directory 0700), checks the whole chain and drops an unfinished
    /// last line.
    ///
    /// # Errors
    /// When the file cannot be had, is locked by another process, or is broken before its last line.
    pub fn open(path: impl AsRef<Path>) -> Result<(Journal, Recovery), Error> {
        let path = path.as_ref();
        let open = |source| Error::Open { path: path.to_owned(), source };
        let mut file = create(path).map_err(open)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(open(source)),
        }
        let Head { seq, hash, bytes, unfinished_bytes } = Lines::new(path, &file).head()?;
        file.cut(bytes).map_err(open)?;
        let mut writer =
            Writer { storage: Box::new(file), link: Link { seq, hash }, length: bytes, dirty: false };
        let recovery = if unfinished_bytes == 0 {
            Recovery::Clean
        } else {
            writer.append(&Recovered::new(Timestamp::now(), unfinished_bytes), Durability::Synced)?;
            Recovery::TornTail { dropped_bytes: unfinished_bytes }
        };
        Ok((Journal { writer: Mutex::new(writer) }, recovery))
    }

    /// Appends one event.
    ///
    /// # Errors
    /// When the event could not be written as asked. The file is then cut back to its last good length, so that a later append
    /// works as soon as the cause (a full disk) is gone.
    pub fn append<E: Serialize + ?Sized>(&self, event: &E, durability: Durability) -> Result<Record, Error> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).append(event, durability)
    }

    /// Number and hash of the last record: what to keep elsewhere, so that a missing tail shows.
    #[must_use]
    pub fn head(&self) -> (u64, Hash) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        (writer.link.seq, writer.link.hash)
    }
}

fn create(path: &Path) -> io::Result<File> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    if !directory.is_dir() {
        if let Some(above) = directory.parent() {
            fs::create_dir_all(above)?;
        }
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    let is_new = !path.exists();
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if is_new {
        File::open(directory)?.sync_all()?;
    }
    Ok(file)
}

struct Writer {
    storage: Box<dyn Storage>,
    link: Link,
    length: u64,
    /// A failed append may have left bytes behind `length`.
    dirty: bool,
}

impl Writer {
    fn append<E: Serialize + ?Sized>(&mut self, event: &E, durability: Durability) -> Result<Record, Error> {
        let event = serde_json::to_string(event).map_err(Error::Encode)?;
        if event.len() > EVENT_LIMIT {
            return Err(Error::TooLarge { bytes: event.len(), limit: EVENT_LIMIT });
        }
        let time = Timestamp::now();
        let (line, link) = self.link.seal(time, &event);
        self.clean().and_then(|()| self.write(line.as_bytes(), durability)).map_err(Error::Append)?;
        self.link = link;
        self.length += line.len() as u64;
        Ok(Record { seq: link.seq, time, hash: link.hash })
    }

    fn write(&mut self, line: &[u8], durability: Durability) -> io::Result<()> {
        self.dirty = true;
        let written = self.storage.write(line).and_then(|()| match durability {
            Durability::Synced => self.storage.sync(),
            Durability::Buffered => Ok(()),
        });
        match written {
            Ok(()) => self.dirty = false,
            // The cause is what the caller has to know; should this cut fail too, the next append cuts first.
            Err(_) => drop(self.clean()),
        }
        written
    }

    fn clean(&mut self) -> io::Result<()> {
        if self.dirty {
            self.storage.cut(self.length)?;
            self.dirty = false;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Default)]
    struct Disk {
        bytes: Vec<u8>,
        room: Option<usize>,
        sync_fails: bool,
        cut_fails: bool,
    }

    impl Storage for Arc<Mutex<Disk>> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
            let mut disk = self.lock().unwrap();
            let fits =
                disk.room.map_or(bytes.len(), |room| room.saturating_sub(disk.bytes.len()).min(bytes.len()));
            disk.bytes.extend_from_slice(&bytes[..fits]);
            if fits == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
        }

        fn sync(&mut self) -> io::Result<()> {
            if self.lock().unwrap().sync_fails { Err(io::Error::other("sync")) } else { Ok(()) }
        }

        fn cut(&mut self, length: u64) -> io::Result<()> {
            let mut disk = self.lock().unwrap();
            if disk.cut_fails {
                return Err(io::Error::other("cut"));
            }
            disk.bytes.truncate(length.try_into().unwrap());
            Ok(())
        }
    }

    fn writer(disk: &Arc<Mutex<Disk>>) -> Writer {
        Writer { storage: Box::new(Arc::clone(disk)), link: Link::START, length: 0, dirty: false }
    }

    fn chain_of(disk: &Arc<Mutex<Disk>>) -> Head {
        Lines::new(Path::new("journal"), disk.lock().unwrap().bytes.as_slice()).head().unwrap()
    }

    #[test]
    fn a_full_disk_refuses_the_event_and_a_later_append_works() {
        let disk = Arc::new(Mutex::new(Disk::default()));
        let mut writer = writer(&disk);
        writer.append("first", Durability::Synced).unwrap();
        disk.lock().unwrap().room = Some(300);
        assert!(matches!(writer.append("second", Durability::Synced), Err(Error::Append(_))));
        assert_eq!(chain_of(&disk).unfinished_bytes, 0);
        disk.lock().unwrap().room = None;
        assert_eq!(writer.append("third", Durability::Synced).unwrap().seq, 2);
        assert_eq!(chain_of(&disk).seq, 2);
    }

    #[test]
    fn a_failed_sync_takes_the_record_back() {
        let disk = Arc::new(Mutex::new(Disk::default()));
        let mut writer = writer(&disk);
        disk.lock().unwrap().sync_fails = true;
        assert!(writer.append("first", Durability::Synced).is_err());
        assert_eq!(disk.lock().unwrap().bytes, b"");
    }

    #[test]
    fn nothing_is_appended_behind_bytes_that_could_not_be_cut() {
        let disk = Arc::new(Mutex::new(Disk { room: Some(10), cut_fails: true, ..Disk::default() }));
        let mut writer = writer(&disk);
        assert!(writer.append("first", Durability::Synced).is_err());
        disk.lock().unwrap().room = None;
        assert!(writer.append("first", Durability::Synced).is_err());
        disk.lock().unwrap().cut_fails = false;
        assert_eq!(writer.append("first", Durability::Synced).unwrap().seq, 1);
        assert_eq!(chain_of(&disk).seq, 1);
    }
}
