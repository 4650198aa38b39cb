//! A process that outlives whoever holds the bottle by as much as it takes to remove the containers: the engine would
//! keep them when `bottlecap` is killed.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::poll::{PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};

use super::engine::Engine;
use super::remove_all;
use crate::fault::{Attempted, Fault};
use crate::manifest::Name;

/// What it is told when there is nothing to do.
const DISMISSED: u8 = b'.';

/// Between two looks: what a client had asked for when it was killed, the engine may still make.
const INTERVAL_MS: u16 = 2000;
/// How often an engine that fails, or goes on making things, is asked.
const LOOKS_MAX: u32 = 60;

/// The guard, seen from who holds the bottle.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    line: Option<ChildStdin>,
}

impl Guard {
    /// Starts one for the bottle `name` with its state in `state`; it goes on holding `lock`.
    pub fn start(engine: &Engine, name: &Name, state: &Path, lock: OwnedFd) -> Result<Guard, Fault> {
        let told = || "cannot start the guard".to_owned();
        let mut command = Command::new("/proc/self/exe");
        command.arg("__guard").arg(engine.client()).arg(name.as_str()).arg(state);
        // A terminal that closes is no reason for it to go.
        command.process_group(0).stdin(Stdio::piped()).stderr(Stdio::null());
        // Its standard output is the lock: it says nothing, and holds the bottle for as long as it lives.
        command.stdout(Stdio::from(lock));
        let mut child = command.spawn().failing(told)?;
        let line = child.stdin.take();
        Ok(Guard { child, line })
    }

    /// Lets it go: everything was taken down.
    pub fn dismiss(mut self) {
        if let Some(mut line) = self.line.take() {
            // One that is gone needs no telling.
            let _ = line.write_all(&[DISMISSED]);
        }
        // Reaped, so that nothing is left of it.
        let _ = self.child.wait();
    }
}

/// The guard itself; its exit code.
#[must_use]
pub fn main(words: &[String]) -> i32 {
    match watch(words) {
        Ok(()) => 0,
        Err(_) => i32::from(crate::fault::FAILURE),
    }
}

fn watch(words: &[String]) -> io::Result<()> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        set.add(signal);
    }
    set.thread_block()?;
    let [client, name, state] = words else { return Err(io::ErrorKind::InvalidInput.into()) };
    let mut word = [0; 1];
    if io::stdin().lock().read(&mut word)? == 1 && word[0] == DISMISSED {
        return Ok(());
    }
    let (engine, state) = (Engine::at(client), Path::new(state));
    let pause = || {
        let _ = poll(&mut [], PollTimeout::from(INTERVAL_MS));
    };
    until_gone(|| remove_all(&engine, name, state), pause).map_err(io::Error::other)
}

/// Looks until two looks in a row have found nothing.
fn until_gone(mut look: impl FnMut() -> Result<usize, Fault>, mut wait: impl FnMut()) -> Result<(), Fault> {
    let (mut last, mut empty) = (Ok(()), 0);
    for _ in 0..LOOKS_MAX {
        let found = look();
        empty = if matches!(found, Ok(0)) { empty + 1 } else { 0 };
        if empty == 2 {
            return Ok(());
        }
        last = found.map(drop);
        wait();
    }
    last.and_then(|()| Err(Fault::failed("the engine goes on making things of the bottle")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_engine_makes_after_a_look_is_removed_too() {
        let mut found = vec![Ok(2), Ok(0), Ok(1), Err(Fault::failed("no")), Ok(0), Ok(0), Ok(9)].into_iter();
        let mut waits = 0;
        let gone = until_gone(|| found.next().unwrap_or(Ok(0)), || waits += 1);
        assert!(gone.is_ok());
        assert_eq!((waits, found.len()), (5, 1), "not before two in a row, and not after");
        let mut looks = 0;
        let failing = || {
            looks += 1;
            Err(Fault::failed("the engine is gone"))
        };
        let told = until_gone(failing, || ()).expect_err("never").to_string();
        assert_eq!((told.as_str(), looks), ("the engine is gone", LOOKS_MAX));
    }
}
