//! What an approved proposal adds to the routes.

use std::fmt;
use std::num::NonZeroU64;

use crate::host::Host;
use crate::matches::PathMatch;
use crate::route::Scheme;

/// A permission with an end, made from an approved proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The proposal it came from.
    pub id: GrantId,
    /// One host, never a wildcard.
    pub host: Host,
    /// How it is spoken to.
    pub scheme: Scheme,
    /// On which ports; not empty.
    pub ports: Vec<u16>,
    /// With which methods; empty for every method.
    pub methods: Vec<http::Method>,
    /// On which paths; empty for every path.
    pub paths: Vec<PathMatch>,
    /// Until when.
    pub expires_at: jiff::Timestamp,
    /// For how many requests; as many as come, if absent.
    pub max_uses: Option<NonZeroU64>,
}

/// The identifier of a grant: letters, digits, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrantId(String);

/// Why a text is not the identifier of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a grant's identifier is 1 to 64 letters, digits, `-` and `_`")]
pub struct GrantIdError;

impl GrantId {
    /// The identifier, when it is one.
    pub fn parse(text: &str) -> Result<GrantId, GrantIdError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(allowed) {
            return Err(GrantIdError);
        }
        Ok(GrantId(text.to_owned()))
    }

    /// The identifier as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
