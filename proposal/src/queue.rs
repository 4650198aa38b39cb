//! The state machine of proposals.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{Ask, Change, Event, Id, Proposal};

/// How long a proposal waits for the operator. Silence never grants.
pub const PENDING_LIFETIME: SignedDuration = SignedDuration::from_hours(1);

/// How many proposals are kept; beyond it, a new one takes the place of the oldest of which nothing can come any more. The journal has
/// them all.
pub const KEPT_MAX: usize = 500;

/// For how long a rejection answers whoever asks for the same again.
pub const REJECTION_STANDS: SignedDuration = SignedDuration::from_mins(10);

/// The longest [`Change::Received`] key.
pub const KEY_MAX_CHARS: usize = 64;

/// The proposals that were made, as their events left them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    items: BTreeMap<Id, Item>,
    order: Vec<Id>,
    /// The latest time that an event had. What ended by it does not begin again when a clock is set back.
    latest: Timestamp,
}

/// One proposal and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its name.
    pub id: Id,
    /// When it came.
    pub created_at: Timestamp,
    /// What it asks for.
    pub proposal: Ask,
    /// The refusal that it was made from.
    pub block_id: Option<String>,
    key: Option<String>,
    phase: Phase,
    decided: Option<Decided>,
    granted: Option<Granted>,
    error: Option<String>,
    revoked: Option<Revoked>,
}

/// A grant, or an approval, that the operator took back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
}

/// What the operator said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why not, for a rejection.
    pub reason: Option<String>,
    /// For how long, for an approval.
    pub ttl_seconds: Option<u32>,
    /// For how many uses, for an approval.
    pub max_uses: Option<NonZeroU32>,
    /// To what, when it is not what was asked for.
    pub scope: Option<Proposal>,
}

/// What the host put in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The generation of routes that has it.
    pub generation: u64,
    /// Their digest.
    pub digest: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

/// Where a proposal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits for the operator.
    Pending,
    /// The agent took it back.
    Withdrawn,
    /// Nobody decided in time.
    Expired,
    /// The operator said no.
    Rejected,
    /// The agent asked for something else in its place.
    Superseded,
    /// The operator said yes; the host has not put it in force yet, or a person has to.
    Approved,
    /// The host is putting it in force.
    Applying,
    /// Egress has it.
    Active,
    /// The host could not put it in force.
    ApplyFailed,
    /// It was used as often as it may be.
    Exhausted,
    /// The operator took it back.
    Revoked,
    /// It was active and its time is over.
    Ended,
}

impl State {
    /// All of them.
    pub const ALL: [State; 12] = [
        State::Pending,
        State::Withdrawn,
        State::Expired,
        State::Rejected,
        State::Superseded,
        State::Approved,
        State::Applying,
        State::Active,
        State::ApplyFailed,
        State::Exhausted,
        State::Revoked,
        State::Ended,
    ];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Withdrawn => "withdrawn",
            State::Expired => "expired",
            State::Rejected => "rejected",
            State::Superseded => "superseded",
            State::Approved => "approved",
            State::Applying => "applying",
            State::Active => "active",
            State::ApplyFailed => "apply_failed",
            State::Exhausted => "exhausted",
            State::Revoked => "revoked",
            State::Ended => "ended",
        }
    }

    /// Whether something can still come of it, so that asking for the same again means this one.
    #[must_use]
    pub fn is_live(self) -> bool {
        match self {
            State::Pending | State::Approved | State::Applying | State::Active | State::ApplyFailed => true,
            State::Withdrawn
            | State::Expired
            | State::Rejected
            | State::Superseded
            | State::Exhausted
            | State::Revoked
            | State::Ended => false,
        }
    }

    /// Whether waiting longer can still bring news that the agent waits for.
    #[must_use]
    pub fn is_undecided(self) -> bool {
        match self {
            State::Pending | State::Approved | State::Applying => true,
            State::Active
            | State::ApplyFailed
            | State::Withdrawn
            | State::Expired
            | State::Rejected
            | State::Superseded
            | State::Exhausted
            | State::Revoked
            | State::Ended => false,
        }
    }
}

/// What events say; time makes `Expired` and `Ended` of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Pending,
    Withdrawn,
    Rejected,
    Superseded,
    Approved,
    Applying,
    Active,
    ApplyFailed,
    Exhausted,
    Revoked,
}

