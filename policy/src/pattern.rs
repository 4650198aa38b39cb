//! Host patterns of routes: exact, `*.` for one label, `**.` for any depth.

use std::fmt;

use crate::host::{Host, HostError};

/// Which hosts a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This host alone.
    Exact(Host),
    /// `*.suffix`: exactly one label before the suffix, as in certificates.
    OneLabel(Host),
    /// `**.suffix`: one or more labels before the suffix.
    AnyDepth(Host),
}

/// How narrow a host pattern is; greater is narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HostRank {
    /// A wildcard: the longer suffix is narrower, then one label before any depth.
    Wildcard {
        labels: usize,
        one_label: bool,
    },
    Exact,
}

/// Why a text is not a host pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The host, or the suffix of the wildcard, is not a host.
    #[error("{0}")]
    Host(#[from] HostError),
    /// `*` or `**`.
    #[error("a wildcard alone would allow every host: name a domain, as in `*.example.com`")]
    Everything,
    /// `*.com`.
    #[error("a wildcard directly over a single label is too broad: name a domain, as in `*.example.com`")]
    TooBroad,
    /// `api.*.com`, `foo*.example.com`.
    #[error(
        "a wildcard may only stand in front: `*.example.com` (one label) or `**.example.com` (any depth)"
    )]
    Misplaced,
    /// `*.10.0.0.1`.
    #[error("a wildcard cannot stand before an IP address")]
    Address,
}

impl HostPattern {
    /// The pattern, its host in canonical form.
    pub fn parse(text: &str) -> Result<HostPattern, PatternError> {
        if matches!(text, "*" | "**" | "*." | "**.") {
            return Err(PatternError::Everything);
        }
        if let Some(suffix) = text.strip_prefix("**.") {
            return Ok(HostPattern::AnyDepth(parse_suffix(suffix)?));
        }
        if let Some(suffix) = text.strip_prefix("*.") {
            return Ok(HostPattern::OneLabel(parse_suffix(suffix)?));
        }
        if text.contains('*') {
            return Err(PatternError::Misplaced);
        }
        Ok(HostPattern::Exact(Host::parse(text)?))
    }

    /// Is the route for this host?
    #[must_use]
    pub fn matches(&self, host: &Host) -> bool {
        match self {
            HostPattern::Exact(own) => own == host,
            HostPattern::OneLabel(suffix) => {
                before_suffix(host, suffix).is_some_and(|front| !front.contains('.'))
            }
            HostPattern::AnyDepth(suffix) => before_suffix(host, suffix).is_some(),
        }
    }

    pub(crate) fn rank(&self) -> HostRank {
        let labels = |suffix: &Host| suffix.as_str().split('.').count();
        match self {
            HostPattern::Exact(_) => HostRank::Exact,
            HostPattern::OneLabel(suffix) => HostRank::Wildcard { labels: labels(suffix), one_label: true },
            HostPattern::AnyDepth(suffix) => HostRank::Wildcard { labels: labels(suffix), one_label: false },
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(host) => write!(f, "{host}"),
            HostPattern::OneLabel(suffix) => write!(f, "*.{suffix}"),
            HostPattern::AnyDepth(suffix) => write!(f, "**.{suffix}"),
        }
    }
}

/// The labels in front of the suffix, at least one, without the dot between.
fn before_suffix<'h>(host: &'h Host, suffix: &Host) -> Option<&'h str> {
    if host.ip().is_some() {
        return None;
    }
    let front = host.as_str().strip_suffix(suffix.as_str())?.strip_suffix('.')?;
    (!front.is_empty()).then_some(front)
}

fn parse_suffix(text: &str) -> Result<Host, PatternError> {
    if text.contains('*') {
        return Err(PatternError::Misplaced);
    }
    let suffix = Host::parse(text)?;
    if suffix.ip().is_some() {
        return Err(PatternError::Address);
    }
    if !suffix.as_str().contains('.') {
        return Err(PatternError::TooBroad);
    }
    Ok(suffix)
}
