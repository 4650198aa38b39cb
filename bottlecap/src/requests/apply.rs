//! Writes a file that was reviewed, and waits until its daemon has it; if it does not take it, puts the old one back.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollTimeout, poll};
use proposal::{Table, digest, escaped};
use serde::Deserialize;

use super::client;
use crate::fault::{Attempted, Fault};
use crate::text;

/// How a daemon is made to read its file again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reload {
    /// By the bundle's supervisor, which answers when it is done.
    Supervisor,
    /// By a command, such as `docker kill --signal HUP NAME`; the daemon's status answers.
    Command(Vec<String>),
}

impl Reload {
    /// The command in `text`, in words: there is no shell, and no quoting.
    pub fn command(text: &str) -> Result<Reload, Fault> {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            return Err(Fault::refused("--hup is empty")
                .with_hint("give a command, such as --hup 'docker kill --signal HUP NAME'"));
        }
        Ok(Reload::Command(words))
    }
}

const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(15);
const LOOK_INTERVAL_MS: u16 = 20;

/// The file that egress writes at each load of its routes.
const STATUS: &str = "egress.status.json";
/// No status of egress' comes near it.
const STATUS_MAX: u64 = 64 << 10;

/// One of the files that grants stand in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) directory: PathBuf,
    pub(crate) table: Table,
}

impl Place {
    pub(crate) fn file(&self) -> PathBuf {
        self.directory.join(self.table.file())
    }
}

/// The file as it is.
pub(crate) fn read(place: &Place) -> Result<String, Fault> {
    let path = place.file();
    let told = || format!("cannot read {}", path.display());
    if fs::symlink_metadata(&path).refusing(told)?.is_symlink() {
        return Err(Fault::refused(format!(
            "{} is a symbolic link, which a grant would replace",
            path.display()
        ))
        .with_hint("name the directory of the file itself"));
    }
    text::read(&path, told)
}

/// Texts of a file on the way from one to another.
pub(crate) struct Change<'a> {
    /// What has to stand there.
    pub(crate) from: &'a str,
    /// What is written.
    pub(crate) to: &'a str,
    /// What is written when the daemon does not take that.
    pub(crate) fallback: &'a str,
}

/// Puts the change in force, if the file still is what it starts from; the generation that the daemon acknowledged.
pub(crate) fn apply(
    place: &Place,
    change: &Change<'_>,
    reload: &Reload,
    run_dir: &Path,
) -> Result<u64, Fault> {
    let directory = &place.directory;
    let lock = File::open(directory).failing(|| format!("cannot open {}", directory.display()))?;
    let _alone = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| Fault::failed(format!("cannot lock {}: {errno}", directory.display())))?;
    let what = what(place.table);
    if read(place)? != change.from {
        let message = format!("the {what} were changed since the request was shown; look at it again");
        return Err(Fault::NotGranted(message));
    }
    replace(place, change.to)?;
    acknowledged(place.table, reload, run_dir, &digest(change.to)).map_err(|problem| {
        let state = take_back(place, change, reload, run_dir)
            .unwrap_or_else(|fault| format!("the {what} as they were could not be put back: {fault}"));
        let daemon = place.table.daemon();
        Fault::NotGranted(format!("{daemon} did not take the {what}: {problem}; {state}"))
    })
}

fn what(table: Table) -> &'static str {
    match table {
        Table::Routes => "routes",
        Table::Repos => "repositories",
    }
}

/// Undoes a change that the daemon did not take; how that went.
fn take_back(place: &Place, change: &Change<'_>, reload: &Reload, run_dir: &Path) -> Result<String, Fault> {
    // An editor knows nothing of our lock.
    if read(place)? != change.to {
        return Ok("somebody changed the file meanwhile, so it is left as it is: look for the grant in it"
            .to_owned());
    }
    replace(place, change.fallback)?;
    let (what, daemon) = (what(place.table), place.table.daemon());
    Ok(match acknowledged(place.table, reload, run_dir, &digest(change.fallback)) {
        Ok(_) => format!("the old {what} are back in force"),
        Err(problem) => {
            format!("the old {what} are back in the file, but {daemon} did not acknowledge them: {problem}")
        }
    })
}

