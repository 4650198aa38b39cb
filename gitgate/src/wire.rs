//! What the hook and the daemon tell each other, as JSON lines over a socket pair.
//!
//! The daemon decides which refs may be pushed and holds the repository's lock; the hook reads
//! objects and speaks to upstream. The socket is inherited by `git receive-pack` and its hook; its
//! number stands in [`HOOK_FD`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The environment variable with the number of the hook's end of the socket.
pub(crate) const HOOK_FD: &str = "GIT_GATE_HOOK_FD";

/// The longest line either side reads; a push of some ten thousand refs fits.
pub(crate) const LINE_MAX_BYTES: u64 = 8 << 20;

/// From the hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(crate) enum FromHook {
    /// The refs of the push; the daemon answers [`ToHook::Inspect`] or [`ToHook::Deny`].
    Updates { updates: Vec<Update> },
    /// Secrets were found; the end.
    Found { findings: Vec<Place> },
    /// The objects cannot be judged; the end.
    Unjudged { reason: String },
    /// Nothing was found; the daemon answers [`ToHook::Forward`] or [`ToHook::Deny`].
    Clean,
    /// What upstream made of it; the end.
    Answered { accepted: bool, words: String },
}

/// To the hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(crate) enum ToHook {
    /// The refs may be pushed if their objects are clean.
    Inspect,
    /// The push ends here, for these reasons.
    Deny { reasons: Vec<String> },
    /// The lock is held: forward the push.
    Forward { url: String, gate_dir: PathBuf, ssh_config: Option<PathBuf>, local: bool },
}

/// One ref of a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Update {
    pub(crate) name: String,
    pub(crate) old: String,
    pub(crate) new: String,
    pub(crate) change: Change,
}

/// What happens to the ref.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Change {
    Create,
    FastForward,
    Rewrite,
    Delete,
}

impl From<Change> for repos::Change {
    fn from(change: Change) -> Self {
        match change {
            Change::Create => Self::Create,
            Change::FastForward => Self::FastForward,
            Change::Rewrite => Self::Rewrite,
            Change::Delete => Self::Delete,
        }
    }
}

/// Where something was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) rule: String,
    pub(crate) commit: Option<String>,
    pub(crate) object: Option<String>,
    /// A path in the tree, or what else it is in parentheses: `(commit message)`.
    pub(crate) file: String,
    pub(crate) line: u32,
    pub(crate) line_end: u32,
    pub(crate) column: u32,
}
