//! One file of a bottle, parsed: each value is what it claims to be, and what it extends is still a word.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use policy::{Diagnostic, Diagnostics, SecretName};
use serde_saphyr::{Location, Spanned};

use super::raw::{self, RawAgent, RawAgentFile, RawGit, RawLimits, RawManifest, RawSecret, Text};
use super::{Agent, GitUser, Limits, Manifest, Name, NameError, SecretSource};
use crate::environment;

/// One file's say.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) manifest: Manifest,
    pub(super) extends: Option<Extends>,
}

/// What a bottle extends, and where it says so.
#[derive(Debug)]
pub(super) struct Extends {
    pub(super) word: String,
    pub(super) place: Location,
}

const KIBI: u64 = 1024;
const CPU_PARTS: f64 = 1000.0;
const CPUS_MAX: f64 = 4096.0;
const PROCESSES_MIN: u32 = 8;
const MEMORY_MIN: u64 = 16 * KIBI * KIBI;

impl Draft {
    pub(super) fn parse(file: &str, text: &str, directory: &Path) -> Result<Draft, Diagnostics> {
        let raw: RawManifest = raw::read("manifest", file, text)?;
        let mut reader = Reader { file, directory, findings: Vec::new() };
        let manifest = Manifest {
            name: raw.name.as_ref().and_then(|name| reader.name(name)),
            routes: raw.routes.as_ref().and_then(|path| reader.path("routes", path)),
            repos: raw.repos.as_ref().and_then(|path| reader.path("repos", path)),
            secrets: raw.secrets.iter().filter_map(|(name, secret)| reader.secret(name, secret)).collect(),
            env: raw.env.iter().filter_map(|(name, value)| reader.variable(name, value)).collect(),
            mounts: raw.mounts.iter().filter_map(|mount| reader.path("path", &mount.path)).collect(),
            upstream_ca: raw.upstream_ca.as_ref().and_then(|path| reader.path("upstream_ca", path)),
            transparent: raw.transparent,
            image: raw.image.as_ref().and_then(|image| reader.image(image)),
            command: raw.command.as_deref().map(|words| reader.command(words)).unwrap_or_default(),
            limits: raw.limits.as_ref().map(|limits| reader.limits(limits)).unwrap_or_default(),
            agent: raw.agent.as_ref().map(|agent| reader.agent(agent)).unwrap_or_default(),
            files: Vec::new(),
        };
        let extends = raw.extends.map(|word| Extends { place: word.referenced, word: word.value });
        reader.finish()?;
        Ok(Draft { manifest, extends })
    }
}

/// An agent's own file. Its paths are as they are written.
pub(super) fn agent(file: &str, text: &str) -> Result<Agent, Diagnostics> {
    let raw: RawAgentFile = raw::read("agent", file, text)?;
    let mut reader = Reader { file, directory: Path::new(""), findings: Vec::new() };
    let agent = Agent {
        preset: None,
        prompt: raw.prompt.as_ref().and_then(|path| reader.path("prompt", path)),
        skills: raw.skills.iter().filter_map(|path| reader.path("skills", path)).collect(),
        git: raw.git.as_ref().and_then(|git| reader.git(git)),
    };
    reader.finish()?;
    Ok(agent)
}

