//! `bottlecap init`: a first manifest with its routes, commented, for a person to change.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::fault::{Attempted, Fault};
use crate::manifest::Name;

/// Where a user's bottles are described: `bottlecap/bottles/NAME/bottle.yaml` below `XDG_CONFIG_HOME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shelf(PathBuf);

impl Shelf {
    /// That of the user of this process; `variable` is its environment.
    #[must_use]
    pub fn of_user(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<Shelf> {
        let set = |name: &str| variable(name).filter(|path| path.is_absolute());
        let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
        Some(Shelf(config.join("bottlecap/bottles")))
    }

    /// The directory of one bottle's files.
    #[must_use]
    pub fn directory(&self, name: &Name) -> PathBuf {
        self.0.join(name.as_str())
    }

    /// The manifest that `word` means: a name is always one of this shelf, so that nothing in a working directory can
    /// stand in for it; anything that cannot be a name is a path.
    #[must_use]
    pub fn manifest(&self, word: &Path) -> PathBuf {
        match word.to_str().and_then(|word| word.parse::<Name>().ok()) {
            Some(name) => self.directory(&name).join(MANIFEST),
            None => word.to_owned(),
        }
    }
}

const MANIFEST: &str = "bottle.yaml";

/// Who is to live in the bottle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// A shell, which reaches nothing until you write it down
    Shell,
    /// Claude Code: the Anthropic API, with your key put in outside the bottle
    ClaudeCode,
    /// Codex: the OpenAI API, with your key put in outside the bottle
    Codex,
}

/// What distinguishes one preset.
struct Words {
    variable: Option<&'static str>,
    route: &'static str,
    command: &'static str,
}

impl Preset {
    fn words(self) -> Words {
        match self {
            Preset::Shell => Words { variable: None, route: "routes: []\n", command: "bash" },
            Preset::ClaudeCode => Words {
                variable: Some("ANTHROPIC_API_KEY"),
                route: "\
routes:
  - host: api.anthropic.com
    matches:
      - paths: [{type: prefix, value: /v1}]
        methods: [GET, POST]
    auth_scheme: header:x-api-key
    token_env: ANTHROPIC_API_KEY
",
                command: "claude",
            },
            Preset::Codex => Words {
                variable: Some("OPENAI_API_KEY"),
                route: "\
routes:
  - host: api.openai.com
    matches:
      - paths: [{type: prefix, value: /v1}]
        methods: [GET, POST]
    auth_scheme: bearer
    token_env: OPENAI_API_KEY
",
                command: "codex",
            },
        }
    }

    fn manifest(self, name: &Name) -> String {
        let secrets = match self.words().variable {
            None => "\
# secrets:                                # read on the host when the bottle starts; the bottle never sees them
#   EGRESS_TOKEN_0: {env: GITHUB_TOKEN}   # or {file: PATH}; routes.yaml names it with token_env
"
            .to_owned(),
            Some(variable) => format!(
                "\
secrets:                                  # read on the host when the bottle starts; the bottle never sees them
  {variable}: {{env: {variable}}}         # or {{file: PATH}}
env:                                      # variables for the agent
  {variable}: in-the-bottle-this-is-a-placeholder   # the program wants one; egress takes it out and puts yours in
"
            ),
        };
        format!(
            "\
# What the bottle is made of. Paths are relative to this file.
name: {name}
routes: routes.yaml                       # what it may reach; without it, nothing
# repos: repos.yaml                       # the git repositories it may use
{secrets}# mounts: [{{path: /opt/tools}}]           # directories that the agent sees, read-only
# upstream_ca: company-ca.pem             # further certificate authorities for what egress connects to
"
        )
    }

    fn routes(self) -> String {
        format!(
            "\
# What may leave the bottle. What is not named here is refused, and the agent is told how to ask.
log: 1                                    # 0 nothing, 1 refusals, 2 every request
{}# - host: api.github.com                  # exact, or \"*.example.com\" for one label in its place
#   matches:
#     - paths: [{{type: prefix, value: /repos/acme}}]
#       methods: [GET]
#   auth_scheme: bearer
#   token_env: EGRESS_TOKEN_0
",
            self.words().route
        )
    }
}

