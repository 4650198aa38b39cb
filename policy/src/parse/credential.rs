//! What a raw route says about its credential.

use serde_saphyr::{Location, Spanned};

use super::Findings;
use crate::credential::{AuthScheme, Credential, SecretName, SecretRef};
use crate::placeholder::{Position, frames_the_request};
use crate::raw::{RawRoute, Text};

pub(super) fn credential(raw: &RawRoute, findings: &mut Findings<'_>) -> Option<Credential> {
    let scheme = match &raw.auth_scheme {
        Some(text) => auth_scheme(text, findings).map(Some),
        None if raw.placeholder_in.is_some() => Some(None),
        None => Some(Some(AuthScheme::Bearer)),
    };
    let placeholder_in =
        raw.placeholder_in.as_ref().map(|list| positions(list, findings)).unwrap_or_default();
    let name = |text: &Text, findings: &mut Findings<'_>| {
        let parsed = SecretName::parse(&text.value).map_err(|error| format!("`{}`: {error}", text.value));
        findings.take(text.referenced, parsed)
    };
    let secret = match (&raw.token_env, &raw.token_file) {
        (Some(env), _) => name(env, findings).map(SecretRef::Env),
        (None, Some(file)) => name(file, findings).map(SecretRef::File),
        (None, None) => None,
    };
    let (scheme, secret) = (scheme?, secret?);
    Some(Credential { scheme, placeholder_in, secret })
}

fn auth_scheme(text: &Text, findings: &mut Findings<'_>) -> Option<AuthScheme> {
    let place = text.referenced;
    let unknown = |findings: &mut Findings<'_>| {
        let value = &text.value;
        findings.add(place, format!("unknown `auth_scheme` `{value}`, expected `bearer`, `token`, `basic`, `header:NAME` or `query:NAME`"));
        None
    };
    match text.value.split_once(':') {
        None => match text.value.as_str() {
            "bearer" => Some(AuthScheme::Bearer),
            "token" => Some(AuthScheme::Token),
            "basic" => Some(AuthScheme::Basic),
            later @ ("sigv4" | "oauth2") => {
                findings.add(place, format!("`auth_scheme: {later}` is not supported by this version"));
                None
            }
            _ => unknown(findings),
        },
        Some(("header", name)) => credential_header(name, place, findings),
        Some(("query", key)) if !key.is_empty() => Some(AuthScheme::Query(key.to_owned())),
        Some(_) => unknown(findings),
    }
}

fn credential_header(name: &str, place: Location, findings: &mut Findings<'_>) -> Option<AuthScheme> {
    let header = name.parse::<http::HeaderName>().map_err(|_| format!("`{name}` is not a header name"));
    let header = findings.take(place, header)?;
    if frames_the_request(&header) {
        findings.add(place, format!("header `{header}` frames the request and cannot carry a credential"));
        return None;
    }
    Some(AuthScheme::Header(header))
}

fn positions(list: &Spanned<Vec<Text>>, findings: &mut Findings<'_>) -> Vec<Position> {
    if list.value.is_empty() {
        findings
            .add(list.referenced, "`placeholder_in` is empty: list at least one position, or leave it out");
    }
    let mut positions = Vec::with_capacity(list.value.len());
    for text in &list.value {
        let Some(position) = findings.take(text.referenced, Position::parse(&text.value)) else { continue };
        if positions.contains(&position) {
            findings.add(text.referenced, format!("`{position}` is listed twice"));
        }
        positions.push(position);
    }
    positions
}
