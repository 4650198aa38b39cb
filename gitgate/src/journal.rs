//! What went through the gate, on the record.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use audit::{Bound, Durability, Event, FetchEvent, Journal, PushBegunEvent, PushEvent, RefUpdate, UsesEvent};
use scan::Rules;
use tracing::{error, info};

use crate::git::printable;
use crate::wire::{Place, Update};

/// The word for a refusal because nothing can be recorded.
pub(crate) const AUDIT_UNAVAILABLE: &str = "audit-unavailable";
/// The same for the client.
pub(crate) const UNRECORDED: &str = "audit-unavailable: requests cannot be recorded now; try again later";

const FORWARDED: &str = "forwarded";
/// The one end after which it is sure that upstream took nothing.
const REJECTED: &str = "rejected";

/// How much of a name is recorded.
const NAME_MAX_CHARS: usize = 256;

/// The journal, shared by all sessions.
pub(crate) struct Ledger {
    journal: Arc<Journal>,
    broken: AtomicBool,
    used: Arc<Used>,
}

/// How often each grant was used: pushes that were begun, without those of which it is sure that upstream took nothing.
struct Used {
    /// Held while an event is recorded: what a file of the journal begins with is what the files before came to.
    turn: Mutex<()>,
    grants: Mutex<BTreeMap<String, u64>>,
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
    /// Upstream said no, or was not asked: it is sure that it took nothing.
    Rejected(String),
    /// It was sent, and upstream's answer is not known: it may have taken it.
    Unanswered(String),
    /// Upstream took it.
    Forwarded(String),
}

impl Ledger {
    pub(crate) fn open(state_dir: &Path) -> Result<Self, audit::Error> {
        Self::open_within(state_dir, Bound::default())
    }

    fn open_within(state_dir: &Path, bound: Bound) -> Result<Self, audit::Error> {
        let path = state_dir.join("audit/git-gate/journal.jsonl");
        let (journal, _) = Journal::open_within(&path, bound)?;
        let used = Used { turn: Mutex::default(), grants: used(audit::replay(&path)?)?.into() };
        Ok(Self { journal: Arc::new(journal), broken: AtomicBool::new(false), used: Arc::new(used) })
    }

    /// How often each grant was used.
    pub(crate) fn used(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.used.grants()
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
        self.append(event, Durability::Buffered, Count::Nothing).await;
    }

    /// Records that a push is about to be forwarded; whether that could be done. Without it the push must not be.
    pub(crate) async fn push_begins(&self, repo: &str, updates: &[Update], grants: &[String]) -> bool {
        let event = PushBegunEvent { repo: repo.to_owned(), refs: refs(updates), grants: grants.to_vec() };
        self.append(event, Durability::Synced, Count::Up(grants.to_vec())).await
    }

