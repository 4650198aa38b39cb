//! Secrets on their way from whoever started us to the one daemon that may hold them.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read};

use serde::Deserialize;

use crate::daemon::{Daemon, UnknownDaemon};
use crate::sys;

/// Bytes read at once.
const READ_PIECE: usize = 64 * 1024;

/// Bytes that are never shown and are wiped when dropped.
pub(crate) struct Secret(Vec<u8>);

impl Secret {
    /// Takes the bytes over.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// An empty one that never moves until it has this many bytes.
    pub(crate) fn with_capacity(limit: usize) -> Self {
        Self(Vec::with_capacity(limit))
    }

    /// Reads once into the room that is left; 0 at the end of the input, or when it is full.
    pub(crate) fn read_more(&mut self, input: &mut impl Read) -> io::Result<usize> {
        let length = self.0.len();
        let room = (self.0.capacity() - length).min(READ_PIECE);
        self.0.resize(length + room, 0);
        let read = input.read(&mut self.0[length..]);
        self.0.truncate(length + read.as_ref().copied().unwrap_or(0));
        read
    }

    /// Whether there is no room left.
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() == self.0.capacity()
    }

    /// The bytes themselves, for the memory file of the daemon.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        sys::wipe(&mut self.0);
    }
}

/// A secret, its name, and the daemon it is for.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) daemon: Daemon,
    pub(crate) name: String,
    pub(crate) value: Secret,
}

/// Why a list of secrets is refused. The text never contains a value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "secrets, line {line}: expected {{\"daemon\":\"egress\",\"name\":\"NAME\",\"value\":\"<base64>\"}}"
    )]
    Line { line: usize },
    #[error("secrets, line {line}")]
    Daemon {
        line: usize,
        #[source]
        source: UnknownDaemon,
    },
    #[error("secrets, line {line}: a name has 1 to 64 letters, digits, `_`, `-` or `.`")]
    Name { line: usize },
    #[error("secrets, line {line}: the value of {name} is not base64")]
    Value { line: usize, name: String },
    #[error("secrets, line {line}: {daemon} already has a secret named {name}")]
    Duplicate { line: usize, daemon: Daemon, name: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLine<'a> {
    daemon: &'a str,
    name: &'a str,
    #[serde(borrow)]
    value: Cow<'a, str>,
}

/// Longest name of a secret.
const NAME_LIMIT: usize = 64;

/// Whether the name can travel in a colon-separated list of descriptors and be a file name.
pub(crate) fn is_name(name: &str) -> bool {
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && name.len() <= NAME_LIMIT && name.bytes().all(letters) && !name.starts_with('.')
}

/// The secrets in JSON lines.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<Delivery>, Error> {
    let mut deliveries: Vec<Delivery> = Vec::new();
    for (line, bytes) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let raw: RawLine<'_> = serde_json::from_slice(bytes).map_err(|_| Error::Line { line })?;
        let daemon = Daemon::parse(raw.daemon).map_err(|source| Error::Daemon { line, source })?;
        let name = raw.name.to_owned();
        if !is_name(&name) {
            return Err(Error::Name { line });
        }
        let value = decode_base64(raw.value.as_bytes());
        if let Cow::Owned(text) = raw.value {
            drop(Secret::new(text.into_bytes()));
        }
        let Some(value) = value else { return Err(Error::Value { line, name }) };
        if deliveries.iter().any(|other| other.daemon == daemon && other.name == name) {
            return Err(Error::Duplicate { line, daemon, name });
        }
        deliveries.push(Delivery { daemon, name, value });
    }
    Ok(deliveries)
}

/// Standard base64 with its padding, nothing else.
fn decode_base64(text: &[u8]) -> Option<Secret> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|byte| **byte == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut out = Secret::new(Vec::with_capacity(text.len() / 4 * 3));
    let digits = &text[..text.len() - padding];
    for chunk in digits.chunks(4) {
        let mut group = 0_u32;
        for byte in chunk {
            group = group << 6 | u32::from(base64_digit(*byte)?);
        }
        group <<= 6 * (4 - chunk.len());
        let [_, bytes @ ..] = group.to_be_bytes();
        let (kept, dropped) = bytes.split_at(chunk.len() - 1);
        if dropped.iter().any(|byte| *byte != 0) {
            return None;
        }
        out.0.extend_from_slice(kept);
    }
    Some(out)
}

const fn base64_digit(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode_base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let group = chunk.iter().fold(0_u32, |group, byte| group << 8 | u32::from(*byte))
                << (8 * (3 - chunk.len()));
            for place in 0..4 {
                let digit = DIGITS[(group >> (18 - 6 * place) & 63) as usize];
                text.push(if place > chunk.len() { '=' } else { char::from(digit) });
            }
        }
        text
    }

    #[test]
    fn a_line_becomes_a_delivery() {
        let deliveries =
            parse(b"{\"daemon\":\"egress\",\"name\":\"GITHUB\",\"value\":\"aGVsbG8=\"}\n\n").unwrap();
        assert_eq!(deliveries.len(), 1);
        assert_eq!((deliveries[0].daemon, deliveries[0].name.as_str()), (Daemon::Egress, "GITHUB"));
        assert_eq!(deliveries[0].value.expose(), b"hello");
    }

    #[test]
    fn errors_name_the_line_and_never_the_value() {
        let cases = [
            (
                "{\"daemon\":\"egress\",\"name\":\"A\",\"value\":\"c2VjcmV0!\"}",
                "secrets, line 1: the value of A is not base64",
            ),
            (
                "{\"daemon\":\"egress\",\"name\":\"a:b\",\"value\":\"\"}",
                "secrets, line 1: a name has 1 to 64 letters, digits, `_`, `-` or `.`",
            ),
            (
                "c2VjcmV0",
                "secrets, line 1: expected {\"daemon\":\"egress\",\"name\":\"NAME\",\"value\":\"<base64>\"}",
            ),
            (
                "{\"daemon\":\"egress\",\"name\":\"A\",\"value\":\"\"}\n{\"daemon\":\"egress\",\"name\":\"A\",\"value\":\"\"}",
                "secrets, line 2: egress already has a secret named A",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(parse(text.as_bytes()).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        assert_eq!(format!("{:?}", Secret::new(b"hello".to_vec())), "Secret(..)");
    }

    proptest! {
        #[test]
        fn base64_of_any_bytes_comes_back(bytes: Vec<u8>) {
            let decoded = decode_base64(encode_base64(&bytes).as_bytes()).unwrap();
            prop_assert_eq!(decoded.expose(), &bytes[..]);
        }

        #[test]
        fn base64_that_is_accepted_has_one_spelling(text in "[A-Za-z0-9+/=]{0,12}") {
            if let Some(bytes) = decode_base64(text.as_bytes()) {
                prop_assert_eq!(encode_base64(bytes.expose()), text);
            }
        }
    }
}
