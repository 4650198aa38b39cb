//! Waiting for a child while passing signals on to it.

use std::io;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Who gets the signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The child.
    Process,
    /// The child and what is in its process group.
    Group,
}

/// Blocks every signal, so that [`until_exit`] sees them in order.
pub(super) fn hold_signals() -> io::Result<()> {
    Ok(SigSet::all().thread_block()?)
}

/// Reaps children and passes signals on until `child` ends; its exit code, 128 and the number for a signal.
pub(super) fn until_exit(child: Pid, target: Target) -> io::Result<i32> {
    hold_signals()?;
    let signals = SignalFd::new(&SigSet::all())?;
    loop {
        if let Some(code) = reap(child)? {
            return Ok(code);
        }
        let received = signals.read_signal()?.and_then(|signal| i32::try_from(signal.ssi_signo).ok());
        let Some(signal) = received.and_then(|number| Signal::try_from(number).ok()) else { continue };
        if !matches!(signal, Signal::SIGCHLD) {
            pass_on(child, target, signal);
        }
    }
}

fn pass_on(child: Pid, target: Target, signal: Signal) {
    let group = Pid::from_raw(-child.as_raw());
    // A child that has ended, or has no group yet, is no error here: the loop sees the one and the other gets it directly.
    if target == Target::Process || kill(group, signal).is_err() {
        let _ = kill(child, signal);
    }
}

fn reap(child: Pid) -> io::Result<Option<i32>> {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return Ok(Some(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return Ok(Some(128 + signal as i32)),
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
