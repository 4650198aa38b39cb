//! The one spelling of a request path that is matched and forwarded.

use std::fmt;

const PATH_MAX: usize = 8 * 1024;

/// An absolute path in canonical form: what is matched is what is forwarded.
///
/// Unreserved characters are unescaped, characters that do not belong in a path are escaped, and escapes
/// have upper-case digits. Nothing is resolved or merged: a path that two servers could read differently
/// is refused. The exception is `%2F` in the path of a request ([`CanonicalPath::of_request`]), which is kept as it is,
/// for the routes that take it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CanonicalPath {
    text: String,
    /// Its second reading, where it has `%2F`: with `/` in that place.
    slashed: Option<String>,
    /// What lenient servers make of either, where that differs: reserved characters unescaped (`%40` as `@`),
    /// then path parameters (`;x`) cut off and the slashes around them merged.
    lenient: Vec<String>,
}

/// What a route does with a path that has `%2F`, which to some servers is a part of an element and to others a `/`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EscapedSlashes {
    /// It is not for such a path.
    #[default]
    Refused,
    /// `allow_encoded_slashes: true`: it is, where both readings fit. The escape goes out as it came.
    Kept,
}

/// The only spelling of an escaped slash in a canonical path.
const ESCAPED_SLASH: &str = "%2F";

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not starting with `/`.
    #[error("path does not start with `/`")]
    NotAbsolute,
    /// Longer than is accepted.
    #[error("path is longer than 8 KiB")]
    TooLong,
    /// `.` or `..`, escaped or not, also with parameters (`..;x`).
    #[error("path has a `.` or `..` segment")]
    DotSegment,
    /// `//`.
    #[error("path has an empty segment (`//`)")]
    EmptySegment,
    /// `\` or `%5C`.
    #[error("path has a backslash")]
    Backslash,
    /// `%2F`.
    #[error("path has an escaped slash (`%2F`)")]
    EscapedSlash,
    /// A control character, raw or escaped.
    #[error("path has a control character")]
    Control,
    /// `%25` followed by two hexadecimal digits.
    #[error("path is escaped twice (`%25` before two hexadecimal digits)")]
    DoubleEscape,
    /// `%` without two hexadecimal digits.
    #[error("path has a `%` without two hexadecimal digits")]
    BadEscape,
    /// A raw character that a URL cannot carry.
    #[error("path has a character that must be escaped")]
    Character,
    /// Escapes that are not UTF-8, so also overlong forms of `.` and `/`.
    #[error("path has escapes that are not UTF-8")]
    NotUtf8,
}

impl CanonicalPath {
    /// The path in canonical form, which has one reading; `raw` is the path alone, without query.
    pub fn parse(raw: &str) -> Result<CanonicalPath, PathError> {
        let path = CanonicalPath::of_request(raw)?;
        if path.has_escaped_slash() { Err(PathError::EscapedSlash) } else { Ok(path) }
    }

    /// The same, where `%2F` is for the routes to judge: it is kept, and the path then has two readings. What is refused is refused
    /// in both.
    pub fn of_request(raw: &str) -> Result<CanonicalPath, PathError> {
        if raw.len() > PATH_MAX {
            return Err(PathError::TooLong);
        }
        if !raw.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        let text = canonicalise(raw.as_bytes())?;
        if text.len() > PATH_MAX {
            return Err(PathError::TooLong);
        }
        let slashed = as_slashes(&text);
        let mut lenient = Vec::new();
        for text in std::iter::once(&text).chain(&slashed) {
            let unescaped = unescape_reserved(text)?;
            let most = unescaped.as_ref().unwrap_or(text);
            check_segments(most)?;
            let bare = without_parameters(most);
            lenient.extend(unescaped);
            lenient.extend(bare);
        }
        Ok(CanonicalPath { text, slashed, lenient })
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether `%2F` is in it.
    #[must_use]
    pub fn has_escaped_slash(&self) -> bool {
        self.slashed.is_some()
    }

    /// The text with `/` in place of `%2F`, where it has one.
    pub(crate) fn slashed(&self) -> Option<&str> {
        self.slashed.as_deref()
    }

    /// Every reading a server may take, the canonical text first.
    pub(crate) fn readings(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.text).chain(&self.slashed).chain(&self.lenient).map(String::as_str)
    }
}

