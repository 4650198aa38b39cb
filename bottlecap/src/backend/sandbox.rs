//! A bottle of this kernel's namespaces: the wall process, the daemons beside it, and what goes between them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::{Pid, geteuid};

use super::{Backend, ENOUGH, Kind, Order, Remnant};
use crate::addresses::Addresses;
use crate::bundle::{Bundle, Supervisor};
use crate::cgroup::{self, Groups};
use crate::command::NotExecuted;
use crate::doctor;
use crate::etc::Identity;
use crate::fault::{Attempted, Fault};
use crate::layout::{Inputs, Shared, steps};
use crate::manifest::Name;
use crate::owners::{BOTTLE_USER, mapped_tree, plain_tree};
use crate::plan::{FromWall, Layer, Plan, ToWall};
use crate::provision::{self, Item};
use crate::run::Checked;
use crate::state::{Directories, Home};
use crate::sys::descriptors::duplicate_above;
use crate::sys::mounts::Attributes;
use crate::sys::process::{self, Setup, prepare};
use crate::sys::socket::Channel;
use crate::terminal::{self, Relay};
use crate::workdir::shown;

const HIGH: i32 = 32;
const CONTROL_GROUP: &str = "control group";

/// A bottle of namespaces, as far as it is made.
#[derive(Debug, Default)]
pub struct Sandbox {
    wall: Option<Wall>,
    groups: Option<Groups>,
    bundle: Option<Bundle>,
    supervisor: Option<Supervisor>,
}

impl Backend for Sandbox {
    fn kind(&self) -> Kind {
        Kind::Sandbox
    }

    fn addresses(&self) -> Addresses {
        Addresses::names()
    }

    fn daemons_root(&self, home: &Home, run_dir: &Path) -> PathBuf {
        Bundle::seen_root(home, run_dir)
    }

    fn check(&mut self, checked: &Checked) -> Result<(), Fault> {
        match &checked.image {
            None => Ok(()),
            Some(_) => Err(Fault::refused("a sandbox is made from this host's programs, not from an image")
                .with_hint("take --image away, or use --backend docker")),
        }
    }

    fn start(&mut self, order: Order<'_>) -> Result<Vec<Item>, Fault> {
        let checked = order.checked;
        let has = |layer| !checked.without.contains(&layer);
        let program = checked.command.first().cloned().unwrap_or_default();
        let wall = self.wall.insert(Wall::spawn(has(Layer::Descriptors), program)?);
        let limits = &checked.manifest.limits;
        if limits.any() {
            // Before it is told the plan: everything in the bottle comes after that.
            let groups = self.groups.insert(Groups::make(limits, order.name, order.held.home())?);
            groups.take(wall.child.id()).failing(|| "cannot bound what the bottle uses".to_owned())?;
        }
        if !has(Layer::Bundle) {
            let (identity, items) = provision::identity(checked, &Addresses::names(), None)?;
            wall.tell_plan(&plan(&order, &identity))?;
            wall.open(checked)?;
            wall.finish()?;
            return Ok(items);
        }
        let bundle = self.bundle.insert(Bundle::new(order.held.home(), order.run_dir)?);
        let ca = bundle.provide(&order.provisions)?;
        let (identity, items) = provision::identity(checked, &Addresses::names(), Some(ca))?;
        wall.tell_plan(&plan(&order, &identity))?;
        let listeners = wall.open(checked)?;
        // The daemons start while the file system is built. The thread that makes them has to stay: they end with it.
        let (built, started) = std::thread::scope(|scope| {
            let built = scope.spawn(|| wall.finish());
            let started = bundle.start(listeners, order.provisions);
            (built.join(), started)
        });
        let started = started.map(|supervisor| self.supervisor = Some(supervisor));
        built.unwrap_or_else(|_| Err(Fault::failed("the wait for the wall was cut short")))?;
        started.map(|()| items)
    }

