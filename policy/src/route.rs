//! One route, as parsed: a value that cannot contradict itself.

use std::fmt;
use std::num::NonZeroU64;

use crate::address::PrivateAllow;
use crate::credential::{AgentCredentials, Credential};
use crate::describe::describe;
use crate::dlp::Dlp;
use crate::grant::GrantId;
use crate::limits::RouteLimits;
use crate::matches::Match;
use crate::path::EscapedSlashes;
use crate::pattern::HostPattern;

/// A route's place in the file, displayed as `routes[3]` (from 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId(pub(crate) usize);

impl RouteId {
    /// The place in [`crate::Policy::routes`].
    #[must_use]
    pub fn index(self) -> usize {
        self.0
    }
}

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "routes[{}]", self.0)
    }
}

/// What upstream is spoken to with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// TLS.
    Https,
    /// Plain text.
    Http,
}

impl Scheme {
    /// `https` or `http`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Https => "https",
            Scheme::Http => "http",
        }
    }

    /// 443 or 80.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Https => 443,
            Scheme::Http => 80,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who looks a route's host up where there is a parent proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Resolves {
    /// We do; the parent is asked for an address that was checked.
    #[default]
    Here,
    /// `parent_resolves: true`: the parent is asked for the name, and where it leads is not checked.
    Parent,
}

/// What happens to a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// It is opened, and every request in it is decided.
    Intercept,
    /// It is passed on; only its name is checked.
    Passthrough,
}

/// What a route says about the requests that fit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// They pass.
    Allow,
    /// They are refused.
    Deny,
}

/// One entry of `routes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub(crate) id: RouteId,
    pub(crate) host: HostPattern,
    pub(crate) scheme: Scheme,
    pub(crate) ports: Vec<u16>,
    pub(crate) matches: Vec<Match>,
    pub(crate) verdict: Verdict,
    pub(crate) escaped_slashes: EscapedSlashes,
    pub(crate) credential: Option<Credential>,
    pub(crate) agent_credentials: AgentCredentials,
    pub(crate) git_fetch: bool,
    pub(crate) tls: Tls,
    pub(crate) allow_private: Vec<PrivateAllow>,
    pub(crate) resolves: Resolves,
    pub(crate) expires_at: Option<jiff::Timestamp>,
    pub(crate) grant: Option<GrantId>,
    pub(crate) limits: RouteLimits,
    pub(crate) dlp: Option<Dlp>,
    pub(crate) max_uses: Option<NonZeroU64>,
}

impl Route {
    /// Its place in the file.
    #[must_use]
    pub fn id(&self) -> RouteId {
        self.id
    }

    /// Which hosts it is for.
    #[must_use]
    pub fn host(&self) -> &HostPattern {
        &self.host
    }

    /// How upstream is spoken to.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// On which ports; never empty.
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Alternatives that a request has to fit one of; empty when every request on the host fits.
    #[must_use]
    pub fn matches(&self) -> &[Match] {
        &self.matches
    }

    /// Does it refuse instead of allow?
    #[must_use]
    pub fn deny(&self) -> bool {
        self.verdict == Verdict::Deny
    }

    /// Allow or deny.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// What it does with a path that has `%2F`. A deny is for such paths whatever this says.
    #[must_use]
    pub fn escaped_slashes(&self) -> EscapedSlashes {
        self.escaped_slashes
    }

    pub(crate) fn is_for_escaped_slashes(&self) -> bool {
        match (self.verdict, self.escaped_slashes) {
            (Verdict::Deny, _) | (Verdict::Allow, EscapedSlashes::Kept) => true,
            (Verdict::Allow, EscapedSlashes::Refused) => false,
        }
    }

    /// What is injected.
    #[must_use]
    pub fn credential(&self) -> Option<&Credential> {
        self.credential.as_ref()
    }

    /// What happens to the agent's own credentials.
    #[must_use]
    pub fn agent_credentials(&self) -> AgentCredentials {
        self.agent_credentials
    }

    /// Is `git-upload-pack` allowed?
    #[must_use]
    pub fn git_fetch(&self) -> bool {
        self.git_fetch
    }

    /// What happens to a tunnel to it.
    #[must_use]
    pub fn tls(&self) -> Tls {
        self.tls
    }

    /// Addresses exempt from [`crate::address::check`].
    #[must_use]
    pub fn allow_private(&self) -> &[PrivateAllow] {
        &self.allow_private
    }

    /// Who looks its host up.
    #[must_use]
    pub fn resolves(&self) -> Resolves {
        self.resolves
    }

    /// Past this it does not match.
    #[must_use]
    pub fn expires_at(&self) -> Option<jiff::Timestamp> {
        self.expires_at
    }

    /// The proposal that made it.
    #[must_use]
    pub fn grant(&self) -> Option<&GrantId> {
        self.grant.as_ref()
    }

    /// How much it may do.
    #[must_use]
    pub fn limits(&self) -> &RouteLimits {
        &self.limits
    }

    /// What is searched for secrets.
    #[must_use]
    pub fn dlp(&self) -> Option<&Dlp> {
        self.dlp.as_ref()
    }

    /// How many requests it allows in all.
    #[must_use]
    pub fn max_uses(&self) -> Option<NonZeroU64> {
        self.max_uses
    }

    /// The name under which its uses are counted: the grant's, or without one, what it allows in words. It stays the same
    /// when the route is moved in the file.
    #[must_use]
    pub fn use_key(&self) -> String {
        match &self.grant {
            Some(grant) => format!("grant {grant}"),
            None => format!("route {}", describe(self)),
        }
    }

    /// Has it ended? It does not match from the instant of `expires_at` on.
    #[must_use]
    pub fn expired(&self, now: jiff::Timestamp) -> bool {
        self.expires_at.is_some_and(|end| now >= end)
    }
}
