//! Listening sockets, the readiness socket, and who is at the other end of a unix socket.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixCredentials, getsockopt,
    listen, recvmsg, setsockopt, socketpair, sockopt,
};

use super::Umask;

/// Connections that wait while a daemon restarts.
const BACKLOG: i32 = 1024;

/// Longest datagram that is read from a daemon.
pub(crate) const DATAGRAM_LIMIT: usize = 8 * 1024;

/// Opens a listening socket on exactly this address. What is accepted sends small pieces at once, as it inherits (tcp(7)): also what
/// connects before there is a daemon.
pub(crate) fn listen_on(address: SocketAddr) -> io::Result<OwnedFd> {
    let listener = TcpListener::bind(address)?;
    setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener.into())
}

/// The address of a listening internet socket; an error for anything else.
pub(crate) fn listening_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    if !getsockopt(socket, sockopt::AcceptConn)? {
        return Err(io::Error::other("the socket does not listen"));
    }
    TcpListener::from(socket.try_clone()?).local_addr()
}

/// Opens a socket for datagrams on exactly this address.
pub(crate) fn datagrams_on(address: SocketAddr) -> io::Result<OwnedFd> {
    Ok(UdpSocket::bind(address)?.into())
}

/// The address of an internet socket that listens or takes datagrams; an error for anything else.
pub(crate) fn bound_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    match getsockopt(socket, sockopt::SockType)? {
        SockType::Datagram => UdpSocket::from(socket.try_clone()?).local_addr(),
        _ => listening_address(socket),
    }
}

/// Binds a stream socket that only our own uid may open.
pub(crate) fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let _mask = Umask::set(0o177);
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Binds the socket for readiness; with `anyone`, daemons of other uids may write to it.
pub(crate) fn bind_notify(path: &Path, reach: Reach) -> io::Result<UnixDatagram> {
    let _mask = Umask::set(match reach {
        Reach::OwnUid => 0o177,
        Reach::EveryUid => 0o111,
    });
    let socket = UnixDatagram::bind(path)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::PassCred, &true)?;
    Ok(socket)
}

/// Two connected sockets that keep the bounds of messages; reads and writes of either end return instead of waiting.
pub(crate) fn packet_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Which uids the daemons have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Our own.
    OwnUid,
    /// One of their own each.
    EveryUid,
}

/// Receives one datagram and the pid that the kernel says it is from, 0 when it brings more than its sender's name; `None` when there
/// is none.
pub(crate) fn receive(socket: &UnixDatagram, buffer: &mut [u8]) -> io::Result<Option<(usize, i32)>> {
    // Room for the credentials alone: descriptors that someone sends along are closed by the kernel.
    let mut control = nix::cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
        Ok(message) => message,
        Err(nix::errno::Errno::EAGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Descriptors that came along are reported as an error here: whoever writes to us must not be able to end us with one.
    let pid = message.cmsgs().ok().and_then(|mut parts| {
        parts.find_map(|part| match part {
            ControlMessageOwned::ScmCredentials(credentials) => Some(credentials.pid()),
            _ => None,
        })
    });
    Ok(Some((message.bytes, pid.unwrap_or(0))))
}

/// The uid at the other end.
pub(crate) fn peer_uid(stream: &UnixStream) -> io::Result<u32> {
    Ok(getsockopt(&stream.as_fd(), sockopt::PeerCredentials)?.uid())
}

/// Whether the peer is a process below us: a daemon, or what one left behind. Who cannot be told is taken for one.
pub(crate) fn is_peer_below_us(stream: &UnixStream) -> bool {
    let Ok(peer) = getsockopt(&stream.as_fd(), sockopt::PeerCredentials) else { return true };
    let below = super::is_below_us(peer.pid());
    // The number means that process only as long as it lives.
    below || super::peer_has_ended(stream)
}

/// Sends a datagram to the socket named as in `NOTIFY_SOCKET`: a path, or `@` and an abstract name.
pub(crate) fn notify(target: &std::ffi::OsStr, text: &str) -> io::Result<()> {
    let address = match target.as_bytes() {
        [b'@', name @ ..] => UnixAddress::from_abstract_name(name)?,
        _ => UnixAddress::from_pathname(target)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(text.as_bytes(), &address)?;
    Ok(())
}
