//! One entry of a route's `matches`, and how well it fits a request.

use std::borrow::Cow;
use std::fmt;

use crate::decide::RequestHead;
use crate::path::{CanonicalPath, EscapedSlashes, PathError, as_slashes, unescape_reserved};
use crate::query;

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
    /// Headers that have to be there with exactly this value; for a deny, as one of several.
    pub headers: Vec<NamedValue>,
    /// Query keys that have to be there with exactly this value, after percent-decoding; for a deny, however written.
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
        if !self.methods.is_empty()
            && !self.methods.iter().any(|wanted| method_fits(wanted, head.method, purpose))
        {
            return Fit::MethodMiss;
        }
        if !self.headers.iter().all(|wanted| header_fits(wanted, head.headers, purpose))
            || !self.query.iter().all(|wanted| query::fits(wanted, head.query.unwrap_or_default(), purpose))
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
        match purpose {
            Purpose::Allow => {
                let kept = self.narrowest(|wanted| wanted.fits(path.as_str()))?;
                let Some(slashed) = path.slashed() else { return Some(kept) };
                // Both readings have to fit; by as much as the wider of the two does.
                Some(kept.min(self.narrowest(|wanted| wanted.fits_slashed(slashed))?))
            }
            Purpose::Deny => {
                self.narrowest(|wanted| path.readings().any(|reading| wanted.fits_leniently(reading)))
            }
        }
    }

    fn narrowest(&self, fits: impl Fn(&PathMatch) -> bool) -> Option<PathRank> {
        self.paths.iter().filter(|wanted| fits(wanted)).map(PathMatch::rank).max()
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
    /// With `%2F`, in an allow that is not for such paths.
    #[error("`{0}` can never match: a route is for paths with `%2F` only with `allow_encoded_slashes: true`")]
    EscapedSlash(String),
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
    /// Of an allow that is not for paths with `%2F`. `kind` is `exact`, `prefix` or `regex`; paths have to be canonical.
    pub fn parse(kind: &str, value: &str) -> Result<PathMatch, PathMatchError> {
        PathMatch::of(kind, value, Purpose::Allow, EscapedSlashes::Refused)
    }

    pub(crate) fn of(
        kind: &str,
        value: &str,
        purpose: Purpose,
        slashes: EscapedSlashes,
    ) -> Result<PathMatch, PathMatchError> {
        match kind {
            "exact" => Ok(PathMatch::Exact(canonical(value, purpose, slashes)?)),
            "prefix" => Ok(PathMatch::Prefix(canonical(value, purpose, slashes)?)),
            "regex" => {
                let refuse = |reason: String| PathMatchError::Regex { pattern: value.to_owned(), reason };
                if value.len() > REGEX_MAX {
                    return Err(refuse(format!("longer than {REGEX_MAX} bytes")));
                }
                let compile = |pattern: &str| {
                    let mut builder = regex::RegexBuilder::new(pattern);
                    builder.size_limit(REGEX_SIZE_MAX).case_insensitive(purpose == Purpose::Deny).build()
                };
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

    /// `path` is what a server reads that takes `%2F` for `/`, and so is then what is written here.
    fn fits_slashed(&self, path: &str) -> bool {
        match self {
            PathMatch::Exact(exact) => as_slashes(exact).as_ref().unwrap_or(exact) == path,
            PathMatch::Prefix(prefix) => match as_slashes(prefix) {
                Some(prefix) => PathMatch::Prefix(prefix).fits(path),
                None => self.fits(path),
            },
            PathMatch::Regex { .. } => self.fits(path),
        }
    }

    /// As a server that does not tell `/admin/` or `/ADMIN` from `/admin`, and undoes the escapes of what is written here too.
    fn fits_leniently(&self, path: &str) -> bool {
        match self {
            PathMatch::Exact(exact) => self
                .spellings()
                .chain([exact.into()])
                .any(|exact| bare(&exact).eq_ignore_ascii_case(bare(path))),
            PathMatch::Prefix(prefix) => self.spellings().chain([prefix.into()]).any(|prefix| {
                let prefix = bare(&prefix).as_bytes();
                let split = path.as_bytes().split_at_checked(prefix.len());
                split.is_some_and(|(start, rest)| {
                    start.eq_ignore_ascii_case(prefix) && matches!(rest, [] | [b'/', ..])
                })
            }),
            PathMatch::Regex { regex, .. } => {
                let other = match path.strip_suffix('/') {
                    Some("") => return regex.is_match(path),
                    Some(bare) => bare.into(),
                    None => format!("{path}/"),
                };
                regex.is_match(path) || regex.is_match(&other)
            }
        }
    }

    /// What lenient servers make of the written path, where that differs.
    pub(crate) fn spellings(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let escaped = self.written().filter(|path| path.contains('%'));
        escaped.into_iter().flat_map(|path| {
            let slashed = as_slashes(path);
            let unescaped = unescape_reserved(slashed.as_deref().unwrap_or(path));
            unescaped.ok().flatten().or(slashed).map(Cow::Owned)
        })
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
            PathMatch::Prefix(prefix) => {
                // An escape is one character: written out, no prefix is narrower.
                PathRank::Prefix(bare(prefix).len() - 2 * prefix.matches('%').count())
            }
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

/// A deny is not passed by another case, which some servers do not tell.
fn method_fits(wanted: &http::Method, method: &http::Method, purpose: Purpose) -> bool {
    match purpose {
        Purpose::Allow => wanted == method,
        Purpose::Deny => wanted.as_str().eq_ignore_ascii_case(method.as_str()),
    }
}

fn bare(prefix: &str) -> &str {
    prefix.strip_suffix('/').unwrap_or(prefix)
}

fn canonical(path: &str, purpose: Purpose, slashes: EscapedSlashes) -> Result<String, PathMatchError> {
    let parsed = CanonicalPath::of_request(path)
        .map_err(|source| PathMatchError::Path { path: path.to_owned(), source })?;
    if (purpose, slashes) == (Purpose::Allow, EscapedSlashes::Refused) && parsed.has_escaped_slash() {
        return Err(PathMatchError::EscapedSlash(path.to_owned()));
    }
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
    let named = headers.iter().filter(|(name, _)| reads_as(name.as_str(), &wanted.name));
    let mut values = named.map(|(_, value)| value.as_bytes());
    match purpose {
        Purpose::Allow => {
            headers.contains_key(wanted.name.as_str()) && values.all(|value| value == wanted.value.as_bytes())
        }
        Purpose::Deny => {
            let said: Vec<&[u8]> = values.flat_map(elements).collect();
            let wanted: Vec<&[u8]> = elements(wanted.value.as_bytes()).collect();
            let same = |(one, other): (&&[u8], &&[u8])| one.eq_ignore_ascii_case(other);
            said.windows(wanted.len()).any(|said| said.iter().zip(&wanted).all(same))
        }
    }
}

/// To some servers `x_name` is `x-name`.
fn reads_as(name: &str, listed: &str) -> bool {
    let folded = |byte| if byte == b'_' { b'-' } else { byte };
    name.bytes().map(folded).eq(listed.bytes().map(folded))
}

/// What a server finds in a value that reads it as a list, or with parameters. Several lines are one list (RFC 9110 section 5.3).
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| matches!(byte, b',' | b';')).map(<[u8]>::trim_ascii)
}