impl fmt::Display for CanonicalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn canonicalise(raw: &[u8]) -> Result<String, PathError> {
    let mut canonical = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'%' => {
                let escaped = escape(rest).ok_or(PathError::BadEscape)?;
                rest = &rest[2..];
                match escaped {
                    b'\\' => return Err(PathError::Backslash),
                    0..=0x1f | 0x7f => return Err(PathError::Control),
                    _ if is_unreserved(escaped) => canonical.push(char::from(escaped)),
                    _ => push_escaped(&mut canonical, escaped),
                }
            }
            b'\\' => return Err(PathError::Backslash),
            0..=0x1f | 0x7f => return Err(PathError::Control),
            b'/' => canonical.push('/'),
            _ if is_unreserved(byte) || is_reserved(byte) => canonical.push(char::from(byte)),
            // What clients send raw although RFC 3986 has them escaped.
            b'"' | b'<' | b'>' | b'[' | b']' | b'^' | b'`' | b'{' | b'|' | b'}' => {
                push_escaped(&mut canonical, byte)
            }
            _ => return Err(PathError::Character),
        }
    }
    let mut percents = canonical.match_indices("%25").map(|(start, escaped)| start + escaped.len());
    if percents.any(|end| escape(&canonical.as_bytes()[end..]).is_some()) {
        return Err(PathError::DoubleEscape);
    }
    Ok(canonical)
}

fn push_escaped(canonical: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    canonical.push('%');
    canonical.push(char::from(DIGITS[usize::from(byte >> 4)]));
    canonical.push(char::from(DIGITS[usize::from(byte & 15)]));
}

/// The byte that the two hexadecimal digits at the front stand for.
fn escape(rest: &[u8]) -> Option<u8> {
    let [high, low, ..] = rest else { return None };
    let high = char::from(*high).to_digit(16)?;
    let low = char::from(*low).to_digit(16)?;
    u8::try_from(high * 16 + low).ok()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The reserved characters that RFC 3986 allows inside a path segment.
fn is_reserved(byte: u8) -> bool {
    b"!$&'()*+,;=:@".contains(&byte)
}

/// A canonical path with `/` in place of `%2F`; `None` when it has none.
pub(crate) fn as_slashes(canonical: &str) -> Option<String> {
    canonical.contains(ESCAPED_SLASH).then(|| canonical.replace(ESCAPED_SLASH, "/"))
}

/// The path with all escapes undone but `%25` and `%2F`; `None` when that changes nothing.
pub(crate) fn unescape_reserved(canonical: &str) -> Result<Option<String>, PathError> {
    if !canonical.contains('%') {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(canonical.len());
    let mut rest = canonical.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, escape(rest)) {
            (b'%', Some(escaped)) if !matches!(escaped, b'%' | b'/') => {
                bytes.push(escaped);
                rest = &rest[2..];
            }
            _ => bytes.push(byte),
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| PathError::NotUtf8)?;
    Ok((text != canonical).then_some(text))
}

/// The path without path parameters and the empty elements they leave; `None` when it has none.
fn without_parameters(path: &str) -> Option<String> {
    if !path.contains(';') {
        return None;
    }
    let names = path.split('/').map(|segment| segment.split(';').next().unwrap_or(segment));
    let mut bare = String::with_capacity(path.len());
    for name in names.filter(|name| !name.is_empty()) {
        bare.push('/');
        bare.push_str(name);
    }
    if bare.is_empty() || path.ends_with('/') {
        bare.push('/');
    }
    Some(bare)
}

/// Path parameters (`..;x`) are cut off by some servers before dots are resolved.
fn check_segments(path: &str) -> Result<(), PathError> {
    let segments = path.strip_prefix('/').unwrap_or(path);
    let mut segments = segments.split('/').peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() {
            return Err(PathError::EmptySegment);
        }
        let name = segment.split(';').next().unwrap_or(segment);
        if matches!(name, "." | "..") {
            return Err(PathError::DotSegment);
        }
    }
    Ok(())
}
