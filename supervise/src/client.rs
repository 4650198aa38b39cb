//! The other end of the operator socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proposal::wire::{Failure, Reply, Request, Requests};
use serde::de::DeserializeOwned;

const TIMEOUT: Duration = Duration::from_secs(10);
const LINE_LIMIT: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("cannot reach the daemon at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the daemon did not answer")]
    Talk(#[source] io::Error),
    /// What came is no reply.
    #[error("the daemon's answer is not understood")]
    Reply(#[source] serde_json::Error),
    /// The daemon said no.
    #[error(transparent)]
    Refused(#[from] Failure),
}

/// Asks the daemon behind `socket` one thing.
///
/// # Errors
/// When it cannot be asked, or says no.
pub fn ask<T: DeserializeOwned>(socket: &Path, request: &Request) -> Result<T, Error> {
    let connect = |source| Error::Connect { path: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(connect)?;
    let line = talk(&mut stream, request).map_err(Error::Talk)?;
    let reply: Reply = serde_json::from_slice(&line).map_err(Error::Reply)?;
    Ok(reply.into_result()?)
}

/// Hands each answer of a `tail` to `each`, until the daemon ends it.
///
/// # Errors
/// When the daemon cannot be asked, says no, or `each` fails.
pub fn tail(socket: &Path, mut each: impl FnMut(Requests) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let connect = |source| Error::Connect { path: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(connect)?;
    let mut line = serde_json::to_vec(&Request::Tail).map_err(Error::Reply)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(Error::Talk)?;
    let mut reader = BufReader::new(stream);
    loop {
        line.clear();
        (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut line).map_err(Error::Talk)?;
        if line.is_empty() {
            return Ok(());
        }
        let reply: Reply = serde_json::from_slice(&line).map_err(Error::Reply)?;
        each(reply.into_result().map_err(Error::Refused)?)?;
    }
}

fn talk(stream: &mut UnixStream, request: &Request) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    // Whoever turns us away says so before it has heard us.
    let sent = stream.write_all(&line);
    let mut reply = Vec::new();
    BufReader::new(stream).take(LINE_LIMIT).read_until(b'\n', &mut reply)?;
    if reply.ends_with(b"\n") { Ok(reply) } else { sent.and(Err(io::ErrorKind::UnexpectedEof.into())) }
}
