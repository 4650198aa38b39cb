//! What the screen shows, as it was at one moment.

use std::collections::VecDeque;

use jiff::Timestamp;
use proposal::wire::{Status, View};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A bottle in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Whether it runs.
    pub running: bool,
    /// How it is, in words.
    pub state: String,
    /// When it was started.
    pub started: Timestamp,
}

/// One bottle, looked at.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Facts {
    /// What its agent asked for, oldest first.
    pub requests: Vec<View>,
    /// How the desk stands.
    pub desk: Option<Status>,
    /// Its daemons.
    pub daemons: Vec<Daemon>,
    /// Egress' own counts.
    pub egress: Option<Value>,
    /// Git-gate's own counts and repositories.
    pub git: Option<GitFacts>,
    /// The newest reads and pushes, newest last.
    pub git_log: Vec<GitLine>,
    /// What could not be looked at, and why.
    pub problems: Vec<String>,
}

/// A daemon, as its supervisor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Daemon {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: String,
    /// How often it was restarted.
    #[serde(default)]
    pub restarts: u64,
    /// Since when, in milliseconds.
    #[serde(default)]
    pub uptime_ms: Option<u64>,
    /// What is in force.
    #[serde(default)]
    pub generation: Option<u64>,
    /// Why the last reload was refused.
    #[serde(default)]
    pub reload_error: Option<String>,
    /// How it ended last.
    #[serde(default)]
    pub last_exit: Option<String>,
    /// What confines it.
    #[serde(default)]
    pub walls: Vec<String>,
}

/// What git-gate says of itself, as far as it is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GitFacts {
    /// Reads served.
    pub reads: u64,
    /// Reads refused.
    pub reads_refused: u64,
    /// Pushes forwarded.
    pub pushes: u64,
    /// Pushes refused.
    pub pushes_refused: u64,
    /// Secrets found.
    pub findings: u64,
    /// Its repositories.
    pub repos: Vec<Repository>,
}

/// A repository of git-gate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Repository {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub upstream: String,
    /// When it was fetched last.
    pub refreshed_at: Value,
    /// Why it cannot be.
    pub error: Option<String>,
}

/// A read or a push.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GitLine {
    /// When.
    pub at: Timestamp,
    /// `fetch`, `push`, or `pushing` for one that is on its way.
    pub what: &'static str,
    /// The repository.
    pub repo: String,
    /// How it ended.
    pub outcome: String,
    /// The references, or what was found.
    pub about: String,
}

/// A request through egress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// When it ended.
    pub at: Timestamp,
    /// `allow` or `deny`.
    pub decision: String,
    /// Why it was refused.
    #[serde(default)]
    pub code: Option<String>,
    /// Where to.
    pub host: String,
    /// Which port.
    pub port: u16,
    /// `https` or `http`.
    pub scheme: String,
    /// How.
    pub method: String,
    /// What.
    pub path: String,
    /// The answer.
    #[serde(default)]
    pub status: Option<u16>,
    /// The request that allowed it.
    #[serde(default)]
    pub grant: Option<String>,
}

/// What egress says in `tail`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passages {
    /// Newest last.
    pub requests: Vec<Passage>,
    /// How many were missed.
    #[serde(default)]
    pub missed: u64,
}

/// How many requests are kept.
pub const TRAFFIC_MAX: usize = 1000;

/// The newest requests of one bottle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Newest last.
    pub lines: VecDeque<Passage>,
    /// How many were missed.
    pub missed: u64,
}

impl Traffic {
    /// Adds what egress said; the oldest go.
    pub fn add(&mut self, said: Passages) {
        self.missed += said.missed;
        self.lines.extend(said.requests);
        while self.lines.len() > TRAFFIC_MAX {
            self.lines.pop_front();
        }
    }
}

impl Passage {
    /// Where to, as a URL without a query; the port where it is not the usual one.
    #[must_use]
    pub fn url(&self) -> String {
        let Passage { scheme, host, port, path, .. } = self;
        let usual = matches!((scheme.as_str(), port), ("https", 443) | ("http", 80));
        let port = if usual { String::new() } else { format!(":{port}") };
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        format!("{scheme}://{host}{port}{path}")
    }
}
