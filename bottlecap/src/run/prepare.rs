//! Everything that can be refused is looked at here, before anything is made or started.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use policy::{Policy, SecretRef};
use repos::{Allow, Repos, Upstream};

use crate::bundle::{Secret, programs};
use crate::fault::{Attempted, Fault, chain};
use crate::host;
use crate::layout::{self, HostTree, Inputs, Shared, Source};
use crate::manifest::{Manifest, Name, SecretSource};
use crate::run::Request;
use crate::state::Directories;
use crate::workdir::{self, Found, Guarded, Harm, Place, Reach, SetIds, shown};
use crate::{environment, etc};

/// Directories of a home that hold credentials.
const CREDENTIALS: [&str; 7] =
    [".ssh", ".gnupg", ".aws", ".kube", ".docker", ".password-store", ".config/gcloud"];
const SECRET_MAX: u64 = 256 * 1024;
/// What egress knows the bottle's placeholder by.
const PLACEHOLDER: &str = "EGRESS_PLACEHOLDER";
/// What the agent knows it by.
const PLACEHOLDER_VARIABLE: &str = "BOTTLECAP_PLACEHOLDER";
const NO_ROUTES: &str = "routes: []\n";
const NO_REPOS: &str = "repos: []\n";

/// A request that has been looked at as a whole.
#[derive(Debug)]
pub struct Checked {
    pub(super) manifest: Manifest,
    pub(super) name: Option<Name>,
    pub(super) directories: Directories,
    pub(super) routes: String,
    pub(super) repos: Repos,
    pub(super) repos_text: String,
    pub(super) secrets: Vec<(String, Secret)>,
    pub(super) workdir: Place,
    pub(super) found: Found,
    pub(super) owner: (u32, u32),
    pub(super) mounts: Vec<(Place, Found)>,
    pub(super) environment: BTreeMap<OsString, OsString>,
    pub(super) host: HostTree,
    pub(super) without: Vec<crate::plan::Layer>,
}

/// Looks at everything that `request` names.
///
/// # Errors
/// What is wrong with it.
pub fn check(request: &Request) -> Result<Checked, Fault> {
    let manifest = read_manifest(request.manifest.as_deref())?;
    let (routes, policy) = read_routes(manifest.routes.as_deref())?;
    let (repos_text, repos) = read_repos(manifest.repos.as_deref())?;
    secrets_are_there(&policy, &manifest)?;
    let mut secrets = read_secrets(&manifest)?;
    let mut environment = environment::variables(env::vars_os(), &manifest.env);
    hand_placeholder(&policy, &mut secrets, &mut environment)?;
    let directories = Directories::of_process();
    let guarded = guarded(request, &manifest, &repos, &directories)?;
    let mountinfo =
        fs::read_to_string("/proc/self/mountinfo").failing(|| "cannot read the mounts".to_owned())?;
    let mounted = workdir::mount_points(&mountinfo);
    let workdir = look(&request.workdir)?;
    refuse(&workdir, &guarded, &mounted)?;
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
        host: host::tree(),
        without: without(),
        workdir,
        found,
        manifest,
    })
}

/// Checks a manifest and the files it names, but not the secrets: those are there when a bottle is started.
pub(super) fn check_manifest(file: &Path, out: &mut impl Write) -> Result<(), Fault> {
    let manifest = read_manifest(Some(file))?;
    let (_, policy) = read_routes(manifest.routes.as_deref())?;
    let (_, repos) = read_repos(manifest.repos.as_deref())?;
    secrets_are_there(&policy, &manifest)?;
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
    let Some(file) = file else { return Ok(Manifest::default()) };
    let text =
        fs::read_to_string(file).refusing(|| format!("cannot read the manifest {}", file.display()))?;
    let whole = fs::canonicalize(file).refusing(|| format!("cannot find {}", file.display()))?;
    let directory = whole.parent().unwrap_or(Path::new("/"));
    Ok(Manifest::parse(&file.display().to_string(), &text, directory)?)
}

fn read_routes(file: Option<&Path>) -> Result<(String, Policy), Fault> {
    let (name, text) = match file {
        None => ("routes.yaml".to_owned(), NO_ROUTES.to_owned()),
        Some(path) => {
            let text =
                fs::read_to_string(path).refusing(|| format!("cannot read the routes {}", path.display()))?;
            (path.display().to_string(), text)
        }
    };
    let policy = Policy::parse(&name, &text)?;
    Ok((text, policy))
}

fn read_repos(file: Option<&Path>) -> Result<(String, Repos), Fault> {
    let (name, text) = match file {
        None => ("repos.yaml".to_owned(), NO_REPOS.to_owned()),
        Some(path) => {
            let text = fs::read_to_string(path)
                .refusing(|| format!("cannot read the repositories {}", path.display()))?;
            (path.display().to_string(), text)
        }
    };
    let repos = Repos::parse(&name, &text, Allow::SshUpstream)
        .refusing(|| "the repositories are wrong".to_owned())?;
    Ok((text, repos))
}