    fn exec(&mut self, signals: &SignalFd) -> Result<i32, Fault> {
        let daemons = self.supervisor.as_ref().zip(self.bundle.as_ref());
        match &mut self.wall {
            Some(wall) => wall.go(daemons, signals),
            None => Err(Fault::failed("the bottle was not made")),
        }
    }

    fn stop(&mut self) {
        // The agent before the daemons.
        drop(self.wall.take());
        if let Some(groups) = self.groups.take() {
            groups.remove();
        }
        if let Some(mut supervisor) = self.supervisor.take() {
            supervisor.stop();
        }
    }

    fn remnants(&self, directories: &Directories) -> Result<Vec<Remnant>, Fault> {
        // Its processes end with the one that holds the bottle; the groups that they were in are left when that is killed.
        let mut found = Vec::new();
        let bottles = directories.list().failing(|| "cannot list the bottles".to_owned())?;
        for bottle in bottles.into_iter().filter_map(|(record, _)| record.name.parse::<Name>().ok()) {
            let left = cgroup::left_by(&directories.home(&bottle));
            found.extend(left.into_iter().map(|path| Remnant {
                what: CONTROL_GROUP,
                bottle: bottle.clone(),
                name: path.display().to_string(),
            }));
        }
        Ok(found)
    }

    fn remove(&self, remnant: &Remnant) -> Result<(), Fault> {
        if remnant.what != CONTROL_GROUP {
            return Ok(());
        }
        cgroup::remove(Path::new(&remnant.name)).failing(|| format!("cannot remove {}", remnant.name))
    }
}

fn plan(order: &Order<'_>, identity: &Identity) -> Plan {
    let checked = order.checked;
    let handed = geteuid().is_root();
    let place = |place: usize| handed.then_some(place);
    let workdir = checked.shared(&checked.workdir, &checked.found, place(0));
    let mounts: Vec<Shared> = (1..)
        .zip(&checked.mounts)
        .map(|(index, (mount, found))| checked.shared(mount, found, place(index)))
        .collect();
    let inputs = Inputs { host: &checked.host, workdir: &workdir, git: order.git, mounts: &mounts, identity };
    let mut environment: Vec<(OsString, OsString)> =
        checked.environment.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    if checked.without.contains(&Layer::Environment) {
        environment = std::env::vars_os().collect();
    }
    Plan {
        user: geteuid().is_root().then_some(BOTTLE_USER),
        steps: steps(&inputs),
        workdir: checked.workdir.path.clone(),
        command: checked.command.clone(),
        environment,
        stdio: terminal::wanted(),
        direct: checked.direct.clone(),
        #[cfg(feature = "test-walls")]
        without: checked.without.clone(),
    }
}

/// Opens the working directory and the mounts for a wall that could not: one that root starts. In the order of the
/// plan's places.
fn hand_over(checked: &Checked) -> Result<Vec<OwnedFd>, Fault> {
    if !geteuid().is_root() {
        return Ok(Vec::new());
    }
    let workdir = &checked.workdir;
    let tree = if checked.without.contains(&Layer::Owners) {
        plain_tree(&workdir.path, workdir.inode(), Attributes::BASE)
    } else {
        mapped_tree(&workdir.path, workdir.inode(), checked.owner)
    };
    let tree = tree.map_err(|error| {
        Fault::refused(format!("cannot map the owner of {} into the bottle: {error}", workdir.path.display())).with_hint(
            "start bottlecap as the owner of the directory instead of root, or use a file system with idmapped mounts (ext4, \
             xfs, btrfs; tmpfs from Linux 6.3)",
        )
    })?;
    let mut trees = vec![tree];
    for (mount, _) in &checked.mounts {
        let tree = plain_tree(&mount.path, mount.inode(), Attributes::READ_ONLY);
        trees.push(tree.failing(|| format!("cannot open {}", mount.path.display()))?);
    }
    Ok(trees)
}

/// The wall process.
#[derive(Debug)]
struct Wall {
    child: Child,
    ended: OwnedFd,
    channel: Channel,
    plan: Option<File>,
    ends: Vec<OwnedFd>,
    stdio: crate::plan::Stdio,
    program: OsString,
}

