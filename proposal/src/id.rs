//! The name of a proposal, and of the grant that comes of it.

use std::fmt;

use policy::{GrantId, GrantIdError};
use serde::{Deserialize, Serialize};

/// Names a proposal, and the grant that comes of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(GrantId);

impl Id {
    /// The name in `text`.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Id, GrantIdError> {
        GrantId::parse(text).map(Id)
    }

    /// The name that eight random bytes make.
    #[must_use]
    pub fn from_random(bytes: [u8; 8]) -> Id {
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Id(GrantId::parse(&text).expect("16 hexadecimal digits are a name"))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The same name, of the grant.
    #[must_use]
    pub fn to_grant_id(&self) -> GrantId {
        self.0.clone()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for Id {
    type Error = GrantIdError;

    fn try_from(text: String) -> Result<Id, GrantIdError> {
        Id::parse(&text)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.as_str().to_owned()
    }
}
