//! The way to upstream's ssh: a TCP connection that is there within a time, and does not outlive who needs it.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use repos::Ssh;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::fault::Fault;

/// How long upstream may take to be reached, by whichever address.
const DIAL_TIMEOUT: Duration = Duration::from_secs(12);
/// How long one address may take while there are others.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long what was sent may find nobody who takes it: as long as keepalives may stay unanswered, which are not sent then.
const UNTAKEN_MAX_MILLIS: u32 = 20_000;

/// A connection that is shut down with this value, whoever else has it open.
pub(super) struct Line(std::net::TcpStream);

impl Line {
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        Ok(Self(stream.as_fd().try_clone_to_owned()?.into()))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Connects to upstream.
pub(super) async fn dial(ssh: &Ssh) -> Result<TcpStream, Fault> {
    timeout(DIAL_TIMEOUT, reach(ssh)).await.unwrap_or_else(|_| Err(unreached(ssh, &late())))
}

async fn reach(ssh: &Ssh) -> Result<TcpStream, Fault> {
    let addresses: Vec<SocketAddr> = match ssh.address {
        Some(address) => vec![SocketAddr::new(address, ssh.port)],
        None => match tokio::net::lookup_host((ssh.host.as_str(), ssh.port)).await {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                let mut fault = Fault::unreachable("");
                fault.words = format!("its name cannot be resolved (ssh: {}: {error})", ssh.host);
                return Err(fault);
            }
        },
    };
    let stream = first(&addresses).await.and_then(prepared);
    stream.map_err(|error| unreached(ssh, &error))
}

/// The first of these addresses that takes a connection.
async fn first(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::other("its name has no address");
    for (index, address) in addresses.iter().enumerate() {
        let connect = TcpStream::connect(address);
        let connected = if index + 1 < addresses.len() {
            timeout(ADDRESS_TIMEOUT, connect).await.unwrap_or_else(|_| Err(late()))
        } else {
            connect.await
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    setsockopt(&stream, sockopt::TcpUserTimeout, &UNTAKEN_MAX_MILLIS)?;
    Ok(stream)
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "Connection timed out")
}

fn unreached(ssh: &Ssh, error: &io::Error) -> Fault {
    Fault::unreachable(&format!("ssh: connect to host {} port {}: {error}", ssh.host, ssh.port))
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, getsockopt, listen, socket,
    };
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_write_that_nobody_takes_ends_the_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("its address");
        let stream = first(&[address]).await.and_then(prepared).expect("a connection");
        assert_eq!(getsockopt(&stream, sockopt::TcpUserTimeout).expect("the option"), UNTAKEN_MAX_MILLIS);
    }

    #[tokio::test]
    async fn a_connection_ends_with_its_line_whoever_has_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("its address");
        let (stream, accepted) = tokio::join!(first(std::slice::from_ref(&address)), listener.accept());
        let (mut stream, (mut accepted, _)) = (stream.expect("a connection"), accepted.expect("the same"));
        drop(Line::of(&stream).expect("its line"));
        assert_eq!(accepted.read(&mut [0]).await.expect("its end"), 0);
        assert_eq!(stream.read(&mut [0]).await.expect("its end"), 0);
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_leaves_time_for_the_next() {
        // A queue that is full answers no connection.
        let full =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(std::os::fd::AsRawFd::as_raw_fd(&full), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("bound");
        listen(&full, Backlog::new(0).expect("a queue")).expect("a listener");
        let name: SockaddrIn = getsockname(std::os::fd::AsRawFd::as_raw_fd(&full)).expect("its address");
        let silent = SocketAddr::from((name.ip(), name.port()));
        let mut queued = Vec::new();
        while let Ok(stream) = timeout(Duration::from_secs(1), TcpStream::connect(silent)).await {
            queued.push(stream.expect("a place in the queue"));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("its address");
        let reached = timeout(Duration::from_secs(60), first(&[silent, address])).await;
        let peer = reached.expect("in time").expect("a connection").peer_addr().expect("its other end");
        assert_eq!(peer, address);
    }
}