    pub(crate) async fn push(&self, repo: &str, pushed: &Pushed, took: Duration) {
        let Pushed { updates, outcome, objects, bytes_up, grants, released } = pushed;
        let counted = match outcome {
            PushOutcome::Rejected(_) => Count::Down(grants.clone()),
            _ => Count::Nothing,
        };
        let (findings, upstream_answer) = match outcome {
            PushOutcome::Secrets(places) => (places.iter().map(finding).collect(), None),
            PushOutcome::Rejected(words) | PushOutcome::Unanswered(words) | PushOutcome::Forwarded(words) => {
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
        self.append(event, Durability::Synced, counted).await;
    }

    /// Records an event and counts what it says of grants, both or neither.
    async fn append(
        &self,
        event: impl serde::Serialize + Send + 'static,
        durability: Durability,
        counted: Count,
    ) -> bool {
        let (journal, used) = (self.journal.clone(), self.used.clone());
        let written = tokio::task::spawn_blocking(move || {
            let _turn = used.turn.lock().unwrap_or_else(PoisonError::into_inner);
            let before = UsesEvent { grants: used.grants().clone() };
            let record = journal.append_carrying(&before, &event, durability)?;
            counted.into(&mut used.grants());
            Ok::<_, audit::Error>(record)
        });
        let written = written.await;
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
            Self::Rejected(_) => REJECTED,
            Self::Unanswered(_) => "unanswered",
            Self::Forwarded(_) => FORWARDED,
        }
    }
}

impl Used {
    fn grants(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts the uses of grants in what was recorded.
fn used(events: audit::Replay<Event>) -> Result<BTreeMap<String, u64>, audit::Error> {
    let mut used = BTreeMap::new();
    for replayed in events {
        match replayed?.event {
            Event::Uses(uses) => used = uses.grants,
            Event::PushBegun(begun) => Count::Up(begun.grants).into(&mut used),
            Event::Push(push) if push.outcome == REJECTED => Count::Down(push.grants).into(&mut used),
            Event::Push(_) | Event::Fetch(_) | Event::Request(_) | Event::Repeated(_) | Event::Reload(_) => {}
        }
    }
    Ok(used)
}

/// What an event says of the uses of grants.
enum Count {
    Up(Vec<String>),
    Down(Vec<String>),
    Nothing,
}

impl Count {
    fn into(self, used: &mut BTreeMap<String, u64>) {
        let (grants, change): (_, fn(u64) -> u64) = match self {
            Self::Up(grants) => (grants, |uses| uses.saturating_add(1)),
            Self::Down(grants) => (grants, |uses| uses.saturating_sub(1)),
            Self::Nothing => return,
        };
        for grant in grants {
            let uses = used.entry(grant).or_default();
            *uses = change(*uses);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(grant: &str, outcome: PushOutcome) -> Pushed {
        Pushed { outcome, grants: vec![grant.to_owned()], ..Pushed::default() }
    }

    async fn push(ledger: &Ledger, grant: &str, outcome: PushOutcome) {
        let pushed = pushed(grant, outcome);
        assert!(ledger.push_begins("web", &[], &pushed.grants).await);
        ledger.push("web", &pushed, Duration::ZERO).await;
    }

    #[tokio::test]
    async fn a_use_is_given_back_only_where_upstream_surely_took_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let words = String::new;
        let ends = [
            ("forwarded", PushOutcome::Forwarded(words()), 1),
            ("rejected", PushOutcome::Rejected(words()), 0),
            ("unanswered", PushOutcome::Unanswered(words()), 1),
            ("abandoned", PushOutcome::Abandoned, 1),
            ("failed", PushOutcome::Failed, 1),
        ];
        let ledger = Ledger::open(dir.path()).expect("a journal");
        for (grant, outcome, _) in &ends {
            push(&ledger, grant, outcome.clone()).await;
        }
        let uses =
            |ledger: &Ledger| ends.iter().map(|(grant, _, _)| ledger.used()[*grant]).collect::<Vec<_>>();
        let expected: Vec<u64> = ends.iter().map(|(_, _, uses)| *uses).collect();
        assert_eq!(uses(&ledger), expected);
        drop(ledger);
        assert_eq!(uses(&Ledger::open(dir.path()).expect("a journal")), expected, "after a restart");
    }

    #[tokio::test]
    async fn uses_outlive_the_files_that_they_stand_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let bound = Bound { segment_bytes: 2000, segments: Some(2) };
        let ledger = Ledger::open_within(dir.path(), bound).expect("a journal");
        push(&ledger, "g", PushOutcome::Forwarded(String::new())).await;
        for _ in 0..100 {
            let outcome = "served";
            let read = Read { repo: "web", outcome, stale: None, bytes_down: 0, took: Duration::ZERO };
            ledger.fetch(read).await;
            push(&ledger, "h", PushOutcome::Rejected(String::new())).await;
        }
        push(&ledger, "g", PushOutcome::Unanswered(String::new())).await;
        let used = ledger.used().clone();
        assert_eq!((used["g"], used["h"]), (2, 0));
        drop(ledger);
        let path = dir.path().join("audit/git-gate/journal.jsonl");
        assert!(audit::verify(&path).expect("a chain").dropped > 0, "files were dropped");
        assert_eq!(*Ledger::open_within(dir.path(), bound).expect("a journal").used(), used);
    }
}
