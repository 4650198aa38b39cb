//! What a raw route says about how much it may do and what is searched.

use std::num::{NonZeroU32, NonZeroU64};

use serde_saphyr::Spanned;

use super::Findings;
use super::yaml::nearest;
use crate::dlp::{Detector, Dlp, OnMatch, Unreadable};
use crate::limits::{RouteLimits, parse_size};
use crate::raw::{RawDlp, RawLimits, Text};

pub(super) fn limits(raw: &Spanned<RawLimits>, findings: &mut Findings<'_>) -> RouteLimits {
    let RawLimits { requests_per_minute, request_body, connections, concurrency } = &raw.value;
    if requests_per_minute.is_none()
        && request_body.is_none()
        && connections.is_none()
        && concurrency.is_none()
    {
        let message =
            "`limits` needs one of `requests_per_minute`, `request_body`, `connections`, `concurrency`";
        findings.add(raw.referenced, message);
    }
    let mut count = |name: &str, text: &Option<Text>| {
        let text = text.as_ref()?;
        let parsed = text.value.parse::<NonZeroU32>();
        let parsed =
            parsed.map_err(|_| format!("`{name}` is `{}`, expected a whole number from 1", text.value));
        findings.take(text.referenced, parsed)
    };
    RouteLimits {
        requests_per_minute: count("requests_per_minute", requests_per_minute),
        connections: count("connections", connections),
        concurrency: count("concurrency", concurrency),
        request_body: request_body.as_ref().and_then(|text| {
            let parsed = parse_size(&text.value).map_err(|error| format!("`request_body`: {error}"));
            findings.take(text.referenced, parsed)
        }),
    }
}

pub(super) fn max_uses(text: &Text, findings: &mut Findings<'_>) -> Option<NonZeroU64> {
    let parsed = text.value.parse::<NonZeroU64>();
    let parsed =
        parsed.map_err(|_| format!("`max_uses` is `{}`, expected a whole number from 1", text.value));
    findings.take(text.referenced, parsed)
}

/// What is left out is: both detectors for requests, the known secrets for answers, and `block`.
pub(super) fn dlp(raw: &Spanned<RawDlp>, findings: &mut Findings<'_>) -> Dlp {
    let raw = &raw.value;
    let mut list = |list: &Option<Vec<Text>>, known: &[(&'static str, Detector)]| match list {
        None => known.iter().map(|(_, detector)| *detector).collect(),
        Some(list) => list.iter().filter_map(|text| word(text, "detector", known, findings)).collect(),
    };
    let outbound = list(&raw.outbound_detectors, &Detector::OUTBOUND);
    let inbound = list(&raw.inbound_detectors, &Detector::INBOUND);
    let on_match = raw.outbound_on_match.as_ref();
    let on_match = on_match.and_then(|text| word(text, "`outbound_on_match`", &OnMatch::WORDS, findings));
    let unreadable = raw.outbound_uninspectable.as_ref();
    let unreadable = unreadable
        .and_then(|text| word(text, "`outbound_uninspectable`", &Unreadable::WORDS, findings))
        .unwrap_or_default();
    Dlp { outbound, inbound, on_match: on_match.unwrap_or_default(), unreadable }
}

fn word<T: Copy>(
    text: &Text,
    what: &str,
    known: &[(&'static str, T)],
    findings: &mut Findings<'_>,
) -> Option<T> {
    let found = known.iter().find(|(word, _)| *word == text.value);
    if found.is_none() {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        let list: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
        let mut message = format!("unknown {what} `{}`, expected {}", text.value, list.join(" or "));
        if let Some(near) = nearest(&text.value, &words) {
            message.push_str(&format!("; did you mean `{near}`?"));
        }
        findings.add(text.referenced, message);
    }
    found.map(|(_, value)| *value)
}
