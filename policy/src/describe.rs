//! Routes in words.

use std::fmt;

use jiff::Timestamp;

use crate::host::Host;
use crate::matches::{Match, NamedValue};
use crate::path::EscapedSlashes;
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
    let (mut told, mut more) = (Vec::new(), false);
    let mut allowed: Vec<String> = Vec::new();
    for route in policy.candidates(host).filter(|route| allows(route)) {
        if !says_more(route, &told) {
            continue;
        }
        if allowed.len() >= HINT_LINES_MAX {
            more = true;
            break;
        }
        for line in lines(route) {
            if !allowed.contains(&line) {
                allowed.push(line);
            }
        }
        told.push(route);
    }
    if allowed.is_empty() {
        return format!("no route allows {host}; http://_egress.local/allowlist lists what is allowed");
    }
    let more = if more || allowed.len() > HINT_LINES_MAX { "; and more" } else { "" };
    allowed.truncate(HINT_LINES_MAX);
    format!("allowed on this host: {}{more}", allowed.join("; "))
}

/// Whether a line of `route` is not one of those that were `told`; no line is written for it.
fn says_more(route: &Route, told: &[&Route]) -> bool {
    let is_told = |port: u16, entry: Option<&Match>| {
        told.iter().any(|other| {
            let place = |route: &Route| (route.scheme, route.tls, route.escaped_slashes);
            let same_place = other.host == route.host && place(other) == place(route);
            let same_entry = entry.map_or(other.matches.is_empty(), |entry| other.matches.contains(entry));
            same_place && other.ports.contains(&port) && same_entry
        })
    };
    let mut ports = route.ports.iter();
    if route.matches.is_empty() {
        ports.any(|&port| !is_told(port, None))
    } else {
        ports.any(|&port| route.matches.iter().any(|entry| !is_told(port, Some(entry))))
    }
}

fn lines(route: &Route) -> Vec<String> {
    let deny = match route.verdict {
        Verdict::Allow => "",
        Verdict::Deny => "deny ",
    };
    let slashes = match (route.verdict, route.escaped_slashes) {
        (Verdict::Allow, EscapedSlashes::Kept) => " (also with %2F)",
        (Verdict::Allow, EscapedSlashes::Refused) | (Verdict::Deny, _) => "",
    };
    let mut lines = Vec::with_capacity(route.ports.len() * route.matches.len().max(1));
    for origin in route.ports.iter().map(|&port| Origin { route, port }) {
        if route.tls == Tls::Passthrough {
            lines.push(format!("{deny}tunnel to {origin} (not inspected)"));
        } else if route.matches.is_empty() {
            lines.push(format!("{deny}any method {origin}/**{slashes}"));
        } else {
            let line = |entry| format!("{deny}{}{slashes}", Line { origin, entry });
            lines.extend(route.matches.iter().map(line));
        }
    }
    lines
}

/// `https://api.example.com`, with the port where it is not the scheme's own.
#[derive(Clone, Copy)]
struct Origin<'r> {
    route: &'r Route,
    port: u16,
}

impl fmt::Display for Origin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Origin { route: Route { scheme, host, .. }, port } = self;
        write!(f, "{scheme}://{host}")?;
        if *port == scheme.default_port() { Ok(()) } else { write!(f, ":{port}") }
    }
}

/// One entry of `matches` on one origin.
struct Line<'r> {
    origin: Origin<'r>,
    entry: &'r Match,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { origin, entry } = self;
        if entry.methods.is_empty() {
            f.write_str("any method")?;
        }
        for (number, method) in entry.methods.iter().enumerate() {
            write!(f, "{}{method}", separator(number))?;
        }
        f.write_str(" ")?;
        if entry.paths.is_empty() {
            write!(f, "{origin}/**")?;
        }
        for (number, path) in entry.paths.iter().enumerate() {
            write!(f, "{}{origin}{path}", separator(number))?;
        }
        let headers = entry.headers.iter().map(|header| ("header", ": ", header));
        let conditions = headers.chain(entry.query.iter().map(|pair| ("query", "=", pair)));
        for (number, (kind, is, NamedValue { name, value })) in conditions.enumerate() {
            let before = if number == 0 { " with " } else { ", " };
            write!(f, "{before}{kind} {name}{is}{value}")?;
        }
        Ok(())
    }
}

fn separator(number: usize) -> &'static str {
    if number == 0 { "" } else { ", " }
}
