//! What happens to proposals: the entries of the journal.

use std::num::NonZeroU32;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Ask, Id, Proposal};

/// One entry of supervise's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Entry {
    /// Something happened to a proposal.
    Proposal(Event),
    /// Something happened to the desk as a whole.
    Desk(Note),
}

/// One thing that happened to one proposal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The proposal.
    pub id: Id,
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub change: Change,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Change {
    /// The agent asked.
    Received {
        /// For what.
        proposal: Ask,
        /// The agent's own name for this call, so that it can be repeated.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        /// The refusal that it was made from, as egress recorded it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        block_id: Option<String>,
        /// The pending proposal whose place it takes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        supersedes: Option<Id>,
    },
    /// The agent took it back.
    Withdrawn,
    /// The operator said yes.
    Approved {
        /// Who.
        by: String,
        /// For how long, from then on.
        ttl_seconds: u32,
        /// For how many uses.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_uses: Option<NonZeroU32>,
        /// To what, when it is not what was asked for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<Proposal>,
    },
    /// The operator said no.
    Rejected {
        /// Who.
        by: String,
        /// Why; the agent is told.
        reason: String,
    },
    /// The host begins to put it in force.
    Applying {
        /// The digest of the routes that it writes.
        digest: String,
    },
    /// The host put it in force.
    Applied {
        /// The generation of routes that has it.
        generation: u64,
        /// Their digest, `sha256:…`.
        digest: String,
        /// When egress ends it.
        expires_at: Timestamp,
    },
    /// The host could not put it in force.
    ApplyFailed {
        /// Why.
        error: String,
    },
    /// It was used as often as it may be.
    Exhausted,
    /// The operator took it back.
    Revoked {
        /// Who.
        by: String,
        /// Why; the agent is told.
        reason: String,
    },
}

/// What happened to the desk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub what: Noted,
}

/// What can happen to the desk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "desk", rename_all = "snake_case")]
pub enum Noted {
    /// The operator takes no more proposals.
    Paused {
        /// Who.
        by: String,
    },
    /// The operator takes proposals again.
    Resumed {
        /// Who.
        by: String,
    },
    /// Another daemon said where its journal ends: what shows later that its end was cut off.
    Anchor {
        /// Which.
        daemon: String,
        /// How many records it has.
        records: u64,
        /// The hash of the last.
        hash: String,
    },
}
