//! The one spelling of a host name that is matched, resolved, dialled and compared with SNI.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HOST_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// A host in canonical form: a lower-case DNS name without trailing dot, or an IP literal.
///
/// Two hosts are equal exactly when the network would reach them by the same name. Whatever another
/// parser could read differently (octal addresses, non-ASCII dots, escapes, zone ids) is refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host {
    text: String,
    ip: Option<IpAddr>,
}

/// Why a text is not a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Nothing there.
    #[error("host is empty")]
    Empty,
    /// Longer than DNS allows.
    #[error("host is longer than {HOST_MAX} bytes")]
    TooLong,
    /// `a..b` or a leading dot.
    #[error("host has an empty label")]
    EmptyLabel,
    /// A label longer than DNS allows.
    #[error("host has a label longer than {LABEL_MAX} bytes")]
    LabelTooLong,
    /// Not a letter, digit, hyphen or underscore.
    #[error("host has a character that is not a letter, digit, hyphen, underscore or dot")]
    Character,
    /// An internationalised name not in its `xn--` form.
    #[error("host is not ASCII: write an internationalised name in its `xn--` form")]
    NotAscii,
    /// A label that starts or ends with a hyphen.
    #[error("host has a label that starts or ends with a hyphen")]
    Hyphen,
    /// Could be read as an IPv4 address in an odd notation.
    #[error("host could be read as an IPv4 address: write it as four decimal numbers")]
    AmbiguousIpv4,
    /// Not an IPv6 address.
    #[error("host is not a valid IPv6 address")]
    Ipv6,
    /// `fe80::1%eth0`.
    #[error("host is an IPv6 address with a zone id")]
    ZoneId,
}

impl Host {
    /// The host in canonical form. IPv6 may be bare or in brackets; exactly one trailing dot is dropped.
    pub fn parse(text: &str) -> Result<Host, HostError> {
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if !text.is_ascii() {
            return Err(HostError::NotAscii);
        }
        if text.contains(':') || text.starts_with('[') {
            return parse_ipv6(text);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(HostError::EmptyLabel);
        }
        if name.len() > HOST_MAX {
            return Err(HostError::TooLong);
        }
        for label in name.split('.') {
            check_label(label)?;
        }
        let name = name.to_ascii_lowercase();
        let ip = parse_ipv4(&name)?.map(IpAddr::V4);
        if ip.is_some() && text.ends_with('.') {
            return Err(HostError::AmbiguousIpv4);
        }
        Ok(Host { text: name, ip })
    }

    /// The canonical text; IPv6 without brackets.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The address when the host is an IP literal.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.ip
    }
}

/// Host as it stands in a URL or a Host header: IPv6 in brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(IpAddr::V6(_)) => write!(f, "[{}]", self.text),
            Some(IpAddr::V4(_)) | None => f.write_str(&self.text),
        }
    }
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Host {
        Host { text: ip.to_string(), ip: Some(ip) }
    }
}

impl std::str::FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Host, HostError> {
        Host::parse(text)
    }
}

impl serde::Serialize for Host {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> serde::Deserialize<'de> for Host {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Host, D::Error> {
        let text = String::deserialize(deserializer)?;
        Host::parse(&text).map_err(serde::de::Error::custom)
    }
}

pub(crate) fn check_label(label: &str) -> Result<(), HostError> {
    if label.is_empty() {
        return Err(HostError::EmptyLabel);
    }
    if label.len() > LABEL_MAX {
        return Err(HostError::LabelTooLong);
    }
    if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        return Err(HostError::Character);
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(HostError::Hyphen);
    }
    Ok(())
}

/// A name whose last label is numeric is an address to every resolver that follows inet_aton(3) or the
/// WHATWG URL standard; only four plain decimal numbers mean the same to all of them.
fn parse_ipv4(name: &str) -> Result<Option<Ipv4Addr>, HostError> {
    let last = name.rsplit('.').next().unwrap_or(name);
    let hexadecimal =
        last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let decimal = last.bytes().all(|byte| byte.is_ascii_digit());
    if !hexadecimal && !decimal {
        return Ok(None);
    }
    // Ipv4Addr's parser takes four decimal numbers without leading zeros, nothing else.
    name.parse().map(Some).map_err(|_| HostError::AmbiguousIpv4)
}

fn parse_ipv6(text: &str) -> Result<Host, HostError> {
    let inner = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or(HostError::Ipv6)?,
        None => text,
    };
    if inner.contains('%') {
        return Err(HostError::ZoneId);
    }
    let ip: Ipv6Addr = inner.parse().map_err(|_| HostError::Ipv6)?;
    Ok(Host::from(IpAddr::V6(ip)))
}
