//! What becomes of bottles after they were started: looked at, read, stopped, cleaned up after.

mod attach;
mod console;
mod detach;
mod frames;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use proposal::escaped;

use crate::backend::{ENOUGH, Kind};
use crate::bundle::LOG;
use crate::clone;
use crate::fault::{Attempted, Fault};
use crate::manifest::Name;
use crate::provision;
use crate::requests::{Confirm, Form, asked, client, json, print};
use crate::state::{Directories, Home, Record, in_words, listed};
use crate::sys::process;

pub use attach::Visit;
pub(crate) use console::{CONSOLE_LOG, Console};
pub use detach::{Door, HOLD, hold, start};

/// The extension of the socket that people come to, beside the directory of a bottle's other sockets.
pub(crate) const ATTACH: &str = "attach";

/// How long a command is given between being asked to end and being ended, unless the caller says so.
pub const GRACE_SECONDS: u16 = 10;
/// After that, how long the bottle may take to come down.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// What was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// What the daemons said.
    Daemons,
    /// What the command of a bottle wrote that goes on by itself.
    Console,
}

/// A bottle that this host knows.
#[derive(Debug)]
pub struct Bottle {
    record: Record,
    running: bool,
    home: Home,
}

impl Bottle {
    /// The bottle of that name, or the only one there is: of those that run, else of all.
    pub fn find(name: Option<&Name>, directories: &Directories) -> Result<Bottle, Fault> {
        let all = directories.list().failing(|| "cannot list the bottles".to_owned())?;
        let hint = "`bottlecap list` shows the bottles";
        let mut candidates: Vec<(Record, bool)> = all
            .into_iter()
            .filter(|(record, _)| name.is_none_or(|name| name.as_str() == record.name))
            .collect();
        if candidates.iter().any(|(_, running)| *running) {
            candidates.retain(|(_, running)| *running);
        }
        match (candidates.pop(), candidates.is_empty()) {
            (Some((record, running)), true) => {
                let name: Name =
                    record.name.parse().refusing(|| "a bottle's record is damaged".to_owned())?;
                Ok(Bottle { home: directories.home(&name), record, running })
            }
            (Some(_), false) => Err(Fault::refused("there is more than one bottle").with_hint(hint)),
            (None, _) => {
                name.map_or(Ok(()), |name| directories.home(name).readable())?;
                Err(Fault::refused(match name {
                    Some(name) => format!("there is no bottle {name}"),
                    None => "there is no bottle".to_owned(),
                })
                .with_hint(hint))
            }
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Prints what is known about it: its record, and how its daemons are.
    pub fn info(&self, form: Form, out: &mut impl Write) -> Result<(), Fault> {
        let daemons = self.running.then(|| self.daemons());
        let provided = provision::read(&self.home);
        let log = self.home.path().join(LOG);
        if form == Form::Json {
            let mut value = listed(&self.record, self.running);
            value["log"] = serde_json::json!(log);
            value["clone"] = serde_json::json!(clone::of(&self.home));
            value["provided"] = serde_json::json!(provided);
            value["daemons"] = match daemons {
                Some(Ok(status)) => status,
                Some(Err(_)) | None => serde_json::Value::Null,
            };
            return json(out, &value);
        }
        let mut text = format!(
            "bottle   {}\nbackend  {}\nstate    {}\nstarted  {}\nholder   {}\nroutes   {}\nsockets  {}\nlog      {}\n",
            self.record.name,
            self.record.backend.as_str(),
            in_words(&self.record, self.running),
            self.record.started,
            self.record.pid,
            self.record.routes.as_deref().map_or("none: it may reach nothing".into(), Path::to_string_lossy),
            self.record.run_dir.display(),
            log.display(),
        );
        if let Some(origin) = clone::of(&self.home) {
            text.push_str(&format!("work     {}\n", origin.way_back(&self.record.name)));
        }
        for item in &provided {
            text.push_str(&format!("{:<8} {}\n", item.step, escaped(&item.detail)));
        }
        match daemons {
            None => {}
            Some(Ok(status)) => {
                for daemon in status["daemons"].as_array().into_iter().flatten() {
                    let word = |key: &str| escaped(daemon[key].as_str().unwrap_or("-"));
                    let restarts = daemon["restarts"].as_u64().unwrap_or_default();
                    text.push_str(&format!(
                        "daemon   {:<10} {:<10} restarts {restarts}\n",
                        word("name"),
                        word("state")
                    ));
                }
            }
            Some(Err(fault)) => text.push_str(&format!("daemons  {fault}\n")),
        }
        print(out, &text)
    }

    fn daemons(&self) -> Result<serde_json::Value, Fault> {
        client::ask(&self.record.run_dir.join("supervisor.sock"), &serde_json::json!({ "op": "status" }))
    }

    /// Sits down at its terminal, until the person leaves or its command ends.
    pub fn attach(&self) -> Result<Visit, Fault> {
        if !self.running {
            return Err(Fault::refused(format!("the bottle {} does not run", self.record.name))
                .with_hint(format!("`bottlecap resume {}` starts it again", self.record.name)));
        }
        attach::attach(&self.record.run_dir.with_extension(ATTACH))
    }

    /// Starts it again, as it was started, and leaves it.
    pub fn resume(&self) -> Result<String, Fault> {
        let name = &self.record.name;
        if self.running {
            return Err(Fault::refused(format!("the bottle {name} is running"))
                .with_hint(format!("`bottlecap attach {name}` goes to its terminal")));
        }
        match &self.record.request {
            Some(request) => start(request),
            None => Err(Fault::refused(format!("what the bottle {name} was started with is not known"))
                .with_hint("start it with `bottlecap start`")),
        }
    }

    /// Prints a log: of its daemons, or what its command wrote; with `follow` also what comes, until the bottle ends.
    pub fn logs(&self, log: Log, follow: bool, out: &mut impl Write) -> Result<(), Fault> {
        let path = self.home.path().join(match log {
            Log::Daemons => LOG,
            Log::Console => CONSOLE_LOG,
        });
        let told = || format!("cannot read {}", path.display());
        let mut file = File::open(&path).failing(told).map_err(|fault| match log {
            Log::Daemons => fault,
            Log::Console => fault.with_hint(
                "a bottle that `run` started writes to where it was started; `start` keeps what it writes",
            ),
        })?;
        let changes = Inotify::init(InitFlags::IN_CLOEXEC).failing(told)?;
        changes.add_watch(&path, AddWatchFlags::IN_MODIFY).failing(told)?;
        let holder = if follow { self.holder() } else { None };
        loop {
            // Looked at before the reading, so that what a bottle says last is read too.
            let ended = holder.as_ref().is_none_or(|holder| is_readable(holder.as_fd()));
            carry(&mut file, out).failing(told)?;
            let Some(holder) = holder.as_ref().filter(|_| !ended) else { return Ok(()) };
            let mut watched = [
                PollFd::new(changes.as_fd(), PollFlags::POLLIN),
                PollFd::new(holder.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut watched, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno).failing(told),
            }
            if watched[0].any().unwrap_or(false) {
                changes.read_events().failing(told)?;
            }
        }
    }

    /// The process that holds it, if it still does: a number alone may have been given to another process.
    fn holder(&self) -> Option<std::os::fd::OwnedFd> {
        let holder = process::watch(Pid::from_raw(self.record.pid)).ok()?;
        let same = self.home.record().is_ok_and(|now| now.pid == self.record.pid);
        (same && self.home.is_held()).then_some(holder)
    }

    /// Asks its command to end; after `grace` ends the bottle. Returns when it is gone.
    pub fn stop(&self, grace: Duration, out: &mut impl Write) -> Result<(), Fault> {
        let Some(holder) = self.holder() else {
            return print(out, &format!("the bottle {} has ended already\n", self.record.name));
        };
        let told = || format!("cannot stop the bottle {}", self.record.name);
        end_by(holder.as_fd(), Signal::SIGTERM).failing(told)?;
        if !ends_within(holder.as_fd(), grace).failing(told)? {
            end_by(holder.as_fd(), ENOUGH).failing(told)?;
        }
        if !ends_within(holder.as_fd(), END_TIMEOUT).failing(told)? {
            // Its command, its daemons and all that they started go with it.
            end_by(holder.as_fd(), Signal::SIGKILL).failing(told)?;
            if !ends_within(holder.as_fd(), END_TIMEOUT).failing(told)? {
                return Err(Fault::failed(format!("the bottle {} did not end", self.record.name)));
            }
        }
        print(out, &format!("the bottle {} has ended\n", self.record.name))
    }
}

/// What has ended by then needs no signal.
fn end_by(holder: std::os::fd::BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    match process::signal(holder, signal) {
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => Ok(()),
        sent => sent,
    }
}

fn carry(file: &mut File, out: &mut impl Write) -> io::Result<()> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    // What a bottle made its daemons say is shown, not obeyed.
    for line in String::from_utf8_lossy(&text).split_inclusive('\n') {
        let ended = line.strip_suffix('\n');
        // A terminal ends its lines with both.
        let text = ended.map_or(line, |text| text.strip_suffix('\r').unwrap_or(text));
        write!(out, "{}{}", escaped(text), if ended.is_some() { "\n" } else { "" })?;
    }
    out.flush()
}

fn is_readable(fd: std::os::fd::BorrowedFd<'_>) -> bool {
    let mut watched = [PollFd::new(fd, PollFlags::POLLIN)];
    matches!(poll(&mut watched, PollTimeout::ZERO), Ok(1))
}

fn ends_within(holder: std::os::fd::BorrowedFd<'_>, time: Duration) -> io::Result<bool> {
    let deadline = std::time::Instant::now() + time;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(holder, PollFlags::POLLIN)], timeout) {
            Ok(count) => return Ok(count == 1),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// How much is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What bottles that were killed left behind; the history of bottles with a name stays.
    Leftovers,
    /// The history of bottles that have ended too.
    History,
}

