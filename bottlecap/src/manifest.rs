//! `bottle.yaml`: what a bottle is made of.

mod draft;
mod extend;
mod raw;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use policy::Diagnostics;
use serde::{Deserialize, Serialize};

use crate::fault::{Attempted, Fault};
use crate::init::Shelf;
use crate::preset::Preset;
use crate::text;

pub use extend::{DEPTH_MAX, Source, resolve};
pub use raw::schema;

/// What a bottle is made of. Paths are absolute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Its name, if it is to have one.
    pub name: Option<Name>,
    /// What it may reach; without it what the preset needs, or nothing.
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
    /// Whether clients that ignore proxy variables are served too.
    pub transparent: Option<bool>,
    /// What the command runs in, where that is an image.
    pub image: Option<String>,
    /// The command, where none is given.
    pub command: Vec<String>,
    /// What it may use of the machine.
    pub limits: Limits,
    /// Who lives in it.
    pub agent: Agent,
    /// The files that said so.
    pub files: Vec<PathBuf>,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A variable of whoever starts the bottle.
    Variable(String),
    /// A file.
    File(PathBuf),
    /// What a program prints.
    Command(Vec<String>),
    /// The entry of the desktop's keyring with these attributes.
    Keyring(Vec<(String, String)>),
}

impl std::fmt::Display for SecretSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SecretSource::Variable(name) => write!(f, "the variable {name}"),
            SecretSource::File(path) => write!(f, "the file {}", path.display()),
            SecretSource::Command(words) => write!(f, "the program {}", words.join(" ")),
            SecretSource::Keyring(_) => f.write_str("the keyring"),
        }
    }
}

/// What a bottle may use of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u32>,
    /// Thousandths of a processor.
    pub cpu_thousandths: Option<u32>,
    /// The file, line and column that say so.
    pub place: Option<(String, u64, u64)>,
}

impl Limits {
    /// Whether there are any.
    #[must_use]
    pub fn any(&self) -> bool {
        self.memory.is_some() || self.processes.is_some() || self.cpu_thousandths.is_some()
    }
}

/// Who lives in a bottle.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agent {
    /// The program.
    pub preset: Option<Preset>,
    /// What it is told at its start.
    pub prompt: Option<PathBuf>,
    /// Directories with a `SKILL.md`.
    pub skills: Vec<PathBuf>,
    /// Who its commits are by.
    pub git: Option<GitUser>,
}

/// Who commits are by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitUser {
    /// `user.name`.
    pub name: String,
    /// `user.email`.
    pub email: String,
}

/// The name of a bottle: it is part of paths, socket names and container names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Name, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
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

impl Manifest {
    /// Reads `file`, and what it extends.
    ///
    /// # Errors
    /// Every finding, with its position.
    pub fn load(file: &Path, shelf: Option<&Shelf>) -> Result<Manifest, Fault> {
        let first = source(file, "the manifest ")?;
        Ok(resolve(first, |word, from| {
            let directory = from.path.parent().unwrap_or(Path::new("/"));
            let path = match (word.parse::<Name>(), shelf) {
                (Ok(name), Some(shelf)) => shelf.manifest(Path::new(name.as_str())),
                (Ok(_), None) => {
                    return Err("neither HOME nor XDG_CONFIG_HOME says where your bottles are".to_owned());
                }
                (Err(_), _) => directory.join(word),
            };
            source(&path, "").map_err(|fault| fault.to_string())
        })?)
    }

    /// Parses `text` that extends nothing. `file` is its name in messages; relative paths are relative to `directory`.
    ///
    /// # Errors
    /// Every finding, with its position.
    pub fn parse(file: &str, text: &str, directory: &Path) -> Result<Manifest, Diagnostics> {
        let source =
            Source { file: file.to_owned(), path: directory.join("bottle.yaml"), text: text.to_owned() };
        let mut manifest = resolve(source, |_, _| Err("nothing can be extended here".to_owned()))?;
        manifest.files.clear();
        Ok(manifest)
    }
}

impl Agent {
    /// Parses an agent's own file. Its paths are as they are written.
    ///
    /// # Errors
    /// Every finding, with its position.
    pub fn parse(file: &str, text: &str) -> Result<Agent, Diagnostics> {
        draft::agent(file, text)
    }
}

