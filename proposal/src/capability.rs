//! What an agent can ask for that is no route. A person reads it and changes the configuration by hand: no program does.

use std::fmt;

use policy::{Host, Scheme};
use repos::{RefPattern, RepoName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::fields::{reason, required, sentence, ttl};
use crate::parse::Invalid;
use crate::target;

const UPSTREAM_MAX_BYTES: usize = 300;
const KINDS: &str = "`git_repo`, `git_ref`, `dlp_exception`, `egress_limit` or `other`";
const LIMITS: [&str; 4] = ["requests_per_minute", "request_body", "connections", "concurrency"];

/// A wish that a person carries out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Capability {
    wish: Wish,
    ttl_seconds: u32,
    reason: String,
}

/// What is wished for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// A repository behind the git gate.
    GitRepo {
        /// Where it lives.
        upstream: String,
        /// To read it, or to push to it as well.
        access: Access,
    },
    /// A reference of a repository that the gate has.
    GitRef {
        /// The repository.
        repo: String,
        /// The reference or pattern.
        reference: String,
        /// To read it, or to push to it as well.
        access: Access,
    },
    /// That something the scanner holds back may pass.
    DlpException {
        /// Towards this host.
        host: Host,
        /// What the scanner calls it.
        detector: String,
    },
    /// More of something than egress lets pass.
    EgressLimit {
        /// For this host.
        host: Host,
        /// Which limit.
        limit: &'static str,
        /// How much.
        value: u64,
    },
    /// Anything else, in the agent's words.
    Other {
        /// Which.
        what: String,
    },
}

/// What is done with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Read.
    Fetch,
    /// Read and write.
    Push,
}

impl Capability {
    /// Reads the wish of an object whose `capability` says of which kind it is.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(value: &Value) -> Result<Capability, Invalid> {
        const KIND: Invalid = Invalid::Value { key: "capability", expected: KINDS };
        let object = value.as_object().ok_or(KIND)?;
        let own: &[&str] = match required(object, "capability", KINDS)? {
            "git_repo" => &["upstream", "access"],
            "git_ref" => &["repo", "ref", "access"],
            "dlp_exception" => &["host", "detector"],
            "egress_limit" => &["host", "limit", "value"],
            "other" => &["what"],
            _ => return Err(KIND),
        };
        let common = ["capability", "ttl_seconds", "reason"];
        if let Some(key) =
            object.keys().find(|key| !common.contains(&key.as_str()) && !own.contains(&key.as_str()))
        {
            let key = crate::escaped(key).chars().take(64).collect();
            return Err(Invalid::UnknownCapabilityKey { key, allowed: [own, &common].concat() });
        }
        Ok(Capability { wish: wish(object)?, ttl_seconds: ttl(object)?, reason: reason(object)? })
    }

    /// What is wished for.
    #[must_use]
    pub fn wish(&self) -> &Wish {
        &self.wish
    }

    /// For how long the agent wants it.
    #[must_use]
    pub fn ttl_seconds(&self) -> u32 {
        self.ttl_seconds
    }

    /// Why: untrusted text, shown only through [`crate::escaped`].
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

fn wish(object: &Map<String, Value>) -> Result<Wish, Invalid> {
    match object.get("capability").and_then(Value::as_str) {
        Some("git_repo") => Ok(Wish::GitRepo { upstream: upstream(object)?, access: access(object)? }),
        Some("git_ref") => Ok(Wish::GitRef {
            repo: name(object, "repo", "the name of a repository", |text| RepoName::parse(text).is_ok())?,
            reference: name(object, "ref", "a reference such as refs/heads/agent/work", |text| {
                RefPattern::parse(text).is_ok()
            })?,
            access: access(object)?,
        }),
        Some("dlp_exception") => Ok(Wish::DlpException {
            host: host(object)?,
            detector: name(object, "detector", "the name of a detector", |text| {
                (1..=64).contains(&text.len())
                    && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            })?,
        }),
        Some("egress_limit") => {
            let (limit, value) = limit(object)?;
            Ok(Wish::EgressLimit { host: host(object)?, limit, value })
        }
        Some(_) | None => Ok(Wish::Other { what: sentence(object, "what")? }),
    }
}

fn name(
    object: &Map<String, Value>,
    key: &'static str,
    expected: &'static str,
    is_one: impl Fn(&str) -> bool,
) -> Result<String, Invalid> {
    let text = required(object, key, expected)?;
    if is_one(text) { Ok(text.to_owned()) } else { Err(Invalid::Value { key, expected }) }
}

