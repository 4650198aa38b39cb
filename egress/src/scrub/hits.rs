//! How often answers had a secret in them. The count outlives the routes: a reload for something else gives nobody more guesses.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use policy::{Route, Scheme};

use super::reflected;
use crate::credential::{Secret, SecretStore};
use crate::refusal::Refusal;

/// An upstream that sends secrets back more often is asked no more: whoever watches the masks could use it to guess.
const HITS_MAX: u64 = 1000;

/// How often the answers of one upstream had a secret in them.
#[derive(Debug, Default)]
pub(crate) struct Hits(AtomicU64);

impl Hits {
    /// Refuses once it was too often.
    pub(crate) fn judge(&self) -> Result<(), Refusal> {
        if self.0.load(Ordering::Relaxed) < HITS_MAX { Ok(()) } else { Err(reflected()) }
    }

    /// Whether answers under way have to end.
    pub(super) fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed) > HITS_MAX
    }

    pub(super) fn add(&self, hits: u64) {
        self.0.fetch_add(hits, Ordering::Relaxed);
    }
}

/// The counts of all upstreams that there ever were a route to.
#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<HashMap<Upstream, Counted>>);

/// Routes that share these share a count, so that a grant for another path gives no more guesses at the same secret.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Upstream {
    scheme: Scheme,
    host: String,
    secret: Option<String>,
}

#[derive(Debug, Default)]
struct Counted {
    /// What is injected, when it was last to be had.
    secret: Option<Secret>,
    hits: Arc<Hits>,
}

impl Counts {
    /// The count for `route`, which is in force now. It begins anew when the secret is another.
    pub(crate) fn of(&self, route: &Route, secrets: &SecretStore) -> Arc<Hits> {
        let wanted = route.credential().map(|credential| &credential.secret);
        let upstream = Upstream {
            scheme: route.scheme(),
            host: route.host().to_string(),
            secret: wanted.map(|secret| secret.name().to_string()),
        };
        let now = wanted.and_then(|secret| secrets.get(secret).ok());
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = counts.entry(upstream).or_default();
        if let Some(now) = now
            && counted.secret.as_ref() != Some(&now)
            && counted.secret.replace(now).is_some()
        {
            counted.hits = Arc::default();
        }
        Arc::clone(&counted.hits)
    }
}
