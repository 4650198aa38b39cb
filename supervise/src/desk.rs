//! The desk: the queue of proposals, and the journal that makes each of its steps durable before anybody is told of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use audit::{Durability, Journal, Recovery, Replayed};
use jiff::Timestamp;
use proposal::wire::{Status, View};
use proposal::{Ask, Change, Entry, Event, Id, Illegal, Item, Note, Noted, Queue, State};
use tokio::sync::{broadcast, watch};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::pace::{self, Pace};

/// How many proposals may wait for the operator at once.
pub const PENDING_MAX: usize = 20;

/// Proposals and what became of them, durable. Its writing methods block for the time of one `fdatasync`.
pub struct Desk {
    /// Taken by whoever changes something, for as long as it takes to make it durable.
    writer: Mutex<Writer>,
    queue: RwLock<Queue>,
    changed: watch::Sender<u64>,
    news: broadcast::Sender<View>,
    paused: AtomicBool,
    watchers: AtomicUsize,
    /// When an operator last asked something.
    seen: Mutex<Option<Instant>>,
    clock: Clock,
}

struct Writer {
    journal: Journal,
    pace: Pace,
    /// Where the journals of the others ended, as last recorded.
    anchors: BTreeMap<String, (u64, String)>,
}

/// How long after an operator's last question somebody counts as there.
const PRESENCE: Duration = Duration::from_secs(5 * 60);
/// How many changes a slow watcher may be behind before it misses some.
const NEWS_KEPT: usize = 64;

/// What an agent hands in.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What it asks for.
    pub ask: Ask,
    /// Its own name for this call.
    pub key: Option<String>,
    /// The refusal that it was made from.
    pub block_id: Option<String>,
    /// The pending request whose place it takes.
    pub supersedes: Option<Id>,
}

impl From<Ask> for Wanted {
    fn from(ask: Ask) -> Wanted {
        Wanted { ask, key: None, block_id: None, supersedes: None }
    }
}

