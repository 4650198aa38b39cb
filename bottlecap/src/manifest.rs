//! `bottle.yaml`: what a bottle is made of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use policy::{Diagnostic, Diagnostics, SecretName};
use serde::Deserialize;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_saphyr::{Error, Location, MessageFormatter as _, Spanned};

use crate::environment;

/// What a bottle is made of. Paths are absolute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Its name, if it is to have one.
    pub name: Option<Name>,
    /// What it may reach; without it nothing.
    pub routes: Option<PathBuf>,
    /// Which repositories it may use; without it none.
    pub repos: Option<PathBuf>,
    /// Where secrets come from, by the name that routes know them by.
    pub secrets: BTreeMap<String, SecretSource>,
    /// Variables for the agent.
    pub env: BTreeMap<String, String>,
    /// Directories that are visible read-only.
    pub mounts: Vec<PathBuf>,
    /// More roots that egress trusts upstream.
    pub upstream_ca: Option<PathBuf>,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A variable of whoever starts the bottle.
    Variable(String),
    /// A file.
    File(PathBuf),
}

/// The name of a bottle: it is part of paths, socket names and container names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

/// Why a text is no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a bottle's name is 1 to 32 lower-case letters, digits and `-`, and begins with a letter or digit")]
pub struct NameError;

const NAME_MAX: usize = 32;

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let good =
            (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-');
        if good { Ok(Name(text.to_owned())) } else { Err(NameError) }
    }
}

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

type Text = Spanned<String>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawManifest {
    name: Option<Text>,
    routes: Option<Text>,
    repos: Option<Text>,
    #[serde(default)]
    secrets: BTreeMap<String, Spanned<RawSecret>>,
    #[serde(default)]
    env: BTreeMap<String, Text>,
    #[serde(default)]
    mounts: Vec<RawMount>,
    upstream_ca: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSecret {
    env: Option<Text>,
    file: Option<Text>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMount {
    path: Text,
}

impl Manifest {
    /// Parses `text`. `file` is its name in messages; relative paths are relative to `directory`.
    ///
    /// # Errors
    /// Every finding, with its position.
    pub fn parse(file: &str, text: &str, directory: &Path) -> Result<Manifest, Diagnostics> {
        let raw = read(file, text)?;
        let mut reader = Reader { file, directory, findings: Vec::new() };
        let manifest = Manifest {
            name: raw.name.as_ref().and_then(|name| reader.name(name)),
            routes: raw.routes.as_ref().and_then(|path| reader.path("routes", path)),
            repos: raw.repos.as_ref().and_then(|path| reader.path("repos", path)),
            secrets: raw.secrets.iter().filter_map(|(name, secret)| reader.secret(name, secret)).collect(),
            env: raw.env.iter().filter_map(|(name, value)| reader.variable(name, value)).collect(),
            mounts: raw.mounts.iter().filter_map(|mount| reader.path("path", &mount.path)).collect(),
            upstream_ca: raw.upstream_ca.as_ref().and_then(|path| reader.path("upstream_ca", path)),
        };
        match Diagnostics::new(reader.findings) {
            Some(diagnostics) => Err(diagnostics),
            None => Ok(manifest),
        }
    }
}

struct Reader<'t> {
    file: &'t str,
    directory: &'t Path,
    findings: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn note<T>(&mut self, place: Location, message: String) -> Option<T> {
        let (line, column) = (place.line(), place.column());
        self.findings.push(Diagnostic { file: self.file.to_owned(), line, column, message });
        None
    }

    fn name(&mut self, name: &Text) -> Option<Name> {
        name.value.parse().map_or_else(|error: NameError| self.note(name.referenced, error.to_string()), Some)
    }

    fn path(&mut self, key: &str, path: &Text) -> Option<PathBuf> {
        if path.value.is_empty() || path.value.contains('\0') {
            return self.note(path.referenced, format!("`{key}` is a path"));
        }
        Some(self.directory.join(&path.value))
    }

    fn secret(&mut self, name: &str, secret: &Spanned<RawSecret>) -> Option<(String, SecretSource)> {
        if let Err(error) = SecretName::parse(name) {
            return self.note(secret.referenced, format!("the secret `{}`: {error}", name.escape_debug()));
        }
        let source = match &secret.value {
            RawSecret { env: Some(variable), file: None } if !variable.value.is_empty() => {
                SecretSource::Variable(variable.value.clone())
            }
            RawSecret { env: None, file: Some(file) } => SecretSource::File(self.path("file", file)?),
            RawSecret { .. } => {
                return self.note(
                    secret.referenced,
                    format!("`{name}` has one source: {{env: VARIABLE}} or {{file: PATH}}"),
                );
            }
        };
        Some((name.to_owned(), source))
    }

    fn variable(&mut self, name: &str, value: &Text) -> Option<(String, String)> {
        if !environment::may_be_set(name) {
            let message = format!(
                "the variable `{}` cannot be set: the bottle's own, or not a name",
                name.escape_debug()
            );
            return self.note(value.referenced, message);
        }
        if value.value.contains('\0') {
            return self.note(value.referenced, format!("`{name}` has a NUL in it"));
        }
        Some((name.to_owned(), value.value.clone()))
    }
}

const TEXT_MAX: usize = 1024 * 1024;

fn read(file: &str, text: &str) -> Result<RawManifest, Diagnostics> {
    let fail = |line, column, message| {
        Diagnostics::from(Diagnostic { file: file.to_owned(), line, column, message })
    };
    if text.len() > TEXT_MAX {
        return Err(fail(1, 1, "larger than 1 MiB".to_owned()));
    }
    if text.lines().all(|line| line.trim_start().starts_with('#') || line.trim().is_empty()) {
        return Err(fail(
            1,
            1,
            "the manifest is empty; write `{}` for a bottle that may reach nothing".to_owned(),
        ));
    }
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let error = error.without_snippet();
        let place = error.location().filter(|place| *place != Location::UNKNOWN);
        let (line, column) = place.map_or((1, 1), |place| (place.line(), place.column()));
        fail(line, column, message(error))
    })
}

