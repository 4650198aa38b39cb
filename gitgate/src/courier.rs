//! What git takes for ssh: this program, which knows no key and no host. It carries bytes between git
//! and the daemon, over a socket that it inherits; the daemon speaks to upstream.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::process::{Command, ExitCode};

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;

use crate::git::GateDir;
use crate::ssh::{Over, Remote};
use crate::sys;

/// The environment variable with the number of the socket.
const SOCKET_FD: &str = "GIT_GATE_UPSTREAM_FD";
const BUFFER_BYTES: usize = 64 << 10;

/// Gives a git that goes to an upstream behind ssh its end of a socket; the other one.
pub(crate) fn hire(command: &mut Command, gate: &GateDir) -> io::Result<UnixStream> {
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    // It stands above what the configuration says of protocols.
    command.env("GIT_ALLOW_PROTOCOL", "ssh");
    command.env("GIT_SSH", gate.ssh_program()).env("GIT_SSH_VARIANT", "ssh");
    let number = sys::inherit(command, OwnedFd::from(theirs));
    command.env(SOCKET_FD, number.to_string());
    UnixStream::from_std(ours)
}

/// Joins such a socket to a command at upstream until both have said all.
pub(crate) async fn carry(socket: UnixStream, remote: Remote) -> Over {
    let Remote { mut stdin, mut stdout, over } = remote;
    let (mut from, mut to) = socket.into_split();
    let up = async {
        let _ = tokio::io::copy(&mut from, &mut stdin).await;
        let _ = stdin.shutdown().await;
    };
    let down = async {
        let _ = tokio::io::copy(&mut stdout, &mut to).await;
        drop(to);
    };
    tokio::join!(up, down);
    over
}

/// Carries bytes for git; what it is asked for has been decided.
pub fn run(_: impl Iterator<Item = OsString>) -> ExitCode {
    match carried() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn carried() -> io::Result<()> {
    let number = std::env::var(SOCKET_FD).ok().and_then(|n| n.parse().ok());
    let number = number.ok_or_else(|| io::Error::other("it is started by git, from git-gate"))?;
    let mut from = StdStream::from(sys::adopt(number)?);
    let mut to = from.try_clone()?;
    std::thread::spawn(move || {
        let _ = copy(&mut io::stdin().lock(), &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    copy(&mut from, &mut io::stdout().lock())
}

/// Copies at once what comes, without a buffer that waits for more.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                to.write_all(&buffer[..length])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
