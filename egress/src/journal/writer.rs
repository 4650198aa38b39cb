//! The thread that writes the journal.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use audit::{Admission, Durability, Journal, ReloadEvent, RepeatedEvent, Repeats, RequestEvent};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::error::TryRecvError;
use tracing::{error, info};

use super::Message;
use crate::sys;

/// How long the writer rests once nothing waits: what comes meanwhile is written together, and wakes no thread. It rests twice as long,
/// up to the most, each time that something came.
const REST: Duration = Duration::from_millis(2);
const REST_MAX: Duration = Duration::from_millis(16);
/// How long it rests while nothing can be written, before it tries again.
const BROKEN_REST: Duration = Duration::from_millis(50);
/// How many records are written together.
const TOGETHER: usize = 64;

/// Writes what comes over the queue.
pub(super) struct Writer {
    journal: Journal,
    broken: Arc<AtomicBool>,
    places: Arc<Semaphore>,
    /// How many places are to be freed.
    done: usize,
    repeats: Repeats,
    /// What is to be written, in this order. Each request among it has its place.
    waiting: Vec<Record>,
}

/// What waits to be written. The structs carry their `type`.
#[derive(Serialize)]
#[serde(untagged)]
enum Record {
    Request(Box<RequestEvent>),
    Repeated(RepeatedEvent),
    Reload(ReloadEvent),
}

impl Record {
    fn durability(&self) -> Durability {
        match self {
            Record::Request(_) | Record::Repeated(_) => Durability::Buffered,
            Record::Reload(_) => Durability::Synced,
        }
    }
}

/// Nobody waits for a place that it would have freed.
impl Drop for Writer {
    fn drop(&mut self) {
        self.places.close();
    }
}

impl Writer {
    pub(super) fn new(journal: Journal, broken: Arc<AtomicBool>, places: Arc<Semaphore>) -> Writer {
        Writer { journal, broken, places, done: 0, repeats: Repeats::default(), waiting: Vec::new() }
    }

    /// Returns when nobody is left who could hand something in.
    pub(super) fn run(mut self, mut messages: UnboundedReceiver<Message>) {
        let mut rest = REST;
        loop {
            if self.is_broken() {
                // It tries again, whether something came or not.
                match messages.try_recv() {
                    Ok(message) => self.take(message),
                    Err(TryRecvError::Empty) => {}
                    Err(TryRecvError::Disconnected) => return,
                }
            } else {
                let Some(message) = messages.blocking_recv() else { return };
                self.take(message);
            }
            while let Ok(message) = messages.try_recv() {
                self.take(message);
            }
            self.write();
            self.free_places();
            // Nobody unparks it; should it return early, it only writes sooner.
            thread::park_timeout(if self.is_broken() { BROKEN_REST } else { rest });
            rest = if messages.is_empty() { REST } else { REST_MAX.min(rest * 2) };
        }
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    fn take(&mut self, message: Message) {
        let now = Timestamp::now();
        // While nothing can be written, it goes on to be counted: that needs no room.
        if !self.is_broken() {
            let due = self.repeats.due(now);
            self.waiting.extend(due.into_iter().map(Record::Repeated));
        }
        match message {
            Message::Request(event) => match self.repeats.admit(&event, now) {
                Admission::Record => self.waiting.push(Record::Request(event)),
                Admission::Count => self.done += 1,
            },
            Message::Reload(event) => {
                self.waiting.push(Record::Reload(event));
                self.write();
            }
            Message::Head(tell) => {
                self.write();
                let (records, hash) = self.journal.head();
                let _ = tell.send((records, hash.to_string()));
            }
            Message::Flush(done) => {
                self.write();
                let counted = self.repeats.flush();
                self.waiting.extend(counted.into_iter().map(Record::Repeated));
                self.write();
                let _ = done.send(self.waiting.len());
            }
        }
        if self.waiting.len() >= TOGETHER && !self.is_broken() {
            self.write();
        }
        if self.done >= TOGETHER {
            self.free_places();
        }
    }

    /// Frees the places of what was taken, all at once: each time costs those who look for one.
    fn free_places(&mut self) {
        self.places.add_permits(mem::take(&mut self.done));
    }

    /// Writes what waits, or as much of it as can be. What cannot waits on, but for requests that were refused: they are counted.
    fn write(&mut self) {
        if self.waiting.is_empty() && self.is_broken() {
            // There has to be something to try with.
            self.waiting.extend(self.repeats.flush().into_iter().map(Record::Repeated));
        }
        let (mut written, mut result) = (0, Ok(()));
        for records in self.waiting.chunks(TOGETHER) {
            let done;
            (done, result) = self.append(records);
            written += done;
            if result.is_err() {
                break;
            }
        }
        let is_request = |record: Record| usize::from(matches!(record, Record::Request(_)));
        self.done += self.waiting.drain(..written).map(is_request).sum::<usize>();
        if result.is_err() {
            let now = Timestamp::now();
            self.waiting.retain(|record| match record {
                Record::Request(event) if !event.went_out() => {
                    self.repeats.count(event, now);
                    self.done += 1;
                    false
                }
                Record::Request(_) | Record::Repeated(_) | Record::Reload(_) => true,
            });
        }
        self.settle(result);
    }

    /// Writes these together, or one after the other. How many of them are done with, and why it is no more.
    fn append(&self, records: &[Record]) -> (usize, Result<(), audit::Error>) {
        let is_synced = records.iter().any(|record| record.durability() == Durability::Synced);
        let durability = if is_synced { Durability::Synced } else { Durability::Buffered };
        if self.journal.append_all(records, durability).is_ok() {
            return (records.len(), Ok(()));
        }
        for (done, record) in records.iter().enumerate() {
            // A new file of it may have to be begun.
            match sys::with_reserve(|| self.journal.append(record, record.durability())) {
                Ok(_) => {}
                Err(error @ audit::Error::Append(_)) => return (done, Err(error)),
                // It never can be, and would keep the others.
                Err(error) => error!(%error, "a record is lost: it cannot be written at all"),
            }
        }
        (records.len(), Ok(()))
    }

    fn settle(&self, result: Result<(), audit::Error>) {
        match result {
            Ok(()) => {
                if self.broken.swap(false, Ordering::Relaxed) {
                    info!("the journal is written again");
                }
            }
            Err(error) => {
                if !self.broken.swap(true, Ordering::Relaxed) {
                    let cause =
                        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    error!(%error, cause, "the journal cannot be written: requests are refused");
                }
            }
        }
    }
}
