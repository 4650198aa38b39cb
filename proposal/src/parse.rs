//! From JSON to a [`Proposal`] that cannot be wrong.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};

use policy::{CanonicalPath, Host, HostError, PathError, Scheme};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::fields::{list, optional, reason, required, ttl, uses};
use crate::target::{self, NeverGrantable};

/// How long a grant lasts when the proposal does not say, in seconds.
pub const TTL_DEFAULT: u32 = 60 * 60;
/// The shortest grant there is, in seconds.
pub const TTL_MIN: u32 = 60;
/// The longest grant there is, in seconds.
pub const TTL_MAX: u32 = 24 * 60 * 60;

/// The most uses that a grant can be asked for.
pub const USES_MAX: u32 = 100_000;

const PORTS_MAX: usize = 8;
const PATHS_MAX: usize = 16;
const PATH_MAX_BYTES: usize = 512;
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
const KEYS: [&str; 8] = ["host", "ports", "scheme", "methods", "paths", "ttl_seconds", "max_uses", "reason"];
const OPERATOR_KEYS: [&str; 26] = [
    "matches",
    "headers",
    "query",
    "deny",
    "path_allowlist",
    "allow_encoded_slashes",
    "auth_scheme",
    "credential",
    "token_env",
    "token_file",
    "token",
    "placeholder_in",
    "own_credential_only",
    "git",
    "tls",
    "dlp",
    "allow_private",
    "parent_resolves",
    "limits",
    "expires_at",
    "grant",
    "log",
    "defaults",
    "routes",
    "authorization",
    "secret",
];

/// A host and what the agent wants to do there: normalised, never a wildcard, never a place that cannot be granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Proposal {
    host: Host,
    scheme: Scheme,
    ports: Vec<u16>,
    methods: Vec<String>,
    paths: Vec<PathRule>,
    ttl_seconds: u32,
    max_uses: Option<NonZeroU32>,
    reason: String,
}

/// Which paths, on the canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathRule {
    /// This path alone.
    Exact(String),
    /// This path and what lies under it, in whole elements.
    Prefix(String),
}

/// Why a text is not a proposal. The messages are for the agent that wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not an object.
    #[error("a proposal is an object with the keys {}", listed(&KEYS))]
    Shape,
    /// A key that is none of ours.
    #[error("unknown key `{key}`, allowed are {}", listed(&KEYS))]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A key of routes.yaml that no agent can ask for.
    #[error("only the operator can add `{key}`; a proposal has the keys {}", listed(&KEYS))]
    OperatorKey {
        /// The key.
        key: String,
    },
    /// A key that this kind of capability does not have.
    #[error("unknown key `{key}`, allowed are {}", listed(allowed))]
    UnknownCapabilityKey {
        /// The key.
        key: String,
        /// Those that it has.
        allowed: Vec<&'static str>,
    },
    /// A key that has to be there.
    #[error("`{key}` is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A value that does not fit its key.
    #[error("`{key}` must be {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it can be.
        expected: &'static str,
    },
    /// Not a host.
    #[error("`host` is not valid: {0}")]
    Host(#[source] HostError),
    /// Not a path that can be matched.
    #[error("`paths` has {path:?}: {source}")]
    Path {
        /// As it was written.
        path: String,
        /// What is wrong with it.
        #[source]
        source: PathError,
    },
    /// What is held is not told as it should be.
    #[error("`held` is not what a daemon holds: {0}")]
    Held(String),
    /// A place that no grant leads to.
    #[error(transparent)]
    NeverGrantable(#[from] NeverGrantable),
}

impl Invalid {
    /// A stable word for it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Invalid::NeverGrantable(_) => "never-grantable",
            Invalid::OperatorKey { .. } => "operator-only",
            Invalid::Shape
            | Invalid::UnknownKey { .. }
            | Invalid::UnknownCapabilityKey { .. }
            | Invalid::Missing { .. }
            | Invalid::Value { .. }
            | Invalid::Host(_)
            | Invalid::Held(_)
            | Invalid::Path { .. } => "invalid-proposal",
        }
    }
}

fn listed(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
}

