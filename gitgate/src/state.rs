//! What is served: the repositories in force and their mirrors.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, PoisonError, RwLock};

use repos::{
    Allow, Diagnostics, Exception, Grant, GrantEnd, Moment, Release, Repo, RepoName, Repos, Upstream,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Notify, OnceCell};

use crate::door::Keyring;
use crate::fence::{self, Reach};
use crate::git::{GateDir, Objects, bare_environment};
use crate::mirror::{Mirror, Tools};
use crate::request::{Protocol, Shape};
use crate::ssh::{self, IdentityError};
use crate::warm::Warm;
use crate::{sys, v2};

/// The name of the configuration file, also in messages.
const FILE: &str = "repos.yaml";
const GIT: &str = "git";

/// Why the gate cannot take a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// There is none.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is wrong.
    #[error(transparent)]
    Parse(#[from] Diagnostics),
    /// It names a key that cannot be used.
    #[error("{FILE}: repository `{repo}`")]
    Identity {
        /// Whose identity.
        repo: RepoName,
        /// Why not.
        #[source]
        source: IdentityError,
    },
    /// What children need could not be written.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A program that is not there.
    #[error("cannot run {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A path that git would read as several.
    #[error("the path {} has characters that cannot stand in what git is told of it", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
}

impl ConfigError {
    /// What the reader can do.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Read { .. } => Some("--config names the directory that holds repos.yaml"),
            Self::Prepare { .. } | Self::Path { .. } => {
                Some("--repo-dir names a directory that this user may write; the mirrors are kept there")
            }
            Self::Program { .. } => Some("install git, or set PATH"),
            Self::Parse(_) | Self::Identity { .. } => None,
        }
    }
}

/// A configuration that was read and checked.
pub(crate) struct Loaded {
    pub(crate) repos: Repos,
    /// `sha256:…` of the file's bytes.
    pub(crate) digest: String,
}

/// Reads and checks a configuration directory.
pub(crate) fn load(config_dir: &Path, allow: Allow) -> Result<Loaded, ConfigError> {
    let path = config_dir.join(FILE);
    let text = fs::read_to_string(&path).map_err(|source| ConfigError::Read { path, source })?;
    let repos = Repos::parse(FILE, &text, allow)?;
    for repo in repos.iter() {
        if let Upstream::Ssh(ssh) = &repo.upstream {
            ssh::identity::read(&ssh.identity)
                .map(drop)
                .map_err(|source| ConfigError::Identity { repo: repo.name.clone(), source })?;
        }
    }
    let mut digest = "sha256:".to_owned();
    for byte in Sha256::digest(text.as_bytes()) {
        let _ = write!(digest, "{byte:02x}");
    }
    Ok(Loaded { repos, digest })
}

/// Checks that the program is there on which everything rests.
pub(crate) fn check_programs() -> Result<(), ConfigError> {
    let mut command = Command::new(GIT);
    bare_environment(&mut command);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().map(drop).map_err(|source| ConfigError::Program { program: GIT, source })
}

/// One repository and its mirror.
pub(crate) struct Served {
    pub(crate) repo: Repo,
    pub(crate) mirror: Arc<Mirror>,
}

/// The repositories in force.
pub(crate) struct State {
    repo_dir: PathBuf,
    pub(crate) gate: GateDir,
    pub(crate) keyring: Keyring,
    pub(crate) warm: Arc<Warm>,
    /// Told when a mirror changed.
    pub(crate) changed: Arc<Notify>,
    served: RwLock<BTreeMap<RepoName, Arc<Served>>>,
    releases: RwLock<Vec<Release>>,
    exceptions: RwLock<Vec<Exception>>,
    capabilities: OnceCell<Vec<u8>>,
}

