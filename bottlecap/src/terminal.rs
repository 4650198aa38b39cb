//! The caller's side of the command's terminal or pipes: bytes are carried, descriptors stay apart.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::sys::termios::{self, SetArg, Termios};

use crate::life::{CONSOLE_LOG, Console, Door};
use crate::plan::Stdio;
use crate::sys::terminal::copy_size;

const PIECE: usize = 64 * 1024;

/// Where the terminal of this process' command is, when it is not here.
#[derive(Debug)]
pub(crate) struct Away {
    /// The way back to whoever starts it.
    pub(crate) door: Door,
    /// Whose it is.
    pub(crate) name: String,
    /// The bottle's state.
    pub(crate) home: PathBuf,
    /// Where people come to it.
    pub(crate) socket: PathBuf,
}

/// A process has one command, and that one terminal.
static AWAY: Mutex<Option<Away>> = Mutex::new(None);

/// From now on the command is connected there, and not to the terminal of this process.
pub(crate) fn go_away(away: Away) {
    *AWAY.lock().unwrap_or_else(PoisonError::into_inner) = Some(away);
}

/// How a command that is called like this process is to be connected.
#[must_use]
pub fn wanted() -> Stdio {
    if AWAY.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
        return Stdio::Terminal;
    }
    if io::stdin().is_terminal() && io::stdout().is_terminal() { Stdio::Terminal } else { Stdio::Pipes }
}

/// The threads that carry the bytes.
#[derive(Debug)]
pub struct Relay {
    outputs: Vec<JoinHandle<()>>,
    master: Option<OwnedFd>,
    raw: Option<Raw>,
    console: Option<Console>,
}

/// The caller's terminal in raw mode; as it was when dropped.
#[derive(Debug)]
pub(crate) struct Raw(Termios);

impl Raw {
    /// From now on.
    pub(crate) fn enter() -> io::Result<Raw> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // What was typed for the bottle and not read is not for the caller's shell. Nothing is left to do about a terminal that is gone.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &self.0);
    }
}

impl Relay {
    /// Starts carrying between this process' standard descriptors and `ends`, as the wall sent them.
    pub fn start(stdio: Stdio, ends: Vec<OwnedFd>) -> io::Result<Relay> {
        match (stdio, <[OwnedFd; 3]>::try_from(ends)) {
            (Stdio::Pipes, Ok([input, output, errors])) => {
                carry_input(input)?;
                let outputs =
                    vec![carry(output, io::stdout().as_fd())?, carry(errors, io::stderr().as_fd())?];
                Ok(Relay { outputs, master: None, raw: None, console: None })
            }
            (Stdio::Terminal, Err(ends)) => {
                let master = ends.into_iter().next().ok_or(io::ErrorKind::UnexpectedEof)?;
                if let Some(away) = AWAY.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    let Away { door, name, home, socket } = away;
                    let console = Some(Console::start(master, &socket, &home.join(CONSOLE_LOG))?);
                    door.close(&name, &home)?;
                    return Ok(Relay { outputs: Vec::new(), master: None, raw: None, console });
                }
                let size = copy_size(io::stdin().as_fd(), master.as_fd());
                size.or_else(
                    |error| if error.raw_os_error() == Some(libc::ENOTTY) { Ok(()) } else { Err(error) },
                )?;
                let raw = Some(Raw::enter()?);
                carry_input(master.try_clone()?)?;
                let outputs = vec![carry(master.try_clone()?, io::stdout().as_fd())?];
                Ok(Relay { outputs, master: Some(master), raw, console: None })
            }
            (Stdio::Pipes, Err(_)) | (Stdio::Terminal, Ok(_)) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Gives the command's terminal the size of the caller's.
    pub fn resize(&self) {
        if let Some(master) = &self.master {
            // A terminal without a size has none to give.
            let _ = copy_size(io::stdin().as_fd(), master.as_fd());
        }
    }

    /// Waits for what the command wrote last. Call it when nothing in the bottle lives any more; `code` is how it ended.
    pub fn finish(mut self, code: i32) {
        if let Some(console) = self.console.take() {
            console.finish(code);
        }
        for output in self.outputs.drain(..) {
            // A carrier does not panic, and there is nobody to tell.
            let _ = output.join();
        }
        drop(self.raw.take());
    }
}

/// Carries the caller's input. The thread is left behind at the end: it may be waiting for somebody to type.
fn carry_input(to: OwnedFd) -> io::Result<()> {
    let from = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    thread::Builder::new().name("input".into()).spawn(move || copy(from, File::from(to)))?;
    Ok(())
}

fn carry(from: OwnedFd, to: std::os::fd::BorrowedFd<'_>) -> io::Result<JoinHandle<()>> {
    let to = File::from(to.try_clone_to_owned()?);
    thread::Builder::new().name("output".into()).spawn(move || copy(File::from(from), to))
}

/// Copies until either side has ended; then both are closed, so that each sees that the other is gone.
fn copy(mut from: File, mut to: File) {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return,
            Ok(length) if to.write_all(&piece[..length]).is_ok() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}