fn message(error: &Error) -> String {
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            let known: Vec<String> = expected.iter().map(|name| format!("`{name}`")).collect();
            format!("unknown field `{}`, expected one of {}", field.escape_debug(), known.join(", "))
        }
        Error::Unexpected { expected: "sequence start", .. } => "expected a list: `[a, b]`".to_owned(),
        Error::Unexpected { expected: "mapping start", .. } => "expected a mapping: `key: value`".to_owned(),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("duplicate key `{}`", key.escape_debug())
        }
        other => serde_saphyr::UserMessageFormatter.format_message(other).replace(char::is_control, " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> String {
        Manifest::parse("bottle.yaml", text, Path::new("/srv/bottle"))
            .map_or_else(|found| found.to_string(), |_| "none".into())
    }

    #[test]
    fn a_whole_manifest_is_read() {
        let text = "name: web\nroutes: routes.yaml\nrepos: /etc/repos.yaml\nsecrets:\n  EGRESS_TOKEN_0: {env: TOKEN}\n  \
                    deploy: {file: keys/deploy}\nenv: {EDITOR: vi}\nmounts: [{path: tools}]\nupstream_ca: ca.pem\n";
        let manifest = Manifest::parse("bottle.yaml", text, Path::new("/srv/bottle")).expect("valid");
        let wanted = Manifest {
            name: Some("web".parse().expect("a name")),
            routes: Some("/srv/bottle/routes.yaml".into()),
            repos: Some("/etc/repos.yaml".into()),
            secrets: BTreeMap::from([
                ("EGRESS_TOKEN_0".into(), SecretSource::Variable("TOKEN".into())),
                ("deploy".into(), SecretSource::File("/srv/bottle/keys/deploy".into())),
            ]),
            env: BTreeMap::from([("EDITOR".into(), "vi".into())]),
            mounts: vec!["/srv/bottle/tools".into()],
            upstream_ca: Some("/srv/bottle/ca.pem".into()),
        };
        assert_eq!(manifest, wanted);
    }

    #[test]
    fn an_unknown_field_is_named_with_what_is_allowed() {
        insta::assert_snapshot!(findings("name: web\nroute: routes.yaml\n"), @"bottle.yaml:2:1: unknown field `route`, expected one of `name`, `routes`, `repos`, `secrets`, `env`, `mounts`, `upstream_ca`");
    }

    #[test]
    fn every_finding_is_told_at_once() {
        let text = "name: Web\nsecrets:\n  A: {env: X, file: Y}\n  b/c: {env: X}\nenv: {HTTPS_PROXY: 'http://elsewhere'}\n";
        insta::assert_snapshot!(findings(text), @r"
        bottle.yaml:1:7: a bottle's name is 1 to 32 lower-case letters, digits and `-`, and begins with a letter or digit
        bottle.yaml:3:6: `A` has one source: {env: VARIABLE} or {file: PATH}
        bottle.yaml:4:8: the secret `b/c`: a secret's name is 1 to 128 letters, digits, `_`, `-` and `.`, not starting with a dot
        bottle.yaml:5:20: the variable `HTTPS_PROXY` cannot be set: the bottle's own, or not a name
        ");
    }

    #[test]
    fn a_key_twice_is_an_error() {
        insta::assert_snapshot!(findings("name: a\nname: b\n"), @"bottle.yaml:2:1: duplicate key `name`");
    }

    #[test]
    fn a_wrong_shape_is_an_error() {
        insta::assert_snapshot!(findings("mounts: tools\n"), @"bottle.yaml:1:9: expected a list: `[a, b]`");
    }

    #[test]
    fn an_empty_manifest_is_an_error() {
        insta::assert_snapshot!(findings("# nothing\n"), @"bottle.yaml:1:1: the manifest is empty; write `{}` for a bottle that may reach nothing");
    }
}
