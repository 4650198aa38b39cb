//! Which address a bottle reaches us on: a decision over the flags and the local addresses, without I/O.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use crate::daemon::{SocketName, UnknownDaemon};

/// `NAME=ADDR`: where one socket of a daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) name: SocketName,
    pub(crate) address: SocketAddr,
}

/// An address, or a network that one of our own addresses lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BottleAddress {
    /// This very address.
    Exact(IpAddr),
    /// The one local address inside this network.
    Within(Network),
}

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    base: IpAddr,
    prefix: u8,
}

/// Who we are, as far as the choice of an address goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// PID 1 of a container or a machine.
    Init,
    /// A process among others.
    Ordinary,
}

/// Why an address is refused or cannot be chosen.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum AddressError {
    #[error("`{0}` is not NAME=ADDR, such as egress=10.0.0.2:9099")]
    NotAListen(String),
    #[error(transparent)]
    Daemon(#[from] UnknownDaemon),
    #[error("`{0}` is neither an IP address nor an IP address with a port")]
    NotAnAddress(String),
    #[error("`{0}` is neither an IP address nor a network such as 10.0.0.0/24")]
    NotANetwork(String),
    #[error("refusing to listen on {0}: every network would reach a proxy that injects credentials")]
    Wildcard(IpAddr),
    #[error("no local address lies in {0}; the local addresses are {1}")]
    NoneInside(Network, Addresses),
    #[error("several local addresses could face the bottle: {0}")]
    Several(Addresses),
}

impl AddressError {
    /// What the reader can do, where that is not in the message.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Several(_) | Self::NoneInside(..) => {
                Some("say which with --bottle-addr IP|CIDR, or per daemon with --listen NAME=ADDR")
            }
            Self::Wildcard(_) => Some("name the bottle-facing address"),
            Self::NotAListen(_) | Self::Daemon(_) | Self::NotAnAddress(_) | Self::NotANetwork(_) => None,
        }
    }
}

/// A list of addresses for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Addresses(Vec<IpAddr>);

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, address) in self.0.iter().enumerate() {
            write!(f, "{}{address}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl FromStr for Listen {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (name, address) =
            text.split_once('=').ok_or_else(|| AddressError::NotAListen(text.to_owned()))?;
        let name = SocketName::parse(name)?;
        let address = address
            .parse()
            .or_else(|_| address.parse().map(|ip| SocketAddr::new(ip, name.port())))
            .map_err(|_| AddressError::NotAnAddress(address.to_owned()))?;
        refuse_wildcard(address.ip())?;
        Ok(Self { name, address })
    }
}

impl FromStr for BottleAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::NotANetwork(text.to_owned());
        let Some((base, prefix)) = text.split_once('/') else {
            let address = text.parse().map_err(|_| wrong())?;
            refuse_wildcard(address)?;
            return Ok(Self::Exact(address));
        };
        let base: IpAddr = base.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let longest = if base.is_ipv4() { 32 } else { 128 };
        if prefix > longest {
            return Err(wrong());
        }
        Ok(Self::Within(Network { base, prefix }))
    }
}

impl Network {
    fn contains(&self, address: IpAddr) -> bool {
        let differing = match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(other)) => (base.to_bits() ^ other.to_bits()).leading_zeros(),
            (IpAddr::V6(base), IpAddr::V6(other)) => (base.to_bits() ^ other.to_bits()).leading_zeros(),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return false,
        };
        differing >= u32::from(self.prefix)
    }
}

impl fmt::Display for BottleAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(address) => address.fmt(f),
            Self::Within(network) => network.fmt(f),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// The bottle-facing address: what the flag says, else for PID 1 the one address that is not loopback, else loopback.
pub(crate) fn choose(
    asked: Option<BottleAddress>,
    standing: Standing,
    local: &[IpAddr],
) -> Result<IpAddr, AddressError> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    match (asked, standing) {
        (Some(BottleAddress::Exact(address)), _) => Ok(address),
        (Some(BottleAddress::Within(network)), _) => {
            let inside = local.iter().copied().filter(|address| network.contains(*address));
            one(inside)?.ok_or_else(|| AddressError::NoneInside(network, Addresses(local.to_vec())))
        }
        (None, Standing::Init) => {
            let outward =
                local.iter().copied().filter(|address| !address.is_loopback() && !is_link_local_v6(*address));
            Ok(one(outward)?.unwrap_or(loopback))
        }
        (None, Standing::Ordinary) => Ok(loopback),
    }
}

