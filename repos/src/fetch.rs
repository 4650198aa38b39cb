//! What is mirrored from upstream and may be read.

use std::time::Duration;

use crate::refs::RefPattern;

/// What is mirrored from upstream and may be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRules {
    /// The refs, as refspec patterns; never empty.
    pub allow: Vec<RefPattern>,
    /// What happens when upstream does not answer.
    pub stale: Stale,
}

/// Whether older data may be served when upstream does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// Never.
    Refuse,
    /// When it was upstream's state at most this long ago; the answer says so.
    Allow(Duration),
}
