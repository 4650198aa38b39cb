//! What the process was born with: listening sockets, secrets, and the environment.

use std::collections::HashMap;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use nix::sys::socket::{SockType, getsockopt, sockopt};

use crate::credential::Secret;
use crate::peer;
use crate::sys;

/// The name under which our sockets are handed over.
const SOCKET_NAME: &str = "egress";
/// As above, for connections to the port that they were meant for.
const DIRECT_NAME: &str = "egress-direct";
/// As above, for connections that are led here.
const TRANSPARENT_NAME: &str = "egress-transparent";
/// As above, for DNS: stream and datagram.
const DNS_NAME: &str = "egress-dns";
/// What the name of a handed-over secret begins with.
const SECRET_PREFIX: &str = "secret.";
/// A secret larger than this is a mistake.
const SECRET_LIMIT: u64 = 64 * 1024;
/// Variables that stay where they are, because the program or its libraries read them and they are no secrets.
const KEPT: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PWD",
    "TERM",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "NO_COLOR",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "EGRESS_UPSTREAM_CA",
    "EGRESS_UPSTREAM_PROXY",
];
const KEPT_PREFIXES: &[&str] = &["LC_", "BOTTLECAP_", "RUST_", "XDG_", "LD_", "LLVM_"];

/// Why the inheritance could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptors are not what the environment says.
    #[error("cannot take over the inherited descriptors")]
    Descriptors(#[source] io::Error),
    /// A descriptor named for us is not a listening TCP socket.
    #[error("the inherited descriptor named `{0}` is not a socket as it should be")]
    NotListening(&'static str),
    /// A secret could not be read.
    #[error("cannot read the inherited secret `{name}`")]
    Secret {
        /// Its name.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What was handed over.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// Listening sockets; empty means that we open our own.
    pub sockets: Vec<TcpListener>,
    /// Listening sockets for connections to the port that they were meant for.
    pub direct: Vec<TcpListener>,
    /// Listening sockets for connections that are led here.
    pub transparent: Vec<TcpListener>,
    /// Listening sockets for DNS.
    pub dns_tcp: Vec<TcpListener>,
    /// Sockets for DNS.
    pub dns_udp: Vec<UdpSocket>,
    /// The socket over which supervise asks.
    pub peer: Option<OwnedFd>,
    /// Secrets by name: descriptors first, then variables of the environment.
    pub secrets: HashMap<String, Secret>,
}

/// Takes everything over. Call once, before any thread exists: the environment is changed.
pub fn take() -> Result<Inheritance, Error> {
    let mut inheritance = Inheritance::default();
    for name in sys::env_names() {
        let kept = KEPT.contains(&name.as_str())
            || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || name.starts_with("LISTEN_");
        if !kept && let Some(value) = sys::take_env(&name) {
            inheritance.secrets.insert(name, Secret::new(value.into_vec()));
        }
    }
    for (name, fd) in sys::take_listen_fds().map_err(Error::Descriptors)? {
        if name == SOCKET_NAME {
            inheritance.sockets.push(listening(fd, SOCKET_NAME)?);
        } else if name == DIRECT_NAME {
            inheritance.direct.push(listening(fd, DIRECT_NAME)?);
        } else if name == TRANSPARENT_NAME {
            inheritance.transparent.push(listening(fd, TRANSPARENT_NAME)?);
        } else if name == DNS_NAME {
            match getsockopt(&fd, sockopt::SockType) {
                Ok(SockType::Datagram) => inheritance.dns_udp.push(datagrams(fd)?),
                Ok(_) | Err(_) => inheritance.dns_tcp.push(listening(fd, DNS_NAME)?),
            }
        } else if name == peer::SOCKET_NAME {
            inheritance.peer = Some(fd);
        } else if let Some(secret) = name.strip_prefix(SECRET_PREFIX) {
            let bytes = sys::read_whole(fd, SECRET_LIMIT)
                .map_err(|source| Error::Secret { name: secret.to_owned(), source })?;
            inheritance.secrets.insert(secret.to_owned(), Secret::new(bytes));
        }
    }
    Ok(inheritance)
}

fn listening(fd: OwnedFd, name: &'static str) -> Result<TcpListener, Error> {
    if !getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false) {
        return Err(Error::NotListening(name));
    }
    let listener = TcpListener::from(fd);
    listener.local_addr().map_err(|_| Error::NotListening(name))?;
    listener.set_nonblocking(true).map_err(Error::Descriptors)?;
    Ok(listener)
}

fn datagrams(fd: OwnedFd) -> Result<UdpSocket, Error> {
    let socket = UdpSocket::from(fd);
    socket.local_addr().map_err(|_| Error::NotListening(DNS_NAME))?;
    socket.set_nonblocking(true).map_err(Error::Descriptors)?;
    Ok(socket)
}
