//! The audit journal: typed events in a file of hash-chained JSON lines.
//!
//! One line is one record:
//!
//! ```text
//! {"seq":1,"time":"2026-11-21T10:00:00Z","prev":"<64 hex>","event":{...},"hash":"<64 hex>"}
//! ```
//!
//! `hash` is the SHA-256 of the bytes of the line before `,"hash":"`, `prev` is the `hash` of the record before (64 zeros in the
//! first), `seq` counts from 1. Nothing has to be canonicalised to verify a journal: the bytes of the file are what is hashed.
//!
//! A journal that was cut at any byte recovers by itself, because a record that lacks its newline was never acknowledged; a
//! journal that is broken anywhere else is refused with the line and the sequence number. The chain cannot show a missing tail:
//! compare [`Head`] with one that was kept elsewhere.
//!
//! A journal that grows goes on in a new file: `journal.jsonl` is the one that is written, `journal.000000001234.jsonl` one that was closed
//! with record 1234, and the chain runs through all of them. When the oldest is dropped ([`Bound`]), a record says so first.

mod chain;
mod event;
mod journal;
mod read;
mod repeats;
mod segment;
mod storage;

pub use chain::{Broken, Fault, Hash};
pub use event::{
    Decision, Dropped, Event, FetchEvent, Finding, PushBegunEvent, PushEvent, Recovered, RefUpdate,
    ReloadEvent, RepeatedEvent, RequestEvent, UsesEvent,
};
pub use journal::{Bound, Durability, Journal, Record, Recovery};
pub use read::{Head, Replay, Replayed, hashes, last, newest_refusals, replay, verify};
pub use repeats::{Admission, Repeats};

use std::io;
use std::path::PathBuf;

/// Why a journal could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or its directory could not be opened, created or read.
    #[error("cannot open the journal {path}")]
    Open {
        /// The journal.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process holds the journal.
    #[error("the journal {path} is in use by another process")]
    InUse {
        /// The journal.
        path: PathBuf,
    },
    /// The chain is broken before its last record.
    #[error("the journal {path} is broken: {broken}")]
    Broken {
        /// The journal.
        path: PathBuf,
        /// Where and how.
        #[source]
        broken: Broken,
    },
    /// A record could not be made durable; the journal is back at its last good length.
    #[error("cannot append to the journal")]
    Append(#[source] io::Error),
    /// The event has no JSON form.
    #[error("cannot write the event as JSON")]
    Encode(#[source] serde_json::Error),
    /// The event is larger than a record may be.
    #[error("the event of {bytes} bytes is larger than a record may be ({limit} bytes)")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// The chain is sound, but an event is not of the type that was asked for.
    #[error("record {seq} is of another kind")]
    Decode {
        /// The record.
        seq: u64,
        /// What serde said.
        #[source]
        source: serde_json::Error,
    },
}