impl Proposal {
    /// Reads a proposal; `host` and `reason` are required, everything else has the narrowest useful default.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(value: &Value) -> Result<Proposal, Invalid> {
        let object = value.as_object().ok_or(Invalid::Shape)?;
        object.keys().try_for_each(|key| known(key))?;
        let scheme = scheme(object)?;
        let host = required(object, "host", "a host name")?;
        target::check_spelling(host)?;
        let host = Host::parse(host).map_err(Invalid::Host)?;
        let ports = ports(object, scheme)?;
        target::check(&host, &ports)?;
        Ok(Proposal {
            host,
            scheme,
            ports,
            methods: methods(object)?,
            paths: paths(object)?,
            ttl_seconds: ttl(object)?,
            max_uses: uses(object)?,
            reason: reason(object)?,
        })
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// `https` or `http`.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// At least one, ascending.
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// At least one, in the order of the alphabet.
    #[must_use]
    pub fn methods(&self) -> &[String] {
        &self.methods
    }

    /// At least one, sorted.
    #[must_use]
    pub fn paths(&self) -> &[PathRule] {
        &self.paths
    }

    /// For how long the agent wants it.
    #[must_use]
    pub fn ttl_seconds(&self) -> u32 {
        self.ttl_seconds
    }

    /// For how many requests the agent wants it, if not for as many as come.
    #[must_use]
    pub fn max_uses(&self) -> Option<NonZeroU32> {
        self.max_uses
    }

    /// Whether a method that changes something is asked for.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.methods.iter().any(|method| !matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS"))
    }

    /// The same for another time and number of uses.
    #[must_use]
    pub fn limited(self, ttl_seconds: u32, max_uses: Option<NonZeroU32>) -> Proposal {
        Proposal { ttl_seconds, max_uses, ..self }
    }

    /// Whether everything that `other` asks for is asked for here, and for at least as long.
    #[must_use]
    pub fn covers(&self, other: &Proposal) -> bool {
        let paths = |path: &PathRule| self.paths.iter().any(|own| own.covers(path));
        self.host == other.host
            && self.scheme == other.scheme
            && other.ports.iter().all(|port| self.ports.contains(port))
            && other.methods.iter().all(|method| self.methods.contains(method))
            && other.paths.iter().all(paths)
            && self.ttl_seconds >= other.ttl_seconds
            && match (self.max_uses, other.max_uses) {
                (None, _) => true,
                (Some(own), Some(others)) => own >= others,
                (Some(_), None) => false,
            }
    }

    /// Why the agent wants it: untrusted text, shown only through [`crate::escaped`].
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether both ask for the same, whatever they give as the reason.
    #[must_use]
    pub fn is_same_as(&self, other: &Proposal) -> bool {
        let Proposal { host, scheme, ports, methods, paths, ttl_seconds, max_uses, reason: _ } = self;
        *host == other.host
            && *scheme == other.scheme
            && *ports == other.ports
            && *methods == other.methods
            && *paths == other.paths
            && *ttl_seconds == other.ttl_seconds
            && *max_uses == other.max_uses
    }
}

/// In words: `GET https://api.example.com/v1/** for 1 h`. The reason is not in it.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = match self.ports.as_slice() {
            [port] if *port == self.scheme.default_port() => String::new(),
            ports => format!(":{}", ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")),
        };
        let paths = self.paths.iter().map(PathRule::to_string).collect::<Vec<_>>().join(" or ");
        let methods = self.methods.join(", ");
        write!(f, "{methods} {}://{}{ports}{paths} for ", self.scheme, self.host)?;
        f.write_str(&crate::show::term(self.ttl_seconds))?;
        match self.max_uses.map(NonZeroU32::get) {
            None => Ok(()),
            Some(1) => f.write_str(", once"),
            Some(uses) => write!(f, ", at most {uses} times"),
        }
    }
}

impl PathRule {
    /// Whether every path of `other` is one of these.
    #[must_use]
    pub fn covers(&self, other: &PathRule) -> bool {
        match (self, other) {
            (PathRule::Exact(own), PathRule::Exact(other)) => own == other,
            (PathRule::Exact(_), PathRule::Prefix(_)) => false,
            (PathRule::Prefix(own), PathRule::Exact(other) | PathRule::Prefix(other)) => {
                let own = own.trim_end_matches('/');
                other.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

/// `/v1` alone, or `/v1/**` with what lies under it.
impl fmt::Display for PathRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathRule::Exact(path) => f.write_str(path),
            PathRule::Prefix(path) => write!(f, "{}/**", path.trim_end_matches('/')),
        }
    }
}

impl TryFrom<Value> for Proposal {
    type Error = Invalid;

