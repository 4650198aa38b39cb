//! What granting anything but a route adds to the host's files, before it is granted.

use std::num::{NonZeroU32, NonZeroU64};

use jiff::{SignedDuration, Timestamp};
use policy::lines::{List, add_item, quoted, remove_item};
use policy::{
    AppendError, Exception, Extra, GrantId, Host, Limit, Policy, Raise, Release, append_extra, remove_extra,
};
use repos::{Allow, RefPattern, Repo, RepoName, Repos, Upstream};

use crate::capability::times;
use crate::peer::{Held, Target};
use crate::{Access, Ask, Capability, Id, Wish, digest, review};

/// The files that grants stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// `routes.yaml`, which egress reads.
    Routes,
    /// `repos.yaml`, which git-gate reads.
    Repos,
}

impl Table {
    /// The name of the file.
    #[must_use]
    pub fn file(self) -> &'static str {
        match self {
            Table::Routes => "routes.yaml",
            Table::Repos => "repos.yaml",
        }
    }

    /// The daemon that reads it.
    #[must_use]
    pub fn daemon(self) -> &'static str {
        match self {
            Table::Routes => "egress",
            Table::Repos => "git-gate",
        }
    }
}

/// Until when and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The end.
    pub expires_at: Timestamp,
    /// How often; as often as comes, if absent, but for what is held, which passes once.
    pub max_uses: Option<NonZeroU32>,
}

/// What a person decides on: the difference in words, and the exact text that a yes writes.
#[derive(Debug, Clone)]
pub struct Addition {
    /// The file.
    pub table: Table,
    /// What would change, in words.
    pub words: String,
    /// What to look at twice.
    pub careful: Vec<String>,
    /// The new text of the file, whole.
    pub text: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// For how long it is, in seconds.
    pub ttl_seconds: u32,
    /// How often it can be used.
    pub max_uses: Option<NonZeroU32>,
    /// Ties an answer to what was shown.
    pub token: String,
    base_digest: String,
}

/// Why it cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum AdditionError {
    /// No program can grant it.
    #[error("no program can grant it: a person changes the configuration by hand")]
    ByHand,
    /// Not into routes.yaml.
    #[error("it cannot be added to routes.yaml")]
    Routes(#[source] AppendError),
    /// The routes as they are do not parse.
    #[error("the present routes are not valid: {0}")]
    Policy(policy::Diagnostics),
    /// The file of repositories is wrong, or would be.
    #[error("repos.yaml: {0}")]
    Repos(repos::Diagnostics),
    /// The list is not one that lines can be added to.
    #[error("`{0}` in repos.yaml is not a block sequence (one `- ` per entry)")]
    Layout(&'static str),
    /// The gate has no such repository.
    #[error("git-gate has no repository `{0}`")]
    NoRepo(String),
    /// Nothing is known of the host of a repository.
    #[error(
        "no repository of git-gate is at {0} with that account, so neither its key nor its identity is known here"
    )]
    UnknownHost(String),
    /// The name is taken.
    #[error("git-gate has a repository `{0}` already")]
    Taken(String),
    /// No name can be made of it.
    #[error("no name for a repository can be made of `{0}`")]
    Name(String),
    /// A number that the limit cannot have.
    #[error("`{0}` cannot be that much")]
    Value(Limit),
    /// The file would become something else.
    #[error("adding it would change something else")]
    Changed,
    /// A time beyond the calendar.
    #[error("the grant would end beyond the calendar")]
    Time,
}

/// Computes what granting `ask` for `ttl_seconds` from `now` on would change in the file of `base`. `in_force` is what the answer is tied
/// to besides: the generation that serves, say.
///
/// # Errors
/// When it cannot be granted on this base.
pub fn addition(
    base: &str,
    id: &Id,
    ask: &Ask,
    (ttl_seconds, max_uses): (u32, Option<NonZeroU32>),
    in_force: &str,
    now: Timestamp,
) -> Result<Addition, AdditionError> {
    let now = Timestamp::from_second(now.as_second()).map_err(|_| AdditionError::Time)?;
    let lifetime = SignedDuration::from_secs(i64::from(ttl_seconds));
    let expires_at = now.checked_add(lifetime).map_err(|_| AdditionError::Time)?;
    let table = ask.table().ok_or(AdditionError::ByHand)?;
    let max_uses = max_uses.or(ask.max_uses());
    let terms = Terms { expires_at, max_uses };
    let text = added(base, id, ask, terms)?;
    let base_digest = digest(base);
    let scope = serde_json::Value::from(ask.clone()).to_string();
    let uses = max_uses.map_or(String::new(), |uses| uses.to_string());
    let token =
        review::token(&[id.as_str(), &scope, &ttl_seconds.to_string(), &uses, &base_digest, in_force]);
    let (words, careful) = words(base, ask, terms)?;
    Ok(Addition { table, words, careful, text, expires_at, ttl_seconds, max_uses, token, base_digest })
}