fn secrets_are_there(policy: &Policy, manifest: &Manifest) -> Result<(), Fault> {
    let named =
        policy.routes().iter().filter_map(|route| route.credential()).map(|credential| &credential.secret);
    for secret in named {
        let (SecretRef::Env(name) | SecretRef::File(name)) = secret;
        if !manifest.secrets.contains_key(name.as_str()) {
            return Err(Fault::refused(format!(
                "the routes use the secret `{}`, which the manifest does not have",
                name.as_str()
            ))
            .with_hint(format!("add to the manifest: secrets: {{{}: {{env: VARIABLE}}}}", name.as_str())));
        }
    }
    Ok(())
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

fn read_secrets(manifest: &Manifest) -> Result<Vec<(String, Secret)>, Fault> {
    let read = |(name, source): (&String, &SecretSource)| {
        let secret = match source {
            SecretSource::Variable(variable) => match env::var_os(variable) {
                Some(value) if !value.is_empty() => Secret::new(value.into_encoded_bytes()),
                Some(_) | None => {
                    return Err(Fault::refused(format!(
                        "the secret `{name}` is to come from {variable}, which is not set"
                    ))
                    .with_hint(format!("set it for this command: {variable}=… bottlecap run …")));
                }
            },
            SecretSource::File(path) => Secret::new(read_secret(path)?),
        };
        Ok((name.clone(), secret))
    };
    manifest.secrets.iter().map(read).collect()
}

/// The file without the line end that an editor adds.
fn read_secret(path: &Path) -> Result<Vec<u8>, Fault> {
    let told = || format!("cannot read the secret {}", path.display());
    let length = fs::metadata(path).refusing(told)?.len();
    if length > SECRET_MAX {
        return Err(Fault::refused(format!(
            "the secret {} is larger than {} KiB",
            path.display(),
            SECRET_MAX / 1024
        )));
    }
    let mut bytes = fs::read(path).refusing(told)?;
    while matches!(bytes.last(), Some(b'\n' | b'\r')) {
        bytes.pop();
    }
    Ok(bytes)
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
fn guarded(
    request: &Request,
    manifest: &Manifest,
    repos: &Repos,
    directories: &Directories,
) -> Result<Vec<Guarded>, Fault> {
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
    let files = [&request.manifest, &manifest.routes, &manifest.repos, &manifest.upstream_ca];
    for path in files.into_iter().flatten() {
        guard("what the bottle is made by", path, Reach::Itself, Harm::Write)?;
    }
    guard("bottlecap's own programs", &programs()?, Reach::Itself, Harm::Write)?;
    Ok(guarded)
}

impl Checked {
    /// The working directory or a mount as a layout needs it; `handed` says at which place the wall gets it, if it does.
    pub(super) fn shared(&self, place: &Place, found: &Found, handed: Option<usize>) -> Shared {
        let path = place.path.clone();
        let source = match handed {
            Some(place) => Source::Handed(place),
            None => Source::Host(path.clone(), Some(place.inode())),
        };
        let hidden = !self.without.contains(&crate::plan::Layer::Sockets);
        let sockets = if hidden { found.sockets.clone() } else { Vec::new() };
        Shared { path, source, sockets }
    }

    /// Says what would be made.
    pub(super) fn print(&self, command: &[OsString], out: &mut impl Write) -> io::Result<()> {
        let name = self.name.as_ref().map_or("(none: its state goes with it)", Name::as_str);
        let words: Vec<String> = command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        writeln!(out, "bottle     {name}")?;
        writeln!(out, "command    {}", words.join(" "))?;
        writeln!(out, "in         {}", shown(&self.workdir.path))?;
        writeln!(out, "state      {}", self.directories.bottles.display())?;
        writeln!(out, "\nmay reach")?;
        let policy = Policy::parse("routes.yaml", &self.routes).map_err(io::Error::other)?;
        for route in policy.routes() {
            writeln!(out, "  {}", policy::describe(route))?;
        }
        for repo in self.repos.iter() {
            writeln!(out, "  git {}", repo.name)?;
        }
        writeln!(out, "\nsecrets, for egress alone")?;
        for (name, _) in &self.secrets {
            writeln!(out, "  {name}")?;
        }
        writeln!(out, "\nfiles")?;
        let mounts: Vec<Shared> =
            self.mounts.iter().map(|(place, found)| self.shared(place, found, None)).collect();
        let identity =
            etc::Identity { gitconfig: String::new(), roots: String::new(), ca: Some(String::new()) };
        let inputs = Inputs {
            host: &self.host,
            workdir: &self.shared(&self.workdir, &self.found, None),
            git: &[],
            mounts: &mounts,
            identity: &identity,
        };
        for step in layout::steps(&inputs) {
            writeln!(out, "  {step}")?;
        }
        if self.workdir.path.join(".git").exists() {
            writeln!(out, "  read-only   .git/config, .git/hooks, .git/info in it")?;
        }
        for file in &self.found.git_files {
            writeln!(out, "  read-only   {} in it", shown(file))?;
        }
        writeln!(out, "\nenvironment")?;
        for (name, value) in &self.environment {
            writeln!(out, "  {}={}", name.to_string_lossy(), value.to_string_lossy())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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
