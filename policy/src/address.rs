//! The guard on resolved addresses: what an allowed *name* may not lead to.
//!
//! Every address that carries an IPv4 address inside (v4-mapped, v4-compatible, NAT64, 6to4, Teredo, ISATAP) is
//! judged by that address, and by what it is itself. Documentation ranges are left alone: they lead to nothing private.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An address, a network, or either with a port, that a route exempts from the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrivateAllow {
    net: IpNet,
    port: Option<u16>,
}

/// Why a text is not an exemption.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an address: write `10.1.2.3`, `10.0.0.0/8`, `10.1.2.3:8443`, `fd00::1` or `[fd00::/64]:8443`"
)]
pub struct PrivateAllowError(String);

/// The refusal of an address: what it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{ip} is {class}")]
pub struct AddressDenial {
    /// The address that was to be dialled.
    pub ip: IpAddr,
    /// What it, or the IPv4 address inside it, belongs to.
    pub class: AddressClass,
}

/// The kinds of address that are not the public network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressClass {
    /// 127.0.0.0/8, `::1`.
    Loopback,
    /// RFC 1918.
    Private,
    /// 169.254.0.0/16, fe80::/10.
    LinkLocal,
    /// The metadata services of cloud providers.
    Metadata,
    /// 100.64.0.0/10.
    SharedCarrier,
    /// 0.0.0.0/8, `::`.
    Unspecified,
    /// 255.255.255.255.
    Broadcast,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// 198.18.0.0/15, 2001:2::/48.
    Benchmark,
    /// Ranges that no public service lives in.
    Reserved,
    /// fc00::/7.
    UniqueLocal,
    /// fec0::/10.
    SiteLocal,
}

impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AddressClass::Loopback => "a loopback address",
            AddressClass::Private => "a private address",
            AddressClass::LinkLocal => "a link-local address",
            AddressClass::Metadata => "a cloud metadata address",
            AddressClass::SharedCarrier => "a carrier-grade NAT address",
            AddressClass::Unspecified => "an unspecified address",
            AddressClass::Broadcast => "the broadcast address",
            AddressClass::Multicast => "a multicast address",
            AddressClass::Benchmark => "a benchmarking address",
            AddressClass::Reserved => "a reserved address",
            AddressClass::UniqueLocal => "a unique local address",
            AddressClass::SiteLocal => "a site-local address",
        })
    }
}

/// May `ip` be dialled on `port`? Dial exactly the address that was checked.
pub fn check(ip: IpAddr, port: u16, allow_private: &[PrivateAllow]) -> Result<(), AddressDenial> {
    let Some(class) = classify(ip) else { return Ok(()) };
    let exempt = |exemption: &PrivateAllow| exemption.covers(ip, port);
    if allow_private.iter().any(exempt) { Ok(()) } else { Err(AddressDenial { ip, class }) }
}

/// What the address belongs to; `None` for the public network.
#[must_use]
pub fn classify(ip: IpAddr) -> Option<AddressClass> {
    match ip {
        IpAddr::V4(ip) => classify_v4(ip),
        IpAddr::V6(ip) => classify_v6(ip),
    }
}

fn classify_v4(ip: Ipv4Addr) -> Option<AddressClass> {
    let class = match ip.octets() {
        [0, ..] => AddressClass::Unspecified,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => AddressClass::Private,
        [100, 100, 100, 200] => AddressClass::Metadata,
        [100, 64..=127, ..] => AddressClass::SharedCarrier,
        [127, ..] => AddressClass::Loopback,
        [169, 254, 169, 254 | 253] | [169, 254, 170, 2 | 23] | [168, 63, 129, 16] => AddressClass::Metadata,
        [169, 254, ..] => AddressClass::LinkLocal,
        // IETF protocol assignments; the 6to4 relay anycast range, which tunnels anywhere.
        [192, 0, 0, _] | [192, 88, 99, _] => AddressClass::Reserved,
        [198, 18 | 19, ..] => AddressClass::Benchmark,
        [224..=239, ..] => AddressClass::Multicast,
        [255, 255, 255, 255] => AddressClass::Broadcast,
        [240..=255, ..] => AddressClass::Reserved,
        _ => return None,
    };
    Some(class)
}

fn classify_v6(ip: Ipv6Addr) -> Option<AddressClass> {
    embedded_v4(ip).into_iter().find_map(classify_v4).or_else(|| classify_prefix(ip))
}

