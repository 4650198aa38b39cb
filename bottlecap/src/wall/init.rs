//! Process 1 of a bottle: builds the file system, starts the agent, reaps, and ends with it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::relay::{self, Target};
use super::{Attempt, FAILED, Setback, agent, expect, mounts, report};
use crate::plan::{FromWall, Plan, Stdio, ToWall};
use crate::seccomp::{Datagrams, Filter};
use crate::sys::socket::Channel;
use crate::sys::{process, terminal};

pub(super) fn main(
    plan: &Plan,
    channel: &mut Option<Channel>,
    handed: Vec<OwnedFd>,
    parent: &OwnedFd,
) -> i32 {
    run(plan, channel, handed, parent).unwrap_or_else(|setback| report(channel.as_ref(), &setback))
}

fn run(
    plan: &Plan,
    open: &mut Option<Channel>,
    handed: Vec<OwnedFd>,
    parent: &OwnedFd,
) -> Result<i32, Setback> {
    let channel = open.as_ref().ok_or(io::ErrorKind::NotConnected).to("talk to the host")?;
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).to("tie itself to the wall")?;
    let mut ended = [PollFd::new(parent.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ended, PollTimeout::ZERO).to("look at the wall")? != 0 {
        return Ok(FAILED);
    }
    mounts::build(&plan.steps, handed)?;
    let ends = Ends::open(plan.stdio)?;
    let filter = Filter::compile(Datagrams::Allowed).to("compile the system call filter")?;
    let callers: Vec<_> = ends.callers.iter().map(AsFd::as_fd).collect();
    channel.send(&FromWall::Built, &callers).to("hand out the terminal")?;
    expect(channel, ToWall::Go)?;
    relay::hold_signals().to("hold signals")?;
    match process::fork_single_threaded().to("start the command")? {
        None => {
            let code = agent::become_command(plan, &ends.agents, &filter, channel);
            std::process::exit(code.unwrap_or_else(|setback| report(Some(channel), &setback)))
        }
        Some(agent) => {
            drop(ends);
            drop(open.take());
            relay::until_exit(agent, Target::Group).to("wait for the command")
        }
    }
}

/// The two sides of what connects the command with its caller.
struct Ends {
    /// The command's standard input, output and error.
    agents: [OwnedFd; 3],
    /// The master of the terminal; or where to write input, and to read output and errors.
    callers: Vec<OwnedFd>,
}

impl Ends {
    fn open(stdio: Stdio) -> Result<Ends, Setback> {
        match stdio {
            Stdio::Terminal => {
                let (master, peer) =
                    terminal::open_pair(Path::new("/dev/pts")).to("open a terminal of its own")?;
                let copy = |fd: &OwnedFd| fd.try_clone().to("open a terminal of its own");
                Ok(Ends { agents: [copy(&peer)?, copy(&peer)?, peer], callers: vec![master] })
            }
            Stdio::Pipes => {
                let pipe = || nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).to("open pipes");
                let ((input, write), (read, output), (read_errors, errors)) = (pipe()?, pipe()?, pipe()?);
                Ok(Ends { agents: [input, output, errors], callers: vec![write, read, read_errors] })
            }
        }
    }
}
