//! One raw route into a [`Route`].

use serde_saphyr::{Location, Spanned};

use super::Findings;
use super::bounds;
use super::credential::credential;
use super::entry::{self, Comparison};
use crate::address::PrivateAllow;
use crate::credential::AgentCredentials;
use crate::grant::GrantId;
use crate::matches::Match;
use crate::path::EscapedSlashes;
use crate::pattern::HostPattern;
use crate::raw::{RawRoute, Text};
use crate::route::{Resolves, Route, RouteId, Scheme, Tls, Verdict};

/// Answered by egress itself.
const OWN_NAME: &str = "_egress.local";

pub(super) fn route(position: usize, raw: &Spanned<RawRoute>, findings: &mut Findings<'_>) -> Option<Route> {
    let place = raw.referenced;
    let raw = &raw.value;
    let before = findings.list.len();
    refuse_contradictions(raw, findings);
    let host = host(raw, place, findings);
    let scheme = raw.scheme.as_ref().and_then(|text| scheme(text, findings)).unwrap_or(Scheme::Https);
    let ports = ports(raw, scheme, findings);
    let verdict = if is_deny(raw) { Verdict::Deny } else { Verdict::Allow };
    let kept = raw.allow_encoded_slashes.as_ref().is_some_and(|kept| kept.value);
    let escaped_slashes = if kept { EscapedSlashes::Kept } else { EscapedSlashes::Refused };
    let comparison = Comparison { purpose: verdict.purpose(), slashes: escaped_slashes };
    let matches = matches(raw, comparison, findings);
    let credential = credential(raw, findings);
    let own_credential_only = raw.own_credential_only.as_ref().map(|own| own.value);
    let agent_credentials = AgentCredentials::new(own_credential_only, credential.as_ref());
    let git_fetch = git_fetch(raw, findings);
    let tls = raw.tls.as_ref().and_then(|text| tls(text, findings)).unwrap_or(Tls::Intercept);
    let allow_private = raw.allow_private.iter().flat_map(|list| &list.value);
    let allow_private = allow_private
        .filter_map(|text| findings.take(text.referenced, PrivateAllow::parse(&text.value)))
        .collect();
    let by_parent = raw.parent_resolves.as_ref().is_some_and(|parent| parent.value);
    let resolves = if by_parent { Resolves::Parent } else { Resolves::Here };
    let expires_at = raw.expires_at.as_ref().and_then(|text| expires_at(text, findings));
    let grant = raw.grant.as_ref().and_then(|text| {
        findings.take(
            text.referenced,
            GrantId::parse(&text.value).map_err(|error| format!("`{}`: {error}", text.value)),
        )
    });
    let limits = raw.limits.as_ref().map(|limits| bounds::limits(limits, findings)).unwrap_or_default();
    let dlp = raw.dlp.as_ref().map(|dlp| bounds::dlp(dlp, findings));
    let max_uses = raw.max_uses.as_ref().and_then(|text| bounds::max_uses(text, findings));
    if findings.list.len() > before {
        return None;
    }
    Some(Route {
        id: RouteId(position),
        host: host?,
        scheme,
        ports,
        matches,
        verdict,
        escaped_slashes,
        credential,
        agent_credentials,
        git_fetch,
        tls,
        allow_private,
        resolves,
        expires_at,
        grant,
        limits,
        dlp,
        max_uses,
    })
}

fn git_fetch(raw: &RawRoute, findings: &mut Findings<'_>) -> bool {
    let Some(git) = &raw.git else { return false };
    if git.value.fetch.is_none() {
        let message = "`git` has no `fetch`: write `git: {fetch: true}`, or leave it out";
        findings.add_at_key(git.referenced, "git", message);
    }
    git.value.fetch.as_ref().is_some_and(|fetch| fetch.value)
}

/// One host pattern cannot be both opened and passed on.
pub(super) fn refuse_mixed_tls(routes: &[Route], places: &[Location], findings: &mut Findings<'_>) {
    use std::collections::HashMap;
    let mut seen: HashMap<(&HostPattern, u16), Tls> = HashMap::new();
    for (route, place) in routes.iter().zip(places) {
        if route.scheme != Scheme::Https || route.verdict == Verdict::Deny {
            continue;
        }
        for &port in &route.ports {
            let first = *seen.entry((&route.host, port)).or_insert(route.tls);
            if first != route.tls {
                let host = &route.host;
                findings.add(
                    *place,
                    format!(
                        "`{host}` has both `tls: intercept` and `tls: passthrough` on port {port}: choose one"
                    ),
                );
            }
        }
    }
}

