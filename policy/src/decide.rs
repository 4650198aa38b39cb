//! A request held against the policy.

#[cfg(test)]
mod plain;

use std::fmt;

use jiff::Timestamp;

use crate::describe::allowed_on;
use crate::git::{self, GitService};
use crate::host::{Host, HostError};
use crate::matches::{Fit, MatchRank, Purpose};
use crate::path::{CanonicalPath, PathError};
use crate::pattern::HostRank;
use crate::policy::Policy;
use crate::route::{Route, Scheme, Tls, Verdict};

/// What of a request is decided on.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// How upstream would be spoken to.
    pub scheme: Scheme,
    /// The authority's host: the one that would be resolved and dialled.
    pub host: &'a Host,
    /// The authority's port.
    pub port: u16,
    /// The method.
    pub method: &'a http::Method,
    /// The path that would be forwarded.
    pub path: &'a CanonicalPath,
    /// What follows the `?`, as it would be forwarded.
    pub query: Option<&'a str>,
    /// The headers as the agent sent them.
    pub headers: &'a http::HeaderMap,
}

/// The answer for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<'p> {
    /// It passes, by this route.
    Allow(&'p Route),
    /// It is refused.
    Deny(Denial),
}

/// The answer for a CONNECT, before anything in the tunnel is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Front<'p> {
    /// Open the tunnel locally and decide each request in it.
    Intercept,
    /// Pass the tunnel on after comparing SNI, by this route.
    Passthrough(&'p Route),
    /// Refuse the CONNECT itself.
    Refuse(Denial),
}

/// Why a request is refused, for the agent: no secrets, nothing of the operator's file beyond what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {hint}")]
pub struct Denial {
    /// The stable code.
    pub code: Code,
    /// What would be allowed.
    pub hint: String,
}

/// The stable codes of refusals that this crate knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// No route is for this host, scheme and port.
    HostNotAllowed,
    /// The host is allowed, not this path.
    PathNotAllowed,
    /// The path is allowed, not with this method.
    MethodNotAllowed,
    /// Path and method are allowed, not with these headers or this query.
    RequestNotAllowed,
    /// A deny rule fits.
    DeniedByRule,
    /// What allowed it has ended.
    GrantExpired,
    /// What allowed it was used as often as it may be.
    GrantUsedUp,
    /// The path can be read in two ways.
    AmbiguousPath,
    /// The host can be read in two ways, or is none.
    MalformedHost,
    /// The name leads to an address that may not be dialled.
    AddressNotAllowed,
    /// `git push` over HTTPS.
    GitPushRefused,
    /// `git fetch` over HTTPS on a route without it.
    GitFetchRefused,
}

impl Code {
    /// The code as it stands in the answer.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Code::HostNotAllowed => "host-not-allowed",
            Code::PathNotAllowed => "path-not-allowed",
            Code::MethodNotAllowed => "method-not-allowed",
            Code::RequestNotAllowed => "request-not-allowed",
            Code::DeniedByRule => "denied-by-rule",
            Code::GrantExpired => "grant-expired",
            Code::GrantUsedUp => "grant-used-up",
            Code::AmbiguousPath => "ambiguous-path",
            Code::MalformedHost => "malformed-host",
            Code::AddressNotAllowed => "address-not-allowed",
            Code::GitPushRefused => "git-push-refused",
            Code::GitFetchRefused => "git-fetch-refused",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Denial {
    pub(crate) fn new(code: Code, hint: impl Into<String>) -> Denial {
        Denial { code, hint: hint.into() }
    }
}

impl From<PathError> for Denial {
    fn from(error: PathError) -> Denial {
        Denial::new(Code::AmbiguousPath, error.to_string())
    }
}

impl From<HostError> for Denial {
    fn from(error: HostError) -> Denial {
        Denial::new(Code::MalformedHost, error.to_string())
    }
}

impl From<crate::address::AddressDenial> for Denial {
    fn from(denial: crate::address::AddressDenial) -> Denial {
        Denial::new(Code::AddressNotAllowed, format!("the host resolves to {}", denial.class))
    }
}

impl Policy {
    /// Does the request pass, and by which route? The rules are in the crate's documentation. No route counts as used up.
    #[must_use]
    pub fn decide<'p>(&'p self, head: &RequestHead<'_>, now: Timestamp) -> Decision<'p> {
        self.decide_unless(head, now, &|_| false)
    }

