//! The effective routes for the agent to read: no names of secrets, let alone values.

use jiff::Timestamp;
use serde::Serialize;

use crate::matches::{Match, NamedValue};
use crate::path::EscapedSlashes;
use crate::policy::Policy;
use crate::route::{Route, Scheme, Tls};

/// What is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Allowlist {
    /// The routes that have not expired, in the order of the file.
    pub routes: Vec<AllowlistEntry>,
}

/// One route in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AllowlistEntry {
    /// The host pattern.
    pub host: String,
    /// `https` or `http`.
    pub scheme: Scheme,
    /// The ports.
    pub ports: Vec<u16>,
    /// The entries; none when every request on the host fits.
    pub matches: Vec<AllowlistMatch>,
    /// Is it also for paths with `%2F`?
    pub allow_encoded_slashes: bool,
    /// Does it refuse?
    pub deny: bool,
    /// Is the tunnel opened?
    pub tls: Tls,
    /// Is fetching with git over HTTPS allowed?
    pub git_fetch: bool,
    /// Is a credential injected?
    pub credential: bool,
    /// When it ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// The proposal that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
}

/// One entry of `matches`, in the words of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AllowlistMatch {
    /// Paths.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<AllowlistPath>,
    /// Methods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Headers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<NamedValue>,
    /// Query keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<NamedValue>,
}

/// One path of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AllowlistPath {
    /// `exact`, `prefix` or `regex`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The path or pattern.
    pub value: String,
}

impl Policy {
    /// The routes in force at `now`.
    #[must_use]
    pub fn allowlist(&self, now: Timestamp) -> Allowlist {
        Allowlist {
            routes: self
                .routes()
                .iter()
                .filter(|route| !route.expired(now))
                .map(AllowlistEntry::from)
                .collect(),
        }
    }
}

impl From<&Route> for AllowlistEntry {
    fn from(route: &Route) -> AllowlistEntry {
        AllowlistEntry {
            host: route.host.to_string(),
            scheme: route.scheme,
            ports: route.ports.clone(),
            matches: route.matches.iter().map(AllowlistMatch::from).collect(),
            allow_encoded_slashes: route.escaped_slashes == EscapedSlashes::Kept,
            deny: route.deny(),
            tls: route.tls,
            git_fetch: route.git_fetch,
            credential: route.credential.is_some(),
            expires_at: route.expires_at.map(|end| end.to_string()),
            grant: route.grant.as_ref().map(ToString::to_string),
        }
    }
}

impl From<&Match> for AllowlistMatch {
    fn from(entry: &Match) -> AllowlistMatch {
        let path = |path: &crate::matches::PathMatch| AllowlistPath {
            kind: path.kind().to_owned(),
            value: path.value().to_owned(),
        };
        AllowlistMatch {
            paths: entry.paths.iter().map(path).collect(),
            methods: entry.methods.iter().map(ToString::to_string).collect(),
            headers: entry.headers.clone(),
            query: entry.query.clone(),
        }
    }
}