impl Addition {
    /// For a person: the change in words, and what to look at twice.
    #[must_use]
    pub fn told(&self) -> String {
        let careful = self.careful.iter().map(|careful| format!("careful  {careful}\n"));
        format!("{}\n{}", self.words, careful.collect::<String>())
    }

    /// The digest of what it was reviewed against.
    #[must_use]
    pub fn base_digest(&self) -> &str {
        &self.base_digest
    }

    /// The digest that the daemon has to acknowledge.
    #[must_use]
    pub fn digest(&self) -> String {
        digest(&self.text)
    }
}

/// The text of the file with the grant of `ask`.
///
/// # Errors
/// When it cannot be granted on this base.
pub fn added(base: &str, id: &Id, ask: &Ask, terms: Terms) -> Result<String, AdditionError> {
    let grant = id.to_grant_id();
    let Terms { expires_at, max_uses } = terms;
    let end = format!("expires_at: {expires_at}, grant: {}", quoted(grant.as_str()));
    let uses = max_uses.map_or(String::new(), |uses| format!("max_uses: {uses}, "));
    match ask {
        Ask::Route(proposal) => {
            policy::append_route(base, &proposal.to_grant(id, expires_at)).map_err(AdditionError::Routes)
        }
        Ask::Held(hold) => match &hold.what {
            Held::Request { .. } => {
                let max_uses = max_uses.map_or(NonZeroU64::MIN, NonZeroU64::from);
                let release = Release { digest: hold.digest.clone(), expires_at, max_uses, grant };
                append_extra(base, &Extra::Release(release)).map_err(AdditionError::Routes)
            }
            Held::Push { repo, .. } => {
                repo_named(&parse(base)?, repo)?;
                let item = format!("{{digest: {}, {uses}{end}}}", quoted(&hold.digest));
                with_item(base, RELEASES, &item)
            }
        },
        Ask::Capability(capability) => match capability.wish() {
            Wish::EgressLimit { host, limit, value } => {
                let raise = raise(host, limit, *value, expires_at, grant)?;
                append_extra(base, &Extra::Raise(raise)).map_err(AdditionError::Routes)
            }
            Wish::GitRef { repo, reference, access: Access::Push } => {
                repo_named(&parse(base)?, repo)?;
                let item = format!("{{repo: {}, ref: {}, {uses}{end}}}", quoted(repo), quoted(reference));
                with_item(base, GRANTED, &item)
            }
            Wish::GitRepo { upstream, access } => {
                let item = repository(&parse(base)?, upstream, *access, &end)?;
                with_item(base, REPOS, &item)
            }
            Wish::DlpException { target: Target::Host(host), rule, fingerprint, .. } => {
                let host = Host::parse(host).map_err(|_| AdditionError::ByHand)?;
                let (rule, fingerprint) = (rule.clone(), fingerprint.clone());
                let max_uses = max_uses.map_or(NonZeroU64::MIN, NonZeroU64::from);
                let exception = Exception { host, rule, fingerprint, expires_at, max_uses, grant };
                append_extra(base, &Extra::Exception(exception)).map_err(AdditionError::Routes)
            }
            Wish::DlpException { target: Target::Repo(repo), rule, fingerprint, .. } => {
                repo_named(&parse(base)?, repo)?;
                let [repo, rule, fingerprint] = [repo, rule, fingerprint].map(|text| quoted(text));
                let item = format!("{{repo: {repo}, rule: {rule}, fingerprint: {fingerprint}, {uses}{end}}}");
                with_item(base, EXCEPTIONS, &item)
            }
            Wish::GitRef { access: Access::Fetch, .. } | Wish::Other { .. } => Err(AdditionError::ByHand),
        },
    }
}

