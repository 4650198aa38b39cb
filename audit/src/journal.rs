//! Appending to a journal.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;

use crate::Error;
use crate::chain::{Hash, Link};
use crate::event::{Dropped, Recovered};
use crate::read::{Head, Lines};
use crate::segment;
use crate::storage::{Locked, Storage};

/// No event of ours comes near it; it keeps one line readable and one read bounded.
const EVENT_LIMIT: usize = 1 << 20;
/// What most events fit in.
const EVENT_USUAL: usize = 512;
/// What a line has besides its event, and more.
const LINE_MORE: usize = 256;

/// An open journal: exclusively locked, positioned after its last record. Appending takes `&self`; records do not interleave.
pub struct Journal {
    writer: Mutex<Writer>,
}

/// How much of a journal is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// A file that would grow beyond it is closed, and the next one begun.
    pub segment_bytes: u64,
    /// So many closed files are kept; the oldest goes, and the journal says so. All are, if absent.
    pub segments: Option<usize>,
}

/// What an agent can fill with its requests.
impl Default for Bound {
    fn default() -> Bound {
        Bound { segment_bytes: 32 << 20, segments: Some(8) }
    }
}

impl Bound {
    /// Everything is kept, in files of bounded size.
    pub const KEEP_ALL: Bound = Bound { segment_bytes: 32 << 20, segments: None };
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
        Journal::open_within(path, Bound::KEEP_ALL)
    }

    /// The same, with a bound on what is kept.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_within(path: impl AsRef<Path>, bound: Bound) -> Result<(Journal, Recovery), Error> {
        let path = path.as_ref();
        let open = |source| Error::Open { path: path.to_owned(), source };
        let mut file = match Locked::new(create(path).map_err(open)?) {
            Ok(file) => file,
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(open(source)),
        };
        let Head { seq, hash, last_bytes: length, unfinished_bytes, .. } = Lines::of(path)?.head()?;
        file.cut(length).map_err(open)?;
        let rotation = Some(Rotation::new(path, bound));
        let mut writer =
            Writer { storage: Box::new(file), link: Link { seq, hash }, length, dirty: false, rotation };
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

    /// The same. Where a new file is begun for the event, `carried` is the first record of it, so that what it sums up is not lost with
    /// the files that go.
    ///
    /// # Errors
    /// As [`Journal::append`], for either.
    pub fn append_carrying<C: Serialize + ?Sized, E: Serialize + ?Sized>(
        &self,
        carried: &C,
        event: &E,
        durability: Durability,
    ) -> Result<Record, Error> {
        let carried = encode(carried)?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let event = encode(event)?;
        writer.make_room(event.len() as u64, Some(&carried)).map_err(Error::Append)?;
        writer.add(&event, durability)
    }

    /// Appends these events, in this order, with one write: all of them, or none.
    ///
    /// # Errors
    /// As [`Journal::append`], for all of them.
    pub fn append_all<E: Serialize>(&self, events: &[E], durability: Durability) -> Result<(), Error> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).append_all(events, durability)
    }

    /// Number and hash of the last record: what to keep elsewhere, so that a missing tail shows.
    #[must_use]
    pub fn head(&self) -> (u64, Hash) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        (writer.link.seq, writer.link.hash)
    }
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

