//! What a match must satisfy beyond its pattern.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::entropy::shannon;
use crate::placeholder::is_placeholder;

const KEY_BODY_MAX_BYTES: usize = 16 * 1024;
const DASHES: &[u8] = b"-----";
const KEY_RUN_MIN: usize = 40;
const CHECKSUM_CHARS: usize = 6;

/// What a match must satisfy beyond its pattern.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Check {
    /// At least so many bits per byte.
    Entropy(f32),
    /// GitHub's own checksum: the last six characters are the base62 CRC-32 of those after the prefix.
    Crc32,
    /// A token whose first part decodes to a JSON header with an algorithm.
    Jwt,
    /// A key whose body is really there.
    KeyBody,
    /// The password of a URL.
    Password,
    /// A password beside its name: of several kinds of characters, and no word.
    Passphrase,
    /// Base64 of `user:password`.
    BasicPair,
    /// Letters of both cases and digits, as chance draws them.
    Mixed,
    /// A value of unknown format beside a telling name.
    Generic,
}

/// What is known of a match so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is none.
    No,
    /// More bytes are needed.
    Open,
    /// It is one, and ends here.
    Ends(usize),
}

impl Check {
    /// Judges the secret at `start..end` of `text`; `complete` when no more text can matter.
    pub(crate) fn judge(self, text: &[u8], start: usize, end: usize, complete: bool) -> Verdict {
        let value = &text[start..end];
        let good = match self {
            Self::KeyBody => return key_body(text, end, complete),
            Self::Entropy(bits) => shannon(value) >= bits,
            Self::Crc32 => has_checksum(value),
            Self::Jwt => has_jwt_header(value),
            Self::Password => is_password(value),
            Self::Passphrase => is_passphrase(value),
            Self::BasicPair => is_basic_pair(value),
            Self::Mixed => is_mixed(value),
            Self::Generic => is_generic_secret(value) && !is_digest(text, start, end),
        };
        if good && !is_placeholder(value) { Verdict::Ends(end) } else { Verdict::No }
    }
}

/// Whether `PREFIX_` is followed by random characters and their checksum.
fn has_checksum(token: &[u8]) -> bool {
    let Some(prefix) = token.iter().position(|b| *b == b'_') else {
        return false;
    };
    let body = &token[prefix + 1..];
    let Some(split) = body.len().checked_sub(CHECKSUM_CHARS) else {
        return false;
    };
    base62(crc32(&body[..split])) == body[split..]
}

fn base62(mut value: u32) -> [u8; CHECKSUM_CHARS] {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = [b'0'; CHECKSUM_CHARS];
    for digit in text.iter_mut().rev() {
        *digit = DIGITS[(value % 62) as usize];
        value /= 62;
    }
    text
}

/// CRC-32 as in zlib and PNG.
fn crc32(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let fold = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg()))
    };
    !bytes.iter().fold(u32::MAX, fold)
}

fn has_jwt_header(token: &[u8]) -> bool {
    let header = token.split(|b| *b == b'.').next().unwrap_or_default();
    let Ok(json) = URL_SAFE_NO_PAD.decode(header) else {
        return false;
    };
    json.starts_with(b"{") && json.windows(5).any(|w| w == b"\"alg\"") && !is_documented_jwt(token)
}

/// Whether the claims are those of the token that the format's documentation shows everywhere.
fn is_documented_jwt(token: &[u8]) -> bool {
    let claims = token.split(|b| *b == b'.').nth(1).unwrap_or_default();
    let json = URL_SAFE_NO_PAD.decode(claims).unwrap_or_default();
    let has = |text: &[u8]| memchr::memmem::find(&json, text).is_some();
    has(b"\"1234567890\"") && has(b"\"John Doe\"")
}

