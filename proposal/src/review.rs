//! What granting a proposal would change, before it is granted.

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU64;

use http::{HeaderMap, Method};
use jiff::{SignedDuration, Timestamp};
use policy::{
    AppendError, CanonicalPath, Decision, Diagnostics, Grant, Host, PathMatch, Policy, RequestHead, Scheme,
    append_route, describe,
};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::peer::Refusal;
use crate::risk::{self, Breadth, Flag};
use crate::{Id, PathRule, Proposal};

/// The name of the file in messages.
const FILE: &str = "routes.yaml";
/// Below a prefix, where no route of anybody's is likely to have a rule of its own.
const BELOW: &str = "bottlecap-probe";

/// What the operator decides on: the difference in words, and the exact text that a yes writes.
#[derive(Debug, Clone)]
pub struct Review {
    /// What would change.
    pub difference: Difference,
    /// The new routes.yaml, whole.
    pub text: String,
    /// The route that it adds.
    pub grant: Grant,
    /// How much it is.
    pub breadth: Breadth,
    /// What to look at twice.
    pub flags: Vec<Flag>,
    /// Whether the host has to be typed: write access to a host that nothing led to before.
    pub needs_typing: bool,
    /// Ties an answer to what was shown: it is of the request, of what would be granted, and of the routes that it is added to.
    pub token: String,
    base_digest: String,
    before: Policy,
    after: Policy,
    now: Timestamp,
}

/// What the present refusals say about a grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WouldPass {
    /// How many were looked at.
    pub of: usize,
    /// Those that would pass, `METHOD URL`, the newest first.
    pub passing: Vec<String>,
}

/// What a grant would change. Its `Display` is for the operator, its JSON for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "effect", rename_all = "snake_case")]
pub enum Difference {
    /// Requests pass that did not.
    Allows {
        /// Which, in words.
        what: String,
        /// One of them.
        example: String,
        /// Until when.
        until: Timestamp,
        /// Requests among them that stay refused, each with the code.
        still_refused: Vec<String>,
        /// Places of the routes that allow a part already.
        partly_by: Vec<usize>,
    },
    /// Nothing changes: it is allowed.
    AlreadyAllowed {
        /// By the routes at these places, from 0.
        routes: Vec<usize>,
    },
    /// Nothing changes: it stays refused.
    Blocked {
        /// The codes of the refusals.
        codes: Vec<String>,
    },
}

/// Why there is nothing to review.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The routes as they are do not parse.
    #[error("the present routes are not valid: {0}")]
    Base(Diagnostics),
    /// The grant has no place in them.
    #[error("cannot add the grant to the routes")]
    Append(#[source] AppendError),
    /// The routes with the grant do not parse.
    #[error("the routes with the grant are not valid: {0}")]
    Result(Diagnostics),
    /// A path of the proposal cannot be asked about.
    #[error("cannot judge the path {0}")]
    Path(String),
    /// A time beyond the calendar.
    #[error("the grant would end beyond the calendar")]
    Time,
}

/// `sha256:<hex>` of a routes.yaml, as egress reports it.
#[must_use]
pub fn digest(text: &str) -> String {
    format!("sha256:{}", hex(&Sha256::digest(text.as_bytes())))
}

/// Computes what granting `proposal` from `now` on would change in the routes of `base`. `in_force` is what the proposal's answer is tied
/// to besides: the generation that serves, say.
///
/// # Errors
/// When `base` is not valid or the grant cannot be added to it.
pub fn review(
    base: &str,
    id: &Id,
    proposal: &Proposal,
    in_force: &str,
    now: Timestamp,
) -> Result<Review, ReviewError> {
    // Whole seconds: what is shown is what people compare.
    let now = Timestamp::from_second(now.as_second()).map_err(|_| ReviewError::Time)?;
    let lifetime = SignedDuration::from_secs(i64::from(proposal.ttl_seconds()));
    let expires_at = now.checked_add(lifetime).map_err(|_| ReviewError::Time)?;
    let grant = proposal.to_grant(id, expires_at);
    let before = Policy::parse(FILE, base).map_err(ReviewError::Base)?;
    let text = append_route(base, &grant).map_err(ReviewError::Append)?;
    let after = Policy::parse(FILE, &text).map_err(ReviewError::Result)?;
    let difference = Probes::of(proposal, &before)?.compare(&before, &after, expires_at, now);
    let base_digest = digest(base);
    let wish = Value::from(proposal.clone()).to_string();
    let token = token(&[id.as_str(), &wish, &base_digest, in_force]);
    let breadth = risk::breadth(proposal);
    let flags = risk::flags(proposal, &before);
    let needs_typing = risk::needs_typing(proposal, &before);
    Ok(Review {
        difference,
        text,
        grant,
        breadth,
        flags,
        needs_typing,
        token,
        base_digest,
        before,
        after,
        now,
    })
}