/// Held by a client that watches; somebody is there for as long.
pub struct Watching<'d> {
    desk: &'d Desk,
    /// Each request that changes.
    pub news: broadcast::Receiver<View>,
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.desk.watchers.fetch_sub(1, Ordering::Relaxed);
        self.desk.operator_asked();
    }
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
    /// The operator said no several times in a row.
    #[error("the last {times} requests were rejected; do what is possible without, and ask again in {} s", retry_after.as_secs())]
    CoolDown {
        /// How often.
        times: u32,
        /// When to ask again.
        retry_after: Duration,
    },
    /// The operator takes none for now.
    #[error("the operator takes no requests at present; do what is possible without")]
    Paused,
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
            Refusal::CoolDown { .. } => "cool-down",
            Refusal::Paused => "paused",
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
        let (mut pace, mut paused, mut anchors) = (Pace::default(), false, BTreeMap::new());
        for record in audit::replay::<Entry>(path)? {
            let Replayed { seq, event: entry, .. } = record?;
            match entry {
                Entry::Proposal(event) => {
                    if matches!(event.change, Change::Received { .. }) {
                        // It was taken then, however fast it was.
                        let _ = pace.take(event.at);
                    }
                    queue.apply(&event).map_err(|source| OpenError::Story {
                        path: path.to_owned(),
                        seq,
                        source,
                    })?;
                }
                Entry::Desk(Note { what: Noted::Paused { .. }, .. }) => paused = true,
                Entry::Desk(Note { what: Noted::Resumed { .. }, .. }) => paused = false,
                Entry::Desk(Note { what: Noted::Anchor { daemon, records, hash }, .. }) => {
                    anchors.insert(daemon, (records, hash));
                }
            }
        }
        Ok(Desk {
            writer: Mutex::new(Writer { journal, pace, anchors }),
            queue: RwLock::new(queue),
            changed: watch::Sender::new(0),
            news: broadcast::Sender::new(NEWS_KEPT),
            paused: AtomicBool::new(paused),
            watchers: AtomicUsize::new(0),
            seen: Mutex::new(None),
            clock: Clock::start(),
        })
    }

    /// The time that counts: it does not go back.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let clock = self.clock.now();
        self.read(|queue| queue.now(clock))
    }

    /// Files what an agent wants. A call that was made before, by its key or by what it asks for, is that one.
    ///
    /// # Errors
    /// When the agent asks too much, or it cannot be made durable.
    pub fn propose(&self, wanted: Wanted, now: Timestamp) -> Result<View, Refusal> {
        let Wanted { ask, key, block_id, supersedes } = wanted;
        let mut writer = self.writer();
        if let Some(same) = self.read(|queue| known(queue, &ask, key.as_deref(), now))? {
            info!(id = %same.id, "proposal is filed already");
            return Ok(same);
        }
        if self.paused.load(Ordering::Relaxed) {
            return Err(Refusal::Paused);
        }
        let (times, last) = self.read(Queue::rejected_in_a_row);
        if let Some(retry_after) = pace::cool_down(times, last, now) {
            return Err(Refusal::CoolDown { times, retry_after });
        }
        let freed = usize::from(supersedes.is_some());
        if self.read(|queue| queue.pending(now)).saturating_sub(freed) >= PENDING_MAX {
            return Err(Refusal::QueueFull);
        }
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|_| Refusal::Random)?;
        let id = Id::from_random(bytes);
        let change = Change::Received { proposal: ask, key, block_id, supersedes: supersedes.clone() };
        let event = Event { id, at: now, change };
        self.read(|queue| queue.check(&event))?;
        writer.pace.take(now).map_err(|retry_after| Refusal::TooFast { retry_after })?;
        let view = self.record(&writer, event)?;
        if let Some(old) = supersedes.and_then(|old| self.view(&old, now)) {
            // Nobody has to watch.
            let _ = self.news.send(old);
        }
        Ok(view)
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

    /// Records what happened to the desk; an anchor that says nothing new is passed over.
    ///
    /// # Errors
    /// When it cannot be made durable.
    pub fn note(&self, what: Noted, now: Timestamp) -> Result<(), Refusal> {
        let mut writer = self.writer();
        if let Noted::Anchor { daemon, records, hash } = &what
            && writer.anchors.get(daemon).is_some_and(|(known, of)| known == records && of == hash)
        {
            return Ok(());
        }
        let entry = Entry::Desk(Note { at: now, what });
        writer.journal.append(&entry, Durability::Synced).map_err(Refusal::Journal)?;
        match entry {
            Entry::Desk(Note { what: Noted::Paused { .. }, .. }) => {
                self.paused.store(true, Ordering::Relaxed)
            }
            Entry::Desk(Note { what: Noted::Resumed { .. }, .. }) => {
                self.paused.store(false, Ordering::Relaxed);
            }
            Entry::Desk(Note { what: Noted::Anchor { daemon, records, hash }, .. }) => {
                writer.anchors.insert(daemon, (records, hash));
            }
            Entry::Proposal(_) => {}
        }
        Ok(())
    }

    /// How the desk stands.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> Status {
        let (records, hash) = self.writer().journal.head();
        Status {
            paused: self.paused.load(Ordering::Relaxed),
            pending: self.read(|queue| queue.pending(now)),
            watchers: self.watchers.load(Ordering::Relaxed),
            records,
            head: hash.to_string(),
        }
    }

    /// Somebody is there from now on for a while.
    pub fn operator_asked(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether somebody watches, or asked something not long ago.
    #[must_use]
    pub fn is_operator_there(&self) -> bool {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.watchers.load(Ordering::Relaxed) > 0 || seen.is_some_and(|seen| seen.elapsed() < PRESENCE)
    }

    /// Watches for requests that change.
    #[must_use]
    pub fn watch(&self) -> Watching<'_> {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watching { desk: self, news: self.news.subscribe() }
    }

    /// Each request that changes, for those who carry decisions on. Nobody is there because of it.
    #[must_use]
    pub fn news(&self) -> broadcast::Receiver<View> {
        self.news.subscribe()
    }

    /// The newest request about what is held under that name.
    #[must_use]
    pub fn hold(&self, hold: &str, now: Timestamp) -> Option<View> {
        self.read(|queue| queue.find_hold(hold).map(|item| View::of(item, now)))
    }

    /// Changes whenever something was filed.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn record(&self, writer: &Writer, event: Event) -> Result<View, Refusal> {
        self.read(|queue| queue.check(&event))?;
        let entry = Entry::Proposal(event.clone());
        writer.journal.append(&entry, Durability::Synced).map_err(Refusal::Journal)?;
        let view = {
            let mut queue = self.queue.write().unwrap_or_else(PoisonError::into_inner);
            queue.apply(&event)?;
            queue.get(&event.id).map(|item| View::of(item, event.at))
        };
        let view = view.ok_or(Illegal::Unknown { id: event.id })?;
        info!(id = %view.id, state = view.state.as_str(), asks = %view.proposal, "filed");
        self.changed.send_modify(|version| *version += 1);
        // Nobody has to watch.
        let _ = self.news.send(view.clone());
        Ok(view)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, read: impl FnOnce(&Queue) -> T) -> T {
        read(&self.queue.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The proposal that this call made before, or that stands for it.
fn known(queue: &Queue, ask: &Ask, key: Option<&str>, now: Timestamp) -> Result<Option<View>, Illegal> {
    let view = |item: &Item| View::of(item, now);
    match key.and_then(|key| queue.find_key(key)) {
        Some(item) if item.proposal.is_same_as(ask) => Ok(Some(view(item))),
        Some(item) => Err(Illegal::KeyTaken { id: item.id.clone() }),
        None => Ok(queue.find_same(ask, now).or_else(|| queue.find_rejected(ask, now)).map(view)),
    }
}
