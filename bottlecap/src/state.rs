//! Where bottles keep their state and sockets on the host, and which bottles there are.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollTimeout, poll};
use nix::unistd::{Uid, geteuid, getuid};
use serde::{Deserialize, Serialize};

use crate::backend::Kind;
use crate::cgroup;
use crate::fault::{Attempted, Fault};
use crate::manifest::Name;
use crate::run::Request;
use crate::sys::descriptors::duplicate_above;

/// The file with what is known about a bottle.
const RECORD: &str = "bottle.json";
const LOCK: &str = "lock";
/// The journals of the daemons, below the root that they see.
const AUDIT: &str = "var/lib/sidecars/audit";
/// The same for the copies of repositories.
const MIRRORS: &str = "git";
/// For whom alone.
const PRIVATE: u32 = 0o700;
/// Others may pass through but not look: daemons with a user of their own.
const PASSABLE: u32 = 0o711;
/// `sun_path`, less the longest name of a socket below it.
const RUN_DIR_MAX: usize = 107 - "/supervise/supervise.sock".len();

/// The directories of this user's bottles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// State, one directory a bottle.
    pub bottles: PathBuf,
    /// What holds `bottles`.
    pub state: PathBuf,
    /// Sockets, one directory a bottle.
    pub runtime: PathBuf,
}

/// What is known about a bottle that runs, or ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// The process that holds it.
    pub pid: i32,
    /// When it was started.
    pub started: Timestamp,
    /// Where its sockets are.
    pub run_dir: PathBuf,
    /// Where its routes came from.
    pub routes: Option<PathBuf>,
    /// Whether its state goes with it, because nobody gave it a name.
    #[serde(default)]
    pub unnamed: bool,
    /// What its walls are made of.
    #[serde(default)]
    pub backend: Kind,
    /// Since which start of the machine.
    #[serde(default)]
    pub boot: Option<String>,
    /// How it ended, if it did so by itself.
    #[serde(default)]
    pub ended: Option<End>,
    /// What was asked for, to start it again.
    #[serde(default)]
    pub request: Option<Request>,
    /// The directory that it works in.
    #[serde(default)]
    pub workdir: Option<PathBuf>,
}

/// How a bottle ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// When.
    pub at: Timestamp,
    /// The exit code of its command.
    pub code: i32,
}

/// A bottle's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

impl Directories {
    /// Those of the user of this process; `variable` is its environment.
    #[must_use]
    pub fn of_user(variable: impl Fn(&str) -> Option<PathBuf>) -> Directories {
        let set = |name: &str| variable(name).filter(|path| path.is_absolute());
        let root = geteuid().is_root();
        let state = set("XDG_STATE_HOME").unwrap_or_else(|| match set("HOME") {
            Some(home) => home.join(".local/state"),
            None => PathBuf::from("/var/lib"),
        });
        let state = state.join("bottlecap");
        let given = set("XDG_RUNTIME_DIR").filter(|path| !root || closed_ancestor(path).is_none());
        let runtime = given.map_or_else(|| default_runtime(root), |path| path.join("bottlecap"));
        Directories { bottles: state.join("bottles"), state, runtime }
    }

    /// Those that the environment of this process names.
    #[must_use]
    pub fn of_process() -> Directories {
        Directories::of_user(|name| std::env::var_os(name).map(PathBuf::from))
    }

    /// Makes them, for this user alone.
    pub fn create(&self) -> Result<(), Fault> {
        let elsewhere = |variable: &str, made: Result<(), Fault>| match made {
            Err(fault) if fault.hint().is_none() => {
                Err(fault.with_hint(format!("{variable} names another place for it")))
            }
            made => made,
        };
        elsewhere("XDG_STATE_HOME", own_directory(&self.state, PRIVATE))?;
        elsewhere("XDG_STATE_HOME", own_directory(&self.bottles, PRIVATE))?;
        elsewhere("XDG_RUNTIME_DIR", own_directory(&self.runtime, runtime_mode()))
    }

