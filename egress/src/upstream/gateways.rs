//! The gateways of all routes of the kernel, of every table, as it tells them over rtnetlink(7): the files of /proc know one gateway of a
//! route, and one table.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// The kernel tells as much at once as fits, and at most half of this.
const AT_ONCE: usize = 64 * 1024;
/// So often it is asked again when its routes changed while it told them.
const ATTEMPTS: usize = 8;
/// Of a message: its length, kind, flags, number and sender.
const HEADER: usize = 16;
/// Of a route: its family, lengths, table and the like.
const ROUTE: usize = 12;
/// Of a next hop: its length, flags, weight and interface.
const NEXT_HOP: usize = 8;
/// Of an attribute: its length and kind.
const ATTRIBUTE: usize = 4;
/// The kind of an attribute, without what is said about its form.
const KIND: u16 = 0x3fff;
const CHANGED: u16 = libc::NLM_F_DUMP_INTR as u16;
const DONE: u16 = libc::NLMSG_DONE as u16;
const FAILED: u16 = libc::NLMSG_ERROR as u16;
/// Not in every libc's list: the address of a gateway that is of another family than its route.
const RTA_VIA: u16 = 18;

/// The gateways, each once.
pub(super) fn read() -> io::Result<Vec<IpAddr>> {
    let mut attempts = ATTEMPTS;
    loop {
        attempts -= 1;
        match dump() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted && attempts > 0 => {}
            other => return other,
        }
    }
}

fn dump() -> io::Result<Vec<IpAddr>> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(socket.as_raw_fd(), &request(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut buffer = vec![0; AT_ONCE];
    let mut gateways = Vec::new();
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC)?;
        if collect(buffer.get(..length).ok_or(io::ErrorKind::FileTooLarge)?, &mut gateways)? {
            gateways.sort_unstable();
            gateways.dedup();
            return Ok(gateways);
        }
    }
}

/// All routes of all families.
fn request() -> [u8; HEADER + ROUTE] {
    let mut request = [0; HEADER + ROUTE];
    request[..4].copy_from_slice(&((HEADER + ROUTE) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&libc::RTM_GETROUTE.to_ne_bytes());
    request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request
}

/// Whether these messages were the last.
fn collect(mut rest: &[u8], gateways: &mut Vec<IpAddr>) -> io::Result<bool> {
    while !rest.is_empty() {
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let length = number::<4>(rest, 0).map(u32::from_ne_bytes).ok_or_else(malformed)? as usize;
        let (kind, flags) = short(rest, 4).zip(short(rest, 6)).ok_or_else(malformed)?;
        let body = rest.get(HEADER..length).ok_or_else(malformed)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if flags & CHANGED != 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match kind {
            DONE | FAILED => {
                let code = number::<4>(body, 0).map_or(0, i32::from_ne_bytes);
                return if code == 0 {
                    Ok(true)
                } else {
                    Err(io::Error::from_raw_os_error(code.saturating_neg()))
                };
            }
            libc::RTM_NEWROUTE => {
                let family = body.first().copied().map_or(0, i32::from);
                // Those of multicast and the like have attributes of other kinds.
                if matches!(family, libc::AF_INET | libc::AF_INET6) {
                    gateways_of(body.get(ROUTE..).ok_or_else(malformed)?, gateways);
                }
            }
            _ => {}
        }
    }
    Ok(false)
}

/// Of a route, or of one of its next hops.
fn gateways_of(attributes: &[u8], gateways: &mut Vec<IpAddr>) {
    let mut rest = attributes;
    while let Some((kind, value)) = next(&mut rest, ATTRIBUTE) {
        match short(kind, 2).map(|kind| kind & KIND) {
            Some(libc::RTA_GATEWAY) => gateways.extend(address(value)),
            Some(RTA_VIA) => gateways.extend(value.get(2..).and_then(address)),
            Some(libc::RTA_MULTIPATH) => {
                let mut hops = value;
                while let Some((_, attributes)) = next(&mut hops, NEXT_HOP) {
                    gateways_of(attributes, gateways);
                }
            }
            _ => {}
        }
    }
}

/// Takes what begins with its length off `rest`: its head, which is as long as `head`, and what follows it.
fn next<'b>(rest: &mut &'b [u8], head: usize) -> Option<(&'b [u8], &'b [u8])> {
    let length = usize::from(short(rest, 0)?);
    let parts = rest.get(..length)?.split_at_checked(head)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(parts)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = || Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)));
    let v6 = || Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)));
    v4().or_else(v6).filter(|address| !address.is_unspecified()).map(|address| address.to_canonical())
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    number(bytes, at).map(u16::from_ne_bytes)
}

fn number<const LENGTH: usize>(bytes: &[u8], at: usize) -> Option<[u8; LENGTH]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Padded, with its length in front.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(ATTRIBUTE + value.len()).unwrap();
        padded([&length.to_ne_bytes(), &kind.to_ne_bytes(), value].concat())
    }

    fn hop(attributes: &[u8]) -> Vec<u8> {
        let length = u16::try_from(NEXT_HOP + attributes.len()).unwrap();
        padded([&length.to_ne_bytes()[..], &[0; NEXT_HOP - 2], attributes].concat())
    }

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        padded([&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 8], body].concat())
    }

    fn route(family: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        let head = [&[family][..], &[0; ROUTE - 1]].concat();
        message(libc::RTM_NEWROUTE, 0, &[head, attributes.concat()].concat())
    }

    fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn collected(messages: &[Vec<u8>]) -> io::Result<(bool, Vec<String>)> {
        let mut gateways = Vec::new();
        let last = collect(&messages.concat(), &mut gateways)?;
        Ok((last, gateways.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn every_gateway_of_a_route_is_found() {
        let v6 = "fe80::1".parse::<Ipv6Addr>().unwrap().octets();
        let via = attribute(RTA_VIA, &[&(libc::AF_INET6 as u16).to_ne_bytes()[..], &v6].concat());
        let hops = [hop(&attribute(libc::RTA_GATEWAY, &[10, 0, 0, 1])), hop(&via)].concat();
        let told = [
            route(2, &[attribute(1, &[7; 3]), attribute(libc::RTA_GATEWAY, &[192, 0, 2, 1])]),
            route(2, &[attribute(libc::RTA_MULTIPATH, &hops)]),
            route(10, &[attribute(libc::RTA_GATEWAY | 0x8000, &v6)]),
            route(10, &[attribute(libc::RTA_GATEWAY, &[0; 16])]),
            route(128, &[attribute(libc::RTA_GATEWAY, &[1, 1, 1, 1])]),
        ];
        let wanted = ["192.0.2.1", "10.0.0.1", "fe80::1", "fe80::1"].map(str::to_owned).to_vec();
        assert_eq!(collected(&told).unwrap(), (false, wanted));
        assert_eq!(collected(&[message(DONE, 0, &[0; 4])]).unwrap(), (true, Vec::new()));
    }

    #[test]
    fn what_is_not_told_whole_is_an_error() {
        let failed = message(FAILED, 0, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(collected(&[failed]).unwrap_err().raw_os_error(), Some(libc::EPERM));
        let changed = message(DONE, CHANGED, &[0; 4]);
        assert_eq!(collected(&[changed]).unwrap_err().kind(), io::ErrorKind::Interrupted);
        let whole = route(2, &[attribute(libc::RTA_GATEWAY, &[192, 0, 2, 1])]);
        for length in 1..whole.len() {
            assert!(collected(&[whole[..length].to_vec()]).is_err(), "{length}");
        }
    }
}