/// Removes what ended bottles left: shows it, asks once, removes it.
pub fn cleanup(
    directories: &Directories,
    extent: Extent,
    confirm: Confirm,
    out: &mut impl Write,
) -> Result<(), Fault> {
    let found = leftovers(directories, extent)?;
    let mut kept = Vec::new();
    for backend in [Kind::Sandbox, Kind::Docker].map(Kind::backend) {
        let mut left = backend.remnants(directories)?;
        left.retain(|remnant| !directories.home(&remnant.bottle).is_held());
        kept.push((backend, left));
    }
    let kept: Vec<_> =
        kept.iter().flat_map(|(backend, left)| left.iter().map(move |remnant| (backend, remnant))).collect();
    if found.is_empty() && kept.is_empty() {
        return print(out, "nothing is left behind\n");
    }
    for (_, remnant) in &kept {
        print(out, &format!("{:<20} {}\n", remnant.what, escaped(&remnant.name)))?;
    }
    for leftover in &found {
        print(out, &format!("{:<20} {}\n", leftover.what, leftover.path.display()))?;
    }
    if confirm == Confirm::Ask && !asked(out, "Remove these? [y/N] ")? {
        return Err(Fault::NotGranted("nothing was removed".to_owned()));
    }
    let mut failures = Vec::new();
    // First, for their state is mounted in them.
    for (backend, remnant) in &kept {
        failures.extend(backend.remove(remnant).err().map(|fault| fault.to_string()));
    }
    for leftover in &found {
        match leftover.remove() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failures.push(format!("cannot remove {}: {error}", leftover.path.display())),
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(Fault::failed(failures.join("\n"))) }
}

