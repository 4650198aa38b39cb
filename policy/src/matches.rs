//! One entry of a route's `matches`, and how well it fits a request.

use std::fmt;

use crate::decide::RequestHead;
use crate::path::{CanonicalPath, PathError};

const REGEX_MAX: usize = 1024;
/// Of the compiled expression, in bytes.
const REGEX_SIZE_MAX: usize = 256 * 1024;

/// One entry of `matches`: all of its fields have to fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// Alternatives for the path; empty when every path fits.
    pub paths: Vec<PathMatch>,
    /// Alternatives for the method; empty when every method fits.
    pub methods: Vec<http::Method>,
    /// Headers that have to be there with exactly this value.
    pub headers: Vec<NamedValue>,
    /// Query keys that have to be there with exactly this value, after percent-decoding.
    pub query: Vec<NamedValue>,
}

/// A header or a query key with the value it has to have.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NamedValue {
    /// The header (lower case) or the query key.
    pub name: String,
    /// The exact value.
    pub value: String,
}

/// What a path has to be.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// This canonical path.
    Exact(String),
    /// This path, or below it by whole path elements: `/v1` is for `/v1` and `/v1/x`, not for `/v1beta`.
    Prefix(String),
    /// A regular expression over the whole canonical path.
    Regex {
        /// As written.
        pattern: String,
        /// Compiled, anchored at both ends.
        regex: regex::Regex,
    },
}

/// How narrow a path match is; greater is narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PathRank {
    Any,
    Regex,
    Prefix(usize),
    Exact,
}

/// How narrow an entry is, field by field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MatchRank {
    pub(crate) path: PathRank,
    pub(crate) methods: bool,
    pub(crate) headers: usize,
    pub(crate) query: usize,
}

/// The outcome of holding one entry against a request; a miss names the first field that did not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    PathMiss,
    MethodMiss,
    RequestMiss,
    Full(MatchRank),
}

/// What the entry is used for: doubt narrows an allow and widens a deny.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Allow,
    Deny,
}

impl MatchRank {
    /// Of a route without `matches`.
    pub(crate) const ANY: MatchRank = MatchRank { path: PathRank::Any, methods: false, headers: 0, query: 0 };

    /// At least as narrow in every field. What a regex is for cannot be compared: an exact path alone is narrower.
    pub(crate) fn covers(&self, other: &MatchRank) -> bool {
        let path = match (self.path, other.path) {
            (PathRank::Exact, _) => true,
            (_, PathRank::Regex) => false,
            (own, other) => own >= other,
        };
        path && self.methods >= other.methods && self.headers >= other.headers && self.query >= other.query
    }
}

impl Match {
    pub(crate) fn fit(&self, head: &RequestHead<'_>, purpose: Purpose) -> Fit {
        let Some(path) = self.path_rank(head.path, purpose) else { return Fit::PathMiss };
        if !self.methods.is_empty() && !self.methods.contains(head.method) {
            return Fit::MethodMiss;
        }
        if !self.headers.iter().all(|wanted| header_fits(wanted, head.headers, purpose))
            || !self.query.iter().all(|wanted| query_fits(wanted, head.query.unwrap_or_default(), purpose))
        {
            return Fit::RequestMiss;
        }
        Fit::Full(MatchRank {
            path,
            methods: !self.methods.is_empty(),
            headers: self.headers.len(),
            query: self.query.len(),
        })
    }

    pub(crate) fn path_rank(&self, path: &CanonicalPath, purpose: Purpose) -> Option<PathRank> {
        if self.paths.is_empty() {
            return Some(PathRank::Any);
        }
        let fits = |wanted: &&PathMatch| match purpose {
            Purpose::Allow => wanted.fits(path.as_str()),
            Purpose::Deny => path.readings().any(|reading| wanted.fits_leniently(reading)),
        };
        self.paths.iter().filter(fits).map(PathMatch::rank).max()
    }
}

/// Why a text is not a path match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathMatchError {
    /// The type is not one of the three.
    #[error("unknown path type `{0}`, expected `exact`, `prefix` or `regex`")]
    Type(String),
    /// Not a path.
    #[error("`{path}` can never match: {source}")]
    Path {
        /// As written.
        path: String,
        /// What is wrong with it.
        source: PathError,
    },
    /// A path that no request is compared with.
    #[error("`{found}` can never match: requests are compared in canonical form, write `{canonical}`")]
    NotCanonical {
        /// As written.
        found: String,
        /// As it has to be written.
        canonical: String,
    },
    /// Not a regular expression, or too large.
    #[error("`{pattern}` is not a usable regular expression: {reason}")]
    Regex {
        /// As written.
        pattern: String,
        /// What is wrong with it, in one line.
        reason: String,
    },
}

impl PathMatch {
    /// `kind` is `exact`, `prefix` or `regex`; paths have to be canonical.
    pub fn parse(kind: &str, value: &str) -> Result<PathMatch, PathMatchError> {
        match kind {
            "exact" => Ok(PathMatch::Exact(canonical(value)?)),
            "prefix" => Ok(PathMatch::Prefix(canonical(value)?)),
            "regex" => {
                let refuse = |reason: String| PathMatchError::Regex { pattern: value.to_owned(), reason };
                if value.len() > REGEX_MAX {
                    return Err(refuse(format!("longer than {REGEX_MAX} bytes")));
                }
                let compile =
                    |pattern: &str| regex::RegexBuilder::new(pattern).size_limit(REGEX_SIZE_MAX).build();
                // Alone first, so that a stray `)` cannot close the group that anchors it.
                compile(value).map_err(|error| refuse(regex_reason(&error)))?;
                let anchored =
                    compile(&format!(r"\A(?:{value})\z")).map_err(|error| refuse(regex_reason(&error)))?;
                Ok(PathMatch::Regex { pattern: value.to_owned(), regex: anchored })
            }
            other => Err(PathMatchError::Type(other.to_owned())),
        }
    }