fn is_deny(raw: &RawRoute) -> bool {
    raw.deny.as_ref().is_some_and(|deny| deny.value)
}

/// Fields that take each other's meaning away.
fn refuse_contradictions(raw: &RawRoute, findings: &mut Findings<'_>) {
    let place = |text: &Option<Text>| text.as_ref().map(|text| text.referenced);
    let credential = [
        ("auth_scheme", place(&raw.auth_scheme)),
        ("token_env", place(&raw.token_env)),
        ("token_file", place(&raw.token_file)),
        ("own_credential_only", raw.own_credential_only.as_ref().map(|own| own.referenced)),
        ("placeholder_in", raw.placeholder_in.as_ref().map(|list| list.referenced)),
    ];
    let dlp = ("dlp", raw.dlp.as_ref().map(|dlp| dlp.referenced));
    let max_uses = ("max_uses", place(&raw.max_uses));
    let limits = ("limits", raw.limits.as_ref().map(|limits| limits.referenced));
    let per_request = raw.limits.as_ref().map(|limits| &limits.value);
    let per_request = per_request.map_or([("", None), ("", None), ("", None)], |limits| {
        [
            ("requests_per_minute", place(&limits.requests_per_minute)),
            ("request_body", place(&limits.request_body)),
            ("concurrency", place(&limits.concurrency)),
        ]
    });
    let git = ("git", raw.git.as_ref().map(|git| git.referenced));
    let filters = [
        ("matches", raw.matches.as_ref().map(|matches| matches.referenced)),
        ("path_allowlist", raw.path_allowlist.as_ref().map(|paths| paths.referenced)),
    ];
    let escaped_slashes =
        ("allow_encoded_slashes", raw.allow_encoded_slashes.as_ref().map(|kept| kept.referenced));
    let exclude =
        |findings: &mut Findings<'_>, what: &str, why: &str, fields: &[(&str, Option<Location>)]| {
            for (name, place) in fields {
                if let Some(place) = place {
                    findings.add_at_key(*place, name, format!("`{name}` contradicts `{what}`: {why}"));
                }
            }
        };
    if raw.tls.as_ref().is_some_and(|tls| tls.value == "passthrough") {
        let why = "what is in the tunnel cannot be seen or changed";
        exclude(findings, "tls: passthrough", why, &credential);
        exclude(findings, "tls: passthrough", why, &filters);
        exclude(findings, "tls: passthrough", why, &[escaped_slashes, git, dlp, max_uses]);
        exclude(findings, "tls: passthrough", why, &per_request);
        if raw.scheme.as_ref().is_some_and(|scheme| scheme.value == "http") {
            exclude(findings, "scheme: http", "there is no TLS to pass on", &[("tls", place(&raw.tls))]);
        }
    }
    let allow_private = ("allow_private", raw.allow_private.as_ref().map(|list| list.referenced));
    if raw.parent_resolves.as_ref().is_some_and(|parent| parent.value) {
        let why = "where the parent leads is not checked here";
        exclude(findings, "parent_resolves: true", why, &[allow_private]);
    }
    if is_deny(raw) {
        let why = "a refused request is not sent";
        exclude(findings, "deny: true", why, &credential);
        exclude(findings, "deny: true", why, &[git, dlp, limits, max_uses, ("tls", place(&raw.tls))]);
        let parent = raw.parent_resolves.as_ref().map(|parent| parent.referenced);
        exclude(findings, "deny: true", why, &[allow_private, ("parent_resolves", parent)]);
        exclude(findings, "deny: true", "a grant only allows", &[("grant", place(&raw.grant))]);
    }
    if raw.matches.is_some() {
        exclude(findings, "matches", "it is the older shorthand for it", &filters[1..]);
    }
    if raw.token_env.is_some() {
        exclude(findings, "token_env", "a route has one credential", &credential[2..3]);
    }
    if raw.token_env.is_none()
        && raw.token_file.is_none()
        && let Some(auth_scheme) = &raw.auth_scheme
    {
        findings.add_at_key(
            auth_scheme.referenced,
            "auth_scheme",
            "`auth_scheme` without a token: name it in `token_file` or `token_env`",
        );
    }
    if raw.token_env.is_none()
        && raw.token_file.is_none()
        && let Some(placeholder_in) = &raw.placeholder_in
    {
        findings.add_at_key(
            placeholder_in.referenced,
            "placeholder_in",
            "`placeholder_in` without a token: name it in `token_file` or `token_env`",
        );
    }
}