/// Writes the files of a bottle into `directory`, and says what to do next. What is there already stays.
pub fn init(directory: &Path, name: &Name, preset: Preset, out: &mut impl Write) -> Result<(), Fault> {
    let told = || format!("cannot make {}", directory.display());
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).failing(told)?;
    let files = [(MANIFEST, preset.manifest(name)), ("routes.yaml", preset.routes())];
    for (file, _) in &files {
        let path = directory.join(file);
        if fs::symlink_metadata(&path).is_ok() {
            return Err(Fault::refused(format!("{} is there already", path.display()))
                .with_hint("change it, or choose another name or --dir"));
        }
    }
    for (file, text) in &files {
        let path = directory.join(file);
        write_new(&path, text).failing(|| format!("cannot write {}", path.display()))?;
        writeln!(out, "wrote {}", path.display()).failing(|| "cannot print".to_owned())?;
    }
    let words = preset.words();
    let key = words.variable.map(|variable| format!("{variable}=… ")).unwrap_or_default();
    writeln!(out, "\nnext:\n  {key}bottlecap run --bottle {} -- {}", told_as(directory, name), words.command)
        .failing(|| "cannot print".to_owned())
}

/// A bottle of the shelf is called by its name.
fn told_as(directory: &Path, name: &Name) -> String {
    let shelf = Shelf::of_user(|name| std::env::var_os(name).map(PathBuf::from));
    if shelf.is_some_and(|shelf| shelf.directory(name) == directory) {
        name.to_string()
    } else {
        directory.join(MANIFEST).display().to_string()
    }
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    File::options().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    #[test]
    fn every_preset_is_a_bottle_that_can_be_made() {
        let name: Name = "web".parse().expect("a name");
        for preset in Preset::value_variants() {
            let manifest = Manifest::parse("bottle.yaml", &preset.manifest(&name), Path::new("/b"));
            let manifest = manifest.unwrap_or_else(|found| panic!("{preset:?}: {found}"));
            let policy = policy::Policy::parse("routes.yaml", &preset.routes());
            let policy = policy.unwrap_or_else(|found| panic!("{preset:?}: {found}"));
            assert!(policy.warnings().is_empty(), "{preset:?}: {:?}", policy.warnings());
            for credential in policy.routes().iter().filter_map(policy::Route::credential) {
                let (policy::SecretRef::Env(secret) | policy::SecretRef::File(secret)) = &credential.secret;
                assert!(manifest.secrets.contains_key(secret.as_str()), "{preset:?}");
            }
        }
    }

    #[test]
    fn a_name_means_the_users_own_bottle_whatever_lies_in_the_working_directory() {
        let shelf = Shelf::of_user(|name| (name == "XDG_CONFIG_HOME").then(|| "/c".into())).expect("set");
        assert_eq!(shelf.manifest(Path::new("web")), Path::new("/c/bottlecap/bottles/web/bottle.yaml"));
        assert_eq!(shelf.manifest(Path::new("./web")), Path::new("./web"));
        assert_eq!(shelf.manifest(Path::new("bottle.yaml")), Path::new("bottle.yaml"));
    }

    #[test]
    fn what_is_there_already_stays() {
        let root = tempfile::tempdir().expect("a directory");
        let name: Name = "web".parse().expect("a name");
        fs::write(root.path().join("routes.yaml"), "mine").expect("written");
        let fault = init(root.path(), &name, Preset::Shell, &mut Vec::new()).expect_err("refused");
        assert!(fault.to_string().ends_with("routes.yaml is there already"), "{fault}");
        assert!(!root.path().join("bottle.yaml").exists());
        assert_eq!(fs::read_to_string(root.path().join("routes.yaml")).expect("read"), "mine");
    }
}
