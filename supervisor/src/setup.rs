//! From the command line to everything that is needed to start: what runs, where it listens, which directories it has.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use crate::address::{self, AddressError, Standing};
use crate::cli::{Cli, LogFormat, Readable};
use crate::daemon::{Daemon, Paths, SocketName, Spoken, UnknownDaemon};
use crate::plan::{ALIVE_TIMEOUT, Role};
use crate::sys;
use crate::sys::sockets::Reach;

/// Why the bundle does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("cannot find out our own place")]
    Place(#[source] io::Error),
    #[error("{daemon} has no program at {path}")]
    Program { daemon: Daemon, path: PathBuf },
    #[error("{daemon} cannot be started: {path} is no program that can be executed")]
    NotExecutable { daemon: Daemon, path: PathBuf },
    #[error("{0} is given to --listen twice")]
    ListenTwice(SocketAddr),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("cannot read the local addresses")]
    LocalAddresses(#[source] io::Error),
    #[error("LISTEN_FDS is `{0}`, expected a small number")]
    ListenCount(String),
    #[error("LISTEN_FDNAMES")]
    ListenName(#[source] UnknownDaemon),
    #[error("descriptor {number}, named {name} in LISTEN_FDNAMES, is no internet socket that listens")]
    ListenSocket {
        number: i32,
        name: SocketName,
        #[source]
        source: io::Error,
    },
    #[error("{name} cannot listen on {address}")]
    Listen {
        name: SocketName,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot use {path} for sockets")]
    RunDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make the sockets between the daemons")]
    Peers(#[source] io::Error),
    #[error("without root the daemons share a uid, and this kernel has no Landlock to keep them apart")]
    NothingBetween,
    #[error(
        "without root the daemons share a uid: egress and git-gate could each read the other's secrets in {0}"
    )]
    SharedSecrets(PathBuf),
    #[error("{0} has files beside the directories of the daemons, and no daemon would read them")]
    StraySecrets(PathBuf),
    #[error("cannot look into {path}")]
    Secrets {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another supervisor runs on {0}")]
    AlreadyRunning(PathBuf),
}

impl SetupError {
    /// What the reader can do.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Program { .. } => Some("say where the daemons are with --bin-dir DIR".to_owned()),
            Self::Address(error) => error.hint().map(str::to_owned),
            Self::Listen { name, source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some(format!(
                    "another process listens there: stop it, or choose another address with --listen {name}=ADDR"
                ))
            }
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable => {
                Some("no interface has that address: choose one with --bottle-addr".to_owned())
            }
            Self::RunDir { .. } => {
                Some("choose a writable directory with a short path with --run-dir DIR".to_owned())
            }
            Self::NothingBetween => Some(
                "Linux 5.19 or newer with landlock in /sys/kernel/security/lsm has it (boot option lsm=landlock,...); \
                 started by root, each daemon gets a uid of its own"
                    .to_owned(),
            ),
            Self::SharedSecrets(path) | Self::StraySecrets(path) => Some(format!(
                "move each file to {0}/egress or {0}/git-gate, or hand the secrets over with --secrets-fd",
                path.display()
            )),
            Self::AlreadyRunning(_) => {
                Some("stop it with `supervisor stop`, or use another --run-dir".to_owned())
            }
            Self::Place(_)
            | Self::Peers(_)
            | Self::Secrets { .. }
            | Self::NotExecutable { .. }
            | Self::ListenTwice(_)
            | Self::LocalAddresses(_)
            | Self::ListenCount(_)
            | Self::ListenName(_)
            | Self::ListenSocket { .. }
            | Self::Listen { .. } => None,
        }
    }
}

/// Where a listening socket comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// It was handed to us.
    Inherited(OwnedFd, SocketAddr),
    /// We open it.
    Bind(SocketAddr),
}

impl Origin {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Inherited(_, address) | Self::Bind(address) => *address,
        }
    }
}