impl Review {
    /// The digest of the routes that were reviewed against.
    #[must_use]
    pub fn base_digest(&self) -> &str {
        &self.base_digest
    }

    /// The digest that egress has to acknowledge.
    #[must_use]
    pub fn digest(&self) -> String {
        digest(&self.text)
    }

    /// For a person: the change in words, what of the latest refusals would pass, how broad it is, and what to look at twice.
    #[must_use]
    pub fn told(&self, would: &WouldPass) -> String {
        let mut words = format!("{}\n", self.difference);
        if would.of > 0 {
            words.push_str(&format!(
                "{} of the last {} refusals would pass\n",
                would.passing.len(),
                would.of
            ));
        }
        words.push_str(&format!("breadth  {}\n", self.breadth));
        for flag in &self.flags {
            words.push_str(&format!("careful  {flag}\n"));
        }
        words
    }

    /// Which of these refusals, newest last, would pass.
    #[must_use]
    pub fn would_pass(&self, refusals: &[Refusal]) -> WouldPass {
        let passing = refusals.iter().rev().filter(|refusal| self.lets_pass(refusal));
        let said = |refusal: &Refusal| {
            let Refusal { scheme, host, port, method, path, .. } = refusal;
            let port = match (scheme.as_str(), port) {
                ("https", 443) | ("http", 80) => String::new(),
                (_, port) => format!(":{port}"),
            };
            format!("{method} {scheme}://{host}{port}{path}")
        };
        WouldPass { of: refusals.len(), passing: passing.map(said).collect() }
    }

    fn lets_pass(&self, refusal: &Refusal) -> bool {
        let (Ok(host), Ok(method), Ok(path)) = (
            Host::parse(&refusal.host),
            Method::from_bytes(refusal.method.as_bytes()),
            CanonicalPath::parse(&refusal.path),
        ) else {
            return false;
        };
        let head = RequestHead {
            scheme: if refusal.scheme == "http" { Scheme::Http } else { Scheme::Https },
            host: &host,
            port: refusal.port,
            method: &method,
            path: &path,
            query: None,
            headers: &HeaderMap::new(),
        };
        matches!(self.after.decide(&head, self.now), Decision::Allow(route) if route.grant() == Some(&self.grant.id))
            && matches!(self.before.decide(&head, self.now), Decision::Deny(_))
    }
}

/// Not of the end of the grant, which moves with the time of the answer.
pub(crate) fn token(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hex(&hash.finalize())[..32].to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Proposal {
    /// What the host adds to the routes: exactly what is asked for, with an end.
    #[must_use]
    pub fn to_grant(&self, id: &Id, expires_at: Timestamp) -> Grant {
        let methods = self.methods().iter().map(|method| parse_method(method)).collect();
        let paths = self
            .paths()
            .iter()
            .map(|path| match path {
                PathRule::Exact(value) => PathMatch::Exact(value.clone()),
                PathRule::Prefix(value) => PathMatch::Prefix(value.clone()),
            })
            .collect();
        Grant {
            id: id.to_grant_id(),
            host: self.host().clone(),
            scheme: self.scheme(),
            ports: self.ports().to_vec(),
            methods,
            paths,
            expires_at,
            max_uses: self.max_uses().map(NonZeroU64::from),
        }
    }
}

fn parse_method(method: &str) -> Method {
    method.parse().expect("a proposal has methods of a fixed list")
}

/// Requests that stand for all that the proposal asks for: its paths, one below each prefix, and the places below it for which the
/// present routes have a rule.
struct Probes<'p> {
    proposal: &'p Proposal,
    methods: Vec<Method>,
    paths: Vec<CanonicalPath>,
}

