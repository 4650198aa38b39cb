//! Anything that can be asked for.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::peer::{Held, Hold, Target};
use crate::{Access, Capability, Invalid, Proposal, Table, Wish};

/// A route, a capability, or that something held may pass. On the wire a capability has the key `capability`, what is held the key
/// `held`, and a route neither.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Ask {
    /// A route.
    Route(Proposal),
    /// Something else that an agent asked for.
    Capability(Capability),
    /// What a daemon holds. No agent can ask this in words.
    Held(Box<Hold>),
}

impl Ask {
    /// Reads any of them.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(value: &Value) -> Result<Ask, Invalid> {
        if let Some(held) = value.get("held") {
            let hold = Hold::deserialize(held).map_err(|error| Invalid::Held(error.to_string()))?;
            hold.check().map_err(|error| Invalid::Held(error.to_string()))?;
            Ok(Ask::Held(Box::new(hold)))
        } else if value.get("capability").is_some() {
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
            Ask::Capability(_) | Ask::Held(_) => None,
        }
    }

    /// What is held, if it is about that.
    #[must_use]
    pub fn held(&self) -> Option<&Hold> {
        match self {
            Ask::Held(hold) => Some(hold),
            Ask::Route(_) | Ask::Capability(_) => None,
        }
    }

    /// The file that a yes is written into; nothing when a person has to see to it.
    #[must_use]
    pub fn table(&self) -> Option<Table> {
        match self {
            Ask::Route(_) => Some(Table::Routes),
            Ask::Held(hold) => Some(match hold.what {
                Held::Request { .. } => Table::Routes,
                Held::Push { .. } => Table::Repos,
            }),
            Ask::Capability(capability) => match capability.wish() {
                Wish::EgressLimit { .. } => Some(Table::Routes),
                Wish::DlpException { target, .. } => Some(match target {
                    Target::Host(_) => Table::Routes,
                    Target::Repo(_) => Table::Repos,
                }),
                Wish::GitRepo { .. } | Wish::GitRef { access: Access::Push, .. } => Some(Table::Repos),
                // What is mirrored has no end, so no grant gives it; the others name nothing that is exact enough.
                Wish::GitRef { access: Access::Fetch, .. } | Wish::Other { .. } => None,
            },
        }
    }

    /// For how long it is wanted.
    #[must_use]
    pub fn ttl_seconds(&self) -> u32 {
        match self {
            Ask::Route(proposal) => proposal.ttl_seconds(),
            Ask::Capability(capability) => capability.ttl_seconds(),
            Ask::Held(hold) => hold.ttl_seconds(),
        }
    }

    /// How often it is wanted, where that is counted.
    #[must_use]
    pub fn max_uses(&self) -> Option<NonZeroU32> {
        match self {
            Ask::Route(proposal) => proposal.max_uses(),
            Ask::Held(_) => Some(NonZeroU32::MIN),
            Ask::Capability(capability) => match capability.wish() {
                Wish::DlpException { max_uses, .. } => Some(*max_uses),
                Wish::GitRepo { .. }
                | Wish::GitRef { .. }
                | Wish::EgressLimit { .. }
                | Wish::Other { .. } => None,
            },
        }
    }

    /// Why: untrusted text, shown only through [`crate::escaped`]. Empty for what is held: nobody gave a reason.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Ask::Route(proposal) => proposal.reason(),
            Ask::Capability(capability) => capability.reason(),
            Ask::Held(_) => "",
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
            (Ask::Held(own), Ask::Held(other)) => own.is_same_as(other),
            (Ask::Route(_) | Ask::Capability(_) | Ask::Held(_), _) => false,
        }
    }
}

/// In words, without the reason.
impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ask::Route(proposal) => proposal.fmt(f),
            Ask::Capability(capability) => capability.fmt(f),
            Ask::Held(hold) => hold.fmt(f),
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
            Ask::Held(hold) => json!({ "held": hold }),
        }
    }
}

impl From<Proposal> for Ask {
    fn from(proposal: Proposal) -> Ask {
        Ask::Route(proposal)
    }
}
