//! Everything that can be refused is looked at here, before anything is made or started.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use policy::Policy;
use repos::{Allow, Repos, Upstream};
use serde::Serialize;

use crate::addresses::Addresses;
use crate::agent::{self, Luggage};
use crate::backend::Kind;
use crate::bundle::{Handed, Secret, programs};
use crate::cgroup;
use crate::clone::{Copy, Origin};
use crate::fault::{Attempted, Fault, chain};
use crate::host;
use crate::init::Shelf;
use crate::layout::{self, HostTree, Inputs, Shared, Source};
use crate::manifest::{Limits, Manifest, Name, SecretSource};
use crate::plan::{DIRECT_V4, DIRECT_V6};
use crate::preset::Preset;
use crate::provision::{self, Report};
use crate::run::Request;
use crate::state::Directories;
use crate::workdir::{self, Found, Guarded, Harm, Place, Reach, SetIds, shown};
use crate::{environment, etc, secrets, text};

/// Directories of a home that hold credentials.
const CREDENTIALS: [&str; 7] =
    [".ssh", ".gnupg", ".aws", ".kube", ".docker", ".password-store", ".config/gcloud"];
/// Each is a socket or two, of the 64 that are handed over.
const DIRECT_PORTS_MAX: usize = 16;
/// What egress knows the bottle's placeholder by.
const PLACEHOLDER: &str = "EGRESS_PLACEHOLDER";
/// What the agent knows it by.
const PLACEHOLDER_VARIABLE: &str = "BOTTLECAP_PLACEHOLDER";
const NO_ROUTES: &str = "routes: []\n";
const NO_REPOS: &str = "repos: []\n";

/// A request that has been looked at as a whole.
#[derive(Debug)]
pub struct Checked {
    pub(crate) manifest: Manifest,
    pub(crate) name: Option<Name>,
    pub(crate) directories: Directories,
    pub(crate) routes: String,
    pub(crate) repos: Repos,
    pub(crate) repos_text: String,
    pub(crate) secrets: Vec<(String, Secret)>,
    pub(crate) workdir: Place,
    pub(crate) found: Found,
    pub(crate) owner: (u32, u32),
    pub(crate) mounts: Vec<(Place, Found)>,
    pub(crate) environment: BTreeMap<OsString, OsString>,
    pub(crate) luggage: Luggage,
    pub(crate) request: Request,
    pub(crate) origin: Option<Origin>,
    pub(crate) command: Vec<OsString>,
    pub(crate) host: HostTree,
    pub(crate) without: Vec<crate::plan::Layer>,
    pub(crate) backend: Kind,
    pub(crate) image: Option<String>,
    pub(crate) report: Report,
    /// Where clients that ignore proxy variables are served, if they are.
    pub(crate) direct: Vec<SocketAddr>,
}

/// How far it is looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look<'o> {
    /// At everything: the bottle is started next.
    Whole,
    /// At everything, with this clone for a working directory.
    Clone(&'o Origin),
    /// At everything but the secrets: no program is run, and nothing is read that nobody will use.
    Only,
}