impl State {
    /// Prepares the directory of the mirrors: this program, under the names that git knows.
    pub(crate) fn prepare(repo_dir: &Path, keyring: Keyring) -> Result<Self, ConfigError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ConfigError::Prepare { path, source }
        };
        make_dir(repo_dir).map_err(failed(repo_dir))?;
        let repo_dir = repo_dir.canonicalize().map_err(failed(repo_dir))?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+@=,~ ".contains(&b);
        if !repo_dir.as_os_str().as_encoded_bytes().iter().all(|b| plain(*b)) {
            return Err(ConfigError::Path { path: repo_dir });
        }
        let gate = GateDir::new(repo_dir.join(".git-gate"));
        // A process that was started from a copy of the program in memory is told where the program is.
        let program = match std::env::var_os("BOTTLECAP_PROGRAM") {
            Some(path) => path.into(),
            None => std::env::current_exe().map_err(failed(Path::new("/proc/self/exe")))?,
        };
        for link in [gate.hooks().join("pre-receive"), gate.ssh_program(), gate.askpass_program()] {
            relink(&program, &link).map_err(failed(&link))?;
        }
        let warm = Arc::default();
        Ok(Self {
            repo_dir,
            gate,
            keyring,
            warm,
            changed: Arc::default(),
            served: RwLock::default(),
            releases: RwLock::default(),
            exceptions: RwLock::default(),
            capabilities: OnceCell::new(),
        })
    }

    /// Puts repositories in force. A repository that stays keeps its mirror and its lock.
    pub(crate) fn put(&self, repos: &Repos) -> Result<(), ConfigError> {
        let mut next = BTreeMap::new();
        for repo in repos.iter() {
            let old = self.find(&repo.name).map(|served| {
                if served.repo.upstream.url() != repo.upstream.url()
                    || served.repo.fetch.allow != repo.fetch.allow
                {
                    served.mirror.forget();
                }
                served.mirror.clone()
            });
            let mirror =
                old.unwrap_or_else(|| Arc::new(Mirror::new(&self.repo_dir, repo, self.changed.clone())));
            next.insert(repo.name.clone(), Arc::new(Served { repo: repo.clone(), mirror }));
        }
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = next;
        *self.releases.write().unwrap_or_else(PoisonError::into_inner) = repos.releases().to_vec();
        *self.exceptions.write().unwrap_or_else(PoisonError::into_inner) = repos.exceptions().to_vec();
        self.warm.retain(repos.iter().filter_map(|repo| match &repo.upstream {
            Upstream::Ssh(ssh) => Some(ssh),
            Upstream::Https(_) | Upstream::File(_) => None,
        }));
        Ok(())
    }

    /// What a refresh works with.
    pub(crate) fn tools(&self) -> Tools {
        Tools { gate: self.gate.clone(), keyring: self.keyring.clone(), warm: self.warm.clone() }
    }

    /// All that is served, in order of the names.
    pub(crate) fn all(&self) -> Vec<Arc<Served>> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The repository of that name.
    pub(crate) fn find(&self, name: &RepoName) -> Option<Arc<Served>> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The release by which the held push of that digest passes at this moment.
    pub(crate) fn released(&self, digest: &str, moment: &Moment<'_>) -> Option<Release> {
        let releases = self.releases.read().unwrap_or_else(PoisonError::into_inner);
        releases.iter().find(|one| one.digest == digest && one.grant.holds(moment).is_ok()).cloned()
    }

    /// What of the scanner's findings may be pushed to that repository at this moment.
    pub(crate) fn exceptions(&self, repo: &RepoName, moment: &Moment<'_>) -> Vec<Exception> {
        let exceptions = self.exceptions.read().unwrap_or_else(PoisonError::into_inner);
        let holds = |one: &&Exception| one.repo == *repo && one.grant.holds(moment).is_ok();
        exceptions.iter().filter(holds).cloned().collect()
    }

    /// Whether the grant of that name was used as often as it may be.
    pub(crate) fn is_used_up(&self, id: &str, moment: &Moment<'_>) -> bool {
        let over = |grant: &Grant| {
            grant.counted() == Some(id) && matches!(grant.holds(moment), Err(GrantEnd::UsedUp(_)))
        };
        let releases = self.releases.read().unwrap_or_else(PoisonError::into_inner);
        let exceptions = self.exceptions.read().unwrap_or_else(PoisonError::into_inner);
        releases.iter().any(|release| over(&release.grant))
            || exceptions.iter().any(|exception| over(&exception.grant))
            || self.all().iter().any(|served| {
                let Repo { grant, push, .. } = &served.repo;
                push.grants().chain([grant]).any(over)
            })
    }

    /// What this git says of itself in protocol v2; it is asked once.
    pub(crate) async fn capabilities(&self, served: &Served) -> io::Result<Vec<u8>> {
        let told = self.capabilities.get_or_try_init(|| async {
            let path = served.mirror.path().to_owned();
            served.mirror.exist().await?;
            let mut command = self.gate.git(&path, Objects::Own);
            command.args(["upload-pack", "--strict"]).args(Shape::Advertisement.arguments()).arg(&path);
            command.envs(Protocol::V2.variable().map(|value| ("GIT_PROTOCOL", value)));
            self.confine(&mut command, served, Reach::Mirror)?;
            let mut command = tokio::process::Command::from(command);
            let output =
                command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).output().await?;
            v2::capabilities(&output.stdout).await
        });
        told.await.cloned()
    }

    /// Holds a git to the mirror, where the kernel can.
    pub(crate) fn confine(&self, command: &mut Command, served: &Served, reach: Reach) -> io::Result<()> {
        let fence = fence::around(&served.repo, served.mirror.path(), reach, &self.gate, &self.keyring)?;
        if let Some(fence) = fence {
            sys::confine(command, fence);
        }
        Ok(())
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn relink(target: &Path, link: &Path) -> io::Result<()> {
    make_dir(link.parent().unwrap_or(link))?;
    let new = link.with_extension("new");
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(target, &new)?;
    fs::rename(new, link)
}