/// Writes the file in one step, on disk before it counts. Whoever calls it holds the lock.
fn replace(place: &Place, text: &str) -> Result<(), Fault> {
    let path = place.file();
    let new = place.directory.join(format!(".{}.new", place.table.file()));
    let write = || -> io::Result<()> {
        let old = fs::symlink_metadata(&path)?;
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(old.mode() & 0o777))?;
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(&place.directory)?.sync_all()
    };
    write().map_err(|error| {
        // What could not be written may not be there at all.
        let _ = fs::remove_file(&new);
        Fault::failed(format!("cannot write {}: {error}", path.display()))
    })
}

#[derive(Deserialize)]
struct Reloaded {
    daemons: Vec<Acknowledged>,
}

#[derive(Deserialize)]
struct Acknowledged {
    name: String,
    generation: Option<u64>,
    digest: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    generation: u64,
    digest: String,
    #[serde(alias = "reload_error")]
    last_error: Option<String>,
}

/// Makes the daemon reload; its generation, once its digest is `wanted`.
fn acknowledged(table: Table, reload: &Reload, run_dir: &Path, wanted: &str) -> Result<u64, String> {
    let name = table.daemon();
    match reload {
        Reload::Supervisor => {
            let request = serde_json::json!({ "op": "reload", "name": name });
            let reply: Result<Reloaded, Fault> = client::ask(&run_dir.join("supervisor.sock"), &request);
            let daemons = reply.map_err(|fault| fault.to_string())?.daemons;
            match daemons.into_iter().find(|daemon| daemon.name == name) {
                Some(Acknowledged { generation: Some(generation), digest: Some(digest), .. })
                    if digest == wanted =>
                {
                    Ok(generation)
                }
                Some(_) => Err(format!("{name} acknowledged another file than was written")),
                None => Err(format!("{name} is not running")),
            }
        }
        Reload::Command(words) => {
            let before = status(table, run_dir).and_then(|status| status.last_error);
            signal(words)?;
            let deadline = Instant::now() + ACKNOWLEDGE_TIMEOUT;
            loop {
                match status(table, run_dir) {
                    Some(status) if status.digest == wanted => return Ok(status.generation),
                    Some(Status { last_error: Some(error), .. })
                        if before.as_deref() != Some(error.as_str()) =>
                    {
                        return Err(escaped(&error));
                    }
                    Some(_) | None => {}
                }
                if Instant::now() > deadline {
                    let seconds = ACKNOWLEDGE_TIMEOUT.as_secs();
                    return Err(match table {
                        Table::Routes => {
                            let status = run_dir.join(STATUS);
                            format!("no acknowledgement in {} within {seconds} s", status.display())
                        }
                        Table::Repos => format!("no acknowledgement of {name} within {seconds} s"),
                    });
                }
                // Waits for nothing but time: the file may be on the other side of a mount that tells no events.
                let _ = poll(&mut [], PollTimeout::from(LOOK_INTERVAL_MS));
            }
        }
    }
}

/// What the daemon says is in force: an answer counts for that alone.
pub(super) fn in_force(table: Table, run_dir: &Path) -> String {
    status(table, run_dir)
        .map_or_else(|| "unknown".to_owned(), |status| format!("{} {}", status.generation, status.digest))
}

/// What a daemon says of itself: egress in the directory that its supervisor gave it, or beside the sockets where it was started alone;
/// git-gate when it is asked.
fn status(table: Table, run_dir: &Path) -> Option<Status> {
    match table {
        Table::Routes => {
            read_status(&run_dir.join("egress").join(STATUS)).or_else(|| read_status(&run_dir.join(STATUS)))
        }
        Table::Repos => {
            let request = serde_json::json!({ "op": "status" });
            client::ask(&run_dir.join("git-gate.sock"), &request).ok()
        }
    }
}

/// Egress may have put anything in the place of the file: nothing is followed, waited for or read without end.
fn read_status(path: &Path) -> Option<Status> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(STATUS_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn signal(words: &[String]) -> Result<(), String> {
    let Some((program, arguments)) = words.split_first() else { return Err("no command".to_owned()) };
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}
