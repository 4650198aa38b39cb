//! What went through the gate, on the record.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use audit::{Durability, FetchEvent, Journal, PushEvent, RefUpdate};
use tracing::error;

use crate::wire::{Place, Update};

/// The journal, shared by all sessions.
#[derive(Clone)]
pub(crate) struct Ledger(Arc<Journal>);

/// How a push ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PushOutcome {
    /// The client went away before anything was judged, or had nothing to push.
    Abandoned,
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
        Ok(Self(Arc::new(journal)))
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
            name: u.name.clone(),
            old: u.old.clone(),
            new: u.new.clone(),
        });
        let (findings, upstream_answer) = match outcome {
            PushOutcome::Secrets(places) => (places.iter().map(finding).collect(), None),
            PushOutcome::Rejected(words) | PushOutcome::Forwarded(words) => (Vec::new(), Some(words.clone())),
            PushOutcome::Abandoned | PushOutcome::Denied | PushOutcome::Unjudged => (Vec::new(), None),
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
        let journal = self.0.clone();
        let written = tokio::task::spawn_blocking(move || journal.append(&event, durability).map(drop)).await;
        if let Ok(Err(error)) = written {
            error!(error = %error, "the audit journal cannot be written");
        }
    }
}

impl PushOutcome {
    /// A stable word.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
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
        path: place.file.clone(),
        line: place.line,
    }
}

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