    /// The same, where the counted routes that are `spent` allow nothing more.
    #[must_use]
    pub fn decide_unless<'p>(
        &'p self,
        head: &RequestHead<'_>,
        now: Timestamp,
        spent: &dyn Fn(&Route) -> bool,
    ) -> Decision<'p> {
        let mut misses = Misses { escaped_slash: head.path.has_escaped_slash(), ..Misses::default() };
        let service = git::service(head);
        let reached = self.reached(head.host, head.path);
        for pass in [Pass::Base, Pass::Grants] {
            let routes = reached.iter().copied().filter(|route| pass.takes(route));
            match judge(routes, head, service, Moment { now, spent }, &mut misses) {
                Judgement::Allow(route) => return Decision::Allow(route),
                // As if no rule were there: without a route that takes such a path it is refused for what it is.
                Judgement::Deny if misses.escaped_slash && !misses.fits => break,
                Judgement::Deny => {
                    let hint = "a deny rule of the operator refuses this request".to_owned();
                    return Decision::Deny(Denial { code: Code::DeniedByRule, hint });
                }
                Judgement::Nothing => {}
            }
        }
        // Those that no reading of the path leads to.
        for route in self.kinds(head.host).filter(|route| route.is_for(head)) {
            misses.note(route, Fit::PathMiss, now);
        }
        Decision::Deny(misses.denial(self, head.host, now))
    }

    /// What happens to a CONNECT for `host:port`?
    #[must_use]
    pub fn front(&self, host: &Host, port: u16, now: Timestamp) -> Front<'_> {
        let allows = |route: &&Route| route.scheme == Scheme::Https && route.verdict == Verdict::Allow;
        let in_force = |route: &&Route| route.ports.contains(&port) && !route.expired(now);
        for pass in [Pass::Base, Pass::Grants] {
            let routes = self.kinds(host).filter(|route| pass.takes(route)).filter(allows).filter(in_force);
            // Of equals the first: what one pattern says about tunnels is the same in all its routes.
            let winner =
                routes.reduce(|best, other| if other.host.rank() > best.host.rank() { other } else { best });
            match winner.map(|route| (route, route.tls)) {
                Some((route, Tls::Passthrough)) => return self.front_of_passthrough(route, host, port, now),
                Some((_, Tls::Intercept)) => return Front::Intercept,
                None => {}
            }
        }
        let mut tunnels = self.kinds(host).filter(allows).map(|route| route.tls).peekable();
        let passthrough_only = tunnels.peek().is_some() && tunnels.all(|tls| tls == Tls::Passthrough);
        if self.is_intercepted_port(port) && !passthrough_only {
            return Front::Intercept;
        }
        let expired = |route: &Route| route.ports.contains(&port) && route.expired(now);
        let expired = self.kinds(host).filter(allows).any(expired);
        Front::Refuse(Misses { expired, ..Misses::default() }.denial(self, host, now))
    }

    /// Is there a route that may allow something on `host`, and that no deny of the whole host takes back?
    #[must_use]
    pub fn names(&self, host: &Host, now: Timestamp) -> bool {
        let in_force = |route: &&Route| !route.expired(now);
        let denies = |route: &&Route| route.verdict == Verdict::Deny && route.matches.is_empty();
        let denies: Vec<&Route> = self.kinds(host).filter(in_force).filter(denies).collect();
        let mut allows = self.kinds(host).filter(in_force).filter(|route| route.verdict == Verdict::Allow);
        allows.any(|allow| {
            let is_open = |port: &u16| !denies.iter().any(|deny| deny.takes_back(allow, *port));
            allow.ports.iter().any(is_open)
        })
    }

    /// Does a name below `host` have a route that may allow something? Then `host` is there too, if only as a name (RFC 8020).
    #[must_use]
    pub fn is_above_allowed(&self, host: &Host, now: Timestamp) -> bool {
        self.below(host).any(|route| route.verdict == Verdict::Allow && !route.expired(now))
    }

    /// What is in the tunnel cannot be seen, so any deny that could fit refuses all of it.
    fn front_of_passthrough<'p>(
        &'p self,
        route: &'p Route,
        host: &Host,
        port: u16,
        now: Timestamp,
    ) -> Front<'p> {
        let refuses = |deny: &Route| {
            deny.verdict == Verdict::Deny
                && deny.scheme == Scheme::Https
                && deny.ports.contains(&port)
                && !deny.expired(now)
                && !(deny.matches.is_empty() && route.host.rank() > deny.host.rank())
        };
        if self.kinds(host).filter(|route| Pass::Base.takes(route)).any(refuses) {
            let hint = "a deny rule of the operator is for this host, and what is in the tunnel cannot be checked against it";
            return Front::Refuse(Denial::new(Code::DeniedByRule, hint));
        }
        Front::Passthrough(route)
    }
}