/// Looks at everything that `request` names.
///
/// # Errors
/// What is wrong with it.
pub fn check(request: &Request, extent: Look<'_>) -> Result<Checked, Fault> {
    let manifest = read_manifest(request.manifest.as_deref())?;
    limits_hold(&manifest.limits, request.backend)?;
    let (routes, policy) = read_routes(&manifest)?;
    let (repos_text, repos) = read_repos(manifest.repos.as_deref())?;
    secrets_are_there(&policy, &repos, &manifest)?;
    let command = command(request, &manifest)?;
    let luggage =
        agent::pack(&manifest.agent, request.agent.as_ref(), Shelf::of_process().as_ref(), &request.workdir)?;
    let mut secrets = match extent {
        Look::Whole | Look::Clone(_) => secrets::resolve(&manifest.secrets)?,
        Look::Only => Vec::new(),
    };
    let mut variables = manifest.env.clone();
    for (name, value) in manifest.agent.preset.map(Preset::variables).unwrap_or_default() {
        variables.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    let addresses = request.backend.backend().addresses();
    let mut environment =
        environment::variables(env::vars_os(), &variables, &addresses, provision::java(request.backend));
    hand_placeholder(&policy, &mut secrets, &mut environment)?;
    let directories = Directories::of_process();
    let guarded = guarded(&manifest, &repos, &directories)?;
    let mountinfo =
        fs::read_to_string("/proc/self/mountinfo").failing(|| "cannot read the mounts".to_owned())?;
    let mounted = workdir::mount_points(&mountinfo);
    let workdir = look(&request.workdir)?;
    refuse(&workdir, &guarded, &mounted)?;
    let (workdir, origin) = match extent {
        // It lies in the state, where only we put it.
        Look::Clone(origin) => (look(&origin.clone)?, Some(origin.clone())),
        Look::Whole | Look::Only => (workdir, None),
    };
    let readable: Vec<Guarded> = guarded.into_iter().filter(|guard| guard.harm == Harm::Read).collect();
    let mut mounts = Vec::new();
    for path in &manifest.mounts {
        let place = look(path)?;
        refuse(&place, &readable, &mounted)?;
        if place.path.starts_with(&workdir.path) {
            return Err(Fault::refused(format!(
                "the mount {} lies in the working directory",
                shown(&place.path)
            ))
            .with_hint("take it out of `mounts`: it is visible already, and can be written"));
        }
        mounts.push(place);
    }
    mounts.sort_by(|one, other| one.path.cmp(&other.path));
    mounts.dedup();
    let set_ids = if geteuid().is_root() { SetIds::Refused } else { SetIds::Accepted };
    let found = walk(&workdir, set_ids)?;
    // They cannot be written.
    let mounts = mounts
        .into_iter()
        .map(|place| walk(&place, SetIds::Accepted).map(|found| (place, found)))
        .collect::<Result<_, _>>()?;
    let metadata =
        fs::metadata(&workdir.path).refusing(|| format!("cannot look at {}", workdir.path.display()))?;
    Ok(Checked {
        name: request.name.clone().or_else(|| manifest.name.clone()),
        directories,
        routes,
        repos,
        repos_text,
        secrets,
        owner: (metadata.uid(), metadata.gid()),
        mounts,
        environment,
        luggage,
        request: request.clone(),
        origin,
        command,
        host: host::tree(),
        without: without(),
        backend: request.backend,
        image: request.image.clone().or_else(|| manifest.image.clone()),
        report: request.report,
        direct: direct(request.transparent || manifest.transparent == Some(true), request.backend, &policy)?,
        workdir,
        found,
        manifest,
    })
}

/// Checks a manifest and the files it names, but not the secrets: those are there when a bottle is started.
pub(super) fn check_manifest(file: &Path, out: &mut impl Write) -> Result<(), Fault> {
    let manifest = read_manifest(Some(file))?;
    let (_, policy) = read_routes(&manifest)?;
    let (_, repos) = read_repos(manifest.repos.as_deref())?;
    secrets_are_there(&policy, &repos, &manifest)?;
    for path in manifest.upstream_ca.iter().chain(&manifest.mounts) {
        fs::metadata(path).refusing(|| format!("cannot find {}", path.display()))?;
    }
    let told = || "cannot print".to_owned();
    let (routes, count) = (policy.routes(), repos.iter().count());
    writeln!(out, "{}: {} routes, {count} repositories", file.display(), routes.len()).failing(told)?;
    for route in routes {
        writeln!(out, "  {}", policy::describe(route)).failing(told)?;
    }
    for warning in policy.warnings() {
        writeln!(out, "warning: {warning}").failing(told)?;
    }
    Ok(())
}

/// On which addresses egress serves clients that ignore proxy variables: those of every port that a route names, and the two that
/// clients try without being told.
fn direct(wanted: bool, backend: Kind, policy: &Policy) -> Result<Vec<SocketAddr>, Fault> {
    if !wanted {
        return Ok(Vec::new());
    }
    if backend != Kind::Sandbox {
        return Err(Fault::refused("`transparent` is not supported with containers by this version")
            .with_hint("use --backend sandbox, or programs that know a proxy"));
    }
    let named = policy.routes().iter().flat_map(|route| route.ports()).copied();
    let ports: BTreeSet<u16> = named.chain([80, 443]).collect();
    if ports.len() > DIRECT_PORTS_MAX || ports.contains(&53) {
        return Err(Fault::refused(format!(
            "`transparent` is for routes with at most {DIRECT_PORTS_MAX} ports in all, and not with port 53"
        )));
    }
    let mut addresses = vec![IpAddr::V4(DIRECT_V4)];
    if Path::new("/proc/net/if_inet6").exists() {
        addresses.push(DIRECT_V6.into());
    }
    let at = |ip: &IpAddr| ports.iter().map(|port| SocketAddr::new(*ip, *port)).collect::<Vec<_>>();
    Ok(addresses.iter().flat_map(at).collect())
}

#[cfg(not(feature = "test-walls"))]
fn without() -> Vec<crate::plan::Layer> {
    Vec::new()
}

/// The walls to leave out: names as in [`crate::plan::Layer`], separated by commas.
#[cfg(feature = "test-walls")]
fn without() -> Vec<crate::plan::Layer> {
    let names = env::var("BOTTLECAP_TEST_WITHOUT").unwrap_or_default();
    let layer = |name: &str| {
        serde_json::from_value(serde_json::Value::from(name)).expect("a test names layers that there are")
    };
    names.split(',').filter(|name| !name.is_empty()).map(layer).collect()
}

fn read_manifest(file: Option<&Path>) -> Result<Manifest, Fault> {
    file.map_or_else(|| Ok(Manifest::default()), |file| Manifest::load(file, Shelf::of_process().as_ref()))
}

/// What is to run: as asked for, else as the manifest says, else what the preset starts.
fn command(request: &Request, manifest: &Manifest) -> Result<Vec<OsString>, Fault> {
    if !request.command.is_empty() {
        return Ok(request.command.clone());
    }
    let preset = || manifest.agent.preset.map(|preset| preset.command().to_owned()).into_iter().collect();
    let words: Vec<String> = if manifest.command.is_empty() { preset() } else { manifest.command.clone() };
    if words.is_empty() {
        return Err(Fault::refused("there is no command")
            .with_hint("give one after `--`, or a `command` or an agent's `preset` in the manifest"));
    }
    Ok(words.into_iter().map(OsString::from).collect())
}

/// A bound that nothing keeps is worse than none. What an engine keeps, it says when it is asked.
fn limits_hold(limits: &Limits, backend: Kind) -> Result<(), Fault> {
    match backend {
        Kind::Docker => Ok(()),
        Kind::Sandbox => cgroup::check(limits, &cgroup::Host::of_process()),
    }
}

/// The routes and their text: of the manifest's file, else those that the preset needs, else none.
fn read_routes(manifest: &Manifest) -> Result<(String, Policy), Fault> {
    let (name, text) = match (&manifest.routes, manifest.agent.preset) {
        (Some(path), _) => {
            let text = text::read(path, || format!("cannot read the routes {}", path.display()))?;
            (path.display().to_string(), text)
        }
        (None, Some(preset)) => ("the preset's routes".to_owned(), preset.needs().to_owned()),
        (None, None) => ("routes.yaml".to_owned(), NO_ROUTES.to_owned()),
    };
    let policy = Policy::parse(&name, &text)?;
    Ok((text, policy))
}

fn read_repos(file: Option<&Path>) -> Result<(String, Repos), Fault> {
    let (name, text) = match file {
        None => ("repos.yaml".to_owned(), NO_REPOS.to_owned()),
        Some(path) => {
            let text = text::read(path, || format!("cannot read the repositories {}", path.display()))?;
            (path.display().to_string(), text)
        }
    };
    let repos = Repos::parse(&name, &text, Allow::SshUpstream)
        .refusing(|| "the repositories are wrong".to_owned())?;
    Ok((text, repos))
}

fn secrets_are_there(policy: &Policy, repos: &Repos, manifest: &Manifest) -> Result<(), Fault> {
    let by_routes = credentials(policy).map(|name| ("routes", name));
    let by_repositories = tokens(repos).map(|name| ("repositories", name));
    match by_routes.chain(by_repositories).find(|(_, name)| !manifest.secrets.contains_key(*name)) {
        None => Ok(()),
        Some((users, name)) => Err(Fault::refused(format!(
            "the {users} use the secret `{name}`, which the manifest does not have"
        ))
        .with_hint(format!("add to the manifest: secrets: {{{name}: {{env: VARIABLE}}}}"))),
    }
}

/// The secrets that the routes name.
pub(super) fn credentials(policy: &Policy) -> impl Iterator<Item = &str> {
    policy
        .routes()
        .iter()
        .filter_map(|route| route.credential())
        .map(|credential| credential.secret.name().as_str())
}

/// The secrets that https upstreams of git are opened with.
pub(super) fn tokens(repos: &Repos) -> impl Iterator<Item = &str> {
    repos.iter().filter_map(|repo| match &repo.upstream {
        Upstream::Https(https) => Some(https.token.as_str()),
        Upstream::Ssh(_) | Upstream::File(_) => None,
    })
}

/// Who gets which secret: git-gate those that open upstreams of git, egress the others, and of the first those that a route names too.
pub(super) fn shared_out(secrets: Vec<(String, Secret)>, policy: &Policy, repos: &Repos) -> Vec<Handed> {
    let mut handed = Vec::new();
    for (name, secret) in secrets {
        let is_token = tokens(repos).any(|token| token == name);
        if is_token {
            let secret = Secret::new(secret.expose().to_vec());
            handed.push(Handed { to: "git-gate", name: name.clone(), secret });
        }
        if !is_token || credentials(policy).any(|credential| credential == name) {
            handed.push(Handed { to: "egress", name, secret });
        }
    }
    handed
}

/// A word for this run, when a route replaces one: to egress among the secrets, to the agent by environment, also under the names
/// of the secrets that it stands for.
fn hand_placeholder(
    policy: &Policy,
    secrets: &mut Vec<(String, Secret)>,
    environment: &mut BTreeMap<OsString, OsString>,
) -> Result<(), Fault> {
    let replaced = policy.routes().iter().filter_map(|route| route.credential());
    let mut replaced = replaced.filter(|credential| !credential.placeholder_in.is_empty()).peekable();
    if replaced.peek().is_none() {
        return Ok(());
    }
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).failing(|| "cannot get random bytes".to_owned())?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let word = format!("placeholder-{digits}");
    secrets.push((PLACEHOLDER.to_owned(), Secret::new(word.clone().into_bytes())));
    environment.insert(PLACEHOLDER_VARIABLE.into(), word.clone().into());
    for credential in replaced {
        let name = credential.secret.name().as_str();
        if environment::may_be_set(name) {
            environment.entry(name.into()).or_insert_with(|| word.clone().into());
        }
    }
    Ok(())
}