/// The key material that follows a `BEGIN … PRIVATE KEY` line: there is some, and it ends.
fn key_body(text: &[u8], header_end: usize, complete: bool) -> Verdict {
    let complete = complete || text.len() - header_end >= KEY_BODY_MAX_BYTES;
    let rest = &text[header_end..text.len().min(header_end + KEY_BODY_MAX_BYTES)];
    let marker = memchr::memmem::find(rest, DASHES);
    let after = marker.map_or(rest.len(), |at| at + DASHES.len());
    let closing = memchr::memmem::find(&rest[after..], DASHES).map(|at| after + at + DASHES.len());
    if !complete && closing.is_none() {
        return Verdict::Open;
    }
    let body = &rest[..marker.unwrap_or(rest.len())];
    let in_key = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
    let mut last = None;
    let mut start = 0;
    for run in body.split(|b| !in_key(b)) {
        if run.len() >= KEY_RUN_MIN && shannon(run) >= 3.5 {
            last = Some(start + run.len());
        }
        start += run.len() + 1;
    }
    let Some(last) = last else { return Verdict::No };
    let closed = marker.filter(|at| rest[*at..].starts_with(b"-----END"));
    let end = closed.map_or(last, |_| closing.unwrap_or(last.max(after)));
    Verdict::Ends(header_end + end)
}

/// Whether the password of a URL is one that somebody keeps secret.
fn is_password(value: &[u8]) -> bool {
    const COMMON: [&str; 22] = [
        "password",
        "passwd",
        "secret",
        "postgres",
        "mysql",
        "admin",
        "guest",
        "token",
        "x-oauth-basic",
        "username",
        "p4ssw0rd",
        "passw0rd",
        "test",
        "rabbitmq",
        "mongodb",
        "redis",
        "default",
        "string",
        "value",
        "hostname",
        "localhost",
        "database",
    ];
    let lower = value.to_ascii_lowercase();
    let letters = lower.iter().copied().filter(u8::is_ascii_alphabetic).collect::<Vec<u8>>();
    let common = COMMON.iter().any(|w| lower == w.as_bytes() || letters == w.as_bytes());
    let pattern = value.iter().any(|b| b"[]{}()|".contains(b)) || value.windows(2).any(|pair| pair == b"**");
    !common && !pattern && shannon(value) >= 2.0
}

/// Whether a value beside the name of a password is one: short ones are told from words by their characters.
fn is_passphrase(value: &[u8]) -> bool {
    let has = |kind: fn(&u8) -> bool| usize::from(value.iter().any(kind));
    let kinds = has(u8::is_ascii_lowercase)
        + has(u8::is_ascii_uppercase)
        + has(u8::is_ascii_digit)
        + has(|b| b"!@#$%^&*+?~".contains(b));
    kinds >= 3
        && has(u8::is_ascii_digit) == 1
        && shannon(value) >= 2.8
        && is_password(value)
        && !is_uuid(value)
        && !is_hash(value)
        && !is_words(value)
}

/// Whether a value is the base64 of a user and a password that somebody keeps secret.
fn is_basic_pair(value: &[u8]) -> bool {
    let unpadded = value.iter().rposition(|b| *b != b'=').map_or(&value[..0], |last| &value[..=last]);
    let Ok(pair) = STANDARD_NO_PAD.decode(unpadded) else { return false };
    let Some(colon) = pair.iter().position(|b| *b == b':') else { return false };
    let password = &pair[colon + 1..];
    colon > 0
        && password.len() >= 6
        && pair.iter().all(|b| b.is_ascii_graphic() || *b == b' ')
        && is_password(password)
        && !is_placeholder(password)
}

fn is_mixed(value: &[u8]) -> bool {
    let count = |kind: fn(&u8) -> bool| value.iter().filter(|byte| kind(byte)).count();
    count(u8::is_ascii_digit) >= 2
        && count(u8::is_ascii_uppercase) >= 2
        && count(u8::is_ascii_lowercase) >= 2
        && shannon(value) >= 3.7
}

/// Whether a value of unknown format is drawn by chance, and is no well-known public thing.
fn is_generic_secret(value: &[u8]) -> bool {
    let digits = value.iter().filter(|b| b.is_ascii_digit()).count();
    let letters = value.iter().filter(|b| b.is_ascii_alphabetic()).count();
    let hex = value.iter().all(u8::is_ascii_hexdigit);
    // A short value cannot hold more than the logarithm of its length.
    let needed = if hex { 3.0 } else { (0.82 * (value.len() as f32).log2()).min(3.7) };
    digits >= 2
        && letters >= 2
        && shannon(value) >= needed
        && !is_uuid(value)
        && !is_hash(value)
        && !is_words(value)
}