/// The text without what a grant of that name added; nothing when it has none.
///
/// # Errors
/// When it cannot be taken out.
pub fn removed(text: &str, table: Table, id: &Id) -> Result<Option<String>, AdditionError> {
    match table {
        Table::Routes => {
            let grant = id.to_grant_id();
            let taken = match policy::remove_grant(text, &grant) {
                Err(AppendError::Absent(_)) => remove_extra(text, &grant),
                taken => taken,
            };
            match taken {
                Ok(text) => Ok(Some(text)),
                Err(AppendError::Absent(_)) => Ok(None),
                Err(error) => Err(AdditionError::Routes(error)),
            }
        }
        Table::Repos => {
            let before = parse(text)?;
            let mark = format!("grant: {}}}", quoted(id.as_str()));
            let line = text
                .lines()
                .map(str::trim_start)
                .find(|line| line.starts_with("- {") && line.ends_with(&mark));
            let Some(item) = line.and_then(|line| line.strip_prefix("- ")) else { return Ok(None) };
            let item = [item.to_owned()];
            let list = [RELEASES, GRANTED, EXCEPTIONS, REPOS]
                .into_iter()
                .find_map(|list| remove_item(text, list, &item));
            let without = list.ok_or(AdditionError::Changed)?;
            let after = parse(&without)?;
            let kept = |repo: &&Repo| after.get(&repo.name).is_some();
            let same = before.iter().filter(kept).count() == after.iter().count()
                && before.iter().filter(kept).zip(after.iter()).all(|(one, other)| same_place(one, other));
            if same { Ok(Some(without)) } else { Err(AdditionError::Changed) }
        }
    }
}

/// The names of the grants in a file that have ended.
#[must_use]
pub fn ended(text: &str, table: Table, now: Timestamp) -> Vec<Id> {
    grants(text, table)
        .into_iter()
        .filter(|(_, end)| end.is_some_and(|end| end <= now))
        .map(|(id, _)| id)
        .collect()
}

/// The grants in a file, with their ends.
#[must_use]
pub fn grants(text: &str, table: Table) -> Vec<(Id, Option<Timestamp>)> {
    let named = |name: Option<&str>, end: Option<Timestamp>| Some((Id::parse(name?).ok()?, end));
    match table {
        Table::Routes => {
            let Ok(policy) = Policy::parse(table.file(), text) else { return Vec::new() };
            let routes = policy.routes().iter();
            let routes =
                routes.filter_map(|route| named(route.grant().map(GrantId::as_str), route.expires_at()));
            let extras = policy.extras().iter();
            let extras =
                extras.filter_map(|extra| named(Some(extra.grant().as_str()), Some(extra.expires_at())));
            routes.chain(extras).collect()
        }
        Table::Repos => {
            let Ok(repos) = parse(text) else { return Vec::new() };
            let own = repos.iter().filter_map(|repo| named(repo.grant.id(), repo.grant.expires_at()));
            let refs = repos.iter().flat_map(|repo| repo.push.grants());
            let refs = refs.filter_map(|grant| named(grant.id(), grant.expires_at()));
            let releases = repos.releases().iter();
            let releases = releases.filter_map(|one| named(one.grant.id(), one.grant.expires_at()));
            let exceptions = repos.exceptions().iter();
            let exceptions = exceptions.filter_map(|one| named(one.grant.id(), one.grant.expires_at()));
            own.chain(refs).chain(releases).chain(exceptions).collect()
        }
    }
}

const REPOS: List = List::Needed("repos");
const GRANTED: List = List::Optional("granted");
const RELEASES: List = List::Optional("releases");
const EXCEPTIONS: List = List::Optional("exceptions");
const SSH_PORT: u16 = 22;
/// What may be pushed to a repository that an approval added.
const PUSHED: &str = "refs/heads/agent/*";

fn parse(text: &str) -> Result<Repos, AdditionError> {
    Repos::parse(Table::Repos.file(), text, Allow::SshUpstream).map_err(AdditionError::Repos)
}

