//! Verifying a journal and reading its events back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead, Read};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::chain::{Broken, Fault, Hash, Link};
use crate::event::{Decision, Dropped, Event, Recovered, RequestEvent};
use crate::segment;

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
    /// Those of them in the file that is written.
    pub last_bytes: u64,
    /// The last record that was dropped with the oldest files, 0 when all are there.
    pub dropped: u64,
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

/// The number and the hash of the last whole record of the journal at `path`, by what that record says itself: the chain before it is not
/// checked, so that a person does not wait for it. Nothing in an empty journal, or one that cannot be read.
#[must_use]
pub fn last(path: impl AsRef<Path>) -> Option<(u64, Hash)> {
    segment::last(path.as_ref()).map(|link| (link.seq, link.hash))
}

/// The hashes of those of `wanted` that the journal at `path` has, by their numbers; the chain is checked on the way.
///
/// # Errors
/// As [`verify`].
pub fn hashes(path: impl AsRef<Path>, wanted: &BTreeSet<u64>) -> Result<BTreeMap<u64, Hash>, Error> {
    let mut lines = Lines::of(path.as_ref())?;
    let mut found = BTreeMap::new();
    while let Some(seq) = lines.next_record(|seq, _, _| seq)? {
        if wanted.contains(&seq) {
            found.insert(seq, lines.link.hash);
        }
    }
    lines.beginning()?;
    Ok(found)
}

/// Reads the events of the journal at `path` in order, checking the chain on the way. An unfinished last line and the records of
/// the journal's own recoveries are passed over. Takes no lock.
///
/// # Errors
/// [`Error::Open`] when the file cannot be opened; each item can be [`Error::Broken`] or [`Error::Decode`].
pub fn replay<E: DeserializeOwned>(path: impl AsRef<Path>) -> Result<Replay<E>, Error> {
    Ok(Replay { lines: Lines::of(path.as_ref())?, ended: false, event: PhantomData })
}

/// The newest requests of the journal at `path` that were refused and named a host, at most `most` of them, newest last; as far as the
/// journal can be read.
#[must_use]
pub fn newest_refusals(path: impl AsRef<Path>, most: usize) -> Vec<(Timestamp, RequestEvent)> {
    let Ok(records) = replay::<Event>(path) else { return Vec::new() };
    let mut kept = VecDeque::with_capacity(most);
    for record in records.map_while(Result::ok) {
        let Event::Request(request) = record.event else { continue };
        if request.decision == Decision::Deny && !request.host.is_empty() {
            if kept.len() == most {
                kept.pop_front();
            }
            kept.push_back((record.time, request));
        }
    }
    kept.into()
}

/// The iterator of [`replay`]. It ends after the first error.
pub struct Replay<E> {
    lines: Lines<segment::Files>,
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
    /// Its hash.
    pub hash: Hash,
    /// The event.
    pub event: E,
}

impl<E: DeserializeOwned> Iterator for Replay<E> {
    type Item = Result<Replayed<E>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let item = self.lines.next_record(|seq, time, event| {
                if serde_json::from_str::<Recovered>(event).is_ok()
                    || serde_json::from_str::<Dropped>(event).is_ok()
                {
                    return Ok(None);
                }
                serde_json::from_str(event)
                    .map(|event| Some(Replayed { seq, time, hash: Hash::GENESIS, event }))
                    .map_err(|source| Error::Decode { seq, source })
            });
            match item {
                Ok(Some(Ok(None))) => {}
                Ok(Some(Ok(Some(replayed)))) => {
                    return Some(Ok(Replayed { hash: self.lines.link.hash, ..replayed }));
                }
                Ok(Some(Err(error))) | Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                Ok(None) => {
                    self.ended = true;
                    if let Err(error) = self.lines.beginning() {
                        return Some(Err(error));
                    }
                }
            }
        }
        None
    }
}

/// The lines of a journal, each checked against the one before.
pub(crate) struct Lines<R> {
    path: PathBuf,
    reader: R,
    buffer: Vec<u8>,
    link: Link,
    /// Where it begins, when not with the first record: proven when the journal itself says that what was before is dropped.
    start: Option<Start>,
    bytes: u64,
}