/// Base routes are judged alone before grants are looked at.
#[derive(Clone, Copy)]
enum Pass {
    Base,
    Grants,
}

impl Pass {
    fn takes(self, route: &Route) -> bool {
        match self {
            Pass::Base => route.grant.is_none(),
            Pass::Grants => route.grant.is_some(),
        }
    }
}

/// What changes between two requests that are alike.
#[derive(Clone, Copy)]
struct Moment<'a> {
    now: Timestamp,
    spent: &'a dyn Fn(&Route) -> bool,
}

enum Judgement<'p> {
    Allow(&'p Route),
    Deny,
    Nothing,
}

/// How narrow a fitting route is, compared field by field against denies, in order among allows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    host: HostRank,
    entry: MatchRank,
}

impl Rank {
    fn overrides(&self, deny: &Rank) -> bool {
        self != deny && self.host >= deny.host && self.entry.covers(&deny.entry)
    }
}

fn judge<'p>(
    routes: impl Iterator<Item = &'p Route>,
    head: &RequestHead<'_>,
    service: Option<GitService>,
    moment: Moment<'_>,
    misses: &mut Misses,
) -> Judgement<'p> {
    let mut allows: Vec<(Rank, &Route)> = Vec::new();
    let mut denies: Vec<Rank> = Vec::new();
    for route in routes {
        if !route.is_for(head) {
            continue;
        }
        let entry = match route.fit(head) {
            Fit::Full(entry) => entry,
            miss => {
                misses.note(route, miss, moment.now);
                continue;
            }
        };
        let rank = Rank { host: route.host.rank(), entry };
        misses.fits |= route.verdict == Verdict::Allow;
        match route.verdict {
            _ if route.expired(moment.now) => misses.expired |= route.verdict == Verdict::Allow,
            _ if route.max_uses.is_some() && (moment.spent)(route) => misses.used_up = true,
            Verdict::Deny => denies.push(rank),
            Verdict::Allow => match service {
                Some(GitService::ReceivePack) => misses.git_push = true,
                Some(GitService::UploadPack) if !route.git_fetch => misses.git_fetch = true,
                Some(GitService::UploadPack) | None => allows.push((rank, route)),
            },
        }
    }
    allows.retain(|(allow, _)| denies.iter().all(|deny| allow.overrides(deny)));
    // Of equals the earlier in the file: `max_by` would take the last.
    let winner = allows.into_iter().reduce(|best, other| {
        let order = other.0.cmp(&best.0).then(best.1.id.cmp(&other.1.id));
        if order.is_gt() { other } else { best }
    });
    match winner {
        Some((_, route)) => Judgement::Allow(route),
        None if denies.is_empty() => Judgement::Nothing,
        None => Judgement::Deny,
    }
}