/// Something that no running bottle needs.
#[derive(Debug, PartialEq, Eq)]
struct Leftover {
    what: &'static str,
    path: PathBuf,
    owner: Option<Name>,
    bottles: Home,
}

impl Leftover {
    /// Removes it, unless its bottle was started again meanwhile.
    fn remove(&self) -> io::Result<()> {
        let _held = match &self.owner {
            Some(_) => Some(self.bottles.clone().hold().map_err(io::Error::other)?),
            None => None,
        };
        match (fs::symlink_metadata(&self.path)?.is_dir(), self.path.extension().is_some()) {
            // Only ever empty on the host: what it becomes is mounted for the daemons alone.
            (true, true) => fs::remove_dir(&self.path),
            (true, false) => fs::remove_dir_all(&self.path),
            (false, _) => fs::remove_file(&self.path),
        }
    }
}

fn leftovers(directories: &Directories, extent: Extent) -> Result<Vec<Leftover>, Fault> {
    let told = || "cannot look for what was left behind".to_owned();
    let mut found = Vec::new();
    // Before the state that says whose they are.
    for path in entries(&directories.runtime).failing(told)? {
        let Some(name) = socket_owner(&path) else { continue };
        let home = directories.home(&name);
        if !home.is_held() {
            let owner = home.path().exists().then_some(name);
            found.push(Leftover { what: "sockets", path, owner, bottles: home });
        }
    }
    for name in names_in(&directories.bottles).failing(told)? {
        let home = directories.home(&name);
        if home.is_held() {
            continue;
        }
        let record = home.record();
        let unnamed = record.as_ref().is_ok_and(|record| record.unnamed);
        let what = match (&record, extent) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => "state without record",
            (Err(_), Extent::History) => "state of another version",
            (Err(_), Extent::Leftovers) => continue,
            (Ok(_), _) if unnamed => "state",
            (Ok(_), Extent::History) if clone::of(&home).is_some() => "history and clone",
            (Ok(_), Extent::History) => "history",
            (Ok(_), Extent::Leftovers) => continue,
        };
        let path = home.path().to_owned();
        found.push(Leftover { what, path, owner: Some(name), bottles: home });
    }
    Ok(found)
}