struct Start {
    link: Link,
    proven: bool,
}

/// Files that are read one after the other.
pub(crate) trait Source: BufRead {
    /// Where in the last file the reader is, when this is not all in one.
    fn last_bytes(&self, all: u64) -> u64;
}

impl Lines<segment::Files> {
    pub(crate) fn of(path: &Path) -> Result<Lines<segment::Files>, Error> {
        let files =
            segment::Files::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        Ok(Lines::new(path, files))
    }
}

impl<R: Source> Lines<R> {
    pub(crate) fn new(path: &Path, reader: R) -> Lines<R> {
        Lines { path: path.to_owned(), reader, buffer: Vec::new(), link: Link::START, start: None, bytes: 0 }
    }

    pub(crate) fn head(mut self) -> Result<Head, Error> {
        while self.next_record(|_, _, _| ())?.is_some() {}
        self.beginning()?;
        Ok(Head {
            seq: self.link.seq,
            hash: self.link.hash,
            bytes: self.bytes,
            last_bytes: self.reader.last_bytes(self.bytes),
            dropped: self.start.map_or(0, |start| start.link.seq),
            unfinished_bytes: self.buffer.len() as u64,
        })
    }

    /// At the end: whether the beginning is the first record, or what was before it was dropped by the journal itself.
    fn beginning(&self) -> Result<(), Error> {
        match &self.start {
            Some(Start { proven: false, .. }) => Err(self.without_beginning()),
            Some(Start { proven: true, .. }) | None => Ok(()),
        }
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
        if self.bytes == 0
            && Link::at(line).is_some()
            && let Some(link) = Link::before(line).filter(|link| *link != Link::START)
        {
            self.link = link;
            self.start = Some(Start { link, proven: false });
        }
        let (link, entry) = match self.link.follow(line) {
            Ok(followed) => followed,
            Err(fault) => return Err(self.broken(fault)),
        };
        if let Some(start) = self.start.as_mut().filter(|start| !start.proven) {
            start.proven = start.is_dropped_by(entry.event.get());
        }
        let item = read(entry.seq, entry.time, entry.event.get());
        self.bytes += self.buffer.len() as u64;
        self.link = link;
        Ok(Some(item))
    }

    /// The first line that does not hold: the present one, unless the beginning is missing already.
    fn broken(&mut self, fault: Fault) -> Error {
        let (line, seq) = (self.link.seq + 1, self.link.seq + 1);
        let Some(start) = &self.start else {
            return Error::Broken { path: self.path.clone(), broken: Broken { line, seq, fault } };
        };
        let line = line - start.link.seq;
        if self.is_beginning_dropped() {
            return Error::Broken { path: self.path.clone(), broken: Broken { line, seq, fault } };
        }
        self.without_beginning()
    }

    fn without_beginning(&self) -> Error {
        let broken = Broken { line: 1, seq: 1, fault: Fault::Link };
        Error::Broken { path: self.path.clone(), broken }
    }

    /// Whether the journal says, here or in what is left of it, that it dropped what is missing at its beginning.
    fn is_beginning_dropped(&mut self) -> bool {
        let Some(start) = &self.start else { return false };
        let mut is_dropped = start.proven;
        while !is_dropped {
            self.buffer.clear();
            let read = (&mut self.reader).take(LINE_LIMIT).read_until(b'\n', &mut self.buffer);
            let Some(line) = self.buffer.strip_suffix(b"\n").filter(|_| read.is_ok()) else { break };
            let event = Link::at(line).and_then(|_| Link::event(line));
            is_dropped = event.is_some_and(|event| start.is_dropped_by(event));
        }
        is_dropped
    }
}

impl Start {
    fn is_dropped_by(&self, event: &str) -> bool {
        serde_json::from_str::<Dropped>(event).is_ok_and(|dropped| {
            dropped.through == self.link.seq && dropped.hash == self.link.hash.to_string()
        })
    }
}
