//! `repos.yaml` -> [`Repos`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::{MessageFormatter as _, Spanned};

use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::hostkey::HostKey;
use crate::name::RepoName;
use crate::push::PushRules;
use crate::refs::RefPattern;
use crate::upstream::{Location, Ssh, Upstream, UpstreamError, Written, host_name, is_path};

const MAX_PACK_BYTES: u64 = 200 * MIB;
const MAX_PACK_BYTES_MOST: u64 = 16 * 1024 * MIB;
const MIB: u64 = 1024 * 1024;
const FETCH_DEFAULT: [&str; 2] = ["refs/heads/*", "refs/tags/*"];

/// The repositories of a `repos.yaml`, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repos(Vec<Repo>);

/// One repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    /// Served as `/NAME.git`.
    pub name: RepoName,
    /// Where it really lives, with its keys.
    pub upstream: Upstream,
    /// What may be pushed.
    pub push: PushRules,
    /// What is mirrored and may be read.
    pub fetch: FetchRules,
}

/// What is mirrored from upstream and may be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRules {
    /// The refs, as refspec patterns; never empty.
    pub allow: Vec<RefPattern>,
}

/// Which kinds of upstream a file may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allow {
    /// ssh alone.
    SshUpstream,
    /// Directories of this machine too.
    LocalUpstream,
}

impl Repos {
    /// Parses a file; `file` is its name in messages.
    pub fn parse(file: &str, text: &str, allow: Allow) -> Result<Self, Diagnostics> {
        let raw: RawFile =
            serde_saphyr::from_str_with_options(text, strict()).map_err(|error| malformed(file, &error))?;
        let mut reader = Reader { file, allow, found: Vec::new() };
        let mut names = BTreeSet::new();
        let mut repos = Vec::new();
        for raw in &raw.repos {
            let line = raw.name.referenced;
            if let Some(repo) = reader.repo(raw) {
                if !names.insert(repo.name.clone()) {
                    reader.note(line, format!("the name `{}` is used twice", repo.name));
                }
                repos.push(repo);
            }
        }
        match Diagnostics::new(reader.found) {
            Some(diagnostics) => Err(diagnostics),
            None => Ok(Self(repos)),
        }
    }

