//! Pushes that wait for the operator, and the socket over which supervise is told of them.
//!
//! A push passes by a release of its digest in `repos.yaml`, which the host alone writes: a word from supervise lets nothing
//! pass. What it says of an approval is only that it is time to look; what it says of a rejection counts.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as Socket;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use proposal::peer::{
    Answer, DATAGRAM_MAX, Found, HELD_MAX, Held, HeldRef, Hold, Located, Question, Target, Verdict, Word,
    datagram, message,
};
use repos::Repo;
use scan::MarkKey;
use tokio::net::UnixDatagram;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tracing::{debug, info};

use crate::front::Front;
use crate::git::printable;
use crate::journal::shown;
use crate::wire::{Place, Update};

/// How long a push waits for the operator.
pub(crate) const HOLD_TIMEOUT: Duration = Duration::from_secs(600);
/// How many pushes wait at once; there are as many places again for those that need nobody.
const HOLDS_MAX: usize = 4;
/// How many findings are remembered.
const FOUND_MAX: usize = 64;
const ID_BYTES: usize = 16;
const REASON_MAX_CHARS: usize = 300;

/// The pushes that wait, what was found in those that were refused, and the way to supervise, if there is one.
pub(crate) struct Holds {
    peer: Option<UnixDatagram>,
    marking: Arc<MarkKey>,
    /// What was found lately, newest last.
    found: Mutex<VecDeque<Located>>,
    waiting: Mutex<BTreeMap<String, Entry>>,
    /// Told when a decision, or another configuration, came.
    news: Notify,
}

struct Entry {
    hold: Hold,
    decided: bool,
    rejected: Option<String>,
}

/// Why a push is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unheld {
    /// There is nobody to ask.
    Nobody,
    /// Too many wait already.
    Full,
}

/// A push that waits; gone from the list when this is dropped.
pub(crate) struct Waiting<'h> {
    holds: &'h Holds,
    id: String,
}

impl Holds {
    /// With the socket that the supervisor passed, if it did. Needs a runtime.
    pub(crate) fn new(peer: Option<OwnedFd>, marking: Arc<MarkKey>) -> io::Result<Self> {
        let socket = |peer: OwnedFd| {
            let socket = Socket::from(peer);
            socket.set_nonblocking(true)?;
            UnixDatagram::from_std(socket)
        };
        Ok(Self {
            peer: peer.map(socket).transpose()?,
            marking,
            found: Mutex::default(),
            waiting: Mutex::default(),
            news: Notify::new(),
        })
    }

    /// What findings are named with.
    pub(crate) fn marking(&self) -> &MarkKey {
        &self.marking
    }

