//! The program that plays, run twice: where the origins are, and where the agent is.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::unistd::Pid;
use serde_json::Value;

use super::{ORIGINS, Outcome, PLAYER};
use crate::fault::{Attempted, Fault};
use crate::sys::namespaces::Network;
use crate::sys::process::{Setup, prepare};

/// What the one where the agent is says when it is ready.
pub(super) const LENDING: &str = "lending";

/// How long a program may take until it says where it is.
const BEGIN_TIMEOUT_MS: u16 = 60_000;

/// What both are told.
pub(super) struct Cast {
    /// The program.
    pub(super) program: PathBuf,
    /// The directory of the origins' authority.
    pub(super) origin: PathBuf,
    /// Where connections are handed out.
    pub(super) socket: PathBuf,
    /// The bottle's certificate authority.
    pub(super) ca: PathBuf,
}

impl Cast {
    /// The one where the origins are, on these ports.
    pub(super) fn player(&self, only: Option<&str>, ports: [u16; ORIGINS.len()]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--json").arg("--origin-dir").arg(&self.origin);
        command.arg("--through").arg(&self.socket).arg("--ca").arg(&self.ca);
        command.args(only.into_iter().flat_map(|text| ["--only", text]));
        for port in ports {
            command.arg("--origin").arg(format!("127.0.0.1:{port}"));
        }
        command.stdin(Stdio::piped());
        command
    }

    /// The one where the agent is, from where `egress` is reached.
    pub(super) fn lender(&self, egress: SocketAddr) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--proxy").arg(format!("http://{egress}")).arg("--lend").arg(&self.socket);
        command.stdin(Stdio::null());
        command
    }
}

/// Has `command` run in that network, and end with this thread.
pub(super) fn place(command: &mut Command, network: Option<Network>) {
    let setup = Setup { descriptors: Vec::new(), on_parent_death: Signal::SIGKILL, close_others: true };
    prepare(command, setup, move || network.as_ref().map_or(Ok(()), Network::enter));
}

/// A program of ours, ended when dropped.
pub(super) struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    pub(super) fn start(command: &mut Command) -> Result<Running, Fault> {
        let told = || "cannot start the wire corpus".to_owned();
        let mut child = command.stdout(Stdio::piped()).spawn().failing(told)?;
        let Some(output) = child.stdout.take() else { return Err(Fault::failed(told())) };
        Ok(Running { child, lines: BufReader::new(output) })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    fn next(&mut self) -> Result<Option<String>, Fault> {
        let mut line = String::new();
        let length = self.lines.read_line(&mut line).failing(|| "cannot read what is played".to_owned())?;
        Ok((length > 0).then(|| line.trim_end().to_owned()))
    }

    /// What it says first, unless one of `signals` comes, or it says nothing for too long.
    pub(super) fn line(&mut self, signals: Option<&SignalFd>) -> Result<String, Fault> {
        self.wait(signals, BEGIN_TIMEOUT_MS.into())?;
        // What went wrong is on standard error already.
        self.next()?.ok_or_else(|| Fault::failed("the wire corpus could not be played"))
    }

    /// Where the origins of a player are.
    pub(super) fn ports(&mut self, signals: Option<&SignalFd>) -> Result<Vec<u16>, Fault> {
        let said: Value = serde_json::from_str(&self.line(signals)?).failing(super::cannot_prepare)?;
        let places = said["origins"].as_array().into_iter().flatten();
        Ok(places.filter_map(|place| place.as_str()?.rsplit_once(':')?.1.parse().ok()).collect())
    }

    /// Plays to the end, or until one of `signals` comes.
    pub(super) fn play(&mut self, outcome: &mut Outcome, signals: Option<&SignalFd>) -> Result<(), Fault> {
        let told = || "cannot begin to play".to_owned();
        self.child.stdin.take().map_or(Ok(()), |mut input| input.write_all(b"\n")).failing(told)?;
        loop {
            self.wait(signals, PollTimeout::NONE)?;
            let Some(line) = self.next()? else { break };
            let play = serde_json::from_str(&line).failing(|| format!("{PLAYER} said what it does not say"));
            outcome.add(play?);
        }
        if outcome.plays == 0 { Err(Fault::failed("nothing was played")) } else { Ok(()) }
    }

    /// Returns when there is something to read, or the end.
    fn wait(&self, signals: Option<&SignalFd>, bound: PollTimeout) -> Result<(), Fault> {
        let Some(signals) = signals.filter(|_| self.lines.buffer().is_empty()) else { return Ok(()) };
        loop {
            let mut watched = [
                PollFd::new(self.lines.get_ref().as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut watched, bound) {
                Err(Errno::EINTR) => continue,
                Ok(0) => return Err(Fault::failed("the wire corpus does not begin")),
                polled => polled.failing(|| "cannot wait for what is played".to_owned())?,
            };
            if watched[1].any().unwrap_or(false) {
                return Err(Fault::failed("it was broken off"));
            }
            return Ok(());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Asked to end, a bottle takes everything down first. It may have ended by itself.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