    /// The state of one bottle.
    #[must_use]
    pub fn home(&self, name: &Name) -> Home {
        Home(self.bottles.join(name.as_str()))
    }

    /// The sockets of one bottle.
    pub fn run_dir(&self, name: &Name) -> Result<PathBuf, Fault> {
        let path = self.runtime.join(name.as_str());
        if path.as_os_str().len() > RUN_DIR_MAX {
            return Err(Fault::refused(format!("{} is too long for the sockets in it", path.display()))
                .with_hint("give the bottle a shorter name, or set XDG_RUNTIME_DIR to a shorter directory"));
        }
        Ok(path)
    }

    /// Removes what is left of bottles without a name whose holder was killed.
    pub fn sweep(&self) {
        for (record, running) in self.list().unwrap_or_default() {
            if record.unnamed
                && !running
                && let Ok(name) = record.name.parse()
                && let Ok(held) = self.home(&name).hold()
            {
                // What cannot be removed now is looked at again next time.
                if cgroup::left_by(held.home()).iter().any(|group| cgroup::remove(group).is_err()) {
                    continue;
                }
                let _ = fs::remove_dir_all(&record.run_dir);
                let _ = fs::remove_dir(record.run_dir.with_extension("root"));
                let _ = fs::remove_file(record.run_dir.with_extension("ready"));
                let _ = held.remove();
            }
        }
    }

    /// Bottles whose record cannot be read: another version may have written it.
    pub fn strange(&self) -> io::Result<Vec<Name>> {
        let entries = match fs::read_dir(&self.bottles) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_str().and_then(|name| name.parse::<Name>().ok());
            found.extend(name.filter(|name| self.home(name).readable().is_err()));
        }
        found.sort();
        Ok(found)
    }

    /// All bottles, by name, and whether each runs.
    pub fn list(&self) -> io::Result<Vec<(Record, bool)>> {
        let entries = match fs::read_dir(&self.bottles) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let home = Home(entry?.path());
            if let Ok(record) = home.record() {
                found.push((record, home.is_held()));
            }
        }
        found.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        Ok(found)
    }
}

fn default_runtime(root: bool) -> PathBuf {
    if root {
        return PathBuf::from("/run/bottlecap");
    }
    let uid = getuid();
    let by_login = PathBuf::from(format!("/run/user/{uid}"));
    if by_login.is_dir() {
        by_login.join("bottlecap")
    } else {
        PathBuf::from(format!("/tmp/bottlecap-{uid}"))
    }
}

/// The first directory on the way to `path` that other users may not pass.
fn closed_ancestor(path: &Path) -> Option<PathBuf> {
    let closed = |path: &&Path| fs::metadata(path).is_ok_and(|found| found.mode() & 0o001 == 0);
    path.ancestors().find(closed).map(Path::to_path_buf)
}

/// The mode of a directory of sockets: daemons with users of their own pass through it.
pub fn runtime_mode() -> u32 {
    if geteuid().is_root() { PASSABLE } else { PRIVATE }
}

/// Makes `path` a directory of this user with `mode`; what is above it is made too.
pub fn own_directory(path: &Path, mode: u32) -> Result<(), Fault> {
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(if geteuid().is_root() { 0o755 } else { PRIVATE })
            .create(parent)
            .failing(|| format!("cannot make {}", parent.display()))?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.failing(|| format!("cannot make {}", path.display()))?,
    }
    let found = fs::symlink_metadata(path).failing(|| format!("cannot look at {}", path.display()))?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() {
        return Err(Fault::refused(format!("{} is not a directory of this user", path.display()))
            .with_hint("somebody else made it: remove it, or set XDG_RUNTIME_DIR and XDG_STATE_HOME to directories of your own"));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .failing(|| format!("cannot protect {}", path.display()))
}

/// A bottle that this process holds.
#[derive(Debug)]
pub struct Held {
    home: Home,
    lock: Flock<File>,
}

impl Home {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The tree that the daemons see as theirs.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    /// What the origins are known by that the doctor has for it while it runs.
    #[must_use]
    pub fn doctor(&self) -> PathBuf {
        self.0.join("doctor")
    }

