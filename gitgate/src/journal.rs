//! What went through the gate, on the record.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use audit::{Durability, Event, FetchEvent, Journal, PushBegunEvent, PushEvent, RefUpdate};
use scan::Rules;
use tracing::{error, info};

use crate::git::printable;
use crate::wire::{Place, Update};

/// The word for a refusal because nothing can be recorded.
pub(crate) const AUDIT_UNAVAILABLE: &str = "audit-unavailable";
/// The same for the client.
pub(crate) const UNRECORDED: &str = "audit-unavailable: requests cannot be recorded now; try again later";

const FORWARDED: &str = "forwarded";

/// How much of a name is recorded.
const NAME_MAX_CHARS: usize = 256;

/// The journal, shared by all sessions.
pub(crate) struct Ledger {
    journal: Arc<Journal>,
    broken: AtomicBool,
    /// How often each grant was used: pushes that were begun, without those that came to nothing.
    used: Mutex<BTreeMap<String, u64>>,
}

/// One read, for the record.
pub(crate) struct Read<'a> {
    pub(crate) repo: &'a str,
    pub(crate) outcome: &'a str,
    pub(crate) stale: Option<Duration>,
    pub(crate) bytes_down: u64,
    pub(crate) took: Duration,
}

/// One push, for the record.
#[derive(Debug, Default)]
pub(crate) struct Pushed {
    pub(crate) updates: Vec<Update>,
    pub(crate) outcome: PushOutcome,
    pub(crate) objects: u64,
    pub(crate) bytes_up: u64,
    /// The grants that were counted for it.
    pub(crate) grants: Vec<String>,
    /// What was found in it, where it passes nevertheless.
    pub(crate) released: Vec<Place>,
}

/// How a push ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum PushOutcome {
    /// The client went away, or stood still for too long.
    #[default]
    Abandoned,
    /// Refused before git was asked, for a reason with this word.
    Refused(&'static str),
    /// Git could not read the push, or the hook came to no end.
    Failed,
    /// Refs that may not be pushed.
    Denied,
    /// Secrets.
    Secrets(Vec<Place>),
    /// Objects that could not be judged.
    Unjudged,
    /// Upstream said no.
    Rejected(String),
    /// Upstream took it.
    Forwarded(String),
}

impl Ledger {
    pub(crate) fn open(state_dir: &Path) -> Result<Self, audit::Error> {
        let path = state_dir.join("audit/git-gate/journal.jsonl");
        let (journal, _) = Journal::open(&path)?;
        let used = used(audit::replay(&path)?)?;
        Ok(Self { journal: Arc::new(journal), broken: AtomicBool::new(false), used: used.into() })
    }

    /// How often each grant was used.
    pub(crate) fn used(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many records the journal has, and the hash of the last one.
    pub(crate) fn head(&self) -> (u64, String) {
        let (records, hash) = self.journal.head();
        (records, hash.to_string())
    }

    /// Whether the last event could not be written.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    pub(crate) async fn fetch(&self, read: Read<'_>) {
        let event = FetchEvent {
            repo: read.repo.to_owned(),
            outcome: read.outcome.to_owned(),
            stale_seconds: read.stale.map(|age| age.as_secs()),
            bytes_down: read.bytes_down,
            millis: millis(read.took),
        };
        self.append(event, Durability::Buffered).await;
    }

    /// Records that a push is about to be forwarded; whether that could be done. Without it the push must not be.
    pub(crate) async fn push_begins(&self, repo: &str, updates: &[Update], grants: &[String]) -> bool {
        let event = PushBegunEvent { repo: repo.to_owned(), refs: refs(updates), grants: grants.to_vec() };
        if !self.append(event, Durability::Synced).await {
            return false;
        }
        count(&mut self.used(), grants, Count::Up);
        true
    }

