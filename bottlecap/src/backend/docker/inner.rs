//! This program inside the agent's container: what holds the container open, and what the command comes out of.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::command;
use crate::layout::{HOME, OURS};
use crate::seccomp::{Datagrams, Filter};
use crate::sys::process::{self, Image};
use crate::sys::{descriptors, identity};

/// Where the command's number is, for [`signal`].
const PID: &str = "/run/bottlecap.pid";
/// The longest that it can be.
const PID_MAX: u64 = 16;
/// What the home starts with.
const SKELETON: &str = "home";
const FAILED: i32 = 70;

/// Holds the container until it is told to end, and buries what the agent leaves to it.
#[must_use]
pub fn stay() -> i32 {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        set.add(signal);
    }
    // The agent has the same user: nothing of this process, which is behind fewer walls, is for it to look into.
    if nix::sys::prctl::set_dumpable(false).and_then(|()| set.thread_block()).is_err() {
        return FAILED;
    }
    loop {
        match set.wait() {
            Ok(Signal::SIGCHLD) => {
                while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
                    waitpid(None, Some(WaitPidFlag::WNOHANG))
                {}
            }
            Ok(_) => return 0,
            Err(_) => return FAILED,
        }
    }
}

/// Sends the command the signal of that number.
#[must_use]
pub fn signal(number: &str) -> i32 {
    let pid = written_at(Path::new(PID)).ok().flatten();
    let signal = number.parse().ok().and_then(|number: i32| Signal::try_from(number).ok());
    match (pid, signal) {
        // Never a group, and never everybody.
        (Some(pid @ 2..), Some(signal)) if nix::sys::signal::kill(Pid::from_raw(pid), signal).is_ok() => 0,
        _ => 1,
    }
}

/// The number in the file. The agent can write there: it may be anything, and must not be waited for.
fn written_at(path: &Path) -> io::Result<Option<i32>> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut text = String::new();
    file.take(PID_MAX).read_to_string(&mut text)?;
    Ok(text.trim().parse().ok())
}

/// Puts the home's first files in place and becomes the command behind the walls that the engine does not build. Comes
/// back only if that cannot be, with the exit code.
#[must_use]
pub fn become_command(words: Vec<OsString>) -> i32 {
    match prepare(&words) {
        Ok(image) => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let why = command::execute(words.first().map(OsString::as_os_str), &path, &image);
            say(&format!("cannot execute {}: {why}", words.first().map_or_else(String::new, told)));
            why.code()
        }
        Err((attempt, error)) => {
            say(&format!("cannot {attempt}: {error}"));
            FAILED
        }
    }
}

/// To the caller's own standard error: the container has no other way to say why.
fn say(text: &str) {
    // The exit code says it too.
    let _ = writeln!(io::stderr(), "bottlecap: {text}");
}

fn told(word: &OsString) -> String {
    proposal::escaped(&word.to_string_lossy())
}

type Setback = (&'static str, io::Error);

fn prepare(words: &[OsString]) -> Result<Image, Setback> {
    let to = |attempt: &'static str| move |error: io::Error| (attempt, error);
    let filter = Filter::compile(Datagrams::Refused)
        .map_err(|error| ("build the system call filter", io::Error::other(error)))?;
    furnish(&Path::new(OURS).join(SKELETON), Path::new(HOME)).map_err(to("furnish the home"))?;
    fs::write(PID, std::process::id().to_string()).map_err(to("say which process the command is"))?;
    let variables: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let environment = variables.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
    let image = command::image(words, environment).map_err(to("prepare the command"))?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // Where the engine's own filter refuses the call, there is no keyring to reach either.
    let _ = identity::new_session_keyring();
    process::no_core_dumps().map_err(to("keep core handlers away"))?;
    nix::sys::prctl::set_no_new_privs().map_err(|errno| ("refuse new privileges", errno.into()))?;
    descriptors::close_on_exec_from(3).map_err(to("close foreign descriptors"))?;
    process::reset_signals().map_err(to("reset signals"))?;
    filter.install().map_err(|error| ("install the system call filter", io::Error::other(error)))?;
    Ok(image)
}

/// Copies what is in `from` to `to`, where it is not there yet.
fn furnish(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            match fs::DirBuilder::new().mode(0o700).create(&target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                Ok(()) | Err(_) => {}
            }
            furnish(&entry.path(), &target)?;
        } else if !target.exists() {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_taken_from_a_short_plain_file_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        fs::write(&path, "4711\n").unwrap();
        assert_eq!(written_at(&path).unwrap(), Some(4711));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(written_at(&link).is_err());
        fs::write(&path, format!("{}4711", " ".repeat(20))).unwrap();
        assert_eq!(written_at(&path).unwrap(), None);
        // Opened otherwise, it would be waited for until somebody writes.
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(written_at(&pipe).unwrap(), None);
        assert!(written_at(Path::new("/dev/null")).unwrap().is_none());
    }
}