    /// Remembers what a push is refused for, or held, so that an exception can be asked for.
    pub(crate) fn note(&self, repo: &Repo, places: &[Place]) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        for place in places.iter().take(HELD_MAX) {
            let Some(fingerprint) = place.fingerprint.clone() else { continue };
            found.retain(|known| known.fingerprint != fingerprint);
            if found.len() == FOUND_MAX {
                found.pop_front();
            }
            let target = Target::Repo(repo.name.to_string());
            found.push_back(Located { fingerprint, target, found: self::found(place) });
        }
    }

    fn find(&self, fingerprint: &str) -> Option<Located> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.iter().find(|known| known.fingerprint == fingerprint).cloned()
    }

    /// Takes a push in and tells supervise.
    pub(crate) fn hold(
        &self,
        repo: &Repo,
        updates: &[Update],
        objects: u64,
        digest: &str,
        places: &[Place],
    ) -> Result<Waiting<'_>, Unheld> {
        if self.peer.is_none() {
            return Err(Unheld::Nobody);
        }
        let mut id = [0; ID_BYTES];
        getrandom::fill(&mut id).map_err(|_| Unheld::Nobody)?;
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let at = Timestamp::now();
        let hold = Hold {
            id: id.clone(),
            digest: digest.to_owned(),
            at,
            until: at.checked_add(HOLD_TIMEOUT).unwrap_or(at),
            what: Held::Push {
                repo: repo.name.to_string(),
                upstream: crate::front::shown(&repo.upstream),
                refs: updates.iter().take(HELD_MAX).map(held).collect(),
                changes: updates.len() as u64,
                objects,
            },
            findings: places.iter().take(HELD_MAX).map(found).collect(),
            found: places.len() as u64,
        };
        {
            let mut waiting = self.waiting();
            if waiting.len() >= HOLDS_MAX {
                return Err(Unheld::Full);
            }
            waiting.insert(id.clone(), Entry { hold: hold.clone(), decided: false, rejected: None });
        }
        self.say(&Word::Held { hold });
        Ok(Waiting { holds: self, id })
    }

    /// Tells that a grant is used up.
    pub(crate) fn exhausted(&self, grant: &str) {
        self.say(&Word::Exhausted { grant: grant.to_owned() });
    }

    /// Has those who wait look again.
    pub(crate) fn look(&self) {
        self.news.notify_waiters();
    }

    /// Answers supervise until the socket ends, which the supervisor keeps open.
    pub(crate) async fn serve(front: Arc<Front>) {
        let holds = &front.holds;
        let Some(peer) = &holds.peer else { return };
        let mut buffer = vec![0; DATAGRAM_MAX + 1];
        loop {
            let length = match peer.recv(&mut buffer).await {
                Ok(0) => return,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return debug!(%error, "the socket to supervise ended"),
            };
            match message::<Question>(&buffer[..length]) {
                Some(question) => holds.answer(question, &front),
                None => debug!("a message of supervise was not understood"),
            }
        }
    }

    fn answer(&self, question: Question, front: &Front) {
        match question {
            Question::Refusal { seq, .. } => self.say(&Answer::Refusal { seq, refusal: None }),
            Question::Head { seq } => {
                let (records, hash) = front.ledger.head();
                self.say(&Answer::Head { seq, records, hash });
            }
            Question::Holds { seq } => {
                let holds: Vec<Hold> = self.waiting().values().map(|entry| entry.hold.clone()).collect();
                let ids = holds.iter().map(|hold| hold.id.clone()).collect();
                self.say(&Answer::Holds { seq, ids });
                for hold in holds {
                    self.say(&Word::Held { hold });
                }
            }
            Question::Finding { seq, fingerprint } => {
                self.say(&Answer::Finding { seq, finding: self.find(&fingerprint) });
            }
            Question::Decide { seq, id, digest, verdict, reason } => {
                let waited = match self.waiting().get_mut(&id) {
                    Some(entry) if entry.hold.digest == digest => {
                        entry.decided = true;
                        if verdict == Verdict::Reject {
                            let reason = printable(&reason).replace(['\n', '\t'], " ");
                            entry.rejected = Some(reason.chars().take(REASON_MAX_CHARS).collect());
                        }
                        true
                    }
                    Some(_) | None => false,
                };
                info!(id, waited, ?verdict, "supervise said what was decided");
                self.look();
                self.say(&Answer::Decided { seq, waited });
            }
        }
    }

    /// What cannot be sent now is lost: whoever listens asks again.
    fn say(&self, message: &impl serde::Serialize) {
        let Some((peer, bytes)) = self.peer.as_ref().zip(datagram(message)) else { return };
        if let Err(error) = peer.try_send(&bytes) {
            debug!(%error, "a message to supervise was dropped");
        }
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'h> Waiting<'h> {
    /// Returns when it is time to look: something was decided, or the configuration is another.
    ///
    /// What happens from this call on is not missed.
    pub(crate) fn news(&self) -> Notified<'h> {
        self.holds.news.notified()
    }

    /// The operator's reason, where the push is rejected.
    pub(crate) fn rejected(&self) -> Option<String> {
        self.holds.waiting().get(&self.id)?.rejected.clone()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let entry = self.holds.waiting().remove(&self.id);
        if entry.is_some_and(|entry| !entry.decided) {
            self.holds.say(&Word::Dropped { id: self.id.clone() });
        }
    }
}

fn held(update: &Update) -> HeldRef {
    HeldRef { name: shown(&update.name), old: update.old.clone(), new: update.new.clone() }
}

fn found(place: &Place) -> Found {
    Found {
        rule: place.rule.clone(),
        position: shown(&place.file),
        commit: place.commit.clone(),
        line: place.line,
        excerpt: String::new(),
    }
}