/// Why an event cannot follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// No proposal has that name.
    #[error("no request has the id {id}")]
    Unknown {
        /// The name.
        id: Id,
    },
    /// The name is taken.
    #[error("a request with the id {id} exists already")]
    IdTaken {
        /// The name.
        id: Id,
    },
    /// The same is asked for already.
    #[error("the same is asked for by {id}")]
    Duplicate {
        /// By which proposal.
        id: Id,
    },
    /// The agent's name for a call was used for another one.
    #[error("the idempotency key was used for {id}, which asks for something else")]
    KeyTaken {
        /// By which proposal.
        id: Id,
    },
    /// No program can put it in force.
    #[error("request {id} is not for something that can be put in force like that: a person sees to it")]
    ByHand {
        /// The proposal.
        id: Id,
    },
    /// What is put in force is not what was said yes to.
    #[error("request {id} was approved until {until}, not longer")]
    TooLong {
        /// The proposal.
        id: Id,
        /// The end of the approval.
        until: Timestamp,
    },
    /// The proposal is past that.
    #[error("request {id} is {}", state.as_str())]
    State {
        /// The proposal.
        id: Id,
        /// Where it stands.
        state: State,
    },
}

impl Illegal {
    /// A stable word for it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Illegal::Unknown { .. } => "unknown-id",
            Illegal::IdTaken { .. } => "id-taken",
            Illegal::Duplicate { .. } => "duplicate",
            Illegal::KeyTaken { .. } => "idempotency-conflict",
            Illegal::ByHand { .. } => "by-hand",
            Illegal::State { .. } | Illegal::TooLong { .. } => "wrong-state",
        }
    }
}

impl Item {
    /// Where it stands at `now`.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> State {
        match self.phase {
            Phase::Pending if self.decide_by() <= now => State::Expired,
            Phase::Pending => State::Pending,
            Phase::Withdrawn => State::Withdrawn,
            Phase::Rejected => State::Rejected,
            Phase::Superseded => State::Superseded,
            Phase::Approved | Phase::Applying | Phase::ApplyFailed if self.is_over(now) => State::Ended,
            Phase::Approved => State::Approved,
            Phase::Applying => State::Applying,
            Phase::Active if self.granted.as_ref().is_none_or(|granted| granted.expires_at <= now) => {
                State::Ended
            }
            Phase::Active => State::Active,
            Phase::ApplyFailed => State::ApplyFailed,
            Phase::Exhausted => State::Exhausted,
            Phase::Revoked => State::Revoked,
        }
    }

    /// Whether what was approved would be over, had it been put in force at once.
    fn is_over(&self, now: Timestamp) -> bool {
        self.decided.as_ref().and_then(Decided::until).is_some_and(|until| until <= now)
    }

    /// Until when the operator can decide.
    #[must_use]
    pub fn decide_by(&self) -> Timestamp {
        self.created_at.saturating_add(PENDING_LIFETIME).unwrap_or(Timestamp::MAX)
    }

    /// What the operator said, if anything.
    #[must_use]
    pub fn decided(&self) -> Option<&Decided> {
        self.decided.as_ref()
    }

    /// What was put in force, if it was.
    #[must_use]
    pub fn granted(&self) -> Option<&Granted> {
        self.granted.as_ref()
    }

    /// Who took it back, if so.
    #[must_use]
    pub fn revoked(&self) -> Option<&Revoked> {
        self.revoked.as_ref()
    }

    /// Why it could not be put in force, if so.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

impl Decided {
    /// When a grant of this approval ends at the latest.
    #[must_use]
    pub fn until(&self) -> Option<Timestamp> {
        self.at.checked_add(SignedDuration::from_secs(i64::from(self.ttl_seconds?))).ok()
    }
}

impl Queue {
    /// The time that counts when the clock says `clock`: never before what has happened.
    #[must_use]
    pub fn now(&self, clock: Timestamp) -> Timestamp {
        clock.max(self.latest)
    }