fn create(path: &Path) -> io::Result<File> {
    let directory = directory(path);
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

/// Where the next file of a journal goes.
struct Rotation {
    path: PathBuf,
    bound: Bound,
    rename: fn(&Path, &Path) -> io::Result<()>,
}

/// What a rotation has come to.
struct Rotated {
    file: Locked,
    directory: File,
    /// The closed files that are too many, oldest first.
    excess: Vec<PathBuf>,
}

impl Rotation {
    fn new(path: &Path, bound: Bound) -> Rotation {
        Rotation { path: path.to_owned(), bound, rename: |from, to| fs::rename(from, to) }
    }

    /// Closes the file that ends with the record `seq`. What may fail for want of a descriptor comes before anything is moved: the files are in
    /// their places where this succeeds, and stay where they were otherwise.
    fn next(&self, seq: u64) -> io::Result<Rotated> {
        let (new, closed) = (self.path.with_extension("jsonl.new"), segment::name(&self.path, seq));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&new)?;
        let file = Locked::new(file)?;
        let directory = File::open(directory(&self.path))?;
        let excess = self.excess(&closed)?;
        (self.rename)(&self.path, &closed)?;
        if let Err(error) = (self.rename)(&new, &self.path) {
            // Where this fails too, the next start begins a new file behind the one that is closed.
            let _ = (self.rename)(&closed, &self.path);
            return Err(error);
        }
        Ok(Rotated { file, directory, excess })
    }

    /// The closed files that are too many once there is `another`.
    fn excess(&self, another: &Path) -> io::Result<Vec<PathBuf>> {
        let mut closed: Vec<_> = segment::closed(&self.path)?.into_iter().map(|(_, path)| path).collect();
        closed.push(another.to_owned());
        let kept = self.bound.segments.unwrap_or(usize::MAX);
        closed.truncate(closed.len().saturating_sub(kept));
        Ok(closed)
    }
}

struct Writer {
    storage: Box<dyn Storage>,
    link: Link,
    /// Absent where there is only storage, in tests.
    rotation: Option<Rotation>,
    length: u64,
    /// A failed append may have left bytes behind `length`.
    dirty: bool,
}

impl Writer {
    fn append<E: Serialize + ?Sized>(&mut self, event: &E, durability: Durability) -> Result<Record, Error> {
        let event = encode(event)?;
        self.make_room(event.len() as u64, None).map_err(Error::Append)?;
        self.add(&event, durability)
    }

    fn append_all<E: Serialize>(&mut self, events: &[E], durability: Durability) -> Result<(), Error> {
        let events = events.iter().map(encode).collect::<Result<Vec<String>, Error>>()?;
        self.make_room(events.iter().map(|event| event.len() as u64).sum(), None).map_err(Error::Append)?;
        let time = Timestamp::now().to_string();
        let length = events.iter().map(|event| event.len() + LINE_MORE).sum();
        let mut lines = String::with_capacity(length);
        let link = events.iter().fold(self.link, |link, event| link.seal(&mut lines, &time, event));
        self.put(&lines, link, durability)
    }

    /// Begins a new file when the present one is full. What is closed is durable before; what is carried over comes first.
    fn make_room(&mut self, bytes: u64, carried: Option<&str>) -> io::Result<()> {
        let Some(rotation) = &self.rotation else { return Ok(()) };
        if self.length == 0 || self.length + bytes <= rotation.bound.segment_bytes {
            return Ok(());
        }
        self.clean()?;
        self.storage.sync()?;
        let Some(rotation) = &self.rotation else { return Ok(()) };
        let Rotated { file, directory, excess } = rotation.next(self.link.seq)?;
        self.storage = Box::new(file);
        self.length = 0;
        if let Some(carried) = carried {
            self.own(carried)?;
        }
        directory.sync_all()?;
        // Said durably before it is gone.
        let Some(last) = excess.last() else { return Ok(()) };
        let Some(end) = segment::end(last) else { return Ok(()) };
        let dropped = serde_json::to_string(&Dropped::new(end.seq, end.hash.to_string()))?;
        self.own(&dropped)?;
        excess.iter().try_for_each(fs::remove_file)
    }