/// An ssh or https URL without a password, of a host that can be granted.
fn upstream(object: &Map<String, Value>) -> Result<String, Invalid> {
    const EXPECTED: &str = "ssh://git@HOST/PATH or https://HOST/PATH";
    let invalid = Invalid::Value { key: "upstream", expected: EXPECTED };
    let text = required(object, "upstream", EXPECTED)?;
    let rest =
        text.strip_prefix("ssh://").or_else(|| text.strip_prefix("https://")).ok_or(invalid.clone())?;
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":/@._~+-".contains(&byte));
    let (authority, path) = rest.split_once('/').ok_or(invalid.clone())?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    let host = host.split_once(':').map_or(host, |(host, _)| host);
    let sound = text.len() <= UPSTREAM_MAX_BYTES && plain && !path.is_empty() && !user.contains(':');
    if !sound || path.split('/').any(|part| part == "..") {
        return Err(invalid);
    }
    grantable(host)?;
    Ok(text.to_owned())
}

fn host(object: &Map<String, Value>) -> Result<Host, Invalid> {
    grantable(required(object, "host", "a host name")?)
}

fn grantable(text: &str) -> Result<Host, Invalid> {
    target::check_spelling(text)?;
    let host = Host::parse(text).map_err(Invalid::Host)?;
    target::check(&host, &[Scheme::Https.default_port()])?;
    Ok(host)
}

fn access(object: &Map<String, Value>) -> Result<Access, Invalid> {
    match object.get("access").and_then(Value::as_str) {
        None if !object.contains_key("access") => Ok(Access::Fetch),
        Some("fetch") => Ok(Access::Fetch),
        Some("push") => Ok(Access::Push),
        Some(_) | None => Err(Invalid::Value { key: "access", expected: "`fetch` or `push`" }),
    }
}

fn limit(object: &Map<String, Value>) -> Result<(&'static str, u64), Invalid> {
    const EXPECTED: &str = "`requests_per_minute`, `request_body`, `connections` or `concurrency`";
    let name = required(object, "limit", EXPECTED)?;
    let limit = LIMITS
        .into_iter()
        .find(|limit| *limit == name)
        .ok_or(Invalid::Value { key: "limit", expected: EXPECTED })?;
    let value = object.get("value").and_then(Value::as_u64).filter(|value| *value > 0);
    Ok((limit, value.ok_or(Invalid::Value { key: "value", expected: "a number from 1" })?))
}

/// In words. The agent's own words in it are escaped; the reason is not in it.
impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = |access: &Access| match access {
            Access::Fetch => "fetch from",
            Access::Push => "fetch from and push to",
        };
        match &self.wish {
            Wish::GitRepo { upstream, access } => {
                write!(f, "{} the repository {}", verb(access), crate::escaped(upstream))
            }
            Wish::GitRef { repo, reference, access } => {
                write!(f, "{} {} of {repo}", verb(access), crate::escaped(reference))
            }
            Wish::DlpException { host, detector } => {
                write!(f, "let `{detector}` pass to {host}")
            }
            Wish::EgressLimit { host, limit, value } => write!(f, "{limit} of {value} for {host}"),
            Wish::Other { what } => write!(f, "\"{}\"", crate::escaped(what)),
        }?;
        write!(f, " for {}", crate::show::term(self.ttl_seconds))
    }
}

impl TryFrom<Value> for Capability {
    type Error = Invalid;

    fn try_from(value: Value) -> Result<Capability, Invalid> {
        Capability::parse(&value)
    }
}

impl From<Capability> for Value {
    fn from(capability: Capability) -> Value {
        let mut value = match capability.wish {
            Wish::GitRepo { upstream, access } => {
                json!({"capability": "git_repo", "upstream": upstream, "access": access})
            }
            Wish::GitRef { repo, reference, access } => {
                json!({"capability": "git_ref", "repo": repo, "ref": reference, "access": access})
            }
            Wish::DlpException { host, detector } => {
                json!({"capability": "dlp_exception", "host": host.as_str(), "detector": detector})
            }
            Wish::EgressLimit { host, limit, value } => {
                json!({"capability": "egress_limit", "host": host.as_str(), "limit": limit, "value": value})
            }
            Wish::Other { what } => json!({"capability": "other", "what": what}),
        };
        value["ttl_seconds"] = json!(capability.ttl_seconds);
        value["reason"] = json!(capability.reason);
        value
    }
}