    pub(crate) fn fits(&self, path: &str) -> bool {
        match self {
            PathMatch::Exact(exact) => path == exact,
            PathMatch::Prefix(prefix) => {
                path.strip_prefix(bare(prefix)).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            PathMatch::Regex { regex, .. } => regex.is_match(path),
        }
    }

    /// As a server that does not tell `/admin/` from `/admin`.
    fn fits_leniently(&self, path: &str) -> bool {
        let other = match path.strip_suffix('/') {
            Some("") => return self.fits(path),
            Some(bare) => bare.to_owned(),
            None => format!("{path}/"),
        };
        self.fits(path) || self.fits(&other)
    }

    /// The path that what fits begins with; a prefix without its slash at the end.
    pub(crate) fn written(&self) -> Option<&str> {
        match self {
            PathMatch::Exact(exact) => Some(exact),
            PathMatch::Prefix(prefix) => Some(bare(prefix)),
            PathMatch::Regex { .. } => None,
        }
    }

    fn rank(&self) -> PathRank {
        match self {
            PathMatch::Exact(_) => PathRank::Exact,
            PathMatch::Prefix(prefix) => PathRank::Prefix(bare(prefix).len()),
            PathMatch::Regex { .. } => PathRank::Regex,
        }
    }

    /// `exact`, `prefix` or `regex`, as in the file.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            PathMatch::Exact(_) => "exact",
            PathMatch::Prefix(_) => "prefix",
            PathMatch::Regex { .. } => "regex",
        }
    }

    /// The path or pattern, as in the file.
    #[must_use]
    pub fn value(&self) -> &str {
        match self {
            PathMatch::Exact(value) | PathMatch::Prefix(value) => value,
            PathMatch::Regex { pattern, .. } => pattern,
        }
    }
}

impl PartialEq for PathMatch {
    fn eq(&self, other: &PathMatch) -> bool {
        (self.kind(), self.value()) == (other.kind(), other.value())
    }
}

impl Eq for PathMatch {}

/// In words: a prefix ends in `/**`.
impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathMatch::Exact(path) => f.write_str(path),
            PathMatch::Prefix(prefix) => write!(f, "{}/**", bare(prefix)),
            PathMatch::Regex { pattern, .. } => write!(f, "~{pattern}"),
        }
    }
}

fn bare(prefix: &str) -> &str {
    prefix.strip_suffix('/').unwrap_or(prefix)
}

fn canonical(path: &str) -> Result<String, PathMatchError> {
    let parsed = CanonicalPath::parse(path)
        .map_err(|source| PathMatchError::Path { path: path.to_owned(), source })?;
    if parsed.as_str() != path {
        return Err(PathMatchError::NotCanonical {
            found: path.to_owned(),
            canonical: parsed.as_str().to_owned(),
        });
    }
    Ok(path.to_owned())
}

fn regex_reason(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => "too large when compiled".to_owned(),
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or_default();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
    }
}

fn header_fits(wanted: &NamedValue, headers: &http::HeaderMap, purpose: Purpose) -> bool {
    if purpose == Purpose::Allow && !headers.contains_key(wanted.name.as_str()) {
        return false;
    }
    // To some servers `x_name` is `x-name`.
    let folded = |name: &str| name.replace('_', "-");
    let wanted_name = folded(&wanted.name);
    let values = headers.iter().filter(|(name, _)| folded(name.as_str()) == wanted_name);
    occurrences_fit(values.map(|(_, value)| value.as_bytes() == wanted.value.as_bytes()), purpose)
}

/// Some servers take `;` for `&`, which only a deny has to know: an allow compares whole values.
fn query_fits(wanted: &NamedValue, query: &str, purpose: Purpose) -> bool {
    let separators: &[char] = match purpose {
        Purpose::Allow => &['&'],
        Purpose::Deny => &['&', ';'],
    };
    let values = pairs(query, separators).filter(|(key, _)| key.as_slice() == wanted.name.as_bytes());
    occurrences_fit(values.map(|(_, value)| value.as_slice() == wanted.value.as_bytes()), purpose)
}

fn occurrences_fit(mut each: impl Iterator<Item = bool>, purpose: Purpose) -> bool {
    match purpose {
        Purpose::Allow => {
            let Some(first) = each.next() else { return false };
            first && each.all(|fits| fits)
        }
        Purpose::Deny => each.any(|fits| fits),
    }
}

/// The pairs of a query, decoded as form data.
pub(crate) fn pairs<'q>(
    query: &'q str,
    separators: &'q [char],
) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> + 'q {
    query.split(separators).filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    })
}

fn decode(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let escaped = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = escaped.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match (byte, escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(escaped)) => {
                decoded.push(escaped);
                rest = &rest[2..];
            }
            (b'+', _) => decoded.push(b' '),
            _ => decoded.push(byte),
        }
    }
    decoded
}
