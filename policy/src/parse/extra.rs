//! What approvals add beside the routes.

use std::num::NonZeroU64;

use jiff::Timestamp;
use serde_saphyr::{Location, Spanned};

use super::Findings;
use super::route::expires_at;
use crate::extra::{Extra, Limit, Raise, Release};
use crate::grant::GrantId;
use crate::host::Host;
use crate::raw::{RawRaise, RawRelease, Text};

/// Without `max_uses` it is for one request.
pub(super) fn release(raw: &Spanned<RawRelease>, findings: &mut Findings<'_>) -> Option<Extra> {
    let place = raw.referenced;
    let RawRelease { digest, expires_at, max_uses, grant } = &raw.value;
    let digest = needed(digest, "digest", place, findings).and_then(|text| {
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let digits = text.value.strip_prefix("sha256:").unwrap_or_default();
        let is_one = digits.len() == 64 && digits.bytes().all(hex);
        let parsed = is_one.then(|| text.value.clone());
        findings.take(text.referenced, parsed.ok_or("`digest` is `sha256:` and 64 hexadecimal digits"))
    });
    let max_uses = match max_uses {
        None => Some(NonZeroU64::MIN),
        Some(text) => super::bounds::max_uses(text, findings),
    };
    let (expires_at, grant) = end(expires_at, grant, place, findings);
    Some(Extra::Release(Release {
        digest: digest?,
        expires_at: expires_at?,
        max_uses: max_uses?,
        grant: grant?,
    }))
}

pub(super) fn raise(raw: &Spanned<RawRaise>, findings: &mut Findings<'_>) -> Option<Extra> {
    let place = raw.referenced;
    let RawRaise { host, limit, value, expires_at, grant } = &raw.value;
    let host = needed(host, "host", place, findings).and_then(|text| {
        let parsed = Host::parse(&text.value)
            .map_err(|error| format!("`{}` is not a host: {error}", text.value.escape_debug()));
        findings.take(text.referenced, parsed)
    });
    let limit = needed(limit, "limit", place, findings).and_then(|text| {
        let names: Vec<String> = Limit::ALL.iter().map(|(name, _)| format!("`{name}`")).collect();
        let unknown =
            || format!("unknown limit `{}`, expected {}", text.value.escape_debug(), names.join(" or "));
        findings.take(text.referenced, Limit::named(&text.value).ok_or_else(unknown))
    });
    let value = needed(value, "value", place, findings).and_then(|text| {
        let most = limit.map_or(u64::MAX, Limit::most);
        let parsed = text.value.parse::<NonZeroU64>().ok().filter(|value| value.get() <= most);
        let wrong = || {
            format!("`value` is `{}`, expected a whole number from 1 to {most}", text.value.escape_debug())
        };
        findings.take(text.referenced, parsed.ok_or_else(wrong))
    });
    let (expires_at, grant) = end(expires_at, grant, place, findings);
    Some(Extra::Raise(Raise {
        host: host?,
        limit: limit?,
        value: value?,
        expires_at: expires_at?,
        grant: grant?,
    }))
}

/// What every approval has: nothing of this kind is without an end.
fn end(
    until: &Option<Text>,
    grant: &Option<Text>,
    place: Location,
    findings: &mut Findings<'_>,
) -> (Option<Timestamp>, Option<GrantId>) {
    let until = needed(until, "expires_at", place, findings).and_then(|text| expires_at(text, findings));
    let grant = needed(grant, "grant", place, findings).and_then(|text| {
        let parsed = GrantId::parse(&text.value);
        findings.take(
            text.referenced,
            parsed.map_err(|error| format!("`{}`: {error}", text.value.escape_debug())),
        )
    });
    (until, grant)
}

fn needed<'r>(
    text: &'r Option<Text>,
    key: &str,
    place: Location,
    findings: &mut Findings<'_>,
) -> Option<&'r Text> {
    if text.is_none() {
        findings.add(place, format!("`{key}` is missing"));
    }
    text.as_ref()
}