/// Whose sockets, or what stands beside them, `path` is.
fn socket_owner(path: &Path) -> Option<Name> {
    let name = path.file_name()?.to_str()?;
    [".root", ".ready", ".attach"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).parse().ok()
}

fn names_in(directory: &Path) -> io::Result<Vec<Name>> {
    let name =
        |path: PathBuf| path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    Ok(entries(directory)?.into_iter().filter_map(name).collect())
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn directories(root: &Path) -> Directories {
        let directories =
            Directories { bottles: root.join("s/bottles"), state: root.join("s"), runtime: root.join("r") };
        directories.create().expect("made");
        directories
    }

    fn bottle(directories: &Directories, name: &str, unnamed: bool) -> crate::state::Held {
        let name: Name = name.parse().expect("a name");
        let held = directories.home(&name).hold().expect("held");
        let run_dir = directories.run_dir(&name).expect("short");
        fs::create_dir(&run_dir).expect("made");
        held.write(&Record {
            name: name.to_string(),
            pid: std::process::id() as i32,
            started: Timestamp::UNIX_EPOCH,
            run_dir,
            routes: None,
            unnamed,
            boot: None,
            ended: None,
            backend: Kind::Sandbox,
            request: None,
            workdir: None,
        })
        .expect("written");
        held
    }

    fn found(directories: &Directories, extent: Extent) -> Vec<String> {
        let leftovers = leftovers(directories, extent).expect("found");
        let relative = |leftover: &Leftover| {
            let path =
                leftover.path.strip_prefix(directories.state.parent().expect("a root")).expect("below");
            format!("{} {}", leftover.what, path.display())
        };
        leftovers.iter().map(relative).collect()
    }

    #[test]
    fn what_a_killed_bottle_left_is_found_and_what_runs_is_not() {
        let root = tempfile::tempdir().expect("a directory");
        let directories = directories(root.path());
        let _runs = bottle(&directories, "runs", false);
        drop(bottle(&directories, "b-killed", true));
        drop(bottle(&directories, "named", false));
        assert_eq!(
            found(&directories, Extent::Leftovers),
            ["sockets r/b-killed", "sockets r/named", "state s/bottles/b-killed"]
        );
        assert_eq!(
            found(&directories, Extent::History),
            ["sockets r/b-killed", "sockets r/named", "state s/bottles/b-killed", "history s/bottles/named"]
        );
    }

    #[test]
    fn cleanup_removes_what_it_showed_and_nothing_else() {
        let root = tempfile::tempdir().expect("a directory");
        let directories = directories(root.path());
        let runs = bottle(&directories, "runs", false);
        drop(bottle(&directories, "named", false));
        fs::write(directories.runtime.join("stranger.d"), "").expect("written");
        let mut out = Vec::new();
        cleanup(&directories, Extent::History, Confirm::Given, &mut out).expect("removed");
        assert!(runs.home().path().exists() && directories.runtime.join("runs").exists());
        assert!(!directories.bottles.join("named").exists() && !directories.runtime.join("named").exists());
        assert_eq!(found(&directories, Extent::History), Vec::<String>::new());
    }

    #[test]
    fn a_bottle_that_was_started_again_keeps_what_is_its() {
        let root = tempfile::tempdir().expect("a directory");
        let directories = directories(root.path());
        drop(bottle(&directories, "web", true));
        let seen = leftovers(&directories, Extent::Leftovers).expect("found");
        let name: Name = "web".parse().expect("a name");
        let _again = directories.home(&name).hold().expect("held");
        assert!(seen.iter().all(|leftover| leftover.remove().is_err()));
        assert!(directories.home(&name).path().exists());
    }

    #[test]
    fn one_bottle_needs_no_name_and_two_do() {
        let root = tempfile::tempdir().expect("a directory");
        let directories = directories(root.path());
        assert_eq!(Bottle::find(None, &directories).expect_err("none").to_string(), "there is no bottle");
        drop(bottle(&directories, "one", false));
        assert_eq!(Bottle::find(None, &directories).expect("one").record.name, "one");
        let _runs = bottle(&directories, "two", false);
        assert_eq!(Bottle::find(None, &directories).expect("the running one").record.name, "two");
        drop(bottle(&directories, "three", false));
        let three = "three".parse().expect("a name");
        assert_eq!(Bottle::find(Some(&three), &directories).expect("by name").record.name, "three");
    }
}