/// A daemon that will run.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) daemon: Daemon,
    pub(crate) role: Role,
    pub(crate) uid: Option<u32>,
    pub(crate) sockets: Vec<(SocketName, Origin)>,
}

/// Everything that is decided before something is opened.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) paths: Paths,
    pub(crate) log: LogFormat,
    pub(crate) members: Vec<Member>,
    pub(crate) reach: Reach,
    pub(crate) ca_init: bool,
    pub(crate) strength: Strength,
    pub(crate) readable: Vec<Readable>,
}

/// The walls that this kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strength {
    /// The version of Landlock.
    pub(crate) landlock: Option<i32>,
    /// Whether system calls can be filtered.
    pub(crate) filters: bool,
}

impl Strength {
    fn find() -> Self {
        Self { landlock: sys::landlock::abi(), filters: sys::fence::has_filters() }
    }

    /// What is missing on this kernel, each with what follows from it.
    pub(crate) fn gaps(self, reach: Reach) -> Vec<&'static str> {
        let mut gaps = Vec::new();
        match self.landlock {
            None => gaps.push("no Landlock: what a daemon may open is bounded by its uid alone"),
            Some(abi) if abi < sys::landlock::SCOPES_ABI && reach == Reach::OwnUid => {
                gaps.push("Landlock is older than ABI 6: git-gate could signal its siblings");
            }
            Some(_) => {}
        }
        if !self.filters {
            gaps.push("no seccomp: a daemon may make every system call");
        }
        gaps
    }
}

impl Setup {
    /// Checks the flags against this machine.
    pub(crate) fn new(cli: &Cli) -> Result<Self, SetupError> {
        let paths = cli.paths().map_err(SetupError::Place)?;
        let root = nix::unistd::geteuid().is_root();
        let strength = Strength::find();
        if !root && strength.landlock.is_none() {
            return Err(SetupError::NothingBetween);
        }
        let mut inherited = inherited_sockets()?;
        let mut members = Vec::new();
        for daemon in cli.daemons() {
            let program = paths.program(daemon);
            match std::fs::metadata(&program) {
                Err(_) => return Err(SetupError::Program { daemon, path: program }),
                Ok(found) if !found.is_file() || found.permissions().mode() & 0o111 == 0 => {
                    return Err(SetupError::NotExecutable { daemon, path: program });
                }
                Ok(_) => {}
            }
            let (own, others) = inherited.into_iter().partition(|(name, _)| name.daemon == daemon);
            inherited = others;
            members.push(Member {
                daemon,
                role: if cli.is_optional(daemon) { Role::Optional } else { Role::Essential },
                uid: root.then(|| daemon.uid()),
                sockets: sockets(cli, daemon, own)?,
            });
        }
        refuse_same_address(&members)?;
        let reach = if root { Reach::EveryUid } else { Reach::OwnUid };
        refuse_shared_secrets(&paths, &members, reach)?;
        Ok(Self {
            paths,
            log: cli.log,
            members,
            reach,
            ca_init: cli.ca_init,
            strength,
            readable: cli.readable.clone(),
        })
    }

