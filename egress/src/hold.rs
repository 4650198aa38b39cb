//! Requests that wait for the operator because there is a secret in them. A yes is a release of the exact bytes in the routes, which the host
//! alone writes; supervise is told what waits, and its word can only refuse.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use policy::{Denial, Release};
use proposal::peer::{HOLD_ID_CHARS, Held, Hold, OPERATOR_OFFLINE, Verdict, Word};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::except::Named;
use crate::lease::Lease;
use crate::proxy::Proxy;
use crate::refusal::{Code, Refusal};
use crate::snapshot::Snapshot;
use crate::tls::{hex, random};
use crate::uses::NoUse;

/// How long a request may wait.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How many may wait at once.
const HELD_MAX: usize = 8;
/// The longest body that is held.
pub(crate) const BODY_MAX: usize = 1 << 20;
/// How many requests may be read whole at once: that bounds the memory that they take, held or not.
const WHOLE_MAX: usize = 32;
/// How long one waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);
/// How many words to supervise may wait to be sent.
const WORDS_MAX: usize = 64;

/// What waits.
pub(crate) struct Holds {
    open: Mutex<HashMap<String, Open>>,
    turns: Arc<Semaphore>,
    /// Of several that one release fits, one at a time takes of it: the others have then taken nothing of what their route gives.
    taking: tokio::sync::Mutex<()>,
    words: mpsc::Sender<Word>,
    /// Until supervise is spoken to.
    unsent: Mutex<Option<mpsc::Receiver<Word>>>,
}

/// Leave to keep a body in memory; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    /// `bytes`, which give the turn back when the last of them are sent or dropped.
    pub(crate) fn keep(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Kept { bytes, _turn: self })
    }
}

struct Kept {
    bytes: Vec<u8>,
    _turn: Turn,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

struct Open {
    hold: Hold,
    /// Refuses it, with the reason.
    refuse: Option<oneshot::Sender<String>>,
}

/// A place among what waits; given back when it is dropped.
struct Place<'h> {
    holds: &'h Holds,
    id: String,
}

impl Default for Holds {
    fn default() -> Holds {
        let (words, unsent) = mpsc::channel(WORDS_MAX);
        let turns = Arc::new(Semaphore::new(WHOLE_MAX));
        Holds {
            open: Mutex::default(),
            turns,
            taking: tokio::sync::Mutex::default(),
            words,
            unsent: Mutex::new(Some(unsent)),
        }
    }
}

impl Holds {
    /// What is to be said to supervise. There is one who says it.
    pub(crate) fn words(&self) -> Option<mpsc::Receiver<Word>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Leave to keep a request's body in memory.
    pub(crate) async fn turn(&self) -> Result<Turn, Refusal> {
        let turn = timeout(TURN_TIMEOUT, Arc::clone(&self.turns).acquire_owned()).await;
        turn.ok().and_then(Result::ok).map(|permit| Turn { _permit: permit }).ok_or_else(|| {
            let hint = "too many requests are searched as a whole at once: wait for one to end";
            Refusal::new(Code::ConcurrencyLimit, hint).retry_after(TURN_TIMEOUT)
        })
    }

    /// Says that a grant is used up. Said again when it is asked for again, so it may be lost.
    pub(crate) fn exhausted(&self, grant: &str) {
        let _ = self.words.try_send(Word::Exhausted { grant: grant.to_owned() });
    }

    /// The names of all that wait, oldest first; a word about each is said again.
    pub(crate) fn ids(&self) -> Vec<String> {
        let open = self.open();
        let mut holds: Vec<&Hold> = open.values().map(|open| &open.hold).collect();
        holds.sort_by_key(|hold| hold.at);
        for hold in &holds {
            let _ = self.words.try_send(Word::Held { hold: (*hold).clone() });
        }
        holds.into_iter().map(|hold| hold.id.clone()).collect()
    }

    /// Takes what supervise says was decided; whether it waited. A yes is none until the routes have it.
    pub(crate) fn decide(&self, id: &str, digest: &str, verdict: Verdict, reason: String) -> bool {
        let mut open = self.open();
        let Some(open) = open.get_mut(id).filter(|open| open.hold.digest == digest) else { return false };
        match verdict {
            Verdict::Approve => true,
            Verdict::Reject => open.refuse.take().is_some_and(|refuse| refuse.send(reason).is_ok()),
        }
    }

    fn take(&self, hold: Hold) -> Option<(Place<'_>, oneshot::Receiver<String>)> {
        let (refuse, refused) = oneshot::channel();
        let mut open = self.open();
        if open.len() >= HELD_MAX {
            return None;
        }
        let id = hold.id.clone();
        open.insert(id.clone(), Open { hold: hold.clone(), refuse: Some(refuse) });
        // What is lost is asked for.
        let _ = self.words.try_send(Word::Held { hold });
        Some((Place { holds: self, id }, refused))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<String, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.holds.open().remove(&self.id);
        let _ = self.holds.words.try_send(Word::Dropped { id: self.id.clone() });
    }
}