    /// The repositories in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Repo> {
        self.0.iter()
    }

    /// The repository of that name.
    pub fn get(&self, name: &RepoName) -> Option<&Repo> {
        self.0.iter().find(|repo| repo.name == *name)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    repos: Vec<RawRepo>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRepo {
    name: Spanned<String>,
    upstream: Spanned<String>,
    identity: Option<Spanned<String>>,
    host_key: Option<Spanned<String>>,
    #[serde(default)]
    extra_hosts: BTreeMap<String, Spanned<String>>,
    push: Option<RawPush>,
    fetch: Option<RawFetch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPush {
    #[serde(default)]
    allow: Vec<Spanned<String>>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    delete: bool,
    #[serde(default)]
    tags: bool,
    max_pack: Option<Spanned<String>>,
    on_secret: Option<Spanned<String>>,
    expires_at: Option<Spanned<IgnoredAny>>,
    max_uses: Option<Spanned<IgnoredAny>>,
    grant: Option<Spanned<IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFetch {
    allow: Option<Spanned<Vec<Spanned<String>>>>,
    stale: Option<Spanned<String>>,
}

struct Reader<'a> {
    file: &'a str,
    allow: Allow,
    found: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn repo(&mut self, raw: &RawRepo) -> Option<Repo> {
        let before = self.found.len();
        let name = self.take(&raw.name, RepoName::parse(&raw.name.value));
        let push = self.push(raw.push.as_ref());
        let fetch = self.fetch(raw.fetch.as_ref());
        let written = Written::parse(&raw.upstream.value).and_then(|written| self.permitted(written));
        let upstream = match self.take(&raw.upstream, written)? {
            Written::File(path) => {
                self.unused_ssh_keys(raw);
                Upstream::File(path)
            }
            Written::Ssh(location) => Upstream::Ssh(self.ssh(raw, location)?),
        };
        (self.found.len() == before).then_some(Repo { name: name?, upstream, push, fetch })
    }

    fn permitted(&self, written: Written) -> Result<Written, UpstreamError> {
        match (&written, self.allow) {
            (Written::Ssh(_), _) | (Written::File(_), Allow::LocalUpstream) => Ok(written),
            (Written::File(_), Allow::SshUpstream) => Err(UpstreamError::LocalNotAllowed),
        }
    }

    fn ssh(&mut self, raw: &RawRepo, location: Location) -> Option<Ssh> {
        let identity = match &raw.identity {
            Some(path) if path.value.starts_with('/') && is_path(&path.value) => Some(PathBuf::from(&path.value)),
            Some(path) => self.fault(
                path.referenced,
                "`identity` is the absolute path of a private key file: letters, digits and `._~+@=,-/`, without `..`".into(),
            ),
            None => self.fault(
                raw.upstream.referenced,
                "an ssh upstream needs `identity: /path/of/a/private/key` (ssh-keygen -t ed25519 -f KEY makes one)".into(),
            ),
        };
        let host_key = match &raw.host_key {
            Some(key) => self.take(key, HostKey::parse(&key.value)),
            None => self.fault(raw.upstream.referenced, missing_host_key(&location)),
        };
        let address = self.address(raw, &location.host);
        let Location { user, host, port, path } = location;
        Some(Ssh { user, host, port, path, identity: identity?, host_key: host_key?, address })
    }

    fn address(&mut self, raw: &RawRepo, upstream_host: &str) -> Option<IpAddr> {
        let mut address = None;
        for (host, value) in &raw.extra_hosts {
            if host_name(host).ok().as_deref() != Some(upstream_host) {
                self.note(
                    value.referenced,
                    format!("`{host}` is not this repository's upstream host `{upstream_host}`"),
                );
                continue;
            }
            if address.is_some() {
                self.note(value.referenced, format!("`{host}` has two addresses here"));
            }
            match value.value.parse() {
                Ok(ip) => address = Some(ip),
                Err(_) => self.note(value.referenced, format!("`{}` is not an IP address", value.value)),
            }
        }
        address
    }

    fn unused_ssh_keys(&mut self, raw: &RawRepo) {
        for (key, value) in [("identity", &raw.identity), ("host_key", &raw.host_key)] {
            if let Some(value) = value {
                self.note(value.referenced, format!("`{key}` has no meaning for a file upstream"));
            }
        }
        for value in raw.extra_hosts.values() {
            self.note(value.referenced, "`extra_hosts` has no meaning for a file upstream".into());
        }
    }

    fn push(&mut self, raw: Option<&RawPush>) -> PushRules {
        let Some(raw) = raw else {
            return PushRules {
                allow: Vec::new(),
                force: false,
                delete: false,
                tags: false,
                max_pack: MAX_PACK_BYTES,
            };
        };
        for (key, value) in
            [("expires_at", &raw.expires_at), ("max_uses", &raw.max_uses), ("grant", &raw.grant)]
        {
            if let Some(value) = value {
                self.note(value.referenced, format!("`{key}` is not supported by this version"));
            }
        }
        match &raw.on_secret {
            Some(word) if word.value == "supervise" => {
                self.note(
                    word.referenced,
                    "`on_secret: supervise` is not supported by this version; use `block`".into(),
                );
            }
            Some(word) if word.value != "block" => {
                self.note(word.referenced, format!("`on_secret` is `block`, not `{}`", word.value));
            }
            Some(_) | None => {}
        }
        let max_pack = raw.max_pack.as_ref().and_then(|text| match size(&text.value) {
            Some(bytes) => Some(bytes),
            None => self.fault(
                text.referenced,
                format!("`{}` is not a size from 1KiB to 16GiB, such as 200MiB", text.value),
            ),
        });
        PushRules {
            allow: self.patterns(&raw.allow),
            force: raw.force,
            delete: raw.delete,
            tags: raw.tags,
            max_pack: max_pack.unwrap_or(MAX_PACK_BYTES),
        }
    }

    fn fetch(&mut self, raw: Option<&RawFetch>) -> FetchRules {
        let default = || FETCH_DEFAULT.into_iter().filter_map(|p| RefPattern::parse(p).ok()).collect();
        let Some(raw) = raw else {
            return FetchRules { allow: default() };
        };
        match &raw.stale {
            Some(word) if word.value == "allow" => {
                self.note(
                    word.referenced,
                    "`stale: allow` is not supported by this version; use `refuse`".into(),
                );
            }
            Some(word) if word.value != "refuse" => {
                self.note(word.referenced, format!("`stale` is `refuse`, not `{}`", word.value));
            }
            Some(_) | None => {}
        }
        let allow = match &raw.allow {
            None => default(),
            Some(list) if list.value.is_empty() => {
                self.note(list.referenced, "`fetch.allow` is empty: nothing could be read".into());
                Vec::new()
            }
            Some(list) => self.patterns(&list.value),
        };
        FetchRules { allow }
    }

    fn patterns(&mut self, raw: &[Spanned<String>]) -> Vec<RefPattern> {
        raw.iter().filter_map(|text| self.take(text, RefPattern::parse(&text.value))).collect()
    }

    fn take<T, E: std::fmt::Display>(&mut self, raw: &Spanned<String>, parsed: Result<T, E>) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(error) => self.fault(raw.referenced, format!("`{}`: {error}", raw.value.escape_debug())),
        }
    }

    fn fault<T>(&mut self, at: serde_saphyr::Location, message: String) -> Option<T> {
        self.note(at, message);
        None
    }

    fn note(&mut self, at: serde_saphyr::Location, message: String) {
        let file = self.file.to_owned();
        self.found.push(Diagnostic { file, line: at.line(), column: at.column(), message });
    }
}