    /// Prints what would run.
    pub(crate) fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{:<10} {:<22} {:<8} PROGRAM", "DAEMON", "LISTENS ON", "UID")?;
        for member in &self.members {
            let addresses: Vec<String> =
                member.sockets.iter().map(|(_, socket)| socket.address().to_string()).collect();
            let uid = member.uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw());
            let program = self.paths.program(member.daemon);
            writeln!(
                out,
                "{:<10} {:<22} {uid:<8} {}",
                member.daemon,
                addresses.join(","),
                program.display()
            )?;
        }
        Ok(())
    }

    /// Opens the sockets; each lives as long as the supervisor.
    pub(crate) fn open_sockets(&mut self) -> Result<Vec<(SocketName, OwnedFd, SocketAddr)>, SetupError> {
        let mut open = Vec::new();
        for (name, origin) in self.members.iter_mut().flat_map(|member| member.sockets.drain(..)) {
            let address = match origin {
                Origin::Inherited(socket, address) => {
                    open.push((name, socket, address));
                    continue;
                }
                Origin::Bind(address) => address,
            };
            let failed = |source| SetupError::Listen { name, address, source };
            let socket = sys::sockets::listen_on(address).map_err(failed)?;
            let address = sys::sockets::listening_address(&socket).map_err(failed)?;
            if name.spoken == Spoken::Names {
                // The same address for both, also where the system chose the port.
                open.push((name, sys::sockets::datagrams_on(address).map_err(failed)?, address));
            }
            open.push((name, socket, address));
        }
        Ok(open)
    }

    /// Makes the directory of the sockets, ours alone to write to, and in it one directory for each daemon, its alone to write to. What
    /// others look for in the directory itself is a link there.
    pub(crate) fn prepare_run_dir(&self) -> Result<(), SetupError> {
        let run = &self.paths.run;
        let failed = |source| SetupError::RunDir { path: run.clone(), source };
        std::fs::create_dir_all(run).map_err(failed)?;
        // Daemons of other uids make their directories themselves, because in a hardened container we may not give one away. None of them
        // runs yet.
        set_mode(run, if self.reach == Reach::EveryUid { 0o1777 } else { 0o700 }).map_err(failed)?;
        for member in &self.members {
            let own = self.paths.run_of(member.daemon);
            let failed = |source| SetupError::RunDir { path: own.clone(), source };
            sys::as_owner(member.uid, || own_directory(&own, member.uid)).map_err(failed)?;
            for (other, name) in member.daemon.consulted() {
                let target = Path::new("..").join(other.name()).join(name);
                sys::as_owner(member.uid, || link(&target, &own.join(name))).map_err(failed)?;
            }
            for name in member.daemon.published() {
                link(&Path::new(member.daemon.name()).join(name), &run.join(name)).map_err(failed)?;
            }
        }
        set_mode(run, if self.reach == Reach::EveryUid { 0o755 } else { 0o700 }).map_err(failed)
    }

    /// Makes the directories that daemons write to, owned by them. What could not be done is returned as text: the
    /// daemon itself decides whether it can work without.
    pub(crate) fn prepare_state_dirs(&self) -> Vec<String> {
        let state = self.paths.state();
        let mut wanted = vec![(state.clone(), None, 0o755), (state.join("audit"), None, 0o755)];
        for member in &self.members {
            let owner = member.uid;
            wanted.push((self.paths.journal(member.daemon), owner, 0o700));
            match member.daemon {
                Daemon::Egress => wanted.push((state.join("egress"), owner, 0o755)),
                Daemon::GitGate => wanted.push((self.paths.mirrors(), owner, 0o700)),
                Daemon::Supervise => {}
            }
        }
        let mut problems = Vec::new();
        for (path, owner, mode) in wanted {
            if let Err(error) = prepare_dir(&path, owner, mode) {
                let for_whom = owner.map(|uid| format!(" for uid {uid}")).unwrap_or_default();
                problems.push(format!("cannot prepare {}{for_whom}: {error}", path.display()));
            }
        }
        problems
    }
}

/// One address can be listened on once; port 0 stands for a fresh one each time.
fn refuse_same_address(members: &[Member]) -> Result<(), SetupError> {
    let mut seen = std::collections::BTreeSet::new();
    for (name, socket) in members.iter().flat_map(|member| &member.sockets) {
        let address = socket.address();
        if matches!((name.spoken, socket), (Spoken::Names, Origin::Inherited(..))) {
            // One for UDP and one for TCP.
            continue;
        }
        if address.port() != 0 && !seen.insert(address) {
            return Err(SetupError::ListenTwice(address));
        }
    }
    Ok(())
}

