//! What happens to proposals: the entries of the journal.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Id, Proposal};

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
        proposal: Proposal,
    },
    /// The agent took it back.
    Withdrawn,
    /// The operator said yes.
    Approved {
        /// Who.
        by: String,
        /// For how long, from then on.
        ttl_seconds: u32,
    },
    /// The operator said no.
    Rejected {
        /// Who.
        by: String,
        /// Why; the agent is told.
        reason: String,
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
}
