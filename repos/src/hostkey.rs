//! The pinned host key of an upstream.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::upstream::SSH_PORT;

const TYPES: [&str; 5] =
    ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"];

const ED25519_BLOB_BYTES: usize = 4 + 11 + 4 + 32;
const RSA_BLOB_BYTES_MIN: usize = 4 + 7 + 4 + 3 + 4 + 256;

/// A public key in the form of a `.pub` file: its type and the base64 of its wire form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey {
    kind: &'static str,
    blob: String,
}

/// Why a host key is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostKeyError {
    /// Not `TYPE BASE64`.
    #[error("a host key is `TYPE BASE64`, as in a .pub file: \"ssh-ed25519 AAAA…\"")]
    Form,
    /// A type of key that a host cannot be pinned to.
    #[error("unknown host key type `{0}`, expected one of {known}", known = TYPES.join(", "))]
    Type(String),
    /// The second word does not decode.
    #[error("the host key's second word is not base64")]
    Base64,
    /// A line of known_hosts that says something else than which key a host has.
    #[error("a line of known_hosts that begins with `@` pins no key; take the line of the host's own key")]
    Marked,
    /// A line of known_hosts whose host cannot be read.
    #[error("this line of known_hosts has its host hashed; take TYPE and BASE64 alone")]
    Hashed,
    /// A line of known_hosts of another host.
    #[error("this line of known_hosts is of `{named}`, not of `{expected}`")]
    Host {
        /// Whose line it is.
        named: String,
        /// Whose it should be.
        expected: String,
    },
    /// The decoded bytes are something else.
    #[error("the host key's base64 is not a key of type `{0}`; was it cut when it was copied?")]
    Blob(&'static str),
}

impl HostKey {
    /// Parses `TYPE BASE64`, or a line of known_hosts that names this host, as ssh-keyscan prints it.
    pub fn parse_for(host: &str, port: u16, text: &str) -> Result<Self, HostKeyError> {
        let (first, rest) = text.trim_ascii().split_once([' ', '\t']).unwrap_or((text, ""));
        if first.starts_with('@') {
            return Err(HostKeyError::Marked);
        }
        if !rest.split_ascii_whitespace().next().is_some_and(|kind| TYPES.contains(&kind)) {
            return Self::parse(text);
        }
        if first.starts_with('|') {
            return Err(HostKeyError::Hashed);
        }
        let expected = if port == SSH_PORT { host.to_owned() } else { format!("[{host}]:{port}") };
        if !first.split(',').any(|name| name.eq_ignore_ascii_case(&expected)) {
            return Err(HostKeyError::Host { named: first.to_owned(), expected });
        }
        Self::parse(rest)
    }

    /// Parses `TYPE BASE64`, with an optional comment.
    pub fn parse(text: &str) -> Result<Self, HostKeyError> {
        let mut words = text.split_ascii_whitespace();
        let (Some(kind), Some(blob)) = (words.next(), words.next()) else {
            return Err(HostKeyError::Form);
        };
        let kind =
            TYPES.into_iter().find(|t| *t == kind).ok_or_else(|| HostKeyError::Type(kind.to_owned()))?;
        let bytes = STANDARD.decode(blob).map_err(|_| HostKeyError::Base64)?;
        if !is_key_of(kind, &bytes) {
            return Err(HostKeyError::Blob(kind));
        }
        Ok(Self { kind, blob: blob.to_owned() })
    }

    /// Its type, the first word.
    pub fn kind(&self) -> &'static str {
        self.kind
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.blob)
    }
}

/// Whether the wire form starts with its own type and has the length that the type asks for.
fn is_key_of(kind: &str, bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return false;
    };
    let named = u32::from_be_bytes(*length) as usize == kind.len() && rest.starts_with(kind.as_bytes());
    let whole = match kind {
        "ssh-ed25519" => bytes.len() == ED25519_BLOB_BYTES,
        "ssh-rsa" => bytes.len() >= RSA_BLOB_BYTES_MIN,
        _ => bytes.len() > 4 + kind.len() + 4 + 32,
    };
    named && whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(kind: &str, body: usize) -> String {
        let mut bytes = (kind.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(kind.as_bytes());
        bytes.extend(std::iter::repeat_n(7, body));
        STANDARD.encode(bytes)
    }

    #[test]
    fn a_pub_file_line_is_a_host_key() {
        let line = format!("ssh-ed25519 {}", blob("ssh-ed25519", 36));
        assert_eq!(HostKey::parse(&line).map(|k| k.to_string()), Ok(line.clone()));
        assert_eq!(HostKey::parse(&format!("{line} root@host")).map(|k| k.to_string()), Ok(line));
    }

    #[test]
    fn a_line_of_known_hosts_pins_the_host_that_it_names_and_no_other() {
        let key = format!("ssh-ed25519 {}", blob("ssh-ed25519", 36));
        let parsed = |names: &str, port| {
            HostKey::parse_for("git.example", port, &format!("{names}{key} root@host")).map(|k| k.to_string())
        };
        for (names, port) in [
            ("", 22),
            ("", 2222),
            ("git.example ", 22),
            ("Git.Example,192.0.2.1\t", 22),
            ("[git.example]:2222 ", 2222),
        ] {
            assert_eq!(parsed(names, port), Ok(key.clone()), "{names} {port}");
        }
        for (names, port) in [
            ("other.example ", 22),
            ("git.example ", 2222),
            ("[git.example]:2222 ", 22),
            ("*.example ", 22),
            ("!git.example,* ", 22),
        ] {
            assert!(matches!(parsed(names, port), Err(HostKeyError::Host { .. })), "{names} {port}");
        }
        assert_eq!(parsed("|1|c2FsdA==|aGFzaA== ", 22), Err(HostKeyError::Hashed));
        assert_eq!(parsed("@revoked git.example ", 22), Err(HostKeyError::Marked));
        assert_eq!(parsed("@cert-authority ", 22), Err(HostKeyError::Marked));
        assert_eq!(parsed("ssh-dss AAAA ", 22), Err(HostKeyError::Type("ssh-dss".into())));
    }

    #[test]
    fn a_cut_or_mislabelled_key_is_refused() {
        assert_eq!(HostKey::parse("ssh-ed25519"), Err(HostKeyError::Form));
        assert_eq!(HostKey::parse("ssh-dss AAAA"), Err(HostKeyError::Type("ssh-dss".into())));
        assert_eq!(HostKey::parse("ssh-ed25519 !!"), Err(HostKeyError::Base64));
        let cut = format!("ssh-ed25519 {}", blob("ssh-ed25519", 30));
        assert_eq!(HostKey::parse(&cut), Err(HostKeyError::Blob("ssh-ed25519")));
        let other = format!("ssh-ed25519 {}", blob("ssh-rsa", 300));
        assert_eq!(HostKey::parse(&other), Err(HostKeyError::Blob("ssh-ed25519")));
    }
}