    pub(crate) async fn push(&self, repo: &str, pushed: &Pushed, took: Duration) {
        let Pushed { updates, outcome, objects, bytes_up, grants, released } = pushed;
        if !matches!(outcome, PushOutcome::Forwarded(_)) {
            count(&mut self.used(), grants, Count::Down);
        }
        let (findings, upstream_answer) = match outcome {
            PushOutcome::Secrets(places) => (places.iter().map(finding).collect(), None),
            PushOutcome::Rejected(words) | PushOutcome::Forwarded(words) => {
                (released.iter().map(finding).collect(), Some(words.clone()))
            }
            PushOutcome::Abandoned
            | PushOutcome::Refused(_)
            | PushOutcome::Failed
            | PushOutcome::Denied
            | PushOutcome::Unjudged => (Vec::new(), None),
        };
        let event = PushEvent {
            repo: repo.to_owned(),
            refs: refs(updates),
            outcome: outcome.word().to_owned(),
            objects: *objects,
            bytes_up: *bytes_up,
            grants: grants.clone(),
            findings,
            upstream_answer,
            millis: millis(took),
        };
        self.append(event, Durability::Synced).await;
    }

    async fn append(&self, event: impl serde::Serialize + Send + 'static, durability: Durability) -> bool {
        let journal = self.journal.clone();
        let written = tokio::task::spawn_blocking(move || journal.append(&event, durability)).await;
        match written {
            Ok(Ok(_)) => {
                if self.broken.swap(false, Ordering::Relaxed) {
                    info!("the journal is written again");
                }
                true
            }
            Ok(Err(error)) => {
                if !self.broken.swap(true, Ordering::Relaxed) {
                    let cause =
                        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    error!(%error, cause, "the journal cannot be written: requests are refused");
                }
                false
            }
            Err(error) => {
                error!(%error, "the work on the journal was cut short");
                false
            }
        }
    }
}

impl PushOutcome {
    /// A stable word.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
            Self::Refused(word) => word,
            Self::Failed => "failed",
            Self::Denied => "denied",
            Self::Secrets(_) => "secrets",
            Self::Unjudged => "unjudged",
            Self::Rejected(_) => "rejected",
            Self::Forwarded(_) => FORWARDED,
        }
    }
}

/// Counts the uses of grants in what was recorded.
fn used(events: audit::Replay<Event>) -> Result<BTreeMap<String, u64>, audit::Error> {
    let mut used = BTreeMap::new();
    for replayed in events {
        match replayed?.event {
            Event::PushBegun(begun) => count(&mut used, &begun.grants, Count::Up),
            Event::Push(push) if push.outcome != FORWARDED => count(&mut used, &push.grants, Count::Down),
            Event::Push(_) | Event::Fetch(_) | Event::Request(_) | Event::Repeated(_) | Event::Reload(_) => {}
        }
    }
    Ok(used)
}

enum Count {
    Up,
    Down,
}

fn count(used: &mut BTreeMap<String, u64>, grants: &[String], count: Count) {
    for grant in grants {
        let uses = used.entry(grant.clone()).or_default();
        *uses = match count {
            Count::Up => uses.saturating_add(1),
            Count::Down => uses.saturating_sub(1),
        };
    }
}

fn refs(updates: &[Update]) -> Vec<RefUpdate> {
    let update = |u: &Update| RefUpdate { name: shown(&u.name), old: u.old.clone(), new: u.new.clone() };
    updates.iter().map(update).collect()
}

fn finding(place: &Place) -> audit::Finding {
    audit::Finding {
        rule: place.rule.clone(),
        commit: place.commit.clone(),
        path: shown(&place.file),
        line: place.line,
    }
}

/// A name that the agent chose, fit for the record: bounded, and without a secret in it.
pub(crate) fn shown(name: &str) -> String {
    if Rules::builtin().scan(name.as_bytes()).is_empty() {
        printable(name).chars().take(NAME_MAX_CHARS).collect()
    } else {
        "(withheld: a secret in the name)".to_owned()
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