/// One spelling for each thing: no merge keys.
fn strict() -> serde_saphyr::Options {
    serde_saphyr::options! { merge_keys: serde_saphyr::MergeKeyPolicy::Error }
}

fn missing_host_key(location: &Location) -> String {
    let Location { host, port, .. } = location;
    format!(
        "an ssh upstream needs `host_key: \"TYPE BASE64\"`; get it with `ssh-keyscan -p {port} -t ed25519 {host}` \
         and compare it with what the host publishes"
    )
}

fn malformed(file: &str, error: &serde_saphyr::Error) -> Diagnostics {
    let (line, column) = error.location().map_or((1, 1), |at| (at.line().max(1), at.column().max(1)));
    let error = error.without_snippet();
    let message = match error {
        serde_saphyr::Error::SerdeUnknownField { field, expected, .. } => {
            let known: Vec<String> = expected.iter().map(|name| format!("`{name}`")).collect();
            format!("unknown field `{}`, expected one of {}", field.escape_debug(), known.join(", "))
        }
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key `{}` is given twice", key.escape_debug())
        }
        other => serde_saphyr::UserMessageFormatter.format_message(other).replace(char::is_control, " "),
    };
    Diagnostics::one(Diagnostic { file: file.to_owned(), line, column, message })
}

/// `200MiB` in bytes.
fn size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text[digits..].trim_start() {
        "" | "B" => 1,
        "KiB" => 1024,
        "MiB" => MIB,
        "GiB" => 1024 * MIB,
        _ => return None,
    };
    let bytes = text[..digits].parse::<u64>().ok()?.checked_mul(unit)?;
    (1024..=MAX_PACK_BYTES_MOST).contains(&bytes).then_some(bytes)
}

#[cfg(test)]
mod tests;