fn source(file: &Path, what: &str) -> Result<Source, Fault> {
    let told = || format!("cannot read {what}{}", file.display());
    let text = text::read(file, told)?;
    Ok(Source { file: file.display().to_string(), path: fs::canonicalize(file).refusing(told)?, text })
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
                    deploy: {file: keys/deploy}\nenv: {EDITOR: vi}\nmounts: [{path: tools}]\nupstream_ca: ca.pem\ntransparent: true\n";
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
            transparent: Some(true),
            ..Manifest::default()
        };
        assert_eq!(manifest, wanted);
    }

    #[test]
    fn an_unknown_field_is_named_with_what_may_have_been_meant() {
        insta::assert_snapshot!(findings("name: web\nroute: routes.yaml\n"), @"bottle.yaml:2:1: unknown field `route`: did you mean `routes`?");
        insta::assert_snapshot!(findings("name: web\nvolumes: []\n"), @"bottle.yaml:2:1: unknown field `volumes`, expected one of `name`, `extends`, `routes`, `repos`, `secrets`, `env`, `mounts`, `upstream_ca`, `transparent`, `image`, `command`, `limits`, `agent`");
        insta::assert_snapshot!(findings("agent: {preset: claude_code}\n"), @"bottle.yaml:1:17: unknown word `claude_code`: did you mean `claude-code`?");
    }

    #[test]
    fn secrets_come_from_programs_and_keyrings() {
        let text = "secrets:\n  A: {command: [op, read, 'op://v/i/f']}\n  B: {keyring: {service: api, account: me}}\n";
        let manifest = Manifest::parse("bottle.yaml", text, Path::new("/b")).expect("valid");
        let words = ["op", "read", "op://v/i/f"].map(str::to_owned).to_vec();
        assert_eq!(manifest.secrets["A"], SecretSource::Command(words));
        let entry =
            [("account", "me"), ("service", "api")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(manifest.secrets["B"], SecretSource::Keyring(entry.to_vec()));
    }

    #[test]
    fn a_program_of_the_working_directory_is_no_source_of_secrets() {
        let text = "secrets:\n  A: {command: [./op, read]}\n  B: {command: []}\n  C: {keyring: {}}\n";
        insta::assert_snapshot!(findings(text), @r"
        bottle.yaml:2:6: a program with `/` in it is named by its whole path
        bottle.yaml:3:6: `command` is a list: [PROGRAM, ARGUMENT, …]
        bottle.yaml:4:6: `keyring` has the attributes of the entry: {service: NAME, account: NAME}; none is empty or begins with `-`
        ");
    }

    #[test]
    fn limits_are_numbers_with_units() {
        let text = "limits: {memory: 2GiB, processes: 512, cpus: 1.5}\n";
        let limits = Manifest::parse("bottle.yaml", text, Path::new("/b")).expect("valid").limits;
        assert_eq!(
            (limits.memory, limits.processes, limits.cpu_thousandths),
            (Some(2 << 30), Some(512), Some(1500))
        );
        assert_eq!(limits.place, Some(("bottle.yaml".to_owned(), 1, 9)));
        insta::assert_snapshot!(findings("limits: {memory: 2G, processes: 1, cpus: 0}\n"), @r"
        bottle.yaml:1:18: `memory` is a number of KiB, MiB or GiB, such as 2GiB
        bottle.yaml:1:33: `processes` is at least 8
        bottle.yaml:1:42: `cpus` is a number from 0.01 on
        ");
    }

    #[test]
    fn an_agents_file_says_nothing_of_what_may_be_reached() {
        for forbidden in [
            "routes: r.yaml",
            "secrets: {A: {env: B}}",
            "mounts: [{path: /}]",
            "preset: codex",
            "env: {A: b}",
        ] {
            let found = Agent::parse("a.yaml", forbidden).expect_err("refused").to_string();
            assert!(found.starts_with("a.yaml:1:1: unknown field"), "{found}");
        }
        let agent =
            Agent::parse("a.yaml", "prompt: AGENTS.md\ngit: {name: A, email: a@x.test}\n").expect("valid");
        assert_eq!(agent.prompt.as_deref(), Some(Path::new("AGENTS.md")));
        let found =
            Agent::parse("a.yaml", "git: {name: \"a\\n[core]\", email: b}").expect_err("refused").to_string();
        assert!(found.contains("in one line"), "{found}");
    }

    #[test]
    fn every_finding_is_told_at_once() {
        let text = "name: Web\nsecrets:\n  A: {env: X, file: Y}\n  b/c: {env: X}\nenv: {HTTPS_PROXY: 'http://elsewhere'}\n";
        insta::assert_snapshot!(findings(text), @r"
        bottle.yaml:1:7: a bottle's name is 1 to 32 lower-case letters, digits and `-`, and begins with a letter or digit
        bottle.yaml:3:6: `A` has one source: {env: VARIABLE}, {file: PATH}, {command: [PROGRAM, ARGUMENT]} or {keyring: {ATTRIBUTE: VALUE}}
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
        insta::assert_snapshot!(findings("# nothing\n"), @"bottle.yaml:1:1: the manifest is empty; write `{}` for one that says nothing");
    }
}