pub(super) struct Reader<'t> {
    file: &'t str,
    directory: &'t Path,
    findings: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn finish(self) -> Result<(), Diagnostics> {
        Diagnostics::new(self.findings).map_or(Ok(()), Err)
    }

    fn note<T>(&mut self, place: Location, message: impl Into<String>) -> Option<T> {
        self.findings.push(at(self.file, place, message));
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
            RawSecret { env: Some(variable), file: None, command: None, keyring: None }
                if !variable.value.is_empty() =>
            {
                SecretSource::Variable(variable.value.clone())
            }
            RawSecret { env: None, file: Some(file), command: None, keyring: None } => {
                SecretSource::File(self.path("file", file)?)
            }
            RawSecret { env: None, file: None, command: Some(words), keyring: None } => {
                SecretSource::Command(self.program(secret.referenced, words)?)
            }
            RawSecret { env: None, file: None, command: None, keyring: Some(entry) } => {
                SecretSource::Keyring(self.keyring(secret.referenced, entry)?)
            }
            RawSecret { .. } => {
                return self.note(
                    secret.referenced,
                    format!(
                        "`{name}` has one source: {{env: VARIABLE}}, {{file: PATH}}, {{command: [PROGRAM, ARGUMENT]}} or \
                         {{keyring: {{ATTRIBUTE: VALUE}}}}"
                    ),
                );
            }
        };
        Some((name.to_owned(), source))
    }

    /// A program of the host: by name, to be found in PATH, or by its whole path; never one of wherever we happen to be.
    fn program(&mut self, place: Location, words: &[Text]) -> Option<Vec<String>> {
        let words = self.command(words);
        match words.first() {
            None => self.note(place, "`command` is a list: [PROGRAM, ARGUMENT, …]"),
            Some(program) if program.contains('/') && !program.starts_with('/') => {
                self.note(place, "a program with `/` in it is named by its whole path")
            }
            Some(_) => Some(words),
        }
    }

    fn keyring(&mut self, place: Location, entry: &BTreeMap<String, Text>) -> Option<Vec<(String, String)>> {
        let sound = |word: &str| !word.is_empty() && !word.starts_with('-') && !word.contains('\0');
        if entry.is_empty() || !entry.iter().all(|(name, value)| sound(name) && sound(&value.value)) {
            return self.note(
                place,
                "`keyring` has the attributes of the entry: {service: NAME, account: NAME}; none is empty or begins with `-`",
            );
        }
        Some(entry.iter().map(|(name, value)| (name.clone(), value.value.clone())).collect())
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

    fn image(&mut self, image: &Text) -> Option<String> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
        let sound = !image.value.is_empty()
            && image.value.bytes().all(allowed)
            && image.value.starts_with(|first: char| first.is_ascii_alphanumeric());
        if sound {
            Some(image.value.clone())
        } else {
            self.note(image.referenced, "not the name of an image")
        }
    }

    fn command(&mut self, words: &[Text]) -> Vec<String> {
        if let Some(word) = words.iter().find(|word| word.value.contains('\0')) {
            let _: Option<()> = self.note(word.referenced, "a word has a NUL in it");
        }
        if let Some(first) = words.first().filter(|first| first.value.is_empty()) {
            let _: Option<()> = self.note(first.referenced, "the program has no name");
        }
        words.iter().map(|word| word.value.clone()).collect()
    }

    fn limits(&mut self, raw: &Spanned<RawLimits>) -> Limits {
        let RawLimits { memory, processes, cpus } = &raw.value;
        let place = at(self.file, raw.referenced, "");
        Limits {
            memory: memory.as_ref().and_then(|memory| self.memory(memory)),
            processes: processes.as_ref().and_then(|count| match count.value {
                PROCESSES_MIN.. => Some(count.value),
                _ => self.note(count.referenced, format!("`processes` is at least {PROCESSES_MIN}")),
            }),
            cpu_thousandths: cpus.as_ref().and_then(|cpus| {
                if (0.01..=CPUS_MAX).contains(&cpus.value) {
                    Some((cpus.value * CPU_PARTS).round() as u32)
                } else {
                    self.note(cpus.referenced, "`cpus` is a number from 0.01 on")
                }
            }),
            place: Some((place.file, place.line, place.column)),
        }
    }

    fn memory(&mut self, text: &Text) -> Option<u64> {
        let units = [("KiB", KIBI), ("MiB", KIBI * KIBI), ("GiB", KIBI * KIBI * KIBI)];
        let bytes = units.iter().find_map(|(unit, bytes)| {
            let number: u64 = text.value.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(*bytes)
        });
        match bytes {
            Some(bytes) if bytes >= MEMORY_MIN => Some(bytes),
            Some(_) => self.note(text.referenced, "`memory` is at least 16MiB"),
            None => self.note(text.referenced, "`memory` is a number of KiB, MiB or GiB, such as 2GiB"),
        }
    }

    fn agent(&mut self, raw: &RawAgent) -> Agent {
        Agent {
            preset: raw.preset,
            prompt: raw.prompt.as_ref().and_then(|path| self.path("prompt", path)),
            skills: raw.skills.iter().filter_map(|path| self.path("skills", path)).collect(),
            git: raw.git.as_ref().and_then(|git| self.git(git)),
        }
    }

    fn git(&mut self, raw: &RawGit) -> Option<GitUser> {
        for word in [&raw.name, &raw.email] {
            let unsound = |c: char| c.is_control() || matches!(c, '<' | '>' | '"' | '\\');
            if word.value.trim().is_empty() || word.value.contains(unsound) {
                return self.note(
                    word.referenced,
                    "a name or an address for git, in one line without <, >, \" and \\",
                );
            }
        }
        Some(GitUser { name: raw.name.value.clone(), email: raw.email.value.clone() })
    }
}

pub(super) fn at(file: &str, place: Location, message: impl Into<String>) -> Diagnostic {
    Diagnostic { file: file.to_owned(), line: place.line(), column: place.column(), message: message.into() }
}