fn one(addresses: impl Iterator<Item = IpAddr>) -> Result<Option<IpAddr>, AddressError> {
    let found: Vec<IpAddr> = addresses.collect();
    match found.as_slice() {
        [] => Ok(None),
        [address] => Ok(Some(*address)),
        [_, _, ..] => Err(AddressError::Several(Addresses(found))),
    }
}

fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn refuse_wildcard(address: IpAddr) -> Result<(), AddressError> {
    if address.to_canonical().is_unspecified() {
        return Err(AddressError::Wildcard(address));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn chosen(asked: Option<&str>, standing: Standing, local: &[&str]) -> Result<String, String> {
        let asked = asked.map(|text| text.parse().unwrap());
        choose(asked, standing, &ips(local)).map(|ip| ip.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_ordinary_process_listens_on_loopback() {
        assert_eq!(
            chosen(None, Standing::Ordinary, &["127.0.0.1", "10.0.0.2", "10.1.0.2"]),
            Ok("127.0.0.1".into())
        );
    }

    #[test]
    fn pid_1_takes_the_one_outward_address() {
        let local = ["127.0.0.1", "::1", "10.0.0.2", "fe80::1"];
        assert_eq!(chosen(None, Standing::Init, &local), Ok("10.0.0.2".into()));
        assert_eq!(chosen(None, Standing::Init, &["127.0.0.1"]), Ok("127.0.0.1".into()));
    }

    #[test]
    fn pid_1_with_two_networks_refuses_to_guess() {
        assert_eq!(
            chosen(None, Standing::Init, &["127.0.0.1", "10.0.0.2", "172.17.0.2"]),
            Err("several local addresses could face the bottle: 10.0.0.2, 172.17.0.2".into())
        );
    }

    #[test]
    fn a_network_picks_our_address_inside_it() {
        let local = ["127.0.0.1", "10.0.0.2", "172.17.0.2", "fd00::2"];
        assert_eq!(chosen(Some("172.17.0.0/16"), Standing::Ordinary, &local), Ok("172.17.0.2".into()));
        assert_eq!(chosen(Some("fd00::/8"), Standing::Init, &local), Ok("fd00::2".into()));
        assert_eq!(
            chosen(Some("192.168.0.0/16"), Standing::Init, &local),
            Err("no local address lies in 192.168.0.0/16; the local addresses are 127.0.0.1, 10.0.0.2, 172.17.0.2, fd00::2".into())
        );
        assert_eq!(
            chosen(Some("0.0.0.0/0"), Standing::Init, &local),
            Err("several local addresses could face the bottle: 127.0.0.1, 10.0.0.2, 172.17.0.2".into())
        );
    }

    #[test]
    fn wildcards_are_refused_in_every_spelling() {
        for text in ["egress=0.0.0.0:9099", "egress=[::]:9099", "egress=0.0.0.0", "egress=[::ffff:0.0.0.0]:1"]
        {
            assert!(matches!(text.parse::<Listen>(), Err(AddressError::Wildcard(_))), "{text}");
        }
        assert!(matches!("::".parse::<BottleAddress>(), Err(AddressError::Wildcard(_))));
    }

    #[test]
    fn a_listen_without_a_port_takes_the_port_of_the_daemon() {
        let listen: Listen = "git-gate=fd00::2".parse().unwrap();
        assert_eq!(
            listen,
            Listen {
                name: SocketName::parse("git-gate").unwrap(),
                address: "[fd00::2]:9418".parse().unwrap()
            }
        );
        let listen: Listen = "egress=10.0.0.2:0".parse().unwrap();
        assert_eq!(listen.address, "10.0.0.2:0".parse().unwrap());
    }

    #[test]
    fn nonsense_says_what_is_expected() {
        let message = |text: &str| text.parse::<Listen>().unwrap_err().to_string();
        assert_eq!(message("9099"), "`9099` is not NAME=ADDR, such as egress=10.0.0.2:9099");
        assert_eq!(
            message("dns=1.2.3.4"),
            "unknown daemon `dns`, expected one of egress, git-gate, supervise"
        );
        assert_eq!(
            message("egress=proxy:1"),
            "`proxy:1` is neither an IP address nor an IP address with a port"
        );
        assert!("10.0.0.0/33".parse::<BottleAddress>().is_err());
    }
}
