//! `repos.yaml` -> [`Repos`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_saphyr::{MessageFormatter as _, Spanned};

use crate::diagnostics::{Diagnostic, Diagnostics};
use crate::fetch::FetchRules;
use crate::grant::{Exception, Grant, Moment, Release};
use crate::hostkey::HostKey;
use crate::name::RepoName;
use crate::push::PushRules;
use crate::upstream::{Https, Location, Ssh, Upstream, UpstreamError, Written, host_name, is_path};

mod grants;
mod rules;

/// The account under which hosts take a token.
const TOKEN_USER: &str = "x-access-token";
const SECRET_NAME_MAX_BYTES: usize = 128;

/// The repositories of a `repos.yaml`, in its order, and what may pass once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repos {
    repos: Vec<Repo>,
    releases: Vec<Release>,
    exceptions: Vec<Exception>,
}

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
    /// How long the repository is there at all.
    pub grant: Grant,
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
        for granted in &raw.granted {
            reader.granted(granted, &mut repos, &raw.repos);
        }
        let releases = raw.releases.iter().filter_map(|raw| reader.release(raw)).collect();
        let exceptions = raw.exceptions.iter();
        let exceptions = exceptions.filter_map(|one| reader.exception(one, &raw.repos)).collect();
        match Diagnostics::new(reader.found) {
            Some(diagnostics) => Err(diagnostics),
            None => Ok(Self { repos, releases, exceptions }),
        }
    }

    /// The repositories in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Repo> {
        self.repos.iter()
    }

    /// The repository of that name.
    pub fn get(&self, name: &RepoName) -> Option<&Repo> {
        self.repos.iter().find(|repo| repo.name == *name)
    }

    /// What lets pass a push that is held, by its digest. It holds as its grant does.
    pub fn releases(&self) -> &[Release] {
        &self.releases
    }

    /// What of the scanner's findings may be pushed. It holds as its grant does, which is to be counted as a use, durably, before the push
    /// goes on.
    pub fn exceptions(&self) -> &[Exception] {
        &self.exceptions
    }

    /// The release by which the push of that digest passes at this moment. Its grant is to be counted as a use, durably, before the push
    /// goes on.
    pub fn released(&self, digest: &str, moment: &Moment<'_>) -> Option<&Release> {
        self.releases.iter().find(|one| one.digest == digest && one.grant.holds(moment).is_ok())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    repos: Vec<RawRepo>,
    #[serde(default)]
    granted: Vec<grants::RawGranted>,
    #[serde(default)]
    releases: Vec<grants::RawRelease>,
    #[serde(default)]
    exceptions: Vec<grants::RawException>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRepo {
    name: Spanned<String>,
    upstream: Spanned<String>,
    identity: Option<Spanned<String>>,
    host_key: Option<Spanned<String>>,
    token_file: Option<Spanned<String>>,
    token_user: Option<Spanned<String>>,
    #[serde(default)]
    extra_hosts: BTreeMap<String, Spanned<String>>,
    push: Option<rules::RawPush>,
    fetch: Option<rules::RawFetch>,
    expires_at: Option<Spanned<String>>,
    grant: Option<Spanned<String>>,
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
        let grant = self.grant(raw.expires_at.as_ref(), None, raw.grant.as_ref());
        let written = Written::parse(&raw.upstream.value).and_then(|written| self.permitted(written));
        let upstream = match self.take(&raw.upstream, written)? {
            Written::File(path) => {
                self.meaningless(
                    raw,
                    "a file upstream",
                    &["identity", "host_key", "token_file", "token_user"],
                );
                for value in raw.extra_hosts.values() {
                    self.note(value.referenced, "`extra_hosts` has no meaning for a file upstream".into());
                }
                Upstream::File(path)
            }
            Written::Ssh(location) => {
                self.meaningless(raw, "an ssh upstream", &["token_file", "token_user"]);
                Upstream::Ssh(self.ssh(raw, location)?)
            }
            Written::Https(location) => {
                self.meaningless(raw, "an https upstream", &["identity", "host_key"]);
                Upstream::Https(self.https(raw, location)?)
            }
        };
        (self.found.len() == before).then_some(Repo { name: name?, upstream, push, fetch, grant })
    }

    fn permitted(&self, written: Written) -> Result<Written, UpstreamError> {
        match (&written, self.allow) {
            (Written::Ssh(_) | Written::Https(_), _) | (Written::File(_), Allow::LocalUpstream) => {
                Ok(written)
            }
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
            Some(key) => self.take(key, HostKey::parse_for(&location.host, location.port, &key.value)),
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

    fn https(&mut self, raw: &RawRepo, location: Location) -> Option<Https> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let is_word = |text: &str| {
            (1..=SECRET_NAME_MAX_BYTES).contains(&text.len())
                && !text.starts_with('.')
                && text.bytes().all(word)
        };
        let token = match &raw.token_file {
            Some(name) if is_word(&name.value) => Some(name.value.clone()),
            Some(name) => self.fault(
                name.referenced,
                "`token_file` is the name of a secret: letters, digits and `._-`, not a path".into(),
            ),
            None => self.fault(
                raw.upstream.referenced,
                "an https upstream needs `token_file: NAME`, the name of the secret that holds its token"
                    .into(),
            ),
        };
        let user = match &raw.token_user {
            None => Some(TOKEN_USER.to_owned()),
            Some(user) if is_word(&user.value) => Some(user.value.clone()),
            Some(user) => {
                self.fault(user.referenced, "`token_user` has letters, digits and `._-` only".into())
            }
        };
        let address = self.address(raw, &location.host);
        let Location { host, port, path, .. } = location;
        Some(Https { host, port, path, user: user?, token: token?, address })
    }

    fn meaningless(&mut self, raw: &RawRepo, kind: &str, keys: &[&str]) {
        let given = [
            ("identity", &raw.identity),
            ("host_key", &raw.host_key),
            ("token_file", &raw.token_file),
            ("token_user", &raw.token_user),
        ];
        for (key, value) in given {
            if let Some(value) = value
                && keys.contains(&key)
            {
                self.note(value.referenced, format!("`{key}` has no meaning for {kind}"));
            }
        }
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

#[cfg(test)]
mod tests;
