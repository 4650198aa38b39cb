//! The state machine of proposals.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{Change, Event, Id, Proposal};

/// How long a proposal waits for the operator. Silence never grants.
pub const PENDING_LIFETIME: SignedDuration = SignedDuration::from_hours(1);

/// How many proposals are kept; beyond it, a new one takes the place of the oldest of which nothing can come any more. The journal has
/// them all.
pub const KEPT_MAX: usize = 500;

/// The proposals that were made, as their events left them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    items: BTreeMap<Id, Item>,
    order: Vec<Id>,
}

/// One proposal and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Its name.
    pub id: Id,
    /// When it came.
    pub created_at: Timestamp,
    /// What it asks for.
    pub proposal: Proposal,
    phase: Phase,
    decided: Option<Decided>,
    granted: Option<Granted>,
    error: Option<String>,
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
    /// The operator said yes; the host has not put it in force yet.
    Approved,
    /// Egress has it.
    Active,
    /// The host could not put it in force.
    ApplyFailed,
    /// It was active and its time is over.
    Ended,
}

impl State {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Pending => "pending",
            State::Withdrawn => "withdrawn",
            State::Expired => "expired",
            State::Rejected => "rejected",
            State::Approved => "approved",
            State::Active => "active",
            State::ApplyFailed => "apply_failed",
            State::Ended => "ended",
        }
    }

    /// Whether something can still come of it, so that asking for the same again means this one.
    #[must_use]
    pub fn is_live(self) -> bool {
        match self {
            State::Pending | State::Approved | State::Active | State::ApplyFailed => true,
            State::Withdrawn | State::Expired | State::Rejected | State::Ended => false,
        }
    }

    /// Whether waiting longer can still bring news that the agent waits for.
    #[must_use]
    pub fn is_undecided(self) -> bool {
        match self {
            State::Pending | State::Approved => true,
            State::Active
            | State::ApplyFailed
            | State::Withdrawn
            | State::Expired
            | State::Rejected
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
    Approved,
    Active,
    ApplyFailed,
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
            Illegal::State { .. } => "wrong-state",
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
            Phase::Approved => State::Approved,
            Phase::Active if self.granted.as_ref().is_none_or(|granted| granted.expires_at <= now) => {
                State::Ended
            }
            Phase::Active => State::Active,
            Phase::ApplyFailed => State::ApplyFailed,
        }
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

    /// Why it could not be put in force, if so.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

impl Queue {
    /// Takes one event in.
    ///
    /// # Errors
    /// When it cannot follow; the queue is then as before.
    pub fn apply(&mut self, event: &Event) -> Result<(), Illegal> {
        self.check(event)?;
        let Event { id, at, change } = event;
        if let Change::Received { proposal } = change {
            let item = Item {
                id: id.clone(),
                created_at: *at,
                proposal: proposal.clone(),
                phase: Phase::Pending,
                decided: None,
                granted: None,
                error: None,
            };
            self.items.insert(id.clone(), item);
            self.order.push(id.clone());
            self.forget(*at);
        } else if let Some(item) = self.items.get_mut(id) {
            item.follow(*at, change);
        }
        Ok(())
    }

    /// Whether the event could be applied.
    ///
    /// # Errors
    /// Why it could not.
    pub fn check(&self, event: &Event) -> Result<(), Illegal> {
        let Event { id, at, change } = event;
        let item = self.items.get(id);
        if let Change::Received { proposal } = change {
            return match (item, self.find_same(proposal, *at)) {
                (Some(_), _) => Err(Illegal::IdTaken { id: id.clone() }),
                (None, Some(same)) => Err(Illegal::Duplicate { id: same.id.clone() }),
                (None, None) => Ok(()),
            };
        }
        let state = item.ok_or_else(|| Illegal::Unknown { id: id.clone() })?.state(*at);
        if allows(state, change) { Ok(()) } else { Err(Illegal::State { id: id.clone(), state }) }
    }

    /// The live proposal that asks for the same.
    #[must_use]
    pub fn find_same(&self, proposal: &Proposal, now: Timestamp) -> Option<&Item> {
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
        let Queue { items, order } = self;
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
    fn follow(&mut self, at: Timestamp, change: &Change) {
        match change {
            Change::Received { .. } => {}
            Change::Withdrawn => self.phase = Phase::Withdrawn,
            Change::Approved { by, ttl_seconds } => {
                self.phase = Phase::Approved;
                self.error = None;
                self.decided =
                    Some(Decided { by: by.clone(), at, reason: None, ttl_seconds: Some(*ttl_seconds) });
            }
            Change::Rejected { by, reason } => {
                self.phase = Phase::Rejected;
                self.decided =
                    Some(Decided { by: by.clone(), at, reason: Some(reason.clone()), ttl_seconds: None });
            }
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
        }
    }
}

/// What can follow what. Approving again what was approved but is not in force is a retry with a new term.
fn allows(state: State, change: &Change) -> bool {
    match change {
        Change::Received { .. } => false,
        Change::Withdrawn => state == State::Pending,
        Change::Approved { .. } | Change::Rejected { .. } => {
            matches!(state, State::Pending | State::Approved | State::ApplyFailed)
        }
        Change::Applied { .. } | Change::ApplyFailed { .. } => {
            matches!(state, State::Approved | State::ApplyFailed)
        }
    }
}