impl<'p> Probes<'p> {
    fn of(proposal: &'p Proposal, before: &Policy) -> Result<Probes<'p>, ReviewError> {
        let mut texts = BTreeSet::new();
        for rule in proposal.paths() {
            match rule {
                PathRule::Exact(path) => drop(texts.insert(path.clone())),
                PathRule::Prefix(path) => {
                    texts.insert(path.clone());
                    texts.insert(below(path));
                }
            }
        }
        let ruled = before.routes().iter().flat_map(|route| route.matches()).flat_map(|entry| &entry.paths);
        for rule in ruled {
            match rule {
                PathMatch::Exact(path) => texts.extend(covered(proposal, path)),
                PathMatch::Prefix(path) => texts.extend(covered(proposal, &below(path))),
                PathMatch::Regex { .. } => {}
            }
        }
        let paths = texts
            .into_iter()
            // A rule may be written with `%2F`, which no grant is for.
            .map(|text| CanonicalPath::of_request(&text).map_err(|_| ReviewError::Path(text)))
            .collect::<Result<_, _>>()?;
        let methods = proposal.methods().iter().map(|method| parse_method(method)).collect();
        Ok(Probes { proposal, methods, paths })
    }

    fn compare(&self, before: &Policy, after: &Policy, until: Timestamp, now: Timestamp) -> Difference {
        let headers = HeaderMap::new();
        let mut newly = None;
        let mut already = BTreeSet::new();
        let mut refused = BTreeSet::new();
        let mut codes = BTreeSet::new();
        for port in self.proposal.ports() {
            for method in &self.methods {
                for path in &self.paths {
                    let head = RequestHead {
                        scheme: self.proposal.scheme(),
                        host: self.proposal.host(),
                        port: *port,
                        method,
                        path,
                        query: None,
                        headers: &headers,
                    };
                    match (before.decide(&head, now), after.decide(&head, now)) {
                        (Decision::Allow(route), _) => drop(already.insert(route.id().index())),
                        (Decision::Deny(_), Decision::Allow(_)) => {
                            newly.get_or_insert_with(|| self.example(method, *port, path));
                        }
                        (Decision::Deny(_), Decision::Deny(denial)) => {
                            let code = denial.code.as_str();
                            refused.insert(format!("{method} {} ({code})", path.as_str()));
                            codes.insert(code.to_owned());
                        }
                    }
                }
            }
        }
        if let Some(example) = newly {
            Difference::Allows {
                example,
                what: after.routes().last().map(describe).unwrap_or_default(),
                until,
                still_refused: refused.into_iter().collect(),
                partly_by: already.into_iter().collect(),
            }
        } else if refused.is_empty() {
            Difference::AlreadyAllowed { routes: already.into_iter().collect() }
        } else {
            Difference::Blocked { codes: codes.into_iter().collect() }
        }
    }
}

impl Probes<'_> {
    fn example(&self, method: &Method, port: u16, path: &CanonicalPath) -> String {
        let scheme = self.proposal.scheme();
        let port = if port == scheme.default_port() { String::new() } else { format!(":{port}") };
        let path = path.as_str().replace(BELOW, "anything");
        format!("{method} {scheme}://{}{port}{path}", self.proposal.host())
    }
}

fn below(prefix: &str) -> String {
    format!("{}/{BELOW}", prefix.trim_end_matches('/'))
}

/// `path`, when the proposal asks for it.
fn covered(proposal: &Proposal, path: &str) -> Option<String> {
    let asked = proposal.paths().iter().any(|rule| match rule {
        PathRule::Exact(exact) => exact == path,
        PathRule::Prefix(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    });
    asked.then(|| path.to_owned())
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Allows { what, example, until, still_refused, partly_by } => {
                write!(f, "this newly allows {} until {until}", what.replace('\n', " and "))?;
                write!(f, ", for example {example}")?;
                if !partly_by.is_empty() {
                    write!(f, "\na part of it is already allowed by {}", places(partly_by))?;
                }
                for request in still_refused {
                    write!(f, "\nstays refused: {request}")?;
                }
                Ok(())
            }
            Difference::AlreadyAllowed { routes } => {
                write!(f, "this changes nothing: already allowed by {}", places(routes))
            }
            Difference::Blocked { codes } if codes.iter().any(|code| code == "denied-by-rule") => {
                f.write_str("this changes nothing: blocked by a deny rule, granting has no effect")
            }
            Difference::Blocked { codes } => {
                write!(f, "this changes nothing: stays refused ({})", codes.join(", "))
            }
        }
    }
}

/// Routes by their place, counted from 1 as people do.
fn places(routes: &[usize]) -> String {
    let numbers: Vec<String> = routes.iter().map(|index| format!("#{}", index + 1)).collect();
    format!("route {}", numbers.join(", "))
}
