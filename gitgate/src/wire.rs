//! What the hook and the daemon tell each other, as JSON lines over a socket pair.
//!
//! The daemon decides which refs may be pushed and holds the repository's lock; the hook reads
//! objects and speaks to upstream. The socket is inherited by `git receive-pack` and its hook; its
//! number stands in [`HOOK_FD`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::door::Door;

/// The environment variable with the number of the hook's end of the socket.
pub(crate) const HOOK_FD: &str = "GIT_GATE_HOOK_FD";

/// The longest line either side reads; a push of some ten thousand refs fits.
pub(crate) const LINE_MAX_BYTES: u64 = 8 << 20;

/// From the hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(crate) enum FromHook {
    /// The refs of the push and its options; the daemon answers [`ToHook::Inspect`] or [`ToHook::Deny`].
    Updates { updates: Vec<Update>, options: Vec<String> },
    /// Secrets were found; the end.
    Found { findings: Vec<Place> },
    /// Secrets were found, and the operator may be asked about exactly this push; the daemon answers [`ToHook::Wait`] any number of
    /// times, then [`ToHook::Forward`] or [`ToHook::Deny`].
    Held { findings: Vec<Place>, objects: u64, digest: String, excepted: Vec<Excepted> },
    /// The rules of the repository do not let the objects through; the end.
    Objected { reasons: Vec<String> },
    /// The objects cannot be judged; the end.
    Unjudged { reason: String },
    /// Nothing but what is excepted was found in so many objects; the daemon answers [`ToHook::Forward`], [`ToHook::Deny`], or [`ToHook::Inspect`] where
    /// upstream has something else by now.
    Clean { objects: u64, excepted: Vec<Excepted> },
    /// The pack follows in frames, each after its length in four bytes; a length of nothing ends it. The daemon answers
    /// [`ToHook::Wait`] any number of times, then [`ToHook::Sent`].
    Sending,
    /// What upstream made of it, and its word on each ref that it refused; the end.
    Answered { end: End, words: String, refs: Vec<(String, String)> },
}

/// What upstream made of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    /// It took it.
    Taken,
    /// It took nothing of it, and that is sure.
    Refused,
    /// That is not known.
    Unknown,
}

/// To the hook.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(crate) enum ToHook {
    /// The refs may be pushed if their objects are clean and keep these bounds. What upstream has of an unread ref, nobody can see
    /// here.
    Inspect { bounds: Bounds, marking: Marking, unread: Option<String>, gate_dir: PathBuf },
    /// Words for the client, who waits.
    Wait { words: String },
    /// The push ends here, for these reasons.
    Deny { reasons: Vec<String> },
    /// The lock is held: forward the push.
    Forward { gate_dir: PathBuf, way: Way },
    /// What upstream made of it; the end.
    Sent { end: End, words: String },
}

/// How a push goes to upstream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    /// Git pushes it.
    Git { url: String, door: Door },
    /// The daemon sends it, and waits for the pack.
    Pack,
}

/// What the rules of a repository ask of objects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bounds {
    /// The largest object.
    pub(crate) max_file: u64,
    /// What has to follow `@` in addresses; empty where anything may.
    pub(crate) author_domains: Vec<String>,
    pub(crate) lfs: Lfs,
    pub(crate) opaque: Opaque,
    pub(crate) options: Options,
    pub(crate) on_secret: OnSecret,
}

/// How what is found is named, and what is excepted. Only the hook is told.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Marking {
    pub(crate) key: [u8; scan::MARK_KEY_BYTES],
    pub(crate) excepted: Vec<Excepted>,
}

impl std::fmt::Debug for Marking {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Marking(.., {:?})", self.excepted)
    }
}

/// A finding that may be pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Excepted {
    pub(crate) rule: String,
    pub(crate) fingerprint: String,
}

/// Whether pointers of git-lfs may be pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Lfs {
    Refuse,
    Pass,
}

/// Whether files that cannot be looked into may be pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Opaque {
    Refuse,
    Pass,
}

/// Whether push options are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Options {
    Refuse,
    Pass,
}

/// What a push with a secret in it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum OnSecret {
    Block,
    Supervise,
}

impl From<&repos::PushRules> for Bounds {
    fn from(rules: &repos::PushRules) -> Self {
        Self {
            max_file: rules.max_file(),
            author_domains: rules.author_domains().to_vec(),
            lfs: if rules.lfs() { Lfs::Pass } else { Lfs::Refuse },
            opaque: if rules.opaque() { Opaque::Pass } else { Opaque::Refuse },
            options: if rules.push_options() { Options::Pass } else { Options::Refuse },
            on_secret: match rules.on_secret() {
                repos::OnSecret::Block => OnSecret::Block,
                repos::OnSecret::Supervise => OnSecret::Supervise,
            },
        }
    }
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
    /// Its name, by which an exception can be asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fingerprint: Option<String>,
}
