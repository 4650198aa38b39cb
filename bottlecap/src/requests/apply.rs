//! Writes routes that were reviewed, and waits until egress has them; if it does not take them, puts the old ones back.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollTimeout, poll};
use proposal::{digest, escaped};
use serde::Deserialize;

use super::{client, routes_file};
use crate::fault::{Attempted, Fault};

/// How egress is made to read its routes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reload {
    /// By the bundle's supervisor, which answers when it is done.
    Supervisor,
    /// By a command, such as `docker kill --signal HUP NAME`; egress' status file answers.
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

/// The routes of `directory` as they are.
pub(crate) fn read(directory: &Path) -> Result<String, Fault> {
    let path = routes_file(directory);
    let told = || format!("cannot read {}", path.display());
    if fs::symlink_metadata(&path).refusing(told)?.is_symlink() {
        return Err(Fault::refused(format!(
            "{} is a symbolic link, which a grant would replace",
            path.display()
        ))
        .with_hint("give --routes the directory of the file itself"));
    }
    fs::read_to_string(&path).refusing(told)
}

/// Texts of routes.yaml on the way from one to another.
pub(crate) struct Change<'a> {
    /// What has to stand there.
    pub(crate) from: &'a str,
    /// What is written.
    pub(crate) to: &'a str,
    /// What is written when egress does not take that.
    pub(crate) fallback: &'a str,
}

/// Puts the change in force, if the routes still are what it starts from; the generation that egress acknowledged.
pub(crate) fn apply(
    directory: &Path,
    change: &Change<'_>,
    reload: &Reload,
    run_dir: &Path,
) -> Result<u64, Fault> {
    let lock = File::open(directory).failing(|| format!("cannot open {}", directory.display()))?;
    let _alone = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| Fault::failed(format!("cannot lock {}: {errno}", directory.display())))?;
    if read(directory)? != change.from {
        let message = "the routes were changed since the request was shown; look at it again";
        return Err(Fault::NotGranted(message.to_owned()));
    }
    replace(directory, change.to)?;
    acknowledged(reload, run_dir, &digest(change.to)).map_err(|problem| {
        let state = take_back(directory, change, reload, run_dir)
            .unwrap_or_else(|fault| format!("the routes as they were could not be put back: {fault}"));
        Fault::NotGranted(format!("egress did not take the routes: {problem}; {state}"))
    })
}

/// Undoes a change that egress did not take; how that went.
fn take_back(
    directory: &Path,
    change: &Change<'_>,
    reload: &Reload,
    run_dir: &Path,
) -> Result<String, Fault> {
    // An editor knows nothing of our lock.
    if read(directory)? != change.to {
        return Ok("somebody changed the file meanwhile, so it is left as it is: look for the grant in it"
            .to_owned());
    }
    replace(directory, change.fallback)?;
    Ok(match acknowledged(reload, run_dir, &digest(change.fallback)) {
        Ok(_) => "the old routes are back in force".to_owned(),
        Err(problem) => {
            format!("the old routes are back in the file, but egress did not acknowledge them: {problem}")
        }
    })
}

/// Writes routes.yaml in one step, on disk before it counts. Whoever calls it holds the lock.
fn replace(directory: &Path, text: &str) -> Result<(), Fault> {
    let path = routes_file(directory);
    let new = directory.join(".routes.yaml.new");
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
        File::open(directory)?.sync_all()
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
    last_error: Option<String>,
}

/// Makes egress reload; its generation, once its digest is `wanted`.
fn acknowledged(reload: &Reload, run_dir: &Path, wanted: &str) -> Result<u64, String> {
    match reload {
        Reload::Supervisor => {
            let request = serde_json::json!({ "op": "reload", "name": "egress" });
            let reply: Result<Reloaded, Fault> = client::ask(&run_dir.join("supervisor.sock"), &request);
            let daemons = reply.map_err(|fault| fault.to_string())?.daemons;
            match daemons.into_iter().find(|daemon| daemon.name == "egress") {
                Some(Acknowledged { generation: Some(generation), digest: Some(digest), .. })
                    if digest == wanted =>
                {
                    Ok(generation)
                }
                Some(_) => Err("egress acknowledged other routes than were written".to_owned()),
                None => Err("egress is not running".to_owned()),
            }
        }
        Reload::Command(words) => {
            let before = status(run_dir).and_then(|status| status.last_error);
            signal(words)?;
            let deadline = Instant::now() + ACKNOWLEDGE_TIMEOUT;
            loop {
                match status(run_dir) {
                    Some(status) if status.digest == wanted => return Ok(status.generation),
                    Some(Status { last_error: Some(error), .. })
                        if before.as_deref() != Some(error.as_str()) =>
                    {
                        return Err(escaped(&error));
                    }
                    Some(_) | None => {}
                }
                if Instant::now() > deadline {
                    return Err(format!(
                        "no acknowledgement in {} within {} s",
                        run_dir.join(STATUS).display(),
                        ACKNOWLEDGE_TIMEOUT.as_secs()
                    ));
                }
                // Waits for nothing but time: the file may be on the other side of a mount that tells no events.
                let _ = poll(&mut [], PollTimeout::from(LOOK_INTERVAL_MS));
            }
        }
    }
}

/// What egress says is in force: an answer counts for that alone.
pub(super) fn in_force(run_dir: &Path) -> String {
    status(run_dir)
        .map_or_else(|| "unknown".to_owned(), |status| format!("{} {}", status.generation, status.digest))
}

/// What egress says of itself: in the directory that its supervisor gave it, or beside the sockets where it was started alone.
fn status(run_dir: &Path) -> Option<Status> {
    read_status(&run_dir.join("egress").join(STATUS)).or_else(|| read_status(&run_dir.join(STATUS)))
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