/// By what the address is itself, whatever it carries inside.
fn classify_prefix(ip: Ipv6Addr) -> Option<AddressClass> {
    let class = match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => AddressClass::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => AddressClass::Loopback,
        // They lead where the IPv4 address leads, and nowhere else.
        [0, 0, 0, 0, 0, 0 | 0xffff, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0x0064, 0xff9b, 0, 0, 0, 0, ..]
        | [0x0064, 0xff9b, 1, ..] => return None,
        [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254] | [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254] => {
            AddressClass::Metadata
        }
        [0xfc00..=0xfdff, ..] => AddressClass::UniqueLocal,
        [0xfe80..=0xfebf, ..] => AddressClass::LinkLocal,
        [0xfec0..=0xfeff, ..] => AddressClass::SiteLocal,
        [0xff00..=0xffff, ..] => AddressClass::Multicast,
        [0x2001, 2, 0, ..] => AddressClass::Benchmark,
        [0x2000..=0x3fff, ..] => return None,
        // Only 2000::/3 is global unicast.
        _ => AddressClass::Reserved,
    };
    Some(class)
}

/// The IPv4 addresses that `ip` carries inside.
#[must_use]
pub fn embedded(ip: IpAddr) -> Vec<IpAddr> {
    match ip {
        IpAddr::V4(_) => Vec::new(),
        IpAddr::V6(ip) => embedded_v4(ip).into_iter().map(IpAddr::V4).collect(),
    }
}

/// Every IPv4 address that a translator on the way may read out of this one.
fn embedded_v4(ip: Ipv6Addr) -> Vec<Ipv4Addr> {
    let join = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    let mut readings = match ip.segments() {
        // `::` and `::1` are themselves, not IPv4-compatible addresses.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Vec::new(),
        // IPv4-compatible, IPv4-mapped, IPv4-translated, NAT64.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x0064, 0xff9b, 0, 0, 0, 0, high, low] => vec![join(high, low)],
        [0x0064, 0xff9b, 1, ..] => local_nat64_readings(ip),
        // 6to4.
        [0x2002, high, low, ..] => vec![join(high, low)],
        // Teredo: the server, and the client with its bits flipped.
        [0x2001, 0, server_high, server_low, _, _, high, low] => {
            vec![join(server_high, server_low), join(!high, !low)]
        }
        _ => Vec::new(),
    };
    // ISATAP under any prefix, those above among them.
    if let [_, _, _, _, 0 | 0x0200, 0x5efe, high, low] = ip.segments() {
        readings.push(join(high, low));
    }
    readings
}

/// The length of the prefix under 64:ff9b:1::/48 is the operator's choice, and with it the place of the
/// IPv4 address (RFC 6052): each place is a reading. A place that holds zeros is not the one in use.
fn local_nat64_readings(ip: Ipv6Addr) -> Vec<Ipv4Addr> {
    let octets = ip.octets();
    let places: [[usize; 4]; 4] = [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], [12, 13, 14, 15]];
    let readings = places.map(|place| Ipv4Addr::from(place.map(|index| octets[index])));
    let used: Vec<Ipv4Addr> = readings.into_iter().filter(|ip| ip.octets()[0] != 0).collect();
    if used.is_empty() { vec![Ipv4Addr::UNSPECIFIED] } else { used }
}

impl PrivateAllow {
    /// `10.1.2.3`, `10.0.0.0/8`, `fd00::/64`, each with `:port`; IPv6 with a port in brackets.
    pub fn parse(text: &str) -> Result<PrivateAllow, PrivateAllowError> {
        parse_allow(text).ok_or_else(|| PrivateAllowError(text.to_owned()))
    }

    /// Is this address on this port exempt? An IPv4-mapped address is the IPv4 address.
    #[must_use]
    pub fn covers(&self, ip: IpAddr, port: u16) -> bool {
        self.port.is_none_or(|own| own == port) && self.net.contains(&ip.to_canonical())
    }
}

fn parse_allow(text: &str) -> Option<PrivateAllow> {
    let (net, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (net, after) = rest.split_once(']')?;
            if !net.contains(':') {
                return None;
            }
            let port = if after.is_empty() { None } else { Some(parse_port(after.strip_prefix(':')?)?) };
            (net, port)
        }
        None => match text.split_once(':') {
            Some((net, port)) if !port.contains(':') => (net, Some(parse_port(port)?)),
            Some(_) | None => (text, None),
        },
    };
    let net = match net.parse::<IpAddr>() {
        Ok(ip) => IpNet::from(ip),
        Err(_) => net.parse::<IpNet>().ok()?,
    };
    Some(PrivateAllow { net: net.trunc(), port })
}

fn parse_port(text: &str) -> Option<u16> {
    let port: u16 =
        if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok()? } else { return None };
    (port != 0).then_some(port)
}

impl fmt::Display for PrivateAllow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.net, self.port) {
            (net, None) => write!(f, "{net}"),
            (IpNet::V4(net), Some(port)) => write!(f, "{net}:{port}"),
            (IpNet::V6(net), Some(port)) => write!(f, "[{net}]:{port}"),
        }
    }
}