/// A request that has something in it that may not leave unasked.
pub(crate) struct Suspect {
    /// Of everything that would go out, `sha256:…`.
    pub(crate) digest: String,
    /// What it is.
    pub(crate) what: Held,
    /// What was found; at least one, at most as many as are told.
    pub(crate) findings: Vec<proposal::peer::Found>,
    /// How much was found.
    pub(crate) found: u64,
    /// The first of it that has a name.
    pub(crate) named: Option<Named>,
}

/// A request on its way through the operator's hands.
pub(crate) struct Asking<'p> {
    proxy: &'p Proxy,
    suspect: Suspect,
    lease: Arc<Lease>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    place: Option<(Place<'p>, oneshot::Receiver<String>)>,
    end: Instant,
}

impl<'p> Asking<'p> {
    pub(crate) fn new(proxy: &'p Proxy, suspect: Suspect, lease: Arc<Lease>) -> Asking<'p> {
        let snapshots = proxy.snapshots.watch();
        Asking { proxy, suspect, lease, snapshots, place: None, end: Instant::now() + PATIENCE }
    }

    /// Waits until the routes in force release the request; no other takes of a release until what is given is dropped.
    pub(crate) async fn wait(&mut self) -> Result<tokio::sync::MutexGuard<'p, ()>, Refusal> {
        loop {
            let turn = self.proxy.holds.taking.lock().await;
            if self.release().is_some() {
                return Ok(turn);
            }
            drop(turn);
            if self.place.is_none() {
                self.place = self.hold();
            }
            let Some((_, refused)) = &mut self.place else {
                let why = "too many wait for the operator already; leave it out, or try later";
                return Err(self.refusal(why));
            };
            tokio::select! {
                Ok(()) = self.snapshots.changed() => {}
                reason = refused => {
                    let reason = reason.unwrap_or_default();
                    let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
                    let why = format!("the operator did not let it pass{because}");
                    return Err(self.refusal(if reason.starts_with(OPERATOR_OFFLINE) { &reason } else { &why }));
                }
                () = sleep_until(self.end) => {
                    let why = "nobody let it pass in time; leave it out, or ask the operator to watch";
                    return Err(self.refusal(why));
                }
                denial = Arc::clone(&self.lease).ended_after_a_moment() => return Err(Denial::into(denial)),
            }
        }
    }

    /// Takes a use of the release, durably, and gives its grant; nothing when the routes release it no more.
    pub(crate) async fn take(&mut self) -> Result<Option<String>, Refusal> {
        let Some(release) = self.release() else { return Ok(None) };
        let Asking { proxy, suspect: Suspect { digest, .. }, .. } = self;
        match proxy.uses.take_release(&release).await {
            Ok(()) => {
                info!(grant = %release.grant, digest, "what was held goes out");
                if proxy.uses.is_release_spent(&release) {
                    proxy.holds.exhausted(release.grant.as_str());
                }
                Ok(Some(release.grant.to_string()))
            }
            Err(NoUse::UsedUp) => Ok(None),
            Err(NoUse::Write(error)) => {
                let hint = "uses cannot be counted now; try again later";
                Err(Refusal::new(Code::AuditUnavailable, hint).because(&error))
            }
        }
    }

    fn release(&mut self) -> Option<Release> {
        let newest = Arc::clone(&self.snapshots.borrow_and_update());
        let spent = |release: &Release| self.proxy.uses.is_release_spent(release);
        newest.policy.released(&self.suspect.digest, self.proxy.now(), spent).cloned()
    }

    fn hold(&self) -> Option<(Place<'p>, oneshot::Receiver<String>)> {
        let Suspect { digest, what, findings, found, named: _ } = &self.suspect;
        let name: [u8; HOLD_ID_CHARS / 2] = random();
        let (at, until) = (Timestamp::now(), Timestamp::now() + PATIENCE);
        warn!(digest, rule = self.rule(), "held for the operator");
        let (digest, what, findings) = (digest.clone(), what.clone(), findings.clone());
        self.proxy.holds.take(Hold { id: hex(&name), digest, at, until, what, findings, found: *found })
    }

    fn rule(&self) -> &str {
        self.suspect.findings.first().map_or("", |found| &found.rule)
    }

    fn refusal(&self, why: &str) -> Refusal {
        let rule = self.rule();
        let hint = format!("the request holds what looks like a secret (rule `{rule}`): {why}");
        Refusal::new(Code::SecretDetected, hint).naming(self.suspect.named.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_turn_lasts_as_long_as_the_last_byte_of_what_it_is_for() {
        let holds = Holds::default();
        let mut kept = holds.turn().await.unwrap().keep(b"held".to_vec());
        let first = kept.split_to(2);
        drop(kept);
        assert_eq!(holds.turns.available_permits(), WHOLE_MAX - 1);
        drop(first);
        assert_eq!(holds.turns.available_permits(), WHOLE_MAX);
    }
}
