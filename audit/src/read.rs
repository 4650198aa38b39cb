//! Verifying a journal and reading its events back.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::chain::{Broken, Fault, Hash, Link};
use crate::event::Recovered;

/// Longer than the longest line that [`crate::Journal`] writes.
const LINE_LIMIT: u64 = 2 << 20;

/// The end of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Number of the last record, 0 in an empty journal.
    pub seq: u64,
    /// Its hash.
    pub hash: Hash,
    /// Bytes of whole records.
    pub bytes: u64,
    /// Bytes behind them: a line that is being written, or was cut off.
    pub unfinished_bytes: u64,
}

/// Checks the whole chain of the journal at `path`. Takes no lock: the journal may be in use.
///
/// # Errors
/// [`Error::Broken`] with the first line that does not hold, [`Error::Open`] when the file cannot be read.
pub fn verify(path: impl AsRef<Path>) -> Result<Head, Error> {
    Lines::of(path.as_ref())?.head()
}

/// Reads the events of the journal at `path` in order, checking the chain on the way. An unfinished last line and the records of
/// the journal's own recoveries are passed over. Takes no lock.
///
/// # Errors
/// [`Error::Open`] when the file cannot be opened; each item can be [`Error::Broken`] or [`Error::Decode`].
pub fn replay<E: DeserializeOwned>(path: impl AsRef<Path>) -> Result<Replay<E>, Error> {
    Ok(Replay { lines: Lines::of(path.as_ref())?, ended: false, event: PhantomData })
}

/// The iterator of [`replay`]. It ends after the first error.
pub struct Replay<E> {
    lines: Lines<File>,
    ended: bool,
    event: PhantomData<fn() -> E>,
}

/// An event as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed<E> {
    /// Number of the record.
    pub seq: u64,
    /// When it was appended.
    pub time: Timestamp,
    /// The event.
    pub event: E,
}

impl<E: DeserializeOwned> Iterator for Replay<E> {
    type Item = Result<Replayed<E>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let item = self.lines.next_record(|seq, time, event| {
                if serde_json::from_str::<Recovered>(event).is_ok() {
                    return Ok(None);
                }
                serde_json::from_str(event)
                    .map(|event| Some(Replayed { seq, time, event }))
                    .map_err(|source| Error::Decode { seq, source })
            });
            match item {
                Ok(Some(Ok(None))) => {}
                Ok(Some(Ok(Some(replayed)))) => return Some(Ok(replayed)),
                Ok(Some(Err(error))) | Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                Ok(None) => self.ended = true,
            }
        }
        None
    }
}

/// The lines of a journal, each checked against the one before.
pub(crate) struct Lines<R> {
    path: PathBuf,
    reader: BufReader<R>,
    buffer: Vec<u8>,
    link: Link,
    bytes: u64,
}

impl Lines<File> {
    fn of(path: &Path) -> Result<Lines<File>, Error> {
        let file = File::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        Ok(Lines::new(path, file))
    }
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(path: &Path, reader: R) -> Lines<R> {
        Lines {
            path: path.to_owned(),
            reader: BufReader::new(reader),
            buffer: Vec::new(),
            link: Link::START,
            bytes: 0,
        }
    }

    pub(crate) fn head(mut self) -> Result<Head, Error> {
        while self.next_record(|_, _, _| ())?.is_some() {}
        let unfinished_bytes = self.buffer.len() as u64;
        Ok(Head { seq: self.link.seq, hash: self.link.hash, bytes: self.bytes, unfinished_bytes })
    }

    /// `None` at the end, where the buffer holds what is unfinished.
    fn next_record<T>(&mut self, read: impl FnOnce(u64, Timestamp, &str) -> T) -> Result<Option<T>, Error> {
        self.buffer.clear();
        let source = |source: io::Error| Error::Open { path: self.path.clone(), source };
        (&mut self.reader).take(LINE_LIMIT).read_until(b'\n', &mut self.buffer).map_err(source)?;
        let Some(line) = self.buffer.strip_suffix(b"\n") else {
            return if (self.buffer.len() as u64) < LINE_LIMIT {
                Ok(None)
            } else {
                Err(self.broken(Fault::Form))
            };
        };
        let (link, entry) = self.link.follow(line).map_err(|fault| self.broken(fault))?;
        let item = read(entry.seq, entry.time, entry.event.get());
        self.bytes += self.buffer.len() as u64;
        self.link = link;
        Ok(Some(item))
    }

    fn broken(&self, fault: Fault) -> Error {
        let seq = self.link.seq + 1;
        Error::Broken { path: self.path.clone(), broken: Broken { line: seq, seq, fault } }
    }
}