/// A secret file is for one daemon. Where they share a uid, the directory it lies in has to say for which.
fn refuse_shared_secrets(paths: &Paths, members: &[Member], reach: Reach) -> Result<(), SetupError> {
    let all = paths.all_secrets();
    let failed = |source| SetupError::Secrets { path: all.clone(), source };
    let entries = match std::fs::read_dir(&all) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Of several uids, each opens what is its own; we need not be able to look.
        Err(_) if reach == Reach::EveryUid => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    let mut files = false;
    for entry in entries {
        // A directory is none of ours (Kubernetes keeps the files that its links lead to in one), or a daemon's.
        files |= !entry.and_then(|entry| entry.file_type()).map_err(failed)?.is_dir();
    }
    let readers = members.iter().filter(|member| matches!(member.daemon, Daemon::Egress | Daemon::GitGate));
    if !files {
        Ok(())
    } else if Daemon::ALL.iter().any(|daemon| paths.secrets(*daemon) != all) {
        Err(SetupError::StraySecrets(all))
    } else if reach == Reach::OwnUid && readers.count() > 1 {
        Err(SetupError::SharedSecrets(all))
    } else {
        Ok(())
    }
}

/// Whether a supervisor answers on this socket.
pub(crate) fn refuse_second(socket: &Path) -> Result<(), SetupError> {
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => Err(SetupError::AlreadyRunning(socket.to_owned())),
        Err(_) => Ok(()),
    }
}

fn sockets(
    cli: &Cli,
    daemon: Daemon,
    inherited: Vec<(SocketName, OwnedFd)>,
) -> Result<Vec<(SocketName, Origin)>, SetupError> {
    let mut sockets = Vec::new();
    for (name, socket) in inherited {
        let number = std::os::fd::AsRawFd::as_raw_fd(&socket);
        let address = match name.spoken {
            Spoken::Names => sys::sockets::bound_address(&socket),
            Spoken::Own | Spoken::Direct | Spoken::Redirected => sys::sockets::listening_address(&socket),
        };
        let address = address.map_err(|source| SetupError::ListenSocket { number, name, source })?;
        sockets.push((name, Origin::Inherited(socket, address)));
    }
    let handed: Vec<SocketName> = sockets.iter().map(|(name, _)| *name).collect();
    let asked =
        cli.listen.iter().filter(|listen| listen.name.daemon == daemon && !handed.contains(&listen.name));
    sockets.extend(asked.map(|listen| (listen.name, Origin::Bind(listen.address))));
    let own = SocketName { daemon, spoken: Spoken::Own };
    if !sockets.iter().any(|(name, _)| *name == own) {
        let standing = if std::process::id() == 1 { Standing::Init } else { Standing::Ordinary };
        let local = sys::local_addresses().map_err(SetupError::LocalAddresses)?;
        let address = address::choose(cli.bottle_addr, standing, &local)?;
        let ports = std::iter::once(daemon.port()).chain(daemon.more_ports().iter().copied());
        sockets.extend(ports.map(|port| (own, Origin::Bind(SocketAddr::new(address, port)))));
    }
    Ok(sockets)
}

/// The sockets that whoever started us hands over, as in sd_listen_fds(3).
fn inherited_sockets() -> Result<Vec<(SocketName, OwnedFd)>, SetupError> {
    let variable = |name: &str| std::env::var(name).ok();
    if variable("LISTEN_PID").and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = variable("LISTEN_FDS").unwrap_or_default();
    let count: i32 = match count.parse() {
        Ok(number @ 0..=64) => number,
        Ok(_) | Err(_) => return Err(SetupError::ListenCount(count)),
    };
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut sockets = Vec::new();
    for number in 3..3 + count {
        let name = SocketName::parse(names.next().unwrap_or_default()).map_err(SetupError::ListenName)?;
        let socket =
            sys::adopt(number).map_err(|source| SetupError::ListenSocket { number, name, source })?;
        sockets.push((name, socket));
    }
    Ok(sockets)
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    let present = std::fs::metadata(path)?.permissions().mode() & 0o7777;
    if present == mode {
        Ok(())
    } else {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
    }
}

