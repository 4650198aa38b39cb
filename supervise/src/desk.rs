//! The desk: the queue of proposals, and the journal that makes each of its steps durable before anybody is told of it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use audit::{Durability, Journal, Recovery, Replayed};
use jiff::Timestamp;
use proposal::wire::View;
use proposal::{Change, Event, Id, Illegal, Proposal, Queue, State};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::pace::Pace;

/// How many proposals may wait for the operator at once.
pub const PENDING_MAX: usize = 20;

/// Proposals and what became of them, durable. Its writing methods block for the time of one `fdatasync`.
pub struct Desk {
    /// Taken by whoever changes something, for as long as it takes to make it durable.
    writer: Mutex<Writer>,
    queue: RwLock<Queue>,
    changed: watch::Sender<u64>,
}

struct Writer {
    journal: Journal,
    pace: Pace,
}

/// Why the desk cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] audit::Error),
    /// The journal is whole, but tells an impossible story.
    #[error("record {seq} of {path} cannot follow")]
    Story {
        /// The journal.
        path: PathBuf,
        /// The record.
        seq: u64,
        /// Why.
        #[source]
        source: Illegal,
    },
}

/// Why something is not done.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Too many wait already.
    #[error("{PENDING_MAX} requests wait for the operator already; withdraw one, or wait for a decision")]
    QueueFull,
    /// Too many in a short time.
    #[error("too many requests in a short time; ask again in {} s", retry_after.as_secs())]
    TooFast {
        /// When to ask again.
        retry_after: Duration,
    },
    /// It does not fit what happened before.
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// It cannot be recorded, so it is not done.
    #[error("it cannot be recorded durably, so nothing was done; what was granted before goes on")]
    Journal(#[source] audit::Error),
    /// No name can be made for it.
    #[error("the system gives no random bytes")]
    Random,
}

impl Refusal {
    /// A stable word for it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::QueueFull => "queue-full",
            Refusal::TooFast { .. } => "too-many-requests",
            Refusal::Illegal(illegal) => illegal.code(),
            Refusal::Journal(_) => "journal-unavailable",
            Refusal::Random => "internal",
        }
    }
}

impl Desk {
    /// Opens the journal at `path` and replays it.
    ///
    /// # Errors
    /// When the journal is in use, broken, or tells an impossible story.
    pub fn open(path: &Path) -> Result<Desk, OpenError> {
        let (journal, recovery) = Journal::open(path)?;
        if let Recovery::TornTail { dropped_bytes } = recovery {
            warn!(dropped_bytes, "the journal ended in an unfinished record, which was dropped");
        }
        let mut queue = Queue::default();
        for record in audit::replay::<Event>(path)? {
            let Replayed { seq, event, .. } = record?;
            queue.apply(&event).map_err(|source| OpenError::Story { path: path.to_owned(), seq, source })?;
        }
        let writer = Mutex::new(Writer { journal, pace: Pace::default() });
        Ok(Desk { writer, queue: RwLock::new(queue), changed: watch::Sender::new(0) })
    }

    /// Files a proposal. One that asks for the same as a live one is that one.
    ///
    /// # Errors
    /// When the agent asks too much, or the proposal cannot be made durable.
    pub fn propose(&self, proposal: Proposal, now: Timestamp) -> Result<View, Refusal> {
        let mut writer = self.writer();
        if let Some(same) = self.read(|queue| queue.find_same(&proposal, now).map(|item| View::of(item, now)))
        {
            info!(id = %same.id, "proposal is filed already");
            return Ok(same);
        }
        if self.read(|queue| queue.pending(now)) >= PENDING_MAX {
            return Err(Refusal::QueueFull);
        }
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|_| Refusal::Random)?;
        let id = Id::from_random(bytes);
        writer.pace.take(now).map_err(|retry_after| Refusal::TooFast { retry_after })?;
        self.record(&writer, Event { id, at: now, change: Change::Received { proposal } })
    }

    /// Files what happened to the proposal `id`.
    ///
    /// # Errors
    /// When it cannot follow, or cannot be made durable.
    pub fn file(&self, id: Id, change: Change, now: Timestamp) -> Result<View, Refusal> {
        let writer = self.writer();
        self.record(&writer, Event { id, at: now, change })
    }

    /// The proposal `id`, if there is one.
    #[must_use]
    pub fn view(&self, id: &Id, now: Timestamp) -> Option<View> {
        self.read(|queue| queue.get(id).map(|item| View::of(item, now)))
    }

    /// Proposals, oldest first; those in `state` alone, when given.
    #[must_use]
    pub fn views(&self, state: Option<State>, now: Timestamp) -> Vec<View> {
        self.read(|queue| {
            queue
                .items()
                .filter(|item| state.is_none_or(|state| item.state(now) == state))
                .map(|item| View::of(item, now))
                .collect()
        })
    }

    /// Changes whenever something was filed.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn record(&self, writer: &Writer, event: Event) -> Result<View, Refusal> {
        self.read(|queue| queue.check(&event))?;
        writer.journal.append(&event, Durability::Synced).map_err(Refusal::Journal)?;
        let view = {
            let mut queue = self.queue.write().unwrap_or_else(PoisonError::into_inner);
            queue.apply(&event)?;
            queue.get(&event.id).map(|item| View::of(item, event.at))
        };
        let view = view.ok_or(Illegal::Unknown { id: event.id })?;
        info!(id = %view.id, state = view.state.as_str(), host = view.proposal.host().as_str(), "filed");
        self.changed.send_modify(|version| *version += 1);
        Ok(view)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, read: impl FnOnce(&Queue) -> T) -> T {
        read(&self.queue.read().unwrap_or_else(PoisonError::into_inner))
    }
}