fn look(path: &Path) -> Result<Place, Fault> {
    let place = Place::look(path).refusing(|| format!("cannot find {}", path.display()))?;
    if place.path.is_dir() {
        Ok(place)
    } else {
        Err(Fault::refused(format!("{} is not a directory", place.path.display())))
    }
}

fn refuse(place: &Place, guarded: &[Guarded], mounted: &[PathBuf]) -> Result<(), Fault> {
    workdir::check(place, guarded, mounted)
        .map_err(|refusal| Fault::refused(refusal.to_string()).with_hint(refusal.hint()))
}

fn walk(place: &Place, set_ids: SetIds) -> Result<Found, Fault> {
    workdir::walk(&place.path, set_ids).map_err(|error| {
        let hint = error.hint();
        Fault::refused(chain(&error)).with_hint(hint)
    })
}

/// What no bottle may get, as far as it exists.
fn guarded(manifest: &Manifest, repos: &Repos, directories: &Directories) -> Result<Vec<Guarded>, Fault> {
    let mut guarded = Vec::new();
    let mut guard = |what: &str, path: &Path, reach, harm| match Place::look(path) {
        Ok(place) => {
            guarded.push(Guarded { what: what.to_owned(), place, reach, harm });
            Ok(())
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(())
        }
        // Homes of other users are theirs to close: what we cannot look at, the bottle's user cannot either.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && harm == Harm::Read => Ok(()),
        Err(error) => Err(error).refusing(|| format!("cannot look at {what}, {}", path.display())),
    };
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let own_home = env::var_os("HOME").map(PathBuf::from).filter(|home| home.parent().is_some());
    for home in host::homes(&passwd).iter().chain(&own_home) {
        guard("a home directory", home, Reach::Itself, Harm::Read)?;
        for name in CREDENTIALS {
            guard("a directory of credentials", &home.join(name), Reach::Everything, Harm::Read)?;
        }
    }
    guard("bottlecap's state", &directories.state, Reach::Everything, Harm::Read)?;
    guard("bottlecap's sockets", &directories.runtime, Reach::Everything, Harm::Read)?;
    for source in manifest.secrets.values() {
        if let SecretSource::File(path) = source {
            guard("a secret", path, Reach::Itself, Harm::Read)?;
        }
    }
    for repo in repos.iter() {
        if let Upstream::Ssh(ssh) = &repo.upstream {
            guard("a git identity", &ssh.identity, Reach::Itself, Harm::Read)?;
        }
    }
    let files = [&manifest.routes, &manifest.repos, &manifest.upstream_ca];
    for path in files.into_iter().flatten().chain(&manifest.files) {
        guard("what the bottle is made by", path, Reach::Itself, Harm::Write)?;
    }
    guard("bottlecap's own programs", &programs()?, Reach::Itself, Harm::Write)?;
    Ok(guarded)
}

