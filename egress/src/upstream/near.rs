//! What lies next to us and is never dialled, whatever a route exempts: the gateways of our interfaces, where the host and
//! its services answer, and the resolver that Docker puts into a container.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where Docker's resolver listens in every container.
const DOCKER_RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The kernel's mark of a route through another machine.
const RTF_GATEWAY: u32 = 0x2;

/// The addresses next to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Near {
    gateways: Vec<IpAddr>,
}

impl Near {
    /// As the kernel's routes have it now.
    pub(super) fn read() -> Near {
        // A kernel without IPv6 has no such file, and no such routes.
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Near::parse(&read("/proc/net/route"), &read("/proc/net/ipv6_route"))
    }

    fn parse(v4: &str, v6: &str) -> Near {
        let v4 = v4.lines().skip(1).filter_map(gateway_v4).map(IpAddr::V4);
        let v6 = v6.lines().filter_map(gateway_v6).map(IpAddr::V6);
        let mut gateways: Vec<IpAddr> = v4.chain(v6).filter(|gateway| !gateway.is_unspecified()).collect();
        gateways.sort_unstable();
        gateways.dedup();
        Near { gateways }
    }

    /// Whether dialling `ip` leads there.
    pub(super) fn holds(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip == DOCKER_RESOLVER || self.gateways.contains(&ip)
    }
}

/// `Iface Destination Gateway Flags …`, numbers as they lie in memory.
fn gateway_v4(line: &str) -> Option<Ipv4Addr> {
    let mut fields = line.split_whitespace().skip(2);
    let gateway = u32::from_str_radix(fields.next()?, 16).ok()?;
    is_gateway(fields.next()?).then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
}

/// `destination length source length gateway metric references uses flags device`.
fn gateway_v6(line: &str) -> Option<Ipv6Addr> {
    let mut fields = line.split_whitespace().skip(4);
    let gateway = u128::from_str_radix(fields.next()?, 16).ok()?;
    is_gateway(fields.nth(3)?).then(|| Ipv6Addr::from(gateway))
}

fn is_gateway(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & RTF_GATEWAY != 0)
}

#[cfg(test)]
impl Near {
    /// As if the interfaces had these.
    pub(super) fn with(gateways: &[IpAddr]) -> Near {
        Near { gateways: gateways.to_vec() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const V4: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n\
        docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\n\
        eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n";
    const V6: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0\n\
        fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n";

    #[test]
    fn gateways_are_those_of_the_kernels_routes_and_docker_has_a_resolver() {
        let near = Near::parse(V4, V6);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        #[cfg(target_endian = "little")]
        assert!(near.holds(ip("192.0.2.1")) && near.holds(ip("::ffff:192.0.2.1")));
        assert!(
            near.holds(ip("fe80::1")) && near.holds(ip("127.0.0.11")) && near.holds(ip("::ffff:127.0.0.11"))
        );
        for other in ["192.0.2.2", "192.0.2.0", "127.0.0.1", "0.0.0.0", "::", "fe80::2"] {
            assert!(!near.holds(ip(other)), "{other}");
        }
        assert!(
            Near::parse("", "").holds(DOCKER_RESOLVER.into())
                && Near::parse("x\ny z\n", "1 2").gateways.is_empty()
        );
    }
}
