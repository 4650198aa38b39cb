//! What lies next to us and is never dialled, whatever a route exempts: the gateways of our routes, where the host and
//! its services answer, and the resolver that Docker puts into a container. And which addresses are our own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::ifaddrs::getifaddrs;

use super::gateways;

/// Where Docker's resolver listens in every container.
const DOCKER_RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// The addresses next to us, and those of our interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Near {
    gateways: Vec<IpAddr>,
    here: Vec<IpAddr>,
}

impl Near {
    /// As the kernel's routes and interfaces have it now. What cannot be read is an error: to know of none is to dial them.
    pub(super) fn read() -> io::Result<Near> {
        let interfaces = getifaddrs()?.filter_map(|interface| interface.address);
        let ip = |address: nix::sys::socket::SockaddrStorage| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        };
        Ok(Near { gateways: gateways::read()?, here: interfaces.filter_map(ip).collect() })
    }

    /// Whether dialling `ip` leads there.
    pub(super) fn holds(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip == DOCKER_RESOLVER || self.gateways.contains(&ip)
    }

    /// Whether dialling `address` may reach a listener of ours on `own`.
    pub(super) fn reaches(&self, address: SocketAddr, own: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let own_ip = own.ip().to_canonical();
        // A listener on every address is reached by any address of this machine. No address at all is loopback.
        let same = ip == own_ip
            || (own_ip.is_unspecified() && self.is_here(ip))
            || (own_ip.is_loopback() && ip.is_unspecified());
        address.port() == own.port() && same
    }

    fn is_here(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || ip.is_unspecified() || self.here.contains(&ip)
    }
}

#[cfg(test)]
impl Near {
    /// As if the kernel had told these.
    pub(super) fn with(gateways: &[&str], here: &[&str]) -> Near {
        let parse = |list: &[&str]| list.iter().filter_map(|text| text.parse().ok()).collect();
        Near { gateways: parse(gateways), here: parse(here) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn gateways_are_near_and_so_is_dockers_resolver() {
        let near = Near::with(&["192.0.2.1", "fe80::1"], &[]);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for held in ["192.0.2.1", "::ffff:192.0.2.1", "fe80::1", "127.0.0.11", "::ffff:127.0.0.11"] {
            assert!(near.holds(ip(held)), "{held}");
        }
        for other in ["192.0.2.2", "192.0.2.0", "127.0.0.1", "0.0.0.0", "::", "fe80::2"] {
            assert!(!near.holds(ip(other)), "{other}");
        }
    }

    #[test]
    fn what_the_kernel_tells_is_read() {
        let near = Near::read().unwrap();
        assert!(near.here.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), "{near:?}");
        assert!(!near.gateways.iter().any(IpAddr::is_unspecified), "{near:?}");
    }

    #[test]
    fn our_own_listener_is_recognised_by_any_of_its_addresses() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let near = Near::with(&["10.0.0.254"], &["10.0.0.1", "2001:db8::1"]);
        for (dialled, own, same) in [
            ("127.0.0.1:9099", "127.0.0.1:9099", true),
            ("127.0.0.2:9099", "0.0.0.0:9099", true),
            ("[::ffff:127.0.0.1]:9099", "127.0.0.1:9099", true),
            ("[::1]:9099", "[::]:9099", true),
            ("0.0.0.0:9099", "127.0.0.1:9099", true),
            ("[::]:9099", "[::1]:9099", true),
            ("127.0.0.1:443", "127.0.0.2:443", false),
            ("127.0.0.1:9100", "127.0.0.1:9099", false),
            ("10.0.0.1:9099", "10.0.0.2:9099", false),
            ("10.0.0.1:9099", "0.0.0.0:9099", true),
            ("[::ffff:10.0.0.1]:9099", "[::]:9099", true),
            ("[2001:db8::1]:9099", "[::]:9099", true),
            ("10.0.0.3:9099", "0.0.0.0:9099", false),
            ("10.0.0.1:9100", "0.0.0.0:9099", false),
        ] {
            assert_eq!(near.reaches(address(dialled), address(own)), same, "{dialled} {own}");
        }
    }
}
