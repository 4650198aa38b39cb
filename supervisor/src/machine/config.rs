//! What the kernel's command line says of this machine. Words that do not begin with `bottlecap.` are the kernel's own.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::address::BottleAddress;

/// Everything that a machine is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// Its interfaces, in order.
    pub(crate) interfaces: Vec<Interface>,
    /// Its resolvers.
    pub(crate) resolvers: Vec<IpAddr>,
    /// Its name.
    pub(crate) hostname: Option<String>,
    /// The block device that keeps the state.
    pub(crate) data: Option<PathBuf>,
    /// Kernel modules beside those that every virtual machine may need.
    pub(crate) modules: Vec<String>,
    /// Where the bottle is.
    pub(crate) bottle: Option<BottleAddress>,
    /// What follows when a daemon failed for good.
    pub(crate) on_failure: OnFailure,
    /// How many seconds after a panic the kernel starts again, where the command line says so.
    pub(crate) panic: bool,
}

/// An interface and its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) address: Address,
}

/// Where an interface has its address from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// From the command line.
    Static { address: Ipv4Addr, prefix: u8, gateway: Option<Ipv4Addr> },
    /// From a server of its network.
    Leased,
}

/// What follows when a daemon failed for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnFailure {
    /// Another try.
    #[default]
    Reboot,
    /// Rest.
    PowerOff,
}

/// What is wrong with a word of the command line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("kernel command line, column {column}: {kind}")]
pub(crate) struct ConfigError {
    column: usize,
    kind: Wrong,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Wrong {
    #[error(
        "unknown word `{0}`, expected bottlecap.ethN, .dns, .hostname, .data, .modules, .bottle or .on_failure"
    )]
    Unknown(String),
    #[error("`{0}` is given twice")]
    Twice(String),
    #[error("`{0}` is neither ADDRESS/PREFIX nor ADDRESS/PREFIX,GATEWAY nor dhcp")]
    Interface(String),
    #[error("only one interface can have `dhcp`, and {0} has it")]
    SecondLease(String),
    #[error("`{0}` is no IP address")]
    Resolver(String),
    #[error("`{0}` is no host name")]
    Hostname(String),
    #[error("`{0}` is no device below /dev")]
    Device(String),
    #[error("`{0}` is no module name")]
    Module(String),
    #[error("`{0}` is neither an address nor a network")]
    Bottle(String),
    #[error("`{0}` is neither `reboot` nor `poweroff`")]
    OnFailure(String),
}

const PREFIX: &str = "bottlecap.";

impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(line: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut seen: Vec<&str> = Vec::new();
        let mut from = 0;
        while let Some(start) = line[from..].find(|c: char| !c.is_ascii_whitespace()) {
            let start = from + start;
            let end =
                line[start..].find(|c: char| c.is_ascii_whitespace()).map_or(line.len(), |at| start + at);
            from = end;
            let word = &line[start..end];
            config.panic |= word.starts_with("panic=");
            let Some(own) = word.strip_prefix(PREFIX) else { continue };
            let wrong = |kind| ConfigError { column: start + 1, kind };
            let (key, value) = own.split_once('=').ok_or_else(|| wrong(Wrong::Unknown(word.to_owned())))?;
            if seen.contains(&key) {
                return Err(wrong(Wrong::Twice(format!("{PREFIX}{key}"))));
            }
            seen.push(key);
            config.take(key, value).map_err(wrong)?;
        }
        Ok(config)
    }
}

impl Config {
    /// The interface that has its address from a server.
    pub(crate) fn leased(&self) -> Option<&str> {
        let found = self.interfaces.iter().find(|interface| interface.address == Address::Leased);
        found.map(|interface| interface.name.as_str())
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), Wrong> {
        let owned = || value.to_owned();
        match key {
            "dns" => {
                let parse = |text: &str| text.parse().map_err(|_| Wrong::Resolver(text.to_owned()));
                self.resolvers = value.split(',').map(parse).collect::<Result<_, _>>()?;
            }
            "hostname" if is_hostname(value) => self.hostname = Some(owned()),
            "hostname" => return Err(Wrong::Hostname(owned())),
            "data" if is_device(value) => self.data = Some(value.into()),
            "data" => return Err(Wrong::Device(owned())),
            "modules" => {
                let parse = |text: &str| {
                    is_module(text).then(|| text.to_owned()).ok_or_else(|| Wrong::Module(text.to_owned()))
                };
                self.modules = value.split(',').map(parse).collect::<Result<_, _>>()?;
            }
            "bottle" => self.bottle = Some(value.parse().map_err(|_| Wrong::Bottle(owned()))?),
            "on_failure" => {
                self.on_failure = match value {
                    "reboot" => OnFailure::Reboot,
                    "poweroff" => OnFailure::PowerOff,
                    _ => return Err(Wrong::OnFailure(owned())),
                };
            }
            name if is_interface(name) => {
                let address = value.parse().map_err(|()| Wrong::Interface(owned()))?;
                // Two servers would quarrel about the router and the resolvers.
                if let (Address::Leased, Some(first)) = (&address, self.leased()) {
                    return Err(Wrong::SecondLease(first.to_owned()));
                }
                self.interfaces.push(Interface { name: name.to_owned(), address });
            }
            _ => return Err(Wrong::Unknown(format!("{PREFIX}{key}"))),
        }
        Ok(())
    }
}

