//! Anything that an agent can ask for.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Capability, Invalid, Proposal};

/// A route, or a capability that a person sees to. On the wire a capability has the key `capability`, a route has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Ask {
    /// A route, which the host can put in force.
    Route(Proposal),
    /// Something that a person does by hand.
    Capability(Capability),
}

impl Ask {
    /// Reads either.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(value: &Value) -> Result<Ask, Invalid> {
        if value.get("capability").is_some() {
            Capability::parse(value).map(Ask::Capability)
        } else {
            Proposal::parse(value).map(Ask::Route)
        }
    }

    /// The route, if it is one.
    #[must_use]
    pub fn route(&self) -> Option<&Proposal> {
        match self {
            Ask::Route(proposal) => Some(proposal),
            Ask::Capability(_) => None,
        }
    }

    /// For how long the agent wants it.
    #[must_use]
    pub fn ttl_seconds(&self) -> u32 {
        match self {
            Ask::Route(proposal) => proposal.ttl_seconds(),
            Ask::Capability(capability) => capability.ttl_seconds(),
        }
    }

    /// Why: untrusted text, shown only through [`crate::escaped`].
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Ask::Route(proposal) => proposal.reason(),
            Ask::Capability(capability) => capability.reason(),
        }
    }

    /// Whether both ask for the same, whatever they give as the reason.
    #[must_use]
    pub fn is_same_as(&self, other: &Ask) -> bool {
        match (self, other) {
            (Ask::Route(own), Ask::Route(other)) => own.is_same_as(other),
            (Ask::Capability(own), Ask::Capability(other)) => {
                own.wish() == other.wish() && own.ttl_seconds() == other.ttl_seconds()
            }
            (Ask::Route(_), Ask::Capability(_)) | (Ask::Capability(_), Ask::Route(_)) => false,
        }
    }
}

/// In words, without the reason.
impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ask::Route(proposal) => proposal.fmt(f),
            Ask::Capability(capability) => capability.fmt(f),
        }
    }
}

impl TryFrom<Value> for Ask {
    type Error = Invalid;

    fn try_from(value: Value) -> Result<Ask, Invalid> {
        Ask::parse(&value)
    }
}

impl From<Ask> for Value {
    fn from(ask: Ask) -> Value {
        match ask {
            Ask::Route(proposal) => proposal.into(),
            Ask::Capability(capability) => capability.into(),
        }
    }
}

impl From<Proposal> for Ask {
    fn from(proposal: Proposal) -> Ask {
        Ask::Route(proposal)
    }
}