    /// The directory of routes.yaml in it.
    #[must_use]
    pub fn routes_directory(&self) -> PathBuf {
        self.root().join("etc/egress")
    }

    /// The directory of repos.yaml in it.
    #[must_use]
    pub fn repos_directory(&self) -> PathBuf {
        self.root().join("etc/git-gate")
    }

    /// What is known about it.
    pub fn record(&self) -> io::Result<Record> {
        Ok(serde_json::from_slice(&fs::read(self.0.join(RECORD))?)?)
    }

    /// Refuses a record that cannot be read: it is nothing to write over.
    ///
    /// # Errors
    /// When there is one, and it is none of ours.
    pub fn readable(&self) -> Result<(), Fault> {
        match self.record() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let name = self.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
                Err(Fault::refused(format!("what is kept of the bottle {name} cannot be read: {error}")).with_hint(
                    "another version of bottlecap may have written it: use that one, choose another --name, or remove it with \
                     `bottlecap cleanup --history`",
                ))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Whether a process holds it.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let Ok(file) = File::open(self.0.join(LOCK)) else { return false };
        matches!(Flock::lock(file, FlockArg::LockSharedNonblock), Err((_, nix::errno::Errno::EWOULDBLOCK)))
    }

    /// Takes it for this process.
    ///
    /// # Errors
    /// When another process has it.
    pub fn hold(self) -> Result<Held, Fault> {
        own_directory(&self.0, PRIVATE)?;
        let path = self.0.join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.failing(|| format!("cannot open {}", path.display()))?;
        match lock_patiently(file) {
            Ok(lock) => Ok(Held { home: self, lock }),
            Err(nix::errno::Errno::EWOULDBLOCK) => {
                let name = self.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
                Err(Fault::refused(format!("the bottle {name} is running"))
                    .with_hint("`bottlecap list` shows it; choose another --name for a second one"))
            }
            Err(errno) => Err(errno).failing(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// The lock, not given up because somebody looks at it for a moment ([`Home::is_held`]).
fn lock_patiently(mut file: File) -> nix::Result<Flock<File>> {
    for _ in 0..LOOKS {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((back, nix::errno::Errno::EWOULDBLOCK)) => file = back,
            other => return other.map_err(|(_, errno)| errno),
        }
        // Waits for nothing but time; an early end only means another look.
        let _ = poll(&mut [], PollTimeout::from(LOOK_INTERVAL_MS));
    }
    Err(nix::errno::Errno::EWOULDBLOCK)
}

/// Above the numbers that a child gets its descriptors at.
const SHARED_FROM: i32 = 32;
const LOOKS: u32 = 5;
const LOOK_INTERVAL_MS: u16 = 10;

impl Held {
    /// Its directory.
    #[must_use]
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The lock, for a process that goes on holding the bottle when this one is gone.
    pub fn share(&self) -> io::Result<OwnedFd> {
        duplicate_above(self.lock.as_fd(), SHARED_FROM)
    }

    /// Writes what is known about it: all of it, or what was known before stays.
    pub fn write(&self, record: &Record) -> Result<(), Fault> {
        let path = self.home.0.join(RECORD);
        let text = serde_json::to_vec(record).failing(|| "cannot write the bottle's record".to_owned())?;
        let new = path.with_extension("new");
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
        written.failing(|| format!("cannot write {}", path.display()))
    }

    /// Forgets all but what tells what happened, the record, the log, the journals and the decisions, and the copies of
    /// repositories, which took long to make and are brought up to date before they serve again.
    pub fn keep_history(&self) {
        // What cannot be removed stays for the next start.
        let _ = fs::remove_dir_all(self.home.doctor());
        let root = self.home.root();
        remove_around(&root, &[root.join(AUDIT), root.join(MIRRORS)]);
    }

    /// Forgets a bottle that never was one, because it was refused; what is written down of one stays.
    pub fn leave(self) {
        if self.home.record().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            // What cannot be removed now, `cleanup` finds.
            let _ = self.remove();
        }
    }

    /// Forgets it altogether.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.home.0)
    }
}

/// Removes what is in `directory` but not on the way to one of `kept`. What cannot be removed stays for the next start.
fn remove_around(directory: &Path, kept: &[PathBuf]) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if kept.contains(&path) {
            continue;
        }
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if kept.iter().any(|kept| kept.starts_with(&path)) {
            remove_around(&path, kept);
        } else if is_directory {
            let _ = fs::remove_dir_all(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

/// How a bottle is, for a person.
#[must_use]
pub fn in_words(record: &Record, running: bool) -> String {
    match (&record.ended, running) {
        (_, true) => "running".to_owned(),
        (Some(End { code, .. }), false) => format!("ended, exit {code}"),
        (None, false) if record.boot.is_some() && record.boot != boot() => "cut off by a reboot".to_owned(),
        (None, false) => "killed".to_owned(),
    }
}

/// What names the time since the machine was started.
#[must_use]
pub fn boot() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// A bottle as `list --json` prints it.
#[must_use]
pub fn listed(record: &Record, running: bool) -> serde_json::Value {
    serde_json::json!({
        "name": record.name,
        "running": running,
        "state": in_words(record, running),
        "ended": record.ended,
        "pid": record.pid,
        "started": record.started,
        "run_dir": record.run_dir,
        "routes": record.routes,
        "backend": record.backend,
    })
}

/// Gives `path` to `user`, when this process may.
pub fn give(path: &Path, user: Option<u32>) -> Result<(), Fault> {
    let Some(user) = user else { return Ok(()) };
    std::os::unix::fs::lchown(path, Some(user), Some(user))
        .failing(|| format!("cannot give {} to user {}", path.display(), Uid::from_raw(user)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories(root: &Path) -> Directories {
        Directories {
            bottles: root.join("state/bottles"),
            state: root.join("state"),
            runtime: root.join("run"),
        }
    }

    #[test]
    fn a_bottle_is_held_by_one_process_and_listed_as_running() {
        let root = tempfile::tempdir().expect("a directory");
        let directories = directories(root.path());
        own_directory(&directories.state, PRIVATE).expect("made");
        own_directory(&directories.bottles, PRIVATE).expect("made");
        let name: Name = "web".parse().expect("a name");
        let held = directories.home(&name).hold().expect("held");
        let record = Record {
            name: "web".into(),
            pid: 7,
            started: Timestamp::UNIX_EPOCH,
            run_dir: "/run/x".into(),
            routes: None,
            unnamed: false,
            backend: Kind::Sandbox,
            boot: None,
            ended: None,
            request: None,
            workdir: None,
        };
        held.write(&record).expect("written");
        let second = directories.home(&name).hold().expect_err("refused");
        assert_eq!(second.to_string(), "the bottle web is running");
        assert_eq!(directories.list().expect("listed"), [(record.clone(), true)]);
        drop(held);
        assert_eq!(directories.list().expect("listed"), [(record, false)]);
    }

    #[test]
    fn history_is_kept_and_keys_are_not() {
        let root = tempfile::tempdir().expect("a directory");
        let held = Home(root.path().join("web")).hold().expect("held");
        let sidecars = held.home().root().join("var/lib/sidecars");
        for directory in ["audit/egress", "egress/ca"] {
            fs::create_dir_all(sidecars.join(directory)).expect("made");
        }
        fs::write(sidecars.join("audit/egress/journal.jsonl"), "{}").expect("written");
        fs::write(sidecars.join("egress/ca/ca-key.pem"), "key").expect("written");
        let mirror = held.home().root().join("git/web.git");
        fs::create_dir_all(&mirror).expect("made");
        held.keep_history();
        assert!(mirror.exists());
        assert!(sidecars.join("audit/egress/journal.jsonl").exists());
        assert!(!sidecars.join("egress").exists());
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_used() {
        let root = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink("/tmp", root.path().join("state")).expect("a link");
        assert!(own_directory(&root.path().join("state"), PRIVATE).is_err());
    }
}
