//! The loopback interface of a new network namespace.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};

use super::checked;
use crate::plan::Kind;

const BACKLOG: i32 = 1024;

/// Sets `lo` up, which gives it 127.0.0.1 and ::1.
pub fn bring_up_loopback() -> io::Result<()> {
    let handle = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the structure is plain bytes and integers; zero is a value for each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    checked(unsafe { libc::ioctl(handle.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into())?;
    Ok(())
}

/// Gives `lo` one more address.
pub fn add_to_loopback(address: Ipv6Addr) -> io::Result<()> {
    let handle = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let ifindex = nix::net::if_::if_nametoindex("lo")?;
    let request = libc::in6_ifreq {
        ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
        ifr6_prefixlen: 128,
        ifr6_ifindex: ifindex.cast_signed(),
    };
    // SAFETY: SIOCSIFADDR on an IPv6 socket reads an in6_ifreq, which outlives the call.
    checked(unsafe { libc::ioctl(handle.as_raw_fd(), libc::SIOCSIFADDR, &raw const request) }.into())?;
    Ok(())
}

/// Opens a socket on exactly this address, which may have been added just now: the kernel makes such a one usable a moment later.
pub fn open(kind: Kind, address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind_of = match kind {
        Kind::Stream => SockType::Stream,
        Kind::Datagram => SockType::Datagram,
    };
    let socket = socket(family, kind_of, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    if kind == Kind::Stream {
        listen(&socket, Backlog::new(BACKLOG)?)?;
    }
    Ok(socket)
}
