//! One raw entry of `matches` into a [`Match`].

use serde_saphyr::{Location, Spanned};

use super::Findings;
use super::yaml::nearest;
use crate::matches::{Match, NamedValue, PathMatch, Purpose};
use crate::path::EscapedSlashes;
use crate::raw::{RawMatch, RawNamed, RawPath, Text};

const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"];

/// What of a route says how its paths are compared.
#[derive(Clone, Copy)]
pub(super) struct Comparison {
    pub(super) purpose: Purpose,
    pub(super) slashes: EscapedSlashes,
}

pub(super) fn entry(
    raw: &Spanned<RawMatch>,
    comparison: Comparison,
    findings: &mut Findings<'_>,
) -> Option<Match> {
    let place = raw.referenced;
    let raw = &raw.value;
    if raw.paths.is_none() && raw.methods.is_none() && raw.headers.is_none() && raw.query.is_none() {
        findings.add(place, "an entry of `matches` needs one of `paths`, `methods`, `headers`, `query`");
        return None;
    }
    Some(Match {
        paths: list("paths", &raw.paths, findings, |raw, findings| typed_path(raw, comparison, findings)),
        methods: list("methods", &raw.methods, findings, method),
        headers: list("headers", &raw.headers, findings, header),
        query: list("query", &raw.query, findings, query),
    })
}

/// A path or pattern of the given type.
pub(super) fn path(
    kind: &str,
    text: &Text,
    Comparison { purpose, slashes }: Comparison,
    findings: &mut Findings<'_>,
) -> Option<PathMatch> {
    findings.take(text.referenced, PathMatch::of(kind, &text.value, purpose, slashes))
}

fn list<R, T>(
    name: &str,
    raw: &Option<Spanned<Vec<R>>>,
    findings: &mut Findings<'_>,
    each: impl Fn(&R, &mut Findings<'_>) -> Option<T>,
) -> Vec<T> {
    let Some(raw) = raw else { return Vec::new() };
    if raw.value.is_empty() {
        findings.add(raw.referenced, format!("`{name}` is empty: list at least one, or leave it out"));
    }
    raw.value.iter().filter_map(|raw| each(raw, findings)).collect()
}

fn typed_path(
    raw: &Spanned<RawPath>,
    comparison: Comparison,
    findings: &mut Findings<'_>,
) -> Option<PathMatch> {
    let place = raw.referenced;
    let kind = required("type", &raw.value.kind, place, findings);
    let value = required("value", &raw.value.value, place, findings);
    let (kind, value) = (kind?, value?);
    if !matches!(kind.value.as_str(), "exact" | "prefix" | "regex") {
        findings.add(
            kind.referenced,
            format!("unknown path type `{}`, expected `exact`, `prefix` or `regex`", kind.value),
        );
        return None;
    }
    path(&kind.value, value, comparison, findings)
}

fn method(text: &Text, findings: &mut Findings<'_>) -> Option<http::Method> {
    let value = text.value.as_str();
    let upper = value.to_ascii_uppercase();
    if value != upper {
        let known = METHODS.contains(&upper.as_str());
        let hint = if known { format!(": write `{upper}`") } else { String::new() };
        findings.add(text.referenced, format!("method `{value}` is not in upper case{hint}"));
        return None;
    }
    if value == "CONNECT" {
        findings.add(text.referenced, "`CONNECT` opens tunnels and is not a method of a request");
        return None;
    }
    if !METHODS.contains(&value)
        && let Some(near) = nearest(value, &METHODS)
    {
        findings.add(text.referenced, format!("unknown method `{value}`; did you mean `{near}`?"));
        return None;
    }
    let parsed = http::Method::from_bytes(value.as_bytes()).map_err(|_| format!("`{value}` is not a method"));
    findings.take(text.referenced, parsed)
}

fn header(raw: &Spanned<RawNamed>, findings: &mut Findings<'_>) -> Option<NamedValue> {
    let (name, value) = named(raw, findings)?;
    let parsed =
        name.value.parse::<http::HeaderName>().map_err(|_| format!("`{}` is not a header name", name.value));
    let header = findings.take(name.referenced, parsed)?;
    Some(NamedValue { name: header.as_str().to_owned(), value: value.value.clone() })
}

fn query(raw: &Spanned<RawNamed>, findings: &mut Findings<'_>) -> Option<NamedValue> {
    let (name, value) = named(raw, findings)?;
    Some(NamedValue { name: name.value.clone(), value: value.value.clone() })
}

fn named<'r>(raw: &'r Spanned<RawNamed>, findings: &mut Findings<'_>) -> Option<(&'r Text, &'r Text)> {
    let name = required("name", &raw.value.name, raw.referenced, findings);
    let value = required("value", &raw.value.value, raw.referenced, findings);
    let (name, value) = (name?, value?);
    if name.value.is_empty() {
        findings.add(name.referenced, "`name` is empty");
        return None;
    }
    Some((name, value))
}

fn required<'r>(
    field: &str,
    text: &'r Option<Text>,
    place: Location,
    findings: &mut Findings<'_>,
) -> Option<&'r Text> {
    if text.is_none() {
        findings.add(place, format!("`{field}` is missing"));
    }
    text.as_ref()
}