impl Checked {
    /// Who answers for names inside.
    pub(crate) fn names(&self) -> etc::Names {
        if self.direct.is_empty() { etc::Names::Files } else { etc::Names::Egress }
    }

    /// The working directory or a mount as a layout needs it; `handed` says at which place the wall gets it, if it does.
    pub(crate) fn shared(&self, place: &Place, found: &Found, handed: Option<usize>) -> Shared {
        let path = place.path.clone();
        let source = match handed {
            Some(place) => Source::Handed(place),
            None => Source::Host(path.clone(), Some(place.inode())),
        };
        let hidden = !self.without.contains(&crate::plan::Layer::Sockets);
        let sockets = if hidden { found.sockets.clone() } else { Vec::new() };
        Shared { path, source, sockets }
    }

    /// What would be made, as one value.
    pub(super) fn plan(&self) -> Result<Planned, Fault> {
        let policy = Policy::parse("routes.yaml", &self.routes)?;
        let mounts: Vec<Shared> =
            self.mounts.iter().map(|(place, found)| self.shared(place, found, None)).collect();
        let identity = etc::Identity {
            gitconfig: String::new(),
            roots: String::new(),
            ca: Some(String::new()),
            luggage: self.luggage.files.clone(),
            java: None,
            addresses: Addresses::names(),
            names: self.names(),
        };
        let inputs = Inputs {
            host: &self.host,
            workdir: &self.shared(&self.workdir, &self.found, None),
            git: &[],
            mounts: &mounts,
            identity: &identity,
        };
        let mut files: Vec<String> = layout::steps(&inputs).iter().map(ToString::to_string).collect();
        if self.workdir.path.join(".git").exists() {
            files.push("read-only   .git/config, .git/hooks, .git/info in it".to_owned());
        }
        files.extend(self.found.git_files.iter().map(|file| format!("read-only   {} in it", shown(file))));
        let text = |word: &OsString| word.to_string_lossy().into_owned();
        Ok(Planned {
            bottle: self.name.as_ref().map(|name| name.as_str().to_owned()),
            command: self.command.iter().map(text).collect(),
            workdir: self.workdir.path.clone(),
            copy: self.request.copy,
            state: self.directories.bottles.clone(),
            manifest: self.manifest.files.clone(),
            agent: self.luggage.preset,
            may_reach: policy.routes().iter().map(policy::describe).collect(),
            without_proxy: self.direct.clone(),
            repositories: self.repos.iter().map(|repo| repo.name.to_string()).collect(),
            secrets: self
                .manifest
                .secrets
                .iter()
                .map(|(name, from)| (name.clone(), from.to_string()))
                .collect(),
            files,
            environment: self.environment.iter().map(|(name, value)| (text(name), text(value))).collect(),
        })
    }
}

