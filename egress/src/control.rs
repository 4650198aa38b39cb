//! The operator's side: `egress.sock`, one JSON object a line. docs/control.md describes it.

mod server;

pub use server::{bind, serve};

use policy::Route;
use serde::{Deserialize, Serialize};

use crate::observe::{Seen, Totals};
use crate::proxy::Proxy;

/// The name of the socket in the run directory.
pub const SOCKET: &str = "egress.sock";

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What is in force. Answered by [`Status`].
    Status {},
    /// What each route does right now. Answered by [`RouteCounts`].
    Limits {},
    /// The latest refusals; then, to who follows, every request as it ends. Answered by [`Tail`].
    Tail {
        /// Whether to go on.
        #[serde(default)]
        follow: bool,
    },
    /// What would be said to a request. Answered by an [`crate::explain::Explanation`].
    Explain {
        /// Its method.
        method: String,
        /// Its URL.
        url: String,
        /// Its headers, `name: value`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        headers: Vec<String>,
    },
}

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    /// Counts the sets of routes from 1.
    pub generation: u64,
    /// `sha256:…` of the file.
    pub digest: String,
    /// Since when.
    pub loaded_at: jiff::Timestamp,
    /// How many routes there are.
    pub routes: usize,
    /// What is hardly meant in them, `file:line:column: text`.
    pub warnings: Vec<String>,
    /// The requests since the start.
    pub requests: Totals,
    /// Whether the journal is written.
    pub journal: JournalState,
}

/// Whether the journal is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalState {
    /// It is.
    Written,
    /// It cannot be; requests are refused.
    Broken,
}

/// What each route does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteCounts {
    /// In the order of the file.
    pub routes: Vec<RouteCount>,
}

/// What one route does, against its bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteCount {
    /// Its place in the file.
    pub route: String,
    /// Its host pattern.
    pub host: String,
    /// Requests in flight.
    pub requests: u32,
    /// Their bound.
    pub concurrency: Option<u32>,
    /// Connections to upstream.
    pub connections: u32,
    /// Their bound.
    pub connections_max: Option<u32>,
    /// The bound of requests in a minute.
    pub requests_per_minute: Option<u32>,
    /// The bound of a body.
    pub request_body: Option<u64>,
    /// How often it was used, where that is counted.
    pub uses: Option<u64>,
    /// How often it may be.
    pub max_uses: Option<u64>,
}

/// Requests that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// Oldest first.
    pub requests: Vec<Seen>,
    /// How many were missed, because they were not taken in time.
    pub missed: u64,
}

impl Status {
    pub(crate) fn of(proxy: &Proxy) -> Status {
        let snapshot = proxy.snapshot();
        let broken = proxy.recorder.is_broken();
        Status {
            generation: snapshot.generation,
            digest: snapshot.digest.to_string(),
            loaded_at: snapshot.loaded_at,
            routes: snapshot.policy.routes().len(),
            warnings: snapshot.policy.warnings().iter().map(ToString::to_string).collect(),
            requests: proxy.recorder.observer().totals(),
            journal: if broken { JournalState::Broken } else { JournalState::Written },
        }
    }
}

impl RouteCounts {
    pub(crate) fn of(proxy: &Proxy) -> RouteCounts {
        let snapshot = proxy.snapshot();
        let count = |route: &Route| {
            let (reading, limits) = (snapshot.gauge(route).read(), route.limits());
            let counted = route.max_uses().map(|_| proxy.uses.used(&route.use_key()));
            RouteCount {
                route: route.id().to_string(),
                host: route.host().to_string(),
                requests: reading.requests,
                concurrency: limits.concurrency.map(Into::into),
                connections: reading.connections,
                connections_max: limits.connections.map(Into::into),
                requests_per_minute: limits.requests_per_minute.map(Into::into),
                request_body: limits.request_body,
                uses: counted,
                max_uses: route.max_uses().map(Into::into),
            }
        };
        RouteCounts { routes: snapshot.policy.routes().iter().map(count).collect() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proposal::wire::Reply;

    use super::*;
    use crate::explain::Explanation;

    /// The reply with its result read as what the operation answers, and written again.
    fn again(request: &Request, reply: Reply) -> Reply {
        let Reply::Done(_) = reply else { return reply };
        match request {
            Request::Status {} => Reply::done(&reply.into_result::<Status>().unwrap()),
            Request::Limits {} => Reply::done(&reply.into_result::<RouteCounts>().unwrap()),
            Request::Tail { .. } => Reply::done(&reply.into_result::<Tail>().unwrap()),
            Request::Explain { .. } => Reply::done(&reply.into_result::<Explanation>().unwrap()),
        }
    }

    #[test]
    fn the_golden_file_reads_and_writes_as_it_stands() {
        let golden = include_str!("../../docs/control/egress.jsonl");
        let lines: Vec<&str> = golden.lines().collect();
        for pair in lines.chunks(2) {
            let request: Request = serde_json::from_str(pair[0]).unwrap();
            assert_eq!(serde_json::to_string(&request).unwrap(), pair[0]);
            let reply: Reply = serde_json::from_str(pair[1]).unwrap();
            let value = |reply: &Reply| serde_json::to_value(reply).unwrap();
            assert_eq!(value(&again(&request, reply.clone())), value(&reply), "{}", pair[1]);
        }
        for op in ["status", "limits", "tail", "explain"] {
            assert!(golden.contains(&format!("{{\"op\":\"{op}\"")), "{op}");
        }
    }
}
