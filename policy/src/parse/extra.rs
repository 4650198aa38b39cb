//! What approvals add beside the routes.

use std::num::NonZeroU64;

use jiff::Timestamp;
use serde_saphyr::{Location, Spanned};

use super::Findings;
use super::route::expires_at;
use crate::extra::{Exception, Extra, Limit, Raise, Release};
use crate::grant::GrantId;
use crate::host::Host;
use crate::raw::{RawException, RawRaise, RawRelease, Text};

/// The longest name of a rule.
const RULE_MAX_BYTES: usize = 64;
/// What the scanner calls a secret that it was told: ours, which no approval lets go.
const KNOWN_RULE: &str = "known-secret";
const FINGERPRINT_DIGITS: usize = 32;

/// Without `max_uses` it is for one request.
pub(super) fn exception(raw: &Spanned<RawException>, findings: &mut Findings<'_>) -> Option<Extra> {
    let place = raw.referenced;
    let RawException { host: name, rule, fingerprint, expires_at, max_uses, grant } = &raw.value;
    let name = host(name, place, findings);
    let rule = needed(rule, "rule", place, findings).and_then(|text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let is_one = (1..=RULE_MAX_BYTES).contains(&text.value.len()) && text.value.bytes().all(plain);
        let parsed = (is_one && text.value != KNOWN_RULE).then(|| text.value.clone());
        findings.take(text.referenced, parsed.ok_or("`rule` is the name of a rule, and not `known-secret`"))
    });
    let fingerprint = needed(fingerprint, "fingerprint", place, findings).and_then(|text| {
        let is_one = text.value.len() == FINGERPRINT_DIGITS && text.value.bytes().all(is_digit);
        let parsed = is_one.then(|| text.value.clone());
        findings.take(text.referenced, parsed.ok_or("`fingerprint` is 32 hexadecimal digits"))
    });
    let max_uses = uses(max_uses, findings);
    let (expires_at, grant) = end(expires_at, grant, place, findings);
    Some(Extra::Exception(Exception {
        host: name?,
        rule: rule?,
        fingerprint: fingerprint?,
        expires_at: expires_at?,
        max_uses: max_uses?,
        grant: grant?,
    }))
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Once, where it does not say.
fn uses(max_uses: &Option<Text>, findings: &mut Findings<'_>) -> Option<NonZeroU64> {
    match max_uses {
        None => Some(NonZeroU64::MIN),
        Some(text) => super::bounds::max_uses(text, findings),
    }
}

fn host(host: &Option<Text>, place: Location, findings: &mut Findings<'_>) -> Option<Host> {
    needed(host, "host", place, findings).and_then(|text| {
        let parsed = Host::parse(&text.value)
            .map_err(|error| format!("`{}` is not a host: {error}", text.value.escape_debug()));
        findings.take(text.referenced, parsed)
    })
}

/// Without `max_uses` it is for one request.
pub(super) fn release(raw: &Spanned<RawRelease>, findings: &mut Findings<'_>) -> Option<Extra> {
    let place = raw.referenced;
    let RawRelease { digest, expires_at, max_uses, grant } = &raw.value;
    let digest = needed(digest, "digest", place, findings).and_then(|text| {
        let digits = text.value.strip_prefix("sha256:").unwrap_or_default();
        let is_one = digits.len() == 64 && digits.bytes().all(is_digit);
        let parsed = is_one.then(|| text.value.clone());
        findings.take(text.referenced, parsed.ok_or("`digest` is `sha256:` and 64 hexadecimal digits"))
    });
    let max_uses = uses(max_uses, findings);
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
    let RawRaise { host: name, limit, value, expires_at, grant } = &raw.value;
    let name = host(name, place, findings);
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
        host: name?,
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