    /// Appends a record about the journal itself, durably.
    fn own(&mut self, event: &str) -> io::Result<()> {
        match self.add(event, Durability::Synced) {
            Ok(_) => Ok(()),
            Err(Error::Append(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn add(&mut self, event: &str, durability: Durability) -> Result<Record, Error> {
        let time = Timestamp::now();
        let mut line = String::new();
        let link = self.link.seal(&mut line, &time.to_string(), event);
        self.put(&line, link, durability)?;
        Ok(Record { seq: link.seq, time, hash: link.hash })
    }

    /// Writes whole lines, of which the last makes `link`.
    fn put(&mut self, lines: &str, link: Link, durability: Durability) -> Result<(), Error> {
        self.clean().and_then(|()| self.write(lines.as_bytes(), durability)).map_err(Error::Append)?;
        self.link = link;
        self.length += lines.len() as u64;
        Ok(())
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

fn encode<E: Serialize + ?Sized>(event: &E) -> Result<String, Error> {
    let mut bytes = Vec::with_capacity(EVENT_USUAL);
    serde_json::to_writer(&mut bytes, event).map_err(Error::Encode)?;
    if bytes.len() > EVENT_LIMIT {
        return Err(Error::TooLarge { bytes: bytes.len(), limit: EVENT_LIMIT });
    }
    String::from_utf8(bytes).map_err(|error| Error::Encode(serde::ser::Error::custom(error)))
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
        Writer {
            storage: Box::new(Arc::clone(disk)),
            link: Link::START,
            length: 0,
            dirty: false,
            rotation: None,
        }
    }

    fn chain_of(disk: &Arc<Mutex<Disk>>) -> Head {
        Lines::new(Path::new("journal"), disk.lock().unwrap().bytes.as_slice()).head().unwrap()
    }

    /// A journal that begins a new file with its third record, in a directory where nothing is put into its place while `stuck` is there.
    fn rotating(directory: &Path) -> Journal {
        let bound = Bound { segment_bytes: 500, segments: None };
        let (journal, _) = Journal::open_within(directory.join("journal.jsonl"), bound).unwrap();
        let rename = |from: &Path, to: &Path| {
            let is_stuck = from.with_file_name("stuck").exists();
            if is_stuck && from.extension().is_some_and(|extension| extension == "new") {
                return Err(io::Error::other("stuck"));
            }
            fs::rename(from, to)
        };
        journal.writer.lock().unwrap().rotation.as_mut().unwrap().rename = rename;
        journal
    }

    #[test]
    fn a_file_that_cannot_be_begun_leaves_the_one_before_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.jsonl");
        let journal = rotating(directory.path());
        let event = "x".repeat(100);
        let append = |journal: &Journal| journal.append(&event, Durability::Synced).map(|record| record.seq);
        assert_eq!((append(&journal).unwrap(), append(&journal).unwrap()), (1, 2));
        fs::write(directory.path().join("stuck"), "").unwrap();
        for _ in 0..3 {
            assert!(matches!(append(&journal), Err(Error::Append(_))));
            assert_eq!(Lines::of(&path).unwrap().head().unwrap().seq, 2);
        }
        fs::remove_file(directory.path().join("stuck")).unwrap();
        assert_eq!(append(&journal).unwrap(), 3);
        assert_eq!(segment::closed(&path).unwrap().len(), 1);
        drop(journal);
        assert_eq!(append(&rotating(directory.path())).unwrap(), 4);
        assert_eq!(Lines::of(&path).unwrap().head().unwrap().seq, 4);
    }

    #[test]
    fn a_start_after_an_end_between_the_two_moves_goes_on_behind_the_closed_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.jsonl");
        let journal = rotating(directory.path());
        for _ in 0..2 {
            journal.append("event", Durability::Synced).unwrap();
        }
        drop(journal);
        fs::rename(&path, segment::name(&path, 2)).unwrap();
        fs::write(path.with_extension("jsonl.new"), "").unwrap();
        let journal = rotating(directory.path());
        assert_eq!(journal.append("event", Durability::Synced).unwrap().seq, 3);
        assert_eq!(Lines::of(&path).unwrap().head().unwrap().seq, 3);
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
    fn of_events_that_are_written_together_all_are_there_or_none() {
        let disk = Arc::new(Mutex::new(Disk::default()));
        let mut writer = writer(&disk);
        writer.append_all(&["first", "second", "third"], Durability::Buffered).unwrap();
        assert_eq!(chain_of(&disk).seq, 3);
        // Room for one of two.
        let length = disk.lock().unwrap().bytes.len();
        disk.lock().unwrap().room = Some(length + 300);
        assert!(matches!(
            writer.append_all(&["fourth", "fifth"], Durability::Buffered),
            Err(Error::Append(_))
        ));
        assert_eq!((chain_of(&disk).seq, chain_of(&disk).unfinished_bytes), (3, 0));
        assert_eq!(writer.append("fourth", Durability::Buffered).unwrap().seq, 4);
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