impl FromStr for Address {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "dhcp" {
            return Ok(Self::Leased);
        }
        let (own, gateway) = match text.split_once(',') {
            Some((own, gateway)) => (own, Some(gateway.parse().map_err(drop)?)),
            None => (text, None),
        };
        let (address, prefix) = own.split_once('/').ok_or(())?;
        let (address, prefix): (Ipv4Addr, u8) =
            (address.parse().map_err(drop)?, prefix.parse().map_err(drop)?);
        let refused = address.is_unspecified() || address.is_loopback() || address.is_multicast();
        if refused || !(1..=32).contains(&prefix) {
            return Err(());
        }
        Ok(Self::Static { address, prefix, gateway })
    }
}

fn is_interface(name: &str) -> bool {
    name.strip_prefix("eth").is_some_and(|digits| matches!(digits.as_bytes(), [b'0'..=b'9']))
}

fn is_hostname(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_device(path: &str) -> bool {
    path.strip_prefix("/dev/").is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}

fn is_module(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    !name.is_empty() && name.bytes().all(letter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal(line: &str) -> String {
        line.parse::<Config>().unwrap_err().to_string()
    }

    #[test]
    fn a_whole_command_line() {
        let line = "console=ttyS0 panic=5 bottlecap.eth0=10.0.2.15/24,10.0.2.2 bottlecap.eth1=10.9.0.1/16 bottlecap.dns=10.0.2.3 \
                    bottlecap.hostname=bottle-1 bottlecap.data=/dev/vda bottlecap.modules=vsock bottlecap.bottle=10.0.2.0/24 \
                    bottlecap.on_failure=poweroff quiet\n";
        let expected = Config {
            interfaces: vec![
                Interface {
                    name: "eth0".into(),
                    address: Address::Static {
                        address: Ipv4Addr::new(10, 0, 2, 15),
                        prefix: 24,
                        gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
                    },
                },
                Interface {
                    name: "eth1".into(),
                    address: Address::Static {
                        address: Ipv4Addr::new(10, 9, 0, 1),
                        prefix: 16,
                        gateway: None,
                    },
                },
            ],
            resolvers: vec!["10.0.2.3".parse().unwrap()],
            hostname: Some("bottle-1".into()),
            data: Some("/dev/vda".into()),
            modules: vec!["vsock".into()],
            bottle: Some("10.0.2.0/24".parse().unwrap()),
            on_failure: OnFailure::PowerOff,
            panic: true,
        };
        assert_eq!(line.parse(), Ok(expected));
    }

    #[test]
    fn an_interface_may_have_its_address_from_a_server() {
        let config: Config = "bottlecap.eth1=10.0.0.1/8 bottlecap.eth0=dhcp".parse().unwrap();
        assert_eq!(config.leased(), Some("eth0"));
    }

    #[test]
    fn the_kernels_own_words_are_left_alone() {
        assert_eq!("root=/dev/sda1 ro virtio_net.napi_tx=1".parse(), Ok(Config::default()));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_column() {
        assert_eq!(
            refusal("quiet bottlecap.gateway=10.0.2.2"),
            "kernel command line, column 7: unknown word `bottlecap.gateway`, expected bottlecap.ethN, .dns, .hostname, .data, \
             .modules, .bottle or .on_failure"
        );
        assert_eq!(
            refusal("bottlecap.eth0=10.0.2.15"),
            "kernel command line, column 1: `10.0.2.15` is neither ADDRESS/PREFIX nor ADDRESS/PREFIX,GATEWAY nor dhcp"
        );
        assert_eq!(
            refusal("bottlecap.eth1=dhcp bottlecap.eth0=dhcp"),
            "kernel command line, column 21: only one interface can have `dhcp`, and eth1 has it"
        );
        for line in [
            "bottlecap.eth0",
            "bottlecap.eth0=DHCP",
            "bottlecap.eth0=dhcp,10.0.0.1",
            "bottlecap.eth0=10.0.0.1/8 bottlecap.eth0=10.0.0.1/8",
            "bottlecap.eth10=10.0.0.1/8",
            "bottlecap.eth0=127.0.0.1/8",
            "bottlecap.eth0=10.0.0.1/0",
            "bottlecap.eth0=10.0.0.1/33",
            "bottlecap.eth0=10.0.0.1/24,",
            "bottlecap.dns=",
            "bottlecap.hostname=a.b",
            "bottlecap.data=/dev/../etc/passwd",
            "bottlecap.data=vda",
            "bottlecap.modules=../x",
            "bottlecap.modules=",
            "bottlecap.bottle=0.0.0.0",
            "bottlecap.on_failure=hang",
        ] {
            assert!(line.parse::<Config>().is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in "[ -~\\t]{0,120}|(bottlecap\\.[a-z0-9]{0,8}=[ -~]{0,20} ?){0,5}") {
            if let Err(error) = line.parse::<Config>() {
                prop_assert!(line[error.column - 1..].starts_with(PREFIX));
            }
        }
    }
}
