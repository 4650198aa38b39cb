//! Routes in words.

use jiff::Timestamp;

use crate::host::Host;
use crate::matches::Match;
use crate::policy::Policy;
use crate::route::{Route, Tls, Verdict};

/// How many routes a hint lists.
const HINT_LINES_MAX: usize = 5;

/// What a route allows or refuses, one line per entry of `matches`: `GET https://api.example.com/v1/**`.
#[must_use]
pub fn describe(route: &Route) -> String {
    lines(route).join("\n")
}

/// What is allowed on a host, for the hint of a refusal.
pub(crate) fn allowed_on(policy: &Policy, host: &Host, now: Timestamp) -> String {
    let allows = |route: &Route| route.verdict == Verdict::Allow && !route.expired(now);
    let mut allowed: Vec<String> = Vec::new();
    let mut told = 0;
    for route in policy.candidates(host).filter(|route| allows(route)) {
        let next = lines(route);
        told += next.len();
        allowed.extend(next);
        allowed.dedup();
        if allowed.len() > HINT_LINES_MAX {
            break;
        }
    }
    if allowed.is_empty() {
        return format!("no route allows {host}; http://_egress.local/allowlist lists what is allowed");
    }
    let all: usize = policy.kinds(host).filter(|(route, _)| allows(route)).map(|(_, lines)| lines).sum();
    let more = allowed.len().saturating_sub(HINT_LINES_MAX) + (all - told);
    allowed.truncate(HINT_LINES_MAX);
    let list = allowed.join("; ");
    if more == 0 {
        format!("allowed on this host: {list}")
    } else {
        format!("allowed on this host: {list}; and {more} more")
    }
}

/// How many [`lines`] has.
pub(crate) fn lines_of(route: &Route) -> usize {
    route.ports.len() * route.matches.len().max(1)
}

fn lines(route: &Route) -> Vec<String> {
    let origins: Vec<String> = route.ports.iter().map(|&port| origin(route, port)).collect();
    let deny = match route.verdict {
        Verdict::Allow => "",
        Verdict::Deny => "deny ",
    };
    let mut lines = Vec::new();
    for origin in &origins {
        if route.tls == Tls::Passthrough {
            lines.push(format!("{deny}tunnel to {origin} (not inspected)"));
        } else if route.matches.is_empty() {
            lines.push(format!("{deny}any method {origin}/**"));
        } else {
            lines.extend(route.matches.iter().map(|entry| format!("{deny}{}", entry_line(origin, entry))));
        }
    }
    lines
}

fn origin(route: &Route, port: u16) -> String {
    let host = &route.host;
    if port == route.scheme.default_port() {
        format!("{}://{host}", route.scheme)
    } else {
        format!("{}://{host}:{port}", route.scheme)
    }
}

fn entry_line(origin: &str, entry: &Match) -> String {
    let methods = if entry.methods.is_empty() {
        "any method".to_owned()
    } else {
        entry.methods.iter().map(http::Method::as_str).collect::<Vec<_>>().join(", ")
    };
    let paths = if entry.paths.is_empty() {
        format!("{origin}/**")
    } else {
        entry.paths.iter().map(|path| format!("{origin}{path}")).collect::<Vec<_>>().join(", ")
    };
    let mut line = format!("{methods} {paths}");
    let headers = entry.headers.iter().map(|header| format!("header {}: {}", header.name, header.value));
    let query = entry.query.iter().map(|pair| format!("query {}={}", pair.name, pair.value));
    let conditions: Vec<String> = headers.chain(query).collect();
    if !conditions.is_empty() {
        line.push_str(&format!(" with {}", conditions.join(", ")));
    }
    line
}