impl Route {
    /// Whatever the path: by scheme, by port, and because what passes it is seen.
    fn is_for(&self, head: &RequestHead<'_>) -> bool {
        self.scheme == head.scheme && self.ports.contains(&head.port) && self.tls == Tls::Intercept
    }

    pub(crate) fn purpose(&self) -> Purpose {
        self.verdict.purpose()
    }

    fn fit(&self, head: &RequestHead<'_>) -> Fit {
        if head.path.has_escaped_slash() && !self.is_for_escaped_slashes() {
            return Fit::PathMiss;
        }
        let fits = self.matches.iter().map(|entry| entry.fit(head, self.purpose()));
        fits.max().unwrap_or(Fit::Full(MatchRank::ANY))
    }
}

impl Route {
    /// Whether this deny of whole hosts refuses all that `allow` would let pass on `port`, where both are for a host.
    fn takes_back(&self, allow: &Route, port: u16) -> bool {
        let (own, other) = (self.host.rank(), allow.host.rank());
        let wins = match (allow.tls, self.grant.is_some(), allow.grant.is_some()) {
            (Tls::Passthrough, is_grant, _) => !is_grant && own >= other,
            (Tls::Intercept, true, false) => false,
            (Tls::Intercept, false, true) => true,
            (Tls::Intercept, _, _) => own > other || (own == other && allow.matches.is_empty()),
        };
        let is_seen = self.tls == Tls::Intercept || allow.tls == Tls::Passthrough;
        wins && is_seen && self.scheme == allow.scheme && self.ports.contains(&port)
    }
}

impl Verdict {
    pub(crate) fn purpose(self) -> Purpose {
        match self {
            Verdict::Allow => Purpose::Allow,
            Verdict::Deny => Purpose::Deny,
        }
    }
}

/// How near the request came to being allowed.
#[derive(Default)]
struct Misses {
    nearest: Option<Fit>,
    expired: bool,
    used_up: bool,
    git_push: bool,
    git_fetch: bool,
    /// The path has two readings.
    escaped_slash: bool,
    /// An allow fits as a whole, whatever stands against it.
    fits: bool,
}

impl Misses {
    fn note(&mut self, route: &Route, miss: Fit, now: Timestamp) {
        if route.verdict == Verdict::Allow && !route.expired(now) {
            self.nearest = self.nearest.max(Some(miss));
        }
    }

    fn denial(&self, policy: &Policy, host: &Host, now: Timestamp) -> Denial {
        let allowed = allowed_on(policy, host, now);
        if self.git_push {
            return Denial::new(Code::GitPushRefused, "push through the git gate: git://git-gate/NAME.git");
        }
        if self.git_fetch {
            return Denial::new(
                Code::GitFetchRefused,
                "this route does not allow git fetch over HTTPS: use the git gate, git://git-gate/NAME.git",
            );
        }
        if self.expired {
            return Denial::new(Code::GrantExpired, format!("what allowed this has expired; {allowed}"));
        }
        if self.used_up {
            return Denial::new(Code::GrantUsedUp, format!("what allowed this is used up; {allowed}"));
        }
        if self.escaped_slash {
            return escaped_slash(policy.names(host, now).then_some(&allowed));
        }
        let code = match self.nearest {
            Some(Fit::RequestMiss | Fit::Full(_)) => Code::RequestNotAllowed,
            Some(Fit::MethodMiss) => Code::MethodNotAllowed,
            Some(Fit::PathMiss) => Code::PathNotAllowed,
            None => Code::HostNotAllowed,
        };
        Denial::new(code, allowed)
    }
}

/// With what is allowed on the host, if anything is.
fn escaped_slash(allowed: Option<&String>) -> Denial {
    let error = PathError::EscapedSlash;
    let Some(allowed) = allowed else { return error.into() };
    let hint = format!(
        "{error}: it passes only by a route with `allow_encoded_slashes: true` that fits it with `/` in that place too; {allowed}"
    );
    Denial::new(Code::AmbiguousPath, hint)
}