    fn try_from(value: Value) -> Result<Proposal, Invalid> {
        Proposal::parse(&value)
    }
}

impl From<Proposal> for Value {
    fn from(proposal: Proposal) -> Value {
        let Proposal { host, scheme, ports, methods, paths, ttl_seconds, max_uses, reason } = proposal;
        let paths: Vec<Value> = paths
            .iter()
            .map(|path| match path {
                PathRule::Exact(value) => json!({"type": "exact", "value": value}),
                PathRule::Prefix(value) => json!({"type": "prefix", "value": value}),
            })
            .collect();
        let mut value = json!({
            "host": host.as_str(), "scheme": scheme.as_str(), "ports": ports, "methods": methods, "paths": paths,
            "ttl_seconds": ttl_seconds, "reason": reason,
        });
        if let Some(uses) = max_uses {
            value["max_uses"] = json!(uses);
        }
        value
    }
}

fn known(key: &str) -> Result<(), Invalid> {
    if KEYS.contains(&key) {
        Ok(())
    } else if OPERATOR_KEYS.contains(&key) {
        Err(Invalid::OperatorKey { key: key.to_owned() })
    } else {
        Err(Invalid::UnknownKey { key: crate::escaped(key).chars().take(64).collect() })
    }
}

fn scheme(object: &Map<String, Value>) -> Result<Scheme, Invalid> {
    match optional(object, "scheme").map(Value::as_str) {
        None | Some(Some("https")) => Ok(Scheme::Https),
        Some(Some("http")) => Ok(Scheme::Http),
        Some(_) => Err(Invalid::Value { key: "scheme", expected: "`https` or `http`" }),
    }
}

fn ports(object: &Map<String, Value>, scheme: Scheme) -> Result<Vec<u16>, Invalid> {
    const EXPECTED: &str = "a list of 1 to 8 port numbers";
    let invalid = Invalid::Value { key: "ports", expected: EXPECTED };
    let Some(values) = list(object, "ports", PORTS_MAX, EXPECTED)? else {
        return Ok(vec![scheme.default_port()]);
    };
    let mut ports = values
        .iter()
        .map(|value| value.as_u64().and_then(|port| u16::try_from(port).ok()).and_then(NonZeroU16::new))
        .map(|port| port.map(NonZeroU16::get).ok_or(invalid.clone()))
        .collect::<Result<Vec<_>, _>>()?;
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}

fn methods(object: &Map<String, Value>) -> Result<Vec<String>, Invalid> {
    const EXPECTED: &str = "a list of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
    let Some(values) = list(object, "methods", METHODS.len(), EXPECTED)? else {
        return Ok(vec!["GET".to_owned()]);
    };
    let mut methods = values
        .iter()
        .map(|value| {
            value.as_str().map(str::to_ascii_uppercase).filter(|method| METHODS.contains(&method.as_str()))
        })
        .map(|method| method.ok_or(Invalid::Value { key: "methods", expected: EXPECTED }))
        .collect::<Result<Vec<_>, _>>()?;
    methods.sort_unstable();
    methods.dedup();
    Ok(methods)
}

fn paths(object: &Map<String, Value>) -> Result<Vec<PathRule>, Invalid> {
    const EXPECTED: &str =
        "a list of 1 to 16 objects {\"type\": \"exact\" or \"prefix\", \"value\": \"/path\"}";
    let Some(values) = list(object, "paths", PATHS_MAX, EXPECTED)? else {
        return Ok(vec![PathRule::Prefix("/".to_owned())]);
    };
    let mut paths = values
        .iter()
        .map(|value| path(value).unwrap_or(Err(Invalid::Value { key: "paths", expected: EXPECTED })))
        .collect::<Result<Vec<_>, _>>()?;
    paths.sort_unstable();
    paths.dedup();
    Ok(paths)
}

fn path(value: &Value) -> Option<Result<PathRule, Invalid>> {
    let object = value.as_object().filter(|object| object.len() == 2)?;
    let rule = match object.get("type")?.as_str()? {
        "exact" => PathRule::Exact,
        "prefix" => PathRule::Prefix,
        _ => return None,
    };
    let raw = object.get("value")?.as_str()?;
    let path = match CanonicalPath::parse(raw) {
        Ok(path) => path,
        Err(source) => return Some(Err(Invalid::Path { path: raw.to_owned(), source })),
    };
    // As it is written from now on, which may be longer: what was taken must be taken again.
    let path = Some(path.as_str()).filter(|path| path.len() <= PATH_MAX_BYTES)?;
    Some(Ok(rule(path.to_owned())))
}
