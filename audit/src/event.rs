//! What the daemons record. Names, positions and counts; never a secret, a body or a query string.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Any event of egress or git-gate, for readers. Writers append the structs themselves, each of which carries its `type`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// A request that egress judged.
    Request(RequestEvent),
    /// Refusals that were counted.
    Repeated(RepeatedEvent),
    /// A set of routes that egress was asked to put in force.
    Reload(ReloadEvent),
    /// A read through the git gate.
    Fetch(FetchEvent),
    /// A push that the git gate is about to forward.
    PushBegun(PushBegunEvent),
    /// A push through the git gate.
    Push(PushEvent),
    /// How often grants were used, where a file of the journal begins.
    Uses(UsesEvent),
}

/// What was decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It went on.
    Allow,
    /// It was refused.
    #[default]
    Deny,
}

/// One request through egress.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "request")]
pub struct RequestEvent {
    /// Allowed or refused.
    pub decision: Decision,
    /// The code of the refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The identifier that the agent was told with the refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_id: Option<String>,
    /// Canonical host.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `https` or `http`.
    pub scheme: Cow<'static, str>,
    /// Method, or `CONNECT` where it ended there.
    pub method: String,
    /// Canonical path, without the query.
    pub path: String,
    /// The route that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// The proposal that made that route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
    /// The generation of the routes it was judged by.
    pub generation: u64,
    /// Their digest, `sha256:…`.
    pub digest: Arc<str>,
    /// The status that the agent got.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Body bytes towards upstream.
    pub bytes_up: u64,
    /// Body bytes towards the agent.
    pub bytes_down: u64,
    /// From the head to the end of the response.
    pub millis: u64,
    /// From the head to the head of upstream's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_millis: Option<u64>,
    /// It was cut at a secret after some of it had left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    /// It was refused once some of it may have left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sent: bool,
}

impl RequestEvent {
    /// Whether it went out, or some of it may have.
    #[must_use]
    pub fn went_out(&self) -> bool {
        self.decision == Decision::Allow || self.sent
    }
}

/// A set of routes put in force, or refused while the old one stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "reload")]
pub struct ReloadEvent {
    /// The generation in force afterwards.
    pub generation: u64,
    /// Its digest, `sha256:…`.
    pub digest: String,
    /// Why the new routes were refused, `file:line:column: text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One read through the git gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "fetch")]
pub struct FetchEvent {
    /// The repository.
    pub repo: String,
    /// `served`, or why not, as a stable word.
    pub outcome: String,
    /// How old the data was, in seconds, where upstream did not answer and older data may be served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_seconds: Option<u64>,
    /// Body bytes towards the agent.
    pub bytes_down: u64,
    /// From the request to its end.
    pub millis: u64,
}

/// A push that was judged and is about to be forwarded. Without this record nothing is; the [`PushEvent`] that follows says how it
/// ended, and where none follows the gate ended first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "push_begun")]
pub struct PushBegunEvent {
    /// The repository.
    pub repo: String,
    /// What is to be changed.
    pub refs: Vec<RefUpdate>,
    /// The grants that it uses up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<String>,
}

/// One push through the git gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "push")]
pub struct PushEvent {
    /// The repository.
    pub repo: String,
    /// What was to be changed.
    pub refs: Vec<RefUpdate>,
    /// `forwarded`, or why not, as a stable word.
    pub outcome: String,
    /// How many new objects were judged.
    #[serde(default)]
    pub objects: u64,
    /// Body bytes from the agent.
    #[serde(default)]
    pub bytes_up: u64,
    /// The grants that it used up, or would have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<String>,
    /// What the scanner found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Upstream's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_answer: Option<String>,
    /// From the request to its end.
    pub millis: u64,
}

/// How often each grant was used up to here: the sum of what stands in the files before, which may be dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "uses")]
pub struct UsesEvent {
    /// The uses by grant.
    pub grants: BTreeMap<String, u64>,
}

/// A reference that a push changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefUpdate {
    /// Full name.
    pub name: String,
    /// Object before, zeros for a new reference.
    pub old: String,
    /// Object after, zeros for a deletion.
    pub new: String,
}

/// Where a rule matched; never what it matched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The rule.
    pub rule: String,
    /// The commit that brought it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The file, or what else was scanned (`message`, `ref name`).
    pub path: String,
    /// Line, from 1.
    pub line: u32,
}

/// The record that the journal itself writes after it dropped an unfinished last line. [`crate::replay`] passes over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovered {
    #[serde(rename = "type")]
    kind: RecoveredKind,
    /// When it was noticed.
    pub at: Timestamp,
    /// How many bytes were dropped.
    pub dropped_bytes: u64,
}

impl Recovered {
    pub(crate) fn new(at: Timestamp, dropped_bytes: u64) -> Recovered {
        Recovered { kind: RecoveredKind::Recovered, at, dropped_bytes }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RecoveredKind {
    Recovered,
}

/// The record that the journal itself writes before it drops its oldest file: what shows that its beginning is not missing, but gone.
/// [`crate::replay`] passes over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    #[serde(rename = "type")]
    kind: DroppedKind,
    /// The last record that is dropped.
    pub through: u64,
    /// Its hash.
    pub hash: String,
}

impl Dropped {
    pub(crate) fn new(through: u64, hash: String) -> Dropped {
        Dropped { kind: DroppedKind::Dropped, through, hash }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DroppedKind {
    Dropped,
}

/// Refusals that were so many of a kind that they are counted instead of recorded one by one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "repeated")]
pub struct RepeatedEvent {
    /// Their code.
    pub code: String,
    /// Their host, or `*` for many.
    pub host: String,
    /// Their method, or `*` for many.
    pub method: String,
    /// Their path, or `*` for many.
    pub path: String,
    /// How many more there were.
    pub count: u64,
    /// The first of them.
    pub first: Timestamp,
    /// The last of them.
    pub last: Timestamp,
}