    /// Takes one event in.
    ///
    /// # Errors
    /// When it cannot follow; the queue is then as before.
    pub fn apply(&mut self, event: &Event) -> Result<(), Illegal> {
        self.check(event)?;
        let Event { id, at, change } = event;
        let at = self.now(*at);
        self.latest = at;
        if let Change::Received { proposal, key, block_id, supersedes } = change {
            if let Some(item) = supersedes.as_ref().and_then(|old| self.items.get_mut(old)) {
                item.phase = Phase::Superseded;
            }
            let item = Item {
                id: id.clone(),
                created_at: at,
                proposal: proposal.clone(),
                block_id: block_id.clone(),
                key: key.clone(),
                phase: Phase::Pending,
                decided: None,
                granted: None,
                error: None,
                revoked: None,
            };
            self.items.insert(id.clone(), item);
            self.order.push(id.clone());
            self.forget(at);
        } else if let Some(item) = self.items.get_mut(id) {
            item.follow(at, change);
        }
        Ok(())
    }

    /// Whether the event could be applied.
    ///
    /// # Errors
    /// Why it could not.
    pub fn check(&self, event: &Event) -> Result<(), Illegal> {
        let Event { id, at, change } = event;
        let at = self.now(*at);
        let item = self.items.get(id);
        if let Change::Received { proposal, key, supersedes, .. } = change {
            if item.is_some() {
                return Err(Illegal::IdTaken { id: id.clone() });
            }
            if let Some(same) = key.as_deref().and_then(|key| self.find_key(key)) {
                return Err(Illegal::KeyTaken { id: same.id.clone() });
            }
            if let Some(same) = self.find_same(proposal, at) {
                return Err(Illegal::Duplicate { id: same.id.clone() });
            }
            return supersedes.as_ref().map_or(Ok(()), |old| self.can_supersede(old, at));
        }
        let item = item.ok_or_else(|| Illegal::Unknown { id: id.clone() })?;
        let state = item.state(at);
        if !allows(state, change) {
            return Err(Illegal::State { id: id.clone(), state });
        }
        item.fits(change)
    }

    fn can_supersede(&self, id: &Id, now: Timestamp) -> Result<(), Illegal> {
        match self.items.get(id).map(|item| item.state(now)) {
            Some(State::Pending) => Ok(()),
            Some(state) => Err(Illegal::State { id: id.clone(), state }),
            None => Err(Illegal::Unknown { id: id.clone() }),
        }
    }

    /// The proposal that was made under that key.
    #[must_use]
    pub fn find_key(&self, key: &str) -> Option<&Item> {
        self.items().rev().find(|item| item.key.as_deref() == Some(key))
    }

    /// The newest rejection of the same, while it stands.
    #[must_use]
    pub fn find_rejected(&self, proposal: &Ask, now: Timestamp) -> Option<&Item> {
        let stands = |item: &&Item| {
            item.phase == Phase::Rejected
                && item.decided.as_ref().is_some_and(|no| now.duration_since(no.at) < REJECTION_STANDS)
        };
        self.items().rev().find(|item| stands(item) && item.proposal.is_same_as(proposal))
    }

    /// How many times in a row the operator said no, and when for the last time.
    #[must_use]
    pub fn rejected_in_a_row(&self) -> (u32, Timestamp) {
        let mut decided: Vec<&Decided> = self.items().filter_map(Item::decided).collect();
        decided.sort_by_key(|decided| decided.at);
        let refusals = decided.iter().rev().take_while(|decided| decided.ttl_seconds.is_none());
        let count = u32::try_from(refusals.count()).unwrap_or(u32::MAX);
        (count, decided.last().map_or(Timestamp::UNIX_EPOCH, |decided| decided.at))
    }

    /// The newest that is about what a daemon holds under that name.
    #[must_use]
    pub fn find_hold(&self, hold: &str) -> Option<&Item> {
        self.items().rev().find(|item| item.proposal.held().is_some_and(|held| held.id == hold))
    }

    /// The live proposal that asks for the same.
    #[must_use]
    pub fn find_same(&self, proposal: &Ask, now: Timestamp) -> Option<&Item> {
        self.items().find(|item| item.state(now).is_live() && item.proposal.is_same_as(proposal))
    }

    /// The proposal of that name.
    #[must_use]
    pub fn get(&self, id: &Id) -> Option<&Item> {
        self.items.get(id)
    }

    /// Those that are kept, oldest first.
    pub fn items(&self) -> impl DoubleEndedIterator<Item = &Item> {
        self.order.iter().filter_map(|id| self.items.get(id))
    }