fn repo_named<'r>(repos: &'r Repos, name: &str) -> Result<&'r Repo, AdditionError> {
    let unknown = || AdditionError::NoRepo(name.to_owned());
    let name = RepoName::parse(name).map_err(|_| unknown())?;
    repos.get(&name).ok_or_else(unknown)
}

/// Adds one line, and checks that every repository is as it was but for what it adds.
fn with_item(base: &str, list: List, item: &str) -> Result<String, AdditionError> {
    let (List::Needed(key) | List::Optional(key)) = list;
    let text = add_item(base, list, &[item.to_owned()]).ok_or(AdditionError::Layout(key))?;
    let (before, after) = (parse(base)?, parse(&text)?);
    let same = before.iter().zip(after.iter()).all(|(one, other)| same_place(one, other));
    let more = after.iter().count() - before.iter().count().min(after.iter().count());
    if same && more == usize::from(list == REPOS) { Ok(text) } else { Err(AdditionError::Changed) }
}

/// Whether a repository is the same but for refs that are granted.
fn same_place(one: &Repo, other: &Repo) -> bool {
    one.name == other.name
        && one.upstream == other.upstream
        && one.fetch == other.fetch
        && one.grant == other.grant
        && one.push.is_same_but_granted(&other.push)
}

fn raise(
    host: &Host,
    limit: &str,
    value: u64,
    expires_at: Timestamp,
    grant: GrantId,
) -> Result<Raise, AdditionError> {
    let limit = Limit::named(limit).ok_or(AdditionError::ByHand)?;
    let value = NonZeroU64::new(value).filter(|value| value.get() <= limit.most());
    Ok(Raise {
        host: host.clone(),
        limit,
        value: value.ok_or(AdditionError::Value(limit))?,
        expires_at,
        grant,
    })
}

/// The entry of a repository at a host that another one is at already: with its key, its account and its identity.
fn repository(repos: &Repos, upstream: &str, access: Access, end: &str) -> Result<String, AdditionError> {
    let name = name_of(upstream)?;
    if repos.get(&name).is_some() {
        return Err(AdditionError::Taken(name.to_string()));
    }
    let known = repos.iter().find_map(|repo| credentials(repo, upstream));
    let known = known.ok_or_else(|| AdditionError::UnknownHost(place_of(upstream).to_owned()))?;
    let push = match access {
        Access::Fetch => String::new(),
        Access::Push => format!("push: {{allow: [{}]}}, ", quoted(PUSHED)),
    };
    Ok(format!("{{name: {}, upstream: {}, {known}{push}{end}}}", quoted(name.as_str()), quoted(upstream)))
}

/// What the repository reaches its host with, when `upstream` is there too, with the same account.
fn credentials(repo: &Repo, upstream: &str) -> Option<String> {
    let address = |host: &str, address: &Option<std::net::IpAddr>| {
        address.map_or(String::new(), |address| {
            format!("extra_hosts: {{{}: {}}}, ", quoted(host), quoted(&address.to_string()))
        })
    };
    match &repo.upstream {
        Upstream::Ssh(ssh) => {
            let port = if ssh.port == SSH_PORT { String::new() } else { format!(":{}", ssh.port) };
            let own = format!("{}@{}{port}", ssh.user, ssh.host);
            (upstream.starts_with("ssh://") && place_of(upstream).eq_ignore_ascii_case(&own)).then(|| {
                let identity = ssh.identity.to_string_lossy();
                let key = ssh.host_key.to_string();
                let address = address(&ssh.host, &ssh.address);
                format!("identity: {}, host_key: {}, {address}", quoted(&identity), quoted(&key))
            })
        }
        Upstream::Https(https) => {
            let same = upstream.starts_with("https://")
                && place_of(upstream).eq_ignore_ascii_case(place_of(&https.url()));
            same.then(|| {
                let address = address(&https.host, &https.address);
                format!(
                    "token_file: {}, token_user: {}, {address}",
                    quoted(&https.token),
                    quoted(&https.user)
                )
            })
        }
        Upstream::File(_) => None,
    }
}

/// Account, host and port of a URL.
fn place_of(upstream: &str) -> &str {
    let rest = upstream.split_once("://").map_or(upstream, |(_, rest)| rest);
    let place = rest.split_once('/').map_or(rest, |(place, _)| place);
    place.strip_suffix(":22").unwrap_or(place)
}

