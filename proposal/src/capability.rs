//! What an agent can ask for that is no route.

use std::fmt;
use std::num::NonZeroU32;

use policy::{Host, Scheme};
use repos::{RefPattern, RepoName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::fields::{reason, required, sentence, ttl, uses};
use crate::parse::Invalid;
use crate::peer::{FINGERPRINT_CHARS, Target};
use crate::target;

const UPSTREAM_MAX_BYTES: usize = 300;
const RULE_MAX_BYTES: usize = 64;
/// What the scanner calls a secret that it was told: the operator's own, which no approval lets go.
const KNOWN_RULE: &str = "known-secret";
const KINDS: &str = "`git_repo`, `git_ref`, `dlp_exception`, `egress_limit` or `other`";
const LIMITS: [&str; 4] = ["requests_per_minute", "request_body", "connections", "concurrency"];

/// A wish, and for how long.
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
    /// That one thing the scanner found may pass.
    DlpException {
        /// To this place.
        target: Target,
        /// The rule that found it.
        rule: String,
        /// The name that the daemon gave it.
        fingerprint: String,
        /// Where it stood, in the daemon's words.
        place: String,
        /// How often.
        max_uses: NonZeroU32,
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
            "dlp_exception" => &["host", "repo", "rule", "fingerprint", "place", "max_uses"],
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

    /// For a repository: where the gate serves it once it is granted, and its own address.
    #[must_use]
    pub fn at_the_gate(&self) -> Option<(String, &str)> {
        let Wish::GitRepo { upstream, .. } = &self.wish else { return None };
        let name = crate::addition::name_of(upstream).ok()?;
        Some((format!("git://git-gate/{name}.git"), upstream))
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
            target: place_of(object)?,
            rule: name(object, "rule", "the name of a rule, and not `known-secret`", |text| {
                (1..=RULE_MAX_BYTES).contains(&text.len())
                    && text != KNOWN_RULE
                    && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            })?,
            fingerprint: name(object, "fingerprint", "32 hexadecimal digits", |text| {
                text.len() == FINGERPRINT_CHARS
                    && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            })?,
            place: sentence(object, "place")?,
            max_uses: uses(object)?.unwrap_or(NonZeroU32::MIN),
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

/// A host, or a repository.
fn place_of(object: &Map<String, Value>) -> Result<Target, Invalid> {
    match (object.contains_key("host"), object.contains_key("repo")) {
        // It opens no way to the host: the operator's routes do, to hosts that no grant leads to as well.
        (true, false) => {
            let text = required(object, "host", "a host name")?;
            Ok(Target::Host(Host::parse(text).map_err(Invalid::Host)?.to_string()))
        }
        (false, true) => {
            let repo =
                name(object, "repo", "the name of a repository", |text| RepoName::parse(text).is_ok())?;
            Ok(Target::Repo(repo))
        }
        (_, _) => Err(Invalid::Value { key: "host", expected: "there, or `repo`" }),
    }
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

/// A number of times as a person says it.
pub(crate) fn times(uses: NonZeroU32) -> String {
    if uses == NonZeroU32::MIN { "once".to_owned() } else { format!("{uses} times") }
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
            Wish::DlpException { target, rule, fingerprint, place, max_uses } => {
                let place = crate::escaped(place);
                write!(
                    f,
                    "let what `{rule}` found in {place} ({fingerprint}) pass to {target} {}",
                    times(*max_uses)
                )
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
            Wish::DlpException { target, rule, fingerprint, place, max_uses } => {
                let mut value = json!({
                    "capability": "dlp_exception", "rule": rule, "fingerprint": fingerprint, "place": place, "max_uses": max_uses,
                });
                match target {
                    Target::Host(host) => value["host"] = json!(host),
                    Target::Repo(repo) => value["repo"] = json!(repo),
                }
                value
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
