//! The host's end of the control sockets: one JSON line out, one back.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::{ControlFlow, RangeInclusive};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::geteuid;
use proposal::escaped;
use proposal::wire::{Reply, Request, Requests};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::fault::{Attempted, Fault};

/// Longer than a reload is given.
const TIMEOUT: Duration = Duration::from_secs(20);
const LINE_MAX: u64 = 64 << 20;
/// The users of the daemons where root starts them.
const DAEMONS: RangeInclusive<u32> = 64101..=64103;

/// Asks the daemon at `socket` one thing.
pub(crate) fn ask<T: DeserializeOwned>(socket: &Path, request: &impl Serialize) -> Result<T, Fault> {
    let line = talk(socket, request).map_err(|error| {
        Fault::failed(format!("no answer from {}: {error}", socket.display()))
            .with_hint("is the bottle running? `bottlecap list`; for a compose set-up name its --run-dir")
    })?;
    let reply: Reply =
        serde_json::from_slice(&line).failing(|| "the daemon's answer is not understood".to_owned())?;
    // For a terminal, and a daemon may not be what it was.
    reply.into_result().map_err(|failure| Fault::refused(escaped(&failure.message)))
}

/// Hands each reply of a `tail` to `each`, until the daemon ends it.
pub(super) fn tail(socket: &Path, mut each: impl FnMut(Requests) -> Result<(), Fault>) -> Result<(), Fault> {
    let mut outcome = Ok(());
    follow(socket, &Request::Tail, |requests| {
        outcome = each(requests);
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    outcome
}

/// Hands each reply to `request` to `each`, until the daemon ends it or `each` has enough.
pub(crate) fn follow<T: DeserializeOwned>(
    socket: &Path,
    request: &impl Serialize,
    mut each: impl FnMut(T) -> ControlFlow<()>,
) -> Result<(), Fault> {
    let told = || format!("no answer from {}", socket.display());
    let mut stream = connect(socket).failing(told)?;
    let mut line = serde_json::to_vec(request).failing(told)?;
    line.push(b'\n');
    stream.write_all(&line).failing(told)?;
    let mut reader = BufReader::new(stream);
    loop {
        line.clear();
        (&mut reader).take(LINE_MAX).read_until(b'\n', &mut line).failing(told)?;
        if line.is_empty() {
            return Ok(());
        }
        let reply: Reply =
            serde_json::from_slice(&line).failing(|| "the daemon's answer is not understood".to_owned())?;
        let reply = reply.into_result().map_err(|failure| Fault::refused(escaped(&failure.message)))?;
        if each(reply).is_break() {
            return Ok(());
        }
    }
}

pub(crate) fn connect(socket: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    let peer = getsockopt(&stream, PeerCredentials)?.uid();
    if peer != 0 && peer != geteuid().as_raw() && !DAEMONS.contains(&peer) {
        return Err(io::Error::other(format!("it belongs to user {peer}, who is no daemon of ours")));
    }
    Ok(stream)
}

fn talk(socket: &Path, request: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut stream = connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    // Whoever turns us away says so before it has heard us.
    let sent = stream.write_all(&line);
    let mut reply = Vec::new();
    BufReader::new(stream).take(LINE_MAX).read_until(b'\n', &mut reply)?;
    if reply.ends_with(b"\n") { Ok(reply) } else { sent.and(Err(io::ErrorKind::UnexpectedEof.into())) }
}
