//! What went through the gate, on the record.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use audit::{Durability, FetchEvent, Journal, PushEvent, RefUpdate};
use scan::Rules;
use tracing::{error, info};

use crate::git::printable;
use crate::wire::{Place, Update};

/// The word for a refusal because nothing can be recorded.
pub(crate) const AUDIT_UNAVAILABLE: &str = "audit-unavailable";
/// The same for the client.
pub(crate) const UNRECORDED: &str = "audit-unavailable: requests cannot be recorded now; try again later";

/// How much of a name is recorded.
const NAME_MAX_CHARS: usize = 256;

/// The journal, shared by all sessions.
pub(crate) struct Ledger {
    journal: Arc<Journal>,
    broken: AtomicBool,
}

/// How a push ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PushOutcome {
    /// The client went away, or stood still for too long.
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
        let (journal, _) = Journal::open(state_dir.join("audit/git-gate/journal.jsonl"))?;
        Ok(Self { journal: Arc::new(journal), broken: AtomicBool::new(false) })
    }

    /// Whether the last event could not be written.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    pub(crate) async fn fetch(&self, repo: &str, outcome: &str, bytes_down: u64, took: Duration) {
        let event = FetchEvent {
            repo: repo.to_owned(),
            outcome: outcome.to_owned(),
            bytes_down,
            millis: millis(took),
        };
        self.append(event, Durability::Buffered).await;
    }

    pub(crate) async fn push(&self, repo: &str, updates: &[Update], outcome: &PushOutcome, took: Duration) {
        let refs = updates.iter().map(|u| RefUpdate {
            name: shown(&u.name),
            old: u.old.clone(),
            new: u.new.clone(),
        });
        let (findings, upstream_answer) = match outcome {
            PushOutcome::Secrets(places) => (places.iter().map(finding).collect(), None),
            PushOutcome::Rejected(words) | PushOutcome::Forwarded(words) => (Vec::new(), Some(words.clone())),
            PushOutcome::Abandoned
            | PushOutcome::Refused(_)
            | PushOutcome::Failed
            | PushOutcome::Denied
            | PushOutcome::Unjudged => (Vec::new(), None),
        };
        let event = PushEvent {
            repo: repo.to_owned(),
            refs: refs.collect(),
            outcome: outcome.word().to_owned(),
            findings,
            upstream_answer,
            millis: millis(took),
        };
        self.append(event, Durability::Synced).await;
    }

    async fn append(&self, event: impl serde::Serialize + Send + 'static, durability: Durability) {
        let journal = self.journal.clone();
        let written = tokio::task::spawn_blocking(move || journal.append(&event, durability)).await;
        match written {
            Ok(Ok(_)) => {
                if self.broken.swap(false, Ordering::Relaxed) {
                    info!("the journal is written again");
                }
            }
            Ok(Err(error)) => {
                if !self.broken.swap(true, Ordering::Relaxed) {
                    let cause =
                        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    error!(%error, cause, "the journal cannot be written: requests are refused");
                }
            }
            Err(error) => error!(%error, "the work on the journal was cut short"),
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
            Self::Forwarded(_) => "forwarded",
        }
    }
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
fn shown(name: &str) -> String {
    if Rules::builtin().scan(name.as_bytes()).is_empty() {
        printable(name).chars().take(NAME_MAX_CHARS).collect()
    } else {
        "(withheld: a secret in the name)".to_owned()
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
