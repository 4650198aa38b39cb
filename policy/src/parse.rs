//! From text to [`Policy`]: every finding with its position, as many as one pass can see.

mod bounds;
mod credential;
mod entry;
mod extra;
mod route;
mod yaml;

use serde_saphyr::Location;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::duration;
use crate::lint;
use crate::policy::{Defaults, LogLevel, Policy};
use crate::raw::{RawDefaults, RawFile, Text};

pub(crate) fn parse(file: &str, text: &str) -> Result<Policy, Diagnostics> {
    let raw = yaml::read::<RawFile>(file, text)?;
    let mut findings = Findings { file, text, list: Vec::new() };
    let log = raw.log.as_ref().and_then(|log| log_level(log, &mut findings)).unwrap_or_default();
    let defaults = raw.defaults.as_ref().map(|raw| defaults(raw, &mut findings)).unwrap_or_default();
    let Some(raw_routes) = raw.routes else {
        findings.add_at(
            1,
            1,
            "`routes` is missing: list the routes, or write `routes: []` to refuse everything".to_owned(),
        );
        return Err(findings.into_diagnostics());
    };
    let mut routes = Vec::with_capacity(raw_routes.len());
    let mut places = Vec::with_capacity(raw_routes.len());
    let mut secrets = Vec::with_capacity(raw_routes.len());
    for (position, raw) in raw_routes.iter().enumerate() {
        if let Some(route) = route::route(position, raw, &mut findings) {
            let secret = raw.value.token_env.as_ref().or(raw.value.token_file.as_ref());
            let place = secret.map_or(raw.referenced, |secret| secret.referenced);
            secrets.push((place.line(), place.column()));
            places.push(raw.value.host.as_ref().map_or(raw.referenced, |host| host.referenced));
            routes.push(route);
        }
    }
    route::refuse_mixed_tls(&routes, &places, &mut findings);
    let mut extras = Vec::new();
    for raw in raw.releases.iter().flatten() {
        extras.extend(extra::release(raw, &mut findings));
    }
    for raw in raw.raised.iter().flatten() {
        extras.extend(extra::raise(raw, &mut findings));
    }
    for raw in raw.exceptions.iter().flatten() {
        extras.extend(extra::exception(raw, &mut findings));
    }
    if findings.list.is_empty() {
        let warnings = lint::warnings(file, &routes, &places);
        let policy = Policy::new(log, defaults, routes, warnings);
        Ok(policy.with_places(file, secrets).with_extras(extras))
    } else {
        Err(findings.into_diagnostics())
    }
}

fn log_level(log: &Text, findings: &mut Findings<'_>) -> Option<LogLevel> {
    match log.value.as_str() {
        "0" => Some(LogLevel::Nothing),
        "1" => Some(LogLevel::Refusals),
        "2" => Some(LogLevel::Requests),
        other => {
            findings.add(
                log.referenced,
                format!("`log` is `{other}`, expected `0` (nothing), `1` (refusals) or `2` (every request)"),
            );
            None
        }
    }
}

fn defaults(raw: &RawDefaults, findings: &mut Findings<'_>) -> Defaults {
    let standard = Defaults::default();
    let mut read = |name: &str, raw: &Option<Text>, standard| match raw {
        None => standard,
        Some(text) => findings
            .take(text.referenced, duration::parse(&text.value).map_err(|error| format!("`{name}`: {error}")))
            .unwrap_or(standard),
    };
    Defaults {
        connect_timeout: read("connect_timeout", &raw.connect_timeout, standard.connect_timeout),
        idle_timeout: read("idle_timeout", &raw.idle_timeout, standard.idle_timeout),
    }
}

/// The findings so far, and what is needed to place the next.
struct Findings<'t> {
    file: &'t str,
    text: &'t str,
    list: Vec<Diagnostic>,
}

impl Findings<'_> {
    fn add(&mut self, place: Location, message: impl Into<String>) {
        self.add_at(place.line(), place.column(), message.into());
    }

    /// At the key in front of a value.
    fn add_at_key(&mut self, value: Location, key: &str, message: impl Into<String>) {
        let (line, column) = key_before(self.text, value, key).unwrap_or((value.line(), value.column()));
        self.add_at(line, column, message.into());
    }

    fn add_at(&mut self, line: u64, column: u64, message: String) {
        self.list.push(Diagnostic { file: self.file.to_owned(), line, column, message });
    }

    /// The value; or nothing, and the error is a finding.
    fn take<T, E: ToString>(&mut self, place: Location, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(place, error.to_string())).ok()
    }

    fn into_diagnostics(self) -> Diagnostics {
        let unplaced = Diagnostic {
            file: self.file.to_owned(),
            line: 1,
            column: 1,
            message: "cannot be read".to_owned(),
        };
        Diagnostics::new(self.list).unwrap_or_else(|| Diagnostics::from(unplaced))
    }
}

/// The position of the last `key` before a value, which for a mapping's entry is its key.
fn key_before(text: &str, value: Location, key: &str) -> Option<(u64, u64)> {
    let offset = usize::try_from(value.span().byte_offset()?).ok()?;
    let before = text.get(..offset)?;
    let start = before.rfind(key)?;
    let line_start = before[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let line = before[..start].matches('\n').count() + 1;
    let column = before[line_start..start].chars().count() + 1;
    Some((u64::try_from(line).ok()?, u64::try_from(column).ok()?))
}
