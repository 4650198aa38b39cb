//! The form of one line and the rule that ties it to the line before.

use std::fmt::{self, Write as _};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// What stands between the hashed bytes and the hash.
const SEAL: &[u8] = b",\"hash\":\"";
const HEX: usize = 64;
const DIGITS: &[u8; 16] = b"0123456789abcdef";
/// `,"hash":"` + 64 digits + `"}`
const SUFFIX: usize = SEAL.len() + HEX + 2;

/// A SHA-256, shown as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What the first record has for `prev`.
    pub const GENESIS: Hash = Hash([0; 32]);

    fn of(bytes: &[u8]) -> Hash {
        Hash(Sha256::digest(bytes).into())
    }

    fn parse(text: &[u8]) -> Option<Hash> {
        let mut bytes = [0; 32];
        if text.len() != HEX {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Hash(bytes))
    }
}

fn digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Two of them are in each record, and `{:02x}` for each byte would cost more than all the rest of it.
        let mut text = [0; HEX];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// The place where a chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, seq {seq}: {fault}")]
pub struct Broken {
    /// Line of the file, from 1.
    pub line: u64,
    /// The sequence number that belongs there.
    pub seq: u64,
    /// What is wrong.
    pub fault: Fault,
}

/// How a line fails to be the next record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is no record at all.
    #[error("not a record")]
    Form,
    /// Its bytes were changed after they were written.
    #[error("the hash does not match the record")]
    Hash,
    /// It is a sound record of another place or another journal.
    #[error("the record does not follow the one before it")]
    Link,
}

/// The end of a chain: what the next record continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) seq: u64,
    pub(crate) hash: Hash,
}

impl Link {
    pub(crate) const START: Link = Link { seq: 0, hash: Hash::GENESIS };

    /// Writes the next line, newline included, behind `lines`, and gives the link it makes.
    pub(crate) fn seal(&self, lines: &mut String, time: &str, event: &str) -> Link {
        let seq = self.seq + 1;
        let start = lines.len();
        // Writing to a string does not fail.
        let _ = write!(lines, r#"{{"seq":{seq},"time":"{time}","prev":"{}","event":"#, self.hash);
        lines.push_str(event);
        let hash = Hash::of(&lines.as_bytes()[start..]);
        let _ = writeln!(lines, r#","hash":"{hash}"}}"#);
        Link { seq, hash }
    }

    /// What `line` says that it follows; to be believed only after it was checked.
    pub(crate) fn before(line: &[u8]) -> Option<Link> {
        let entry: Entry<'_> = serde_json::from_slice(line).ok()?;
        Some(Link { seq: entry.seq.checked_sub(1)?, hash: Hash::parse(entry.prev.as_bytes())? })
    }

    /// The event of `line`; to be believed only after it was checked.
    pub(crate) fn event(line: &[u8]) -> Option<&str> {
        serde_json::from_slice::<Entry<'_>>(line).ok().map(|entry| entry.event.get())
    }

    /// The end of `line`, when it is sound by itself.
    pub(crate) fn at(line: &[u8]) -> Option<Link> {
        Link::before(line)?.follow(line).ok().map(|(link, _)| link)
    }

    /// Reads `line` (without its newline) as the record that follows.
    pub(crate) fn follow<'l>(&self, line: &'l [u8]) -> Result<(Link, Entry<'l>), Fault> {
        let at = line.len().checked_sub(SUFFIX).ok_or(Fault::Form)?;
        let (body, suffix) = line.split_at(at);
        let hash = suffix
            .strip_prefix(SEAL)
            .and_then(|rest| rest.strip_suffix(b"\"}"))
            .and_then(Hash::parse)
            .ok_or(Fault::Form)?;
        if Hash::of(body) != hash {
            return Err(Fault::Hash);
        }
        let entry: Entry<'_> = serde_json::from_slice(line).map_err(|_| Fault::Form)?;
        if entry.seq != self.seq + 1 || Hash::parse(entry.prev.as_bytes()) != Some(self.hash) {
            return Err(Fault::Link);
        }
        Ok((Link { seq: entry.seq, hash }, entry))
    }
}

/// A line, read.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry<'l> {
    pub(crate) seq: u64,
    pub(crate) time: Timestamp,
    prev: &'l str,
    #[serde(borrow)]
    pub(crate) event: &'l RawValue,
    #[serde(rename = "hash")]
    _hash: &'l str,
}
