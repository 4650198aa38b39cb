//! Text of a case with names in it: `{host}` and the like, and `{*1000:text}` for text a thousand times.

use std::net::SocketAddr;

/// What the names in a case stand for.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// The origin as the cases call it.
    pub(crate) host: String,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// What stands before the path in a request line: nothing, or `http://HOST:PORT`.
    pub(crate) absolute: bool,
}

impl Names {
    /// `HOST:PORT` of the origin.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.address.port())
    }

    fn value(&self, name: &str) -> Option<String> {
        let ip = match self.address.ip() {
            std::net::IpAddr::V4(ip) => ip,
            std::net::IpAddr::V6(_) => std::net::Ipv4Addr::LOCALHOST,
        };
        let [a, b, c, d] = ip.octets();
        Some(match name {
            "host" => self.host.clone(),
            "port" => self.address.port().to_string(),
            "authority" => self.authority(),
            "to" if self.absolute => format!("http://{}", self.authority()),
            "to" => String::new(),
            "ip" => ip.to_string(),
            "decimal" => ip.to_bits().to_string(),
            "hex" => format!("{:#x}", ip.to_bits()),
            "octal" => format!("0{:o}", ip.to_bits()),
            "dotted-hex" => format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
            "dotted-octal" => format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
            "short" => format!("{a}.{}", u32::from_be_bytes([0, b, c, d])),
            "three" => format!("{a}.{b}.{}", u32::from_be_bytes([0, 0, c, d])),
            "padded" => format!("{a:03}.{b:03}.{c:03}.{d:03}"),
            "mapped" => format!("[::ffff:{a}.{b}.{c}.{d}]"),
            "mapped-hex" => format!("[::ffff:{a:02x}{b:02x}:{c:02x}{d:02x}]"),
            "compatible" => format!("[::{a}.{b}.{c}.{d}]"),
            "nat64" => format!("[64:ff9b::{a:02x}{b:02x}:{c:02x}{d:02x}]"),
            "nat64-local" => format!("[64:ff9b:1::{a:02x}{b:02x}:{c:02x}{d:02x}]"),
            "six-to-four" => format!("[2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1]"),
            _ => return None,
        })
    }

    /// The bytes of a case's text. Each character below U+0100 is one byte, so that JSON can carry any octet.
    ///
    /// A brace that opens nothing known stands for itself.
    pub(crate) fn fill(&self, text: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            octets(&rest[..start], &mut out);
            let inner = rest[start + 1..].find('}').map(|end| &rest[start + 1..start + 1 + end]);
            match inner.and_then(|inner| self.expand(inner).map(|value| (inner, value))) {
                Some((inner, value)) => {
                    out.extend(value);
                    rest = &rest[start + inner.len() + 2..];
                }
                None => {
                    out.push(b'{');
                    rest = &rest[start + 1..];
                }
            }
        }
        octets(rest, &mut out);
        out
    }

    fn expand(&self, inner: &str) -> Option<Vec<u8>> {
        if let Some((times, what)) = inner.strip_prefix('*').and_then(|inner| inner.split_once(':')) {
            let mut once = Vec::new();
            octets(what, &mut once);
            return Some(once.repeat(times.parse().ok()?));
        }
        self.value(inner).map(String::into_bytes)
    }
}

fn octets(text: &str, out: &mut Vec<u8>) {
    out.extend(text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names { host: "localhost".into(), address: ([127, 0, 0, 1], 81).into(), absolute: true }
    }

    #[test]
    fn names_and_repetitions_are_filled_in_and_other_braces_stay() {
        let text = "{to}/{decimal} {mapped-hex} {*3:ab} {\"a\":1} {";
        let want = "http://localhost:81/2130706433 [::ffff:7f00:0001] ababab {\"a\":1} {";
        assert_eq!(String::from_utf8(names().fill(text)).unwrap(), want);
    }

    #[test]
    fn characters_above_ascii_are_single_bytes() {
        assert_eq!(names().fill("\u{16}\u{3}\u{ff}a{*2:\u{be}}"), [0x16, 3, 0xff, b'a', 0xbe, 0xbe]);
    }

    #[test]
    fn every_spelling_of_the_address_is_another() {
        let spellings =
            ["decimal", "hex", "octal", "dotted-hex", "dotted-octal", "short", "three", "padded", "mapped"];
        let values: std::collections::BTreeSet<_> =
            spellings.iter().map(|name| names().value(name).unwrap()).collect();
        assert_eq!(values.len(), spellings.len(), "{values:?}");
    }
}