    /// A matter of the events alone, so that a replay forgets the same.
    fn forget(&mut self, now: Timestamp) {
        let Queue { items, order, latest: _ } = self;
        let mut excess = order.len().saturating_sub(KEPT_MAX);
        order.retain(|id| {
            let is_live = items.get(id).is_some_and(|item| item.state(now).is_live());
            if excess == 0 || is_live {
                return true;
            }
            excess -= 1;
            items.remove(id);
            false
        });
    }

    /// How many wait for the operator.
    #[must_use]
    pub fn pending(&self, now: Timestamp) -> usize {
        self.items().filter(|item| item.state(now) == State::Pending).count()
    }
}

impl Item {
    /// Whether the change is about what this asks for.
    fn fits(&self, change: &Change) -> Result<(), Illegal> {
        let by_hand = || Err(Illegal::ByHand { id: self.id.clone() });
        match (change, &self.proposal) {
            (
                Change::Applying { .. }
                | Change::Applied { .. }
                | Change::ApplyFailed { .. }
                | Change::Exhausted,
                ask,
            ) if ask.table().is_none() => by_hand(),
            (Change::Approved { scope: Some(_), .. }, Ask::Capability(_) | Ask::Held(_)) => by_hand(),
            (Change::Applied { expires_at, .. }, _) => match self.decided.as_ref().and_then(Decided::until) {
                Some(until) if *expires_at > until => Err(Illegal::TooLong { id: self.id.clone(), until }),
                Some(_) | None => Ok(()),
            },
            (
                Change::Received { .. }
                | Change::Withdrawn
                | Change::Approved { .. }
                | Change::Rejected { .. }
                | Change::Applying { .. }
                | Change::ApplyFailed { .. }
                | Change::Exhausted
                | Change::Revoked { .. },
                _,
            ) => Ok(()),
        }
    }

    fn follow(&mut self, at: Timestamp, change: &Change) {
        match change {
            Change::Received { .. } => {}
            Change::Withdrawn => self.phase = Phase::Withdrawn,
            Change::Approved { by, ttl_seconds, max_uses, scope } => {
                self.phase = Phase::Approved;
                self.error = None;
                self.decided = Some(Decided {
                    by: by.clone(),
                    at,
                    reason: None,
                    ttl_seconds: Some(*ttl_seconds),
                    max_uses: *max_uses,
                    scope: scope.clone(),
                });
            }
            Change::Rejected { by, reason } => {
                self.phase = Phase::Rejected;
                self.decided = Some(Decided {
                    by: by.clone(),
                    at,
                    reason: Some(reason.clone()),
                    ttl_seconds: None,
                    max_uses: None,
                    scope: None,
                });
            }
            Change::Applying { .. } => self.phase = Phase::Applying,
            Change::Applied { generation, digest, expires_at } => {
                self.phase = Phase::Active;
                self.error = None;
                self.granted = Some(Granted {
                    generation: *generation,
                    digest: digest.clone(),
                    expires_at: *expires_at,
                });
            }
            Change::ApplyFailed { error } => {
                self.phase = Phase::ApplyFailed;
                self.error = Some(error.clone());
            }
            Change::Exhausted => self.phase = Phase::Exhausted,
            Change::Revoked { by, reason } => {
                self.phase = Phase::Revoked;
                self.revoked = Some(Revoked { by: by.clone(), at, reason: reason.clone() });
            }
        }
    }
}

/// What can follow what. Approving again what was approved but is not in force is a retry with a new term.
fn allows(state: State, change: &Change) -> bool {
    match change {
        Change::Received { .. } => false,
        Change::Withdrawn => state == State::Pending,
        Change::Approved { .. } | Change::Rejected { .. } => {
            matches!(state, State::Pending | State::Approved | State::Applying | State::ApplyFailed)
        }
        Change::Applying { .. } => matches!(state, State::Approved | State::Applying | State::ApplyFailed),
        Change::Applied { .. } | Change::ApplyFailed { .. } => {
            matches!(state, State::Approved | State::Applying | State::ApplyFailed)
        }
        Change::Exhausted => state == State::Active,
        Change::Revoked { .. } => {
            matches!(state, State::Approved | State::Applying | State::ApplyFailed | State::Active)
        }
    }
}
