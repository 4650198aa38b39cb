//! Claims about the public API.

#![allow(clippy::unwrap_used)]

mod address;
mod append;
mod decide;
mod describe;
mod diagnostics;
mod doubt;
mod front;
mod host;
mod path;
mod slashes;
mod warnings;

use jiff::Timestamp;
use policy::{CanonicalPath, Decision, Denial, Host, Policy, RequestHead, Scheme};

/// The moment at which the tests ask.
fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

/// The policy with these routes, which are written with two spaces of indentation.
fn policy(routes: &str) -> Policy {
    Policy::parse("routes.yaml", &format!("routes:\n{routes}")).unwrap()
}

/// What is said about a text that is refused.
fn refused(text: &str) -> String {
    Policy::parse("routes.yaml", text).unwrap_err().to_string()
}

fn host(text: &str) -> Host {
    Host::parse(text).unwrap()
}

/// A request as `GET https://host:port/path?query`, with headers.
struct Ask {
    method: http::Method,
    scheme: Scheme,
    host: Host,
    port: u16,
    path: CanonicalPath,
    query: Option<String>,
    headers: http::HeaderMap,
}

impl Ask {
    fn new(method: &str, url: &str) -> Ask {
        let (scheme, rest) = url.split_once("://").unwrap();
        let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
        let slash = rest.find('/').unwrap();
        let (authority, target) = rest.split_at(slash);
        let (name, port) = match authority.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, port.parse().unwrap()),
            _ => (authority, scheme.default_port()),
        };
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        Ask {
            method: method.parse().unwrap(),
            scheme,
            host: host(name),
            port,
            path: CanonicalPath::of_request(path).unwrap(),
            query,
            headers: http::HeaderMap::new(),
        }
    }

    fn header(mut self, name: &'static str, value: &'static str) -> Ask {
        self.headers.append(name, http::HeaderValue::from_static(value));
        self
    }

    fn of<'p>(&self, policy: &'p Policy) -> Decision<'p> {
        self.at(policy, now())
    }

    fn at<'p>(&self, policy: &'p Policy, now: Timestamp) -> Decision<'p> {
        policy.decide(&self.head(), now)
    }

    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            scheme: self.scheme,
            host: &self.host,
            port: self.port,
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            headers: &self.headers,
        }
    }
}

/// `allow routes[0]` or the code of the refusal.
fn outcome(policy: &Policy, method: &str, url: &str) -> String {
    in_short(&Ask::new(method, url).of(policy))
}

fn in_short(decision: &Decision<'_>) -> String {
    match decision {
        Decision::Allow(route) => format!("allow {}", route.id()),
        Decision::Deny(denial) => denial.code.to_string(),
    }
}

fn denial(policy: &Policy, method: &str, url: &str) -> Denial {
    match Ask::new(method, url).of(policy) {
        Decision::Allow(route) => panic!("{method} {url} is allowed by {}", route.id()),
        Decision::Deny(denial) => denial,
    }
}