impl Drop for Wall {
    fn drop(&mut self) {
        // Everything in the bottle ends with it.
        let _ = process::signal(self.ended.as_fd(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Wall {
    fn spawn(close_others: bool, program: OsString) -> Result<Wall, Fault> {
        let told = || "cannot start the wall".to_owned();
        let (channel, theirs) = Channel::pair().failing(told)?;
        let (plan_read, plan_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).failing(told)?;
        let descriptors = [plan_read.as_fd(), theirs.as_fd()]
            .map(|fd| duplicate_above(fd, HIGH))
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .failing(told)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg("__wall").env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        prepare(&mut command, Setup { descriptors, on_parent_death: Signal::SIGKILL, close_others }, || {
            Ok(())
        });
        let child = command.spawn().failing(told)?;
        let ended = process::watch(Pid::from_raw(child.id() as i32)).failing(told)?;
        let (plan, stdio) = (Some(File::from(plan_write)), terminal::wanted());
        Ok(Wall { child, ended, channel, plan, ends: Vec::new(), stdio, program })
    }

    fn tell_plan(&mut self, plan: &Plan) -> Result<(), Fault> {
        let text =
            serde_json::to_vec(plan).refusing(|| "a path or word cannot be written down".to_owned())?;
        let Some(mut pipe) = self.plan.take() else { return Ok(()) };
        pipe.write_all(&text).failing(|| "cannot hand the plan to the wall".to_owned())
    }

    /// Lets the wall go apart and begin with its file system; the listening sockets inside.
    fn open(&mut self, checked: &Checked) -> Result<Vec<OwnedFd>, Fault> {
        self.expect(&FromWall::Apart)?;
        self.map_users()?;
        let handed = hand_over(checked)?;
        let handed: Vec<BorrowedFd<'_>> = handed.iter().map(AsFd::as_fd).collect();
        self.channel.send(&ToWall::Mapped, &handed).failing(|| "cannot speak to the wall".to_owned())?;
        self.expect(&FromWall::Listening)
    }

    /// Waits until the file system stands.
    fn finish(&mut self) -> Result<(), Fault> {
        self.ends = self.expect(&FromWall::Built)?;
        Ok(())
    }

    fn expect(&self, wanted: &FromWall) -> Result<Vec<OwnedFd>, Fault> {
        match self.hear()? {
            Some((said, descriptors)) if said == *wanted => Ok(descriptors),
            Some((said, _)) => Err(wall_fault(said)),
            None => Err(Fault::failed("the wall ended while it was built")),
        }
    }

    fn hear(&self) -> Result<Option<(FromWall, Vec<OwnedFd>)>, Fault> {
        self.channel.receive().failing(|| "cannot hear from the wall".to_owned())
    }

    /// The bottle's user 0, which nobody is in the end, is the caller, or the bottle user where root is the caller.
    fn map_users(&self) -> Result<(), Fault> {
        let (user, group) = if geteuid().is_root() {
            (BOTTLE_USER, BOTTLE_USER)
        } else {
            (geteuid().as_raw(), nix::unistd::getegid().as_raw())
        };
        let process = Path::new("/proc").join(self.child.id().to_string());
        let write = |name: &str, text: String| {
            fs::write(process.join(name), text).failing(|| format!("cannot write the wall's {name}"))
        };
        write("setgroups", "deny".into())?;
        write("uid_map", format!("0 {user} 1"))?;
        write("gid_map", format!("0 {group} 1"))
    }

    /// Lets the command run; its exit code.
    fn go(&mut self, daemons: Option<(&Supervisor, &Bundle)>, signals: &SignalFd) -> Result<i32, Fault> {
        self.channel.send(&ToWall::Go, &[]).failing(|| "cannot speak to the wall".to_owned())?;
        let not_executed = match self.hear()? {
            None => None,
            Some((FromWall::NotExecuted(why), _)) => Some(why),
            Some((said, _)) => return Err(wall_fault(said)),
        };
        if let Some(why) = not_executed {
            let code = self.wait_code()?;
            let hidden =
                Some(why).filter(|why| *why == NotExecuted::ABSENT).and_then(|_| hidden(&self.program));
            let hint = hidden.map_or_else(String::new, |path| {
                format!(
                    "; this host has {}, which the bottle sees where `mounts` in the manifest names it",
                    shown(&path)
                )
            });
            tracing::error!("cannot execute {}: {why}{hint}", self.program.to_string_lossy());
            return Ok(code);
        }
        let ends = std::mem::take(&mut self.ends);
        let relay = Relay::start(self.stdio, ends).failing(|| "cannot connect the command".to_owned())?;
        let outcome = self.attend(daemons, signals, &relay);
        let code = self.wait_code();
        relay.finish(code.as_ref().copied().unwrap_or(crate::fault::FAILURE.into()));
        outcome.and(code)
    }

    /// Passes signals on until the wall has ended.
    fn attend(
        &self,
        daemons: Option<(&Supervisor, &Bundle)>,
        signals: &SignalFd,
        relay: &Relay,
    ) -> Result<(), Fault> {
        loop {
            let mut watched = vec![
                PollFd::new(self.ended.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            watched.extend(daemons.map(|(supervisor, _)| PollFd::new(supervisor.ended(), PollFlags::POLLIN)));
            match poll(&mut watched, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                polled => polled.failing(|| "cannot wait for the command".to_owned())?,
            };
            let woken: Vec<bool> = watched.iter().map(|entry| entry.any().unwrap_or(false)).collect();
            if woken[0] {
                return Ok(());
            }
            if woken[1] {
                self.pass_on(signals, relay)?;
            }
            if let (Some(true), Some((_, bundle))) = (woken.get(2), daemons) {
                // Best effort: it may be ending by itself at this moment.
                let _ = process::signal(self.ended.as_fd(), Signal::SIGKILL);
                return Err(Fault::failed(format!(
                    "the supervisor ended, and the bottle with it\n{}",
                    bundle.log_tail()
                )));
            }
        }
    }

    fn pass_on(&self, signals: &SignalFd, relay: &Relay) -> Result<(), Fault> {
        let received = signals.read_signal().failing(|| "cannot read a signal".to_owned())?;
        let number = received.and_then(|signal| i32::try_from(signal.ssi_signo).ok());
        match number.and_then(|number| Signal::try_from(number).ok()) {
            Some(Signal::SIGWINCH) => relay.resize(),
            Some(ENOUGH) => {
                let _ = process::signal(self.ended.as_fd(), Signal::SIGKILL);
            }
            Some(signal) => {
                // The wall may have ended just now; then the loop sees it.
                let _ = process::signal(self.ended.as_fd(), signal);
            }
            None => {}
        }
        Ok(())
    }

    fn wait_code(&mut self) -> Result<i32, Fault> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().failing(|| "cannot wait for the wall".to_owned())?;
        let by_signal = status.signal().map(|signal| 128 + signal);
        Ok(status.code().or(by_signal).unwrap_or(i32::from(crate::fault::FAILURE)))
    }
}

/// Where this host has a program that is not where a bottle looks.
fn hidden(program: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if Path::new(program).components().count() > 1 {
        places = vec![PathBuf::from("/")];
    }
    let found = places.into_iter().filter(|place| place.is_absolute()).map(|place| place.join(program));
    found.filter(|path| path.is_file()).find(|path| !path.starts_with("/usr") && !path.starts_with("/bin"))
}

fn wall_fault(said: FromWall) -> Fault {
    match said {
        FromWall::Failed { attempt, errno, error } => {
            let message = format!("cannot {attempt}: {error}");
            match doctor::advice(&attempt, errno) {
                Some(advice) => Fault::refused(message).with_hint(advice),
                None => Fault::failed(message),
            }
        }
        FromWall::NotExecuted(why) => Fault::failed(format!("cannot execute the command: {why}")),
        FromWall::Apart | FromWall::Listening | FromWall::Built => {
            Fault::failed("the wall spoke out of turn")
        }
    }
}
