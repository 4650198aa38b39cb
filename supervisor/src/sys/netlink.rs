//! Addresses that the kernel takes away by itself when their time is over, and the routes that go with them.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

/// Length of the head of every message.
const HEAD: usize = 16;
const REQUEST: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
const PUT: u16 = REQUEST | (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
const INET: u8 = libc::AF_INET as u8;
/// RTPROT_DHCP: where the route comes from.
const FROM_DHCP: u8 = 16;
/// RTNH_F_ONLINK: a neighbour, whatever the addresses say.
const ONLINK: u32 = 4;
/// A route from the command line comes before one from a server.
const METRIC: u32 = 100;

/// Gives an interface an address for so many seconds (`u32::MAX`: for good), or renews it.
pub(crate) fn put_address(interface: &str, address: Ipv4Addr, prefix: u8, seconds: u32) -> io::Result<()> {
    let broadcast = address | Ipv4Addr::from_bits(u32::MAX.checked_shr(prefix.into()).unwrap_or(0));
    let times: Vec<u8> = [seconds, seconds, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
    let attributes: [(u16, &[u8]); 4] = [
        (libc::IFA_LOCAL, &address.octets()),
        (libc::IFA_ADDRESS, &address.octets()),
        (libc::IFA_BROADCAST, &broadcast.octets()),
        (libc::IFA_CACHEINFO, &times),
    ];
    change(libc::RTM_NEWADDR, PUT, &address_head(interface, prefix)?, &attributes)
}

/// Takes an address away, and with the last one of an interface its routes; one that is not there is no error.
pub(crate) fn take_address(interface: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let attributes: [(u16, &[u8]); 1] = [(libc::IFA_LOCAL, &address.octets())];
    match change(libc::RTM_DELADDR, REQUEST, &address_head(interface, prefix)?, &attributes) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

/// Sends what is for nobody here to this neighbour; `onlink` where it is one although the address does not say so.
pub(crate) fn put_gateway(interface: &str, gateway: Ipv4Addr, onlink: bool) -> io::Result<()> {
    let mut head =
        vec![INET, 0, 0, 0, libc::RT_TABLE_MAIN, FROM_DHCP, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST];
    head.extend(if onlink { ONLINK } else { 0 }.to_ne_bytes());
    let attributes: [(u16, &[u8]); 3] = [
        (libc::RTA_GATEWAY, &gateway.octets()),
        (libc::RTA_OIF, &index(interface)?.to_ne_bytes()),
        (libc::RTA_PRIORITY, &METRIC.to_ne_bytes()),
    ];
    change(libc::RTM_NEWROUTE, PUT, &head, &attributes)
}

fn index(interface: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(interface)?)
}

fn address_head(interface: &str, prefix: u8) -> io::Result<Vec<u8>> {
    let mut head = vec![INET, prefix, 0, 0];
    head.extend(index(interface)?.to_ne_bytes());
    Ok(head)
}

/// Sends one request and waits for the kernel's answer to it, which is there when the call returns.
fn change(kind: u16, flags: u16, head: &[u8], attributes: &[(u16, &[u8])]) -> io::Result<()> {
    let mut body = head.to_vec();
    for (name, value) in attributes {
        // Every value here has a length that is a multiple of four: nothing is to be filled up.
        body.extend(u16::try_from(4 + value.len()).map_err(io::Error::other)?.to_ne_bytes());
        body.extend(name.to_ne_bytes());
        body.extend(*value);
    }
    let mut message = u32::try_from(HEAD + body.len()).map_err(io::Error::other)?.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);

    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = [0; 512];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // NLMSG_ERROR: the number behind the head is 0 for an acknowledgement, else an errno below zero.
    let code = answer[..length].get(HEAD..HEAD + 4).and_then(|bytes| bytes.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}