/// A directory that is there and belongs to that uid, or is made.
fn own_directory(path: &Path, owner: Option<u32>) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => return other,
    }
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() || owner.is_some_and(|uid| found.uid() != uid) {
        return Err(io::Error::other("it is there and does not belong to the daemon"));
    }
    Ok(())
}

/// A link with that target, in place of whatever has its name.
fn link(target: &Path, path: &Path) -> io::Result<()> {
    if std::fs::read_link(path).is_ok_and(|found| found == target) {
        return Ok(());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => std::os::unix::fs::symlink(target, path),
    }
}

fn prepare_dir(path: &Path, owner: Option<u32>, mode: u32) -> io::Result<()> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path) {
        Ok(()) => {}
        Err(error) if path.is_dir() => drop(error),
        Err(error) => return Err(error),
    }
    // A daemon that owns the directory above must not make us change the owner of something else through a link.
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(io::Error::from(io::ErrorKind::NotADirectory));
    }
    match owner {
        None => Ok(()),
        Some(uid) if found.uid() == uid => Ok(()),
        Some(uid) => {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            lchown(path, Some(uid), Some(uid))
        }
    }
}

/// Where a daemon looks for programs.
pub(crate) fn search_path() -> OsString {
    const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())
}

/// The environment of a daemon: nothing but what is listed.
pub(crate) fn environment(
    daemon: Daemon,
    paths: &Paths,
    reach: Reach,
    notify: &Path,
) -> Vec<(&'static str, OsString)> {
    let mut variables = vec![
        ("PATH", search_path()),
        ("NOTIFY_SOCKET", notify.as_os_str().to_owned()),
        ("WATCHDOG_USEC", ALIVE_TIMEOUT.as_micros().to_string().into()),
    ];
    if daemon == Daemon::GitGate {
        // It runs from a copy without a path, and its hooks are links to itself.
        variables.push(("BOTTLECAP_PROGRAM", paths.program(daemon).into()));
    }
    if daemon == Daemon::Supervise && reach == Reach::OwnUid {
        // Its operators are told from its siblings by this, as they have one uid.
        variables.push(("BOTTLECAP_SUPERVISOR_PID", std::process::id().to_string().into()));
    }
    for name in daemon.inherited_variables() {
        variables.extend(std::env::var_os(name).map(|value| (*name, value)));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_place_of_a_directory_is_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let (target, link) = (home.path().join("target"), home.path().join("link"));
        std::fs::create_dir(&target).unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let before = std::fs::metadata(&target).unwrap().uid();
        assert!(prepare_dir(&link, Some(64101), 0o700).is_err());
        assert_eq!(std::fs::metadata(&target).unwrap().uid(), before);
    }

    #[test]
    fn a_directory_that_has_its_owner_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let own = std::fs::metadata(home.path()).unwrap();
        prepare_dir(home.path(), Some(own.uid()), 0o777).unwrap();
        assert_eq!(std::fs::metadata(home.path()).unwrap().mode(), own.mode());
    }

    #[test]
    fn the_environment_is_a_short_list() {
        let paths = Paths { root: "/r".into(), run: "/run".into(), bin: "/b".into() };
        let names = |daemon| {
            environment(daemon, &paths, Reach::EveryUid, Path::new("/n")).into_iter().map(|(name, _)| name)
        };
        let plain = ["PATH", "NOTIFY_SOCKET", "WATCHDOG_USEC", "LANG", "TZ"];
        assert!(names(Daemon::Supervise).all(|name| plain.contains(&name)));
        assert!(names(Daemon::GitGate).all(|name| plain.contains(&name) || name == "BOTTLECAP_PROGRAM"));
    }
}
