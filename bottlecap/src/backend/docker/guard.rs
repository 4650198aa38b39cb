//! A process that outlives whoever holds the bottle by as much as it takes to remove the containers: the engine would
//! keep them when `bottlecap` is killed.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::sys::signal::{SigSet, Signal};

use super::engine::Engine;
use super::remove_all;
use crate::fault::{Attempted, Fault};
use crate::manifest::Name;

/// What it is told when there is nothing to do.
const DISMISSED: u8 = b'.';

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
    remove_all(&Engine::at(client), name, Path::new(state)).map_err(io::Error::other)
}
