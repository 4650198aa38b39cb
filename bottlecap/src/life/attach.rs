//! `bottlecap attach`: a person's terminal at the command of a bottle that runs by itself.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

use super::frames::{Frame, Leave};
use crate::fault::{Attempted, Fault};
use crate::sys::terminal::size;
use crate::terminal::Raw;

/// How a visit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// The person left; the command goes on.
    Left,
    /// The command ended with this code.
    Ended(i32),
}

/// Sits down at `socket` until the person leaves or the command ends.
pub(super) fn attach(socket: &Path) -> Result<Visit, Fault> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Fault::refused("this is no terminal")
            .with_hint("`bottlecap logs --console NAME` prints what the command has written"));
    }
    let stream =
        UnixStream::connect(socket).refusing(|| "nobody answers at the bottle's terminal".to_owned());
    let stream = stream.map_err(|fault| {
        fault.with_hint("a bottle that `run` started has its terminal where it was started; `start` makes one to attach to")
    })?;
    let told = || "the bottle's terminal is gone".to_owned();
    let mut changed = SigSet::empty();
    changed.add(Signal::SIGWINCH);
    changed.thread_block().failing(told)?;
    let signals = SignalFd::new(&changed).failing(told)?;
    let _raw = Raw::enter().failing(told)?;
    visit(stream, &signals).failing(told)
}

fn visit(mut stream: UnixStream, signals: &SignalFd) -> io::Result<Visit> {
    let (mut leave, mut typed) = (Leave::default(), vec![0; 4096]);
    let (mut stdin, mut stdout) = (io::stdin().lock(), io::stdout().lock());
    tell_size(&mut stream)?;
    loop {
        let mut watched = [
            PollFd::new(stream.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut watched, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            polled => polled?,
        };
        let [said, typing, resized] = watched.map(|entry| entry.any().unwrap_or(false));
        if said {
            match Frame::read(&mut stream)? {
                Some(Frame::Bytes(bytes)) => {
                    stdout.write_all(&bytes)?;
                    stdout.flush()?;
                }
                Some(Frame::End(code)) => return Ok(Visit::Ended(code)),
                Some(Frame::Size(..)) => return Err(io::ErrorKind::InvalidData.into()),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        if typing {
            // The lock has no bytes of its own: nobody else reads here.
            let length = stdin.read(&mut typed)?;
            let (passed, left) = leave.sift(&typed[..length]);
            if left || length == 0 {
                return Ok(Visit::Left);
            }
            if !passed.is_empty() {
                Frame::Bytes(passed).write(&mut stream)?;
            }
        }
        if resized {
            signals.read_signal()?;
            tell_size(&mut stream)?;
        }
    }
}

fn tell_size(stream: &mut UnixStream) -> io::Result<()> {
    match size(io::stdin().as_fd())? {
        (0, _) | (_, 0) => Ok(()),
        (columns, rows) => Frame::Size(columns, rows).write(stream),
    }
}