/// A name for it here: that of the directory.
pub(crate) fn name_of(upstream: &str) -> Result<RepoName, AdditionError> {
    let last = upstream.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let last = last.strip_suffix(".git").unwrap_or(last);
    RepoName::parse(last).map_err(|_| AdditionError::Name(crate::escaped(last)))
}

fn words(base: &str, ask: &Ask, terms: Terms) -> Result<(String, Vec<String>), AdditionError> {
    let Terms { expires_at, max_uses } = terms;
    let until = match max_uses {
        Some(uses) => format!("{}, until {expires_at}", times(uses)),
        None => format!("until {expires_at}"),
    };
    Ok(match ask {
        Ask::Route(_) => (format!("this newly allows {ask}, {until}"), Vec::new()),
        Ask::Held(hold) => {
            let words = format!("this lets pass exactly what is held ({}), {until}\n", hold.digest);
            let places: Vec<String> =
                hold.places().iter().map(|place| format!("found    {place}\n")).collect();
            let careful =
                vec!["what it holds looks like a secret, and leaves the bottle with a yes".to_owned()];
            (format!("{words}{}", places.concat().trim_end()), careful)
        }
        Ask::Capability(capability) => capability_words(base, capability, &until)?,
    })
}

fn capability_words(
    base: &str,
    capability: &Capability,
    until: &str,
) -> Result<(String, Vec<String>), AdditionError> {
    Ok(match capability.wish() {
        Wish::EgressLimit { host, limit, value } => {
            let policy = Policy::parse(Table::Routes.file(), base).map_err(AdditionError::Policy)?;
            let limit = Limit::named(limit).ok_or(AdditionError::ByHand)?;
            let before: Vec<u64> = policy
                .routes()
                .iter()
                .filter(|route| route.host().matches(host))
                .filter_map(|route| limit.of(route.limits()))
                .collect();
            let careful = match before.iter().min() {
                None => vec![format!("no route to {host} has a {limit}: this changes nothing")],
                Some(least) if least >= value => vec![format!("it is {least} already: this changes nothing")],
                Some(_) => Vec::new(),
            };
            let was: Vec<String> = before.iter().map(u64::to_string).collect();
            let was = if was.is_empty() { "no bound".to_owned() } else { was.join(" and ") };
            (format!("this makes the {limit} of {host} {value} (it is {was}), {until}"), careful)
        }
        Wish::GitRef { repo, reference, .. } => {
            let repos = parse(base)?;
            let upstream = repo_named(&repos, repo)?.upstream.to_string();
            let careful = match RefPattern::parse(reference) {
                Ok(pattern) if pattern.as_str().contains('*') => {
                    vec!["it is a pattern: more than one ref can be pushed".to_owned()]
                }
                Ok(_) | Err(_) => Vec::new(),
            };
            (
                format!(
                    "this newly allows pushes to {} of {repo} ({upstream}), {until}",
                    crate::escaped(reference)
                ),
                careful,
            )
        }
        Wish::GitRepo { upstream, access } => {
            let repos = parse(base)?;
            let like = repos.iter().find(|repo| credentials(repo, upstream).is_some());
            let like = like.map(|repo| repo.name.to_string()).unwrap_or_default();
            let verb = match access {
                Access::Fetch => "reads of",
                Access::Push => "reads of, and pushes under refs/heads/agent/ to,",
            };
            let name = name_of(upstream)?;
            let words = format!("this newly allows {verb} {upstream} as /{name}.git, {until}");
            (
                words,
                vec![format!(
                    "it is reached with what `{like}` is reached with: the same host key and the same identity"
                )],
            )
        }
        Wish::DlpException { target, rule, fingerprint, place, .. } => {
            let place = crate::escaped(place);
            let words = format!(
                "this lets exactly what `{rule}` found in {place} ({fingerprint}) pass to {target}, {until}"
            );
            let careful = "what is excepted looks like a secret, and leaves the bottle with a yes, wherever it stands and not only in that place; \
                           only its name is known here";
            (words, vec![careful.to_owned()])
        }
        Wish::Other { .. } => return Err(AdditionError::ByHand),
    })
}