/// What would be made.
#[derive(Debug, Serialize)]
pub(super) struct Planned {
    /// Its name; without one its state goes with it.
    bottle: Option<String>,
    command: Vec<String>,
    workdir: PathBuf,
    copy: Copy,
    state: PathBuf,
    manifest: Vec<PathBuf>,
    agent: Option<Preset>,
    may_reach: Vec<String>,
    /// Where programs that ignore proxy variables find it.
    without_proxy: Vec<SocketAddr>,
    repositories: Vec<String>,
    /// Name, and where it comes from.
    secrets: BTreeMap<String, String>,
    files: Vec<String>,
    environment: BTreeMap<String, String>,
}

impl Planned {
    /// For a person.
    pub(super) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let name = self.bottle.as_deref().unwrap_or("(none: its state goes with it)");
        writeln!(out, "bottle     {name}")?;
        writeln!(out, "command    {}", self.command.join(" "))?;
        let of = if self.copy == Copy::Clone { "a clone of " } else { "" };
        writeln!(out, "in         {of}{}", shown(&self.workdir))?;
        writeln!(out, "state      {}", self.state.display())?;
        let mut part = |title: &str, lines: Vec<String>| -> io::Result<()> {
            writeln!(out, "\n{title}")?;
            lines.iter().try_for_each(|line| writeln!(out, "  {line}"))
        };
        let repositories = self.repositories.iter().map(|name| format!("git {name}"));
        let at = self.without_proxy.iter().map(|at| format!("also without proxy variables at {at}"));
        part("may reach", self.may_reach.iter().cloned().chain(repositories).chain(at).collect())?;
        let secret = |(name, from): (&String, &String)| format!("{name}, from {from}");
        part("secrets, each for the daemon alone that uses it", self.secrets.iter().map(secret).collect())?;
        part("files", self.files.clone())?;
        let variable = |(name, value): (&String, &String)| format!("{name}={value}");
        part("environment", self.environment.iter().map(variable).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_secret_goes_to_the_daemon_that_uses_it_and_to_no_other() {
        let routes = "routes:\n  - {host: a.example.com, token_env: KEY}\n  - {host: b.example.com, token_env: BOTH}\n";
        let policy = Policy::parse("routes.yaml", routes).unwrap();
        let entry = |name: &str| {
            format!(
                "  - {{name: {name}, upstream: 'https://git.example.com/{name}.git', token_file: {name}}}\n"
            )
        };
        let text = format!("repos:\n{}{}", entry("GIT"), entry("BOTH"));
        let repos = Repos::parse("repos.yaml", &text, Allow::SshUpstream).unwrap();
        let secrets = ["KEY", "GIT", "BOTH", "OTHER"].map(|name| (name.to_owned(), Secret::new(Vec::new())));
        let handed = shared_out(secrets.into(), &policy, &repos);
        let handed: Vec<_> = handed.iter().map(|handed| (handed.name.as_str(), handed.to)).collect();
        let expected = [
            ("KEY", "egress"),
            ("GIT", "git-gate"),
            ("BOTH", "git-gate"),
            ("BOTH", "egress"),
            ("OTHER", "egress"),
        ];
        assert_eq!(handed, expected);
    }

    #[test]
    fn the_agent_has_the_word_and_never_the_secret_under_the_secrets_name() {
        let handed = |placeholder_in: &str| {
            let routes = format!("routes:\n  - {{host: a.example.com, token_env: KEY{placeholder_in}}}\n");
            let policy = Policy::parse("routes.yaml", &routes).unwrap();
            let (mut secrets, mut environment) = (Vec::new(), BTreeMap::new());
            hand_placeholder(&policy, &mut secrets, &mut environment).unwrap();
            (secrets.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), environment)
        };
        assert_eq!(handed(""), (Vec::new(), BTreeMap::new()));
        let (secrets, environment) = handed(", placeholder_in: [header:x-api-key]");
        assert_eq!(secrets, ["EGRESS_PLACEHOLDER"]);
        let word = &environment[&OsString::from("KEY")];
        assert_eq!(word, &environment[&OsString::from("BOTTLECAP_PLACEHOLDER")]);
        assert!(word.to_str().unwrap().starts_with("placeholder-"));
        assert_ne!(word, &handed(", placeholder_in: [header:x-api-key]").1[&OsString::from("KEY")]);
    }
}