fn host(raw: &RawRoute, place: Location, findings: &mut Findings<'_>) -> Option<HostPattern> {
    let Some(text) = &raw.host else {
        findings.add(
            place,
            "`host` is missing: name a host, as in `api.example.com`, `*.example.com` or `**.example.com`",
        );
        return None;
    };
    let parsed = HostPattern::parse(&text.value)
        .map_err(|error| format!("`{}` is not a host: {error}", text.value.escape_debug()));
    let host = findings.take(text.referenced, parsed)?;
    if matches!(&host, HostPattern::Exact(host) if host.as_str() == OWN_NAME) {
        findings.add(
            text.referenced,
            format!("`{OWN_NAME}` is answered by egress itself and cannot have a route"),
        );
        return None;
    }
    Some(host)
}

fn scheme(text: &Text, findings: &mut Findings<'_>) -> Option<Scheme> {
    match text.value.as_str() {
        "https" => Some(Scheme::Https),
        "http" => Some(Scheme::Http),
        other => {
            findings.add(text.referenced, format!("unknown scheme `{other}`, expected `https` or `http`"));
            None
        }
    }
}

fn tls(text: &Text, findings: &mut Findings<'_>) -> Option<Tls> {
    match text.value.as_str() {
        "intercept" => Some(Tls::Intercept),
        "passthrough" => Some(Tls::Passthrough),
        other => {
            findings.add(
                text.referenced,
                format!("unknown `tls` mode `{other}`, expected `intercept` or `passthrough`"),
            );
            None
        }
    }
}

fn ports(raw: &RawRoute, scheme: Scheme, findings: &mut Findings<'_>) -> Vec<u16> {
    let Some(list) = &raw.ports else { return vec![scheme.default_port()] };
    if list.value.is_empty() {
        findings.add(list.referenced, "`ports` is empty: list at least one, or leave it out");
    }
    let mut ports = Vec::with_capacity(list.value.len());
    for text in &list.value {
        match text.value.parse::<u16>() {
            Ok(port) if port != 0 && ports.contains(&port) => {
                findings.add(text.referenced, format!("port {port} is listed twice"))
            }
            Ok(port) if port != 0 => ports.push(port),
            Ok(_) | Err(_) => {
                findings.add(text.referenced, format!("`{}` is not a port: expected 1 to 65535", text.value))
            }
        }
    }
    ports
}

fn matches(raw: &RawRoute, comparison: Comparison, findings: &mut Findings<'_>) -> Vec<Match> {
    if let Some(list) = &raw.matches {
        if list.value.is_empty() {
            findings.add(list.referenced, "`matches` is empty: list at least one entry, or leave it out to match every request on the host");
        }
        return list.value.iter().filter_map(|raw| entry::entry(raw, comparison, findings)).collect();
    }
    let Some(list) = &raw.path_allowlist else { return Vec::new() };
    if list.value.is_empty() {
        findings.add(list.referenced, "`path_allowlist` is empty: list at least one prefix, or leave it out to match every request on the host");
    }
    let path = |text| entry::path("prefix", text, comparison, findings);
    let paths = list.value.iter().filter_map(path).collect();
    vec![Match { paths, methods: Vec::new(), headers: Vec::new(), query: Vec::new() }]
}

pub(super) fn expires_at(text: &Text, findings: &mut Findings<'_>) -> Option<jiff::Timestamp> {
    let value = &text.value;
    let parsed =
        value.parse().map_err(|_| format!("`{value}` is not a time: write it as `2026-12-01T12:00:00Z`"));
    findings.take(text.referenced, parsed)
}
