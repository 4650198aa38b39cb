//! Holds a bottle's name and state while a backend makes it, runs the command in it and takes it down again.

use std::fs;
use std::path::PathBuf;

use jiff::Timestamp;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::unistd::geteuid;
use policy::Policy;
use repos::{Allow, Repos};

use super::mirrors::{self, Waited};
use super::prepare::{Checked, shared_out};
use crate::backend::{Backend, ENOUGH, Order};
use crate::bundle::{Identities, Provisions};
use crate::fault::{Attempted, Fault, chain};
use crate::git::{self, GitError, WorkingCopy};
use crate::life::ATTACH;
use crate::manifest::Name;
use crate::plan::Layer;
use crate::provision;
use crate::requests::ledger::{self, Files};
use crate::state::{self, End, Held, Record};
use crate::workdir::shown;

/// Signals that are for the command, and the one that is for its terminal.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Runs the command in the bottle that `checked` describes; its exit code.
pub(super) fn start(checked: Checked) -> Result<i32, Fault> {
    let signals = hold_signals().failing(|| "cannot hold signals".to_owned())?;
    let directories = checked.directories.clone();
    directories.sweep();
    let unnamed = checked.name.is_none();
    let name = match &checked.name {
        Some(name) => name.clone(),
        None => random_name()?,
    };
    let mut backend = checked.backend.backend();
    backend.check(&checked)?;
    let held = directories.home(&name).hold()?;
    held.home().readable()?;
    let run_dir = directories.run_dir(&name)?;
    let mut bottle = Bottle { held, run_dir, unnamed, record: None, git: None, backend };
    let way_back = checked.origin.as_ref().map(|origin| origin.way_back(name.as_str()));
    let outcome = bottle.run(checked, name, &signals);
    bottle.close(&outcome);
    if let Some(way_back) = way_back {
        tracing::warn!("the work is in the bottle's clone; to get it: {way_back}");
    }
    outcome
}

fn hold_signals() -> std::io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in PASSED_ON.into_iter().chain([Signal::SIGWINCH, ENOUGH]) {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::new(&set)?)
}

fn random_name() -> Result<Name, Fault> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).failing(|| "cannot get random bytes".to_owned())?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("b-{digits}").parse().failing(|| "cannot make a name".to_owned())
}

/// A bottle that is being made or runs; everything to be taken down.
struct Bottle {
    held: Held,
    run_dir: PathBuf,
    unnamed: bool,
    record: Option<Record>,
    git: Option<WorkingCopy>,
    backend: Box<dyn Backend>,
}

impl Bottle {
    fn run(&mut self, mut checked: Checked, name: Name, signals: &SignalFd) -> Result<i32, Fault> {
        self.forget_sockets();
        let record = Record {
            name: name.as_str().to_owned(),
            pid: std::process::id() as i32,
            started: Timestamp::now(),
            run_dir: self.run_dir.clone(),
            routes: checked.manifest.routes.clone(),
            unnamed: self.unnamed,
            backend: checked.backend,
            boot: state::boot(),
            ended: None,
            request: (!self.unnamed).then(|| checked.request.clone()),
            workdir: Some(checked.workdir.path.clone()),
        };
        self.held.write(&record)?;
        self.record = Some(record);
        if !checked.without.contains(&Layer::Git) {
            let home = std::env::var_os("HOME").map(PathBuf::from);
            let seen =
                |place: &PathBuf| checked.mounts.iter().any(|(mount, _)| place.starts_with(&mount.path));
            let beyond = git::beyond(&checked.workdir.path, home.as_deref());
            if let Some(repository) = beyond.filter(|repository| !seen(repository)) {
                tracing::warn!(
                    "git does not work in {}: its repository is at {}, which the bottle does not see",
                    shown(&checked.workdir.path),
                    shown(&repository)
                );
            }
            let copy = WorkingCopy::prepare(&checked.workdir.path, &checked.found.git_files);
            self.git = Some(copy.map_err(|error| git_fault(&error))?);
        }
        let provisions = self.provisions(&mut checked)?;
        let order = Order {
            checked: &checked,
            name: &name,
            held: &self.held,
            run_dir: &self.run_dir,
            git: self.git.as_ref().map_or(&[], WorkingCopy::protected),
            provisions,
        };
        let items = self.backend.start(order)?;
        provision::tell(&items, self.held.home(), checked.report)?;
        // The copies of a bottle without a name are gone with it: they are made when the agent asks for them.
        if !self.unnamed && !checked.without.contains(&Layer::Bundle) {
            match mirrors::wait(&self.run_dir, &checked.repos, signals) {
                Waited::Done => {}
                Waited::Ended(signal) => return Ok(128 + signal as i32),
            }
        }
        self.backend.exec(signals)
    }

    /// What the daemons are given: the manifest's, and what was granted meanwhile.
    fn provisions(&self, checked: &mut Checked) -> Result<Provisions, Fault> {
        let base = Files { routes: checked.routes.clone(), repos: checked.repos_text.clone() };
        let (files, left_out) = ledger::with_grants(base, self.held.home(), Timestamp::now())?;
        for grant in left_out {
            tracing::warn!("{grant}");
        }
        checked.repos = Repos::parse("repos.yaml", &files.repos, Allow::SshUpstream)
            .failing(|| "the repositories cannot be read again".to_owned())?;
        checked.repos_text = files.repos;
        let policy = Policy::parse("routes.yaml", &files.routes)
            .failing(|| "the routes cannot be read again".to_owned())?;
        let identities = if geteuid().is_root() {
            let seen = self.backend.daemons_root(self.held.home(), &self.run_dir);
            Identities::placed(&checked.repos_text, &checked.repos, &seen)?
        } else {
            Identities::in_place(checked.repos_text.clone(), &checked.repos)
        };
        Ok(Provisions {
            routes: files.routes,
            identities,
            secrets: shared_out(std::mem::take(&mut checked.secrets), &policy, &checked.repos),
            upstream_ca: checked.manifest.upstream_ca.clone(),
            direct: checked.direct.clone(),
        })
    }

    fn forget_sockets(&self) {
        // A killed bottle of the same name may have left them; what cannot be removed is told when it is in the way.
        let _ = fs::remove_dir_all(&self.run_dir);
        // Only ever empty on the host: what it becomes is mounted for the daemons alone.
        let _ = fs::remove_dir(self.run_dir.with_extension("root"));
        let _ = fs::remove_file(self.run_dir.with_extension(ATTACH));
    }

    fn close(mut self, outcome: &Result<i32, Fault>) {
        self.backend.stop();
        self.forget_sockets();
        for remark in self.git.take().map(WorkingCopy::close).unwrap_or_default() {
            tracing::warn!("{remark}; look at it before you run git there");
        }
        if !self.unnamed {
            let code = outcome.as_ref().map_or_else(|fault| fault.code().into(), |code| *code);
            if let Some(mut record) = self.record.take() {
                record.ended = Some(End { at: Timestamp::now(), code });
                if let Err(fault) = self.held.write(&record) {
                    tracing::warn!("{fault}");
                }
            }
            self.held.keep_history();
        } else if let Err(error) = self.held.remove() {
            tracing::warn!(%error, "the bottle's state could not be removed");
        }
    }
}

fn git_fault(error: &GitError) -> Fault {
    Fault::refused(chain(error)).with_hint(error.hint())
}