/// Whether a value has the form of a digest or an object's name, and what stands before it on its line says that it is one.
fn is_digest(text: &[u8], start: usize, end: usize) -> bool {
    const BEFORE_BYTES: usize = 80;
    const NAMES: [&[u8]; 12] = [
        b"sha1",
        b"sha2",
        b"sha5",
        b"sha-",
        b"md5",
        b"hash",
        b"digest",
        b"checksum",
        b"commit",
        b"etag",
        b"fingerprint",
        b"integrity",
    ];
    let value = &text[start..end];
    if !matches!(value.len(), 32 | 40 | 64 | 96 | 128) || !value.iter().all(u8::is_ascii_hexdigit) {
        return false;
    }
    let before = &text[start.saturating_sub(BEFORE_BYTES)..start];
    let line = before.rsplit(|byte| *byte == b'\n').next().unwrap_or_default().to_ascii_lowercase();
    NAMES.iter().any(|name| memchr::memmem::find(&line, name).is_some())
}

fn is_uuid(value: &[u8]) -> bool {
    let dash = |i: usize| matches!(i, 8 | 13 | 18 | 23);
    value.len() == 36
        && value.iter().enumerate().all(|(i, b)| if dash(i) { *b == b'-' } else { b.is_ascii_hexdigit() })
}

/// `sha512-…`, `sha256:…` and their like, as lock files hold them.
fn is_hash(value: &[u8]) -> bool {
    let lower = value[..value.len().min(7)].to_ascii_lowercase();
    ["sha1-", "sha1:", "sha256", "sha384", "sha512", "md5", "h1:", "blake"]
        .iter()
        .any(|p| lower.starts_with(p.as_bytes()))
}

/// Names and paths: mostly short words joined by punctuation.
fn is_words(value: &[u8]) -> bool {
    let parts: Vec<&[u8]> = value.split(|b| matches!(b, b'.' | b'/' | b'-' | b'_' | b':')).collect();
    let word = |p: &&[u8]| {
        p.len() <= 12 && (p.iter().all(u8::is_ascii_alphabetic) || p.iter().all(u8::is_ascii_digit))
    };
    parts.len() >= 2 && parts.iter().filter(|p| word(p)).count() * 4 >= parts.len() * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A token of the right form with the right checksum.
    fn checked(prefix: &str, body: &str) -> Vec<u8> {
        let mut token = format!("{prefix}{body}").into_bytes();
        token.extend(base62(crc32(body.as_bytes())));
        token
    }

    #[test]
    fn crc32_is_the_one_of_zlib() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(base62(0), *b"000000");
        assert_eq!(base62(u32::MAX), *b"4gfFC3");
    }

    #[test]
    fn a_github_token_is_known_by_its_checksum() {
        let mut token = checked("ghp_", "q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe");
        assert!(has_checksum(&token));
        token[10] ^= 1;
        assert!(!has_checksum(&token));
    }

    #[test]
    fn the_documented_pair_of_body_and_checksum_agrees() {
        assert_eq!(base62(crc32(b"zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ")), *b"0mLq17");
    }

    #[test]
    fn public_things_are_no_generic_secret() {
        for value in [
            "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
            "sha512-q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe",
            "my-service.account.name-v2",
        ] {
            assert!(!is_generic_secret(value.as_bytes()), "{value}");
        }
        assert!(is_generic_secret(b"q8Zr2LkT0vWcN5mYx1JdB7sHf"));
    }

    #[test]
    fn a_digest_is_told_by_what_stands_before_it() {
        let judged = |before: &str| {
            let text = format!("{before}da39a3ee5e6b4b0d3255bfef95601890afd80709");
            is_digest(text.as_bytes(), before.len(), text.len())
        };
        assert!(judged("token_sha1 = ") && judged("secret-hash: "));
        assert!(!judged("api_secret = ") && !judged("commit\napi_secret = "));
    }
}
