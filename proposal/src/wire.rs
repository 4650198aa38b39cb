//! What the operator's side and the daemon say to each other: one JSON object a line over the operator socket.

use std::num::NonZeroU32;

use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Ask, Id, Item, PENDING_LIFETIME, Proposal, State};

/// The longest `reason` of a rejection and `error` of a failure, in characters.
pub const TEXT_MAX_CHARS: usize = 2000;

/// What the operator's side can ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The requests, newest last. Answered by [`Requests`].
    List {
        /// Those in this state alone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<State>,
    },
    /// One request. This and everything below is answered by a [`View`].
    Show {
        /// Which.
        id: Id,
    },
    /// Records a yes. Nothing is in force by it.
    Approve {
        /// To which.
        id: Id,
        /// For how long, if not for as long as was asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl_seconds: Option<u32>,
        /// For how many uses, if not for as many as were asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_uses: Option<NonZeroU32>,
        /// To what, if not to what was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<Proposal>,
    },
    /// Records a no.
    Reject {
        /// To which.
        id: Id,
        /// Why; the agent is told.
        reason: String,
    },
    /// Records that the operator took back what was approved.
    Revoke {
        /// Which.
        id: Id,
        /// Why; the agent is told.
        reason: String,
    },
    /// Records that the host begins to put it in force.
    Applying {
        /// Which.
        id: Id,
        /// The digest of the routes that it writes, `sha256:…`.
        digest: String,
    },
    /// Records that a grant was used as often as it may be.
    Exhausted {
        /// Which.
        id: Id,
    },
    /// Takes no more proposals. This and the two below are answered by a [`Status`].
    Pause,
    /// Takes proposals again.
    Resume,
    /// How the desk stands.
    Status,
    /// The pending requests at once, and then each request that changes; every reply is a [`Requests`], until the client closes.
    Tail,
    /// Records that egress acknowledged routes with the grant.
    Applied {
        /// Which.
        id: Id,
        /// The generation that egress acknowledged.
        generation: u64,
        /// Its digest, `sha256:…`.
        digest: String,
        /// When the grant ends; the approval's end if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<Timestamp>,
    },
    /// Records that the grant could not be put in force.
    ApplyFailed {
        /// Which.
        id: Id,
        /// Why.
        error: String,
    },
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawReply", into = "RawReply")]
pub enum Reply {
    /// It was done.
    Done(Value),
    /// It was not.
    Failed(Failure),
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// A stable word.
    pub code: String,
    /// A sentence.
    pub message: String,
}

impl Failure {
    /// A failure.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Failure {
        Failure { code: code.to_owned(), message: message.into() }
    }
}

impl Reply {
    /// The reply that carries `result`.
    #[must_use]
    pub fn done<T: Serialize>(result: &T) -> Reply {
        match serde_json::to_value(result) {
            Ok(value) => Reply::Done(value),
            Err(error) => Reply::Failed(Failure::new("internal", error.to_string())),
        }
    }

    /// The result, as `T`.
    ///
    /// # Errors
    /// The failure, or `bad-reply` when the result is no `T`.
    pub fn into_result<T: DeserializeOwned>(self) -> Result<T, Failure> {
        match self {
            Reply::Done(value) => {
                serde_json::from_value(value).map_err(|error| Failure::new("bad-reply", error.to_string()))
            }
            Reply::Failed(failure) => Err(failure),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawReply {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

impl From<Reply> for RawReply {
    fn from(reply: Reply) -> RawReply {
        match reply {
            Reply::Done(result) => RawReply { ok: true, result: Some(result), error: None },
            Reply::Failed(error) => RawReply { ok: false, result: None, error: Some(error) },
        }
    }
}

impl TryFrom<RawReply> for Reply {
    type Error = &'static str;

    fn try_from(raw: RawReply) -> Result<Reply, &'static str> {
        match raw {
            RawReply { ok: true, result: Some(result), error: None } => Ok(Reply::Done(result)),
            RawReply { ok: false, result: None, error: Some(error) } => Ok(Reply::Failed(error)),
            RawReply { .. } => Err("a reply has `result` when `ok`, and `error` when not"),
        }
    }
}

/// The result of `list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Oldest first.
    pub requests: Vec<View>,
}

/// The result of `status`, `pause` and `resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Whether proposals are refused for now.
    pub paused: bool,
    /// How many wait for the operator.
    pub pending: usize,
    /// How many clients watch with `tail`.
    pub watchers: usize,
    /// Where the journal ends: how many records.
    pub records: u64,
    /// The hash of the last, 64 hexadecimal digits.
    pub head: String,
}

/// A request as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its name.
    pub id: Id,
    /// Where it stands.
    pub state: State,
    /// When it came.
    pub created_at: Timestamp,
    /// What it asks for.
    pub proposal: Ask,
    /// The refusal that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_id: Option<String>,
    /// What the operator said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// What was put in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Applied>,
    /// Why it could not be put in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// That and why the operator took it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revoked>,
}

/// What the operator took back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
}

/// What the operator said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Who.
    pub by: String,
    /// When.
    pub at: Timestamp,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// For how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
    /// For how many uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_uses: Option<NonZeroU32>,
    /// To what, when it is not what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Proposal>,
}

impl Decision {
    /// A yes has a term, a no has a reason.
    #[must_use]
    pub fn is_approval(&self) -> bool {
        self.ttl_seconds.is_some()
    }

    /// When a grant of this approval ends at the latest.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        let ttl = SignedDuration::from_secs(i64::from(self.ttl_seconds?));
        self.at.checked_add(ttl).ok()
    }
}

/// What was put in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The generation that has it.
    pub generation: u64,
    /// Its digest.
    pub digest: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

impl View {
    /// Until when a pending request can be decided.
    #[must_use]
    pub fn decide_by(&self) -> Timestamp {
        self.created_at.saturating_add(PENDING_LIFETIME).unwrap_or(Timestamp::MAX)
    }

    /// Whether a program puts it in force once it is approved.
    #[must_use]
    pub fn is_applied(&self) -> bool {
        self.proposal.table().is_some()
    }

    /// `item` as it stands at `now`.
    #[must_use]
    pub fn of(item: &Item, now: Timestamp) -> View {
        View {
            id: item.id.clone(),
            state: item.state(now),
            created_at: item.created_at,
            proposal: item.proposal.clone(),
            block_id: item.block_id.clone(),
            decision: item.decided().map(|decided| Decision {
                by: decided.by.clone(),
                at: decided.at,
                reason: decided.reason.clone(),
                ttl_seconds: decided.ttl_seconds,
                max_uses: decided.max_uses,
                scope: decided.scope.clone(),
            }),
            applied: item.granted().map(|granted| Applied {
                generation: granted.generation,
                digest: granted.digest.clone(),
                expires_at: granted.expires_at,
            }),
            error: item.error().map(str::to_owned),
            revoked: item.revoked().map(|revoked| Revoked {
                by: revoked.by.clone(),
                at: revoked.at,
                reason: revoked.reason.clone(),
            }),
        }
    }
}
