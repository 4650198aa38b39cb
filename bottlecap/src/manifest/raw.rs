//! `bottle.yaml` and an agent's file as they are written, and what is wrong with their form.

use std::collections::BTreeMap;

use policy::{Diagnostic, Diagnostics};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_saphyr::{Error, Location, MessageFormatter as _, Spanned};

use crate::preset::Preset;

pub(super) type Text = Spanned<String>;

/// What a bottle is made of. Paths are relative to the file.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "bottle.yaml")]
pub(super) struct RawManifest {
    /// The bottle's name: 1 to 32 lower-case letters, digits and `-`. A bottle without one leaves no state behind.
    #[schemars(with = "Option<String>")]
    pub(super) name: Option<Text>,
    /// The bottle that this one changes: the name of one of yours, or a path. What stands here goes before what stands there;
    /// `secrets`, `env` and `mounts` are added to.
    #[schemars(with = "Option<String>")]
    pub(super) extends: Option<Text>,
    /// The file with what it may reach. Without it, what the agent's preset needs; without a preset, nothing.
    #[schemars(with = "Option<String>")]
    pub(super) routes: Option<Text>,
    /// The file with the git repositories it may use.
    #[schemars(with = "Option<String>")]
    pub(super) repos: Option<Text>,
    /// Where secrets come from, by the name that routes.yaml knows them by. Read on the host when the bottle starts.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, RawSecret>")]
    pub(super) secrets: BTreeMap<String, Spanned<RawSecret>>,
    /// Variables for the agent.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub(super) env: BTreeMap<String, Text>,
    /// Directories that the agent sees, read-only.
    #[serde(default)]
    pub(super) mounts: Vec<RawMount>,
    /// A PEM file of further certificate authorities for what egress and git-gate connect to.
    #[schemars(with = "Option<String>")]
    pub(super) upstream_ca: Option<Text>,
    /// Whether programs that ignore proxy variables are served too, by DNS that knows allowed names only.
    pub(super) transparent: Option<bool>,
    /// The image that the command runs in; for `--backend docker` alone.
    #[schemars(with = "Option<String>")]
    pub(super) image: Option<Text>,
    /// The command where none is given: program and arguments, without a shell.
    #[schemars(with = "Option<Vec<String>>")]
    pub(super) command: Option<Vec<Text>>,
    /// What the bottle may use of the machine. Refused where it cannot be enforced.
    #[schemars(with = "Option<RawLimits>")]
    pub(super) limits: Option<Spanned<RawLimits>>,
    /// Who lives in the bottle.
    pub(super) agent: Option<RawAgent>,
}

/// Where a secret comes from: one of these.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
pub(super) struct RawSecret {
    /// A variable of whoever starts the bottle.
    #[schemars(with = "Option<String>")]
    pub(super) env: Option<Text>,
    /// A file.
    #[schemars(with = "Option<String>")]
    pub(super) file: Option<Text>,
    /// What a program prints: `[op, read, "op://vault/item/field"]`, `[pass, show, api/token]`. Without a shell.
    #[schemars(with = "Option<Vec<String>>")]
    pub(super) command: Option<Vec<Text>>,
    /// An entry of the desktop's keyring, as `secret-tool store` makes it.
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub(super) keyring: Option<BTreeMap<String, Text>>,
}

/// A directory.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMount {
    /// Where it is, on the host and in the bottle.
    #[schemars(with = "String")]
    pub(super) path: Text,
}

/// What a bottle may use.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub(super) struct RawLimits {
    /// Memory, as `512MiB` or `2GiB`.
    #[schemars(with = "Option<String>", regex(pattern = "^[1-9][0-9]*(KiB|MiB|GiB)$"))]
    pub(super) memory: Option<Text>,
    /// Processes and threads.
    #[schemars(with = "Option<u32>", range(min = 8))]
    pub(super) processes: Option<Spanned<u32>>,
    /// Processors, as `2` or `0.5`.
    #[schemars(with = "Option<f64>", range(min = 0.01))]
    pub(super) cpus: Option<Spanned<f64>>,
}

/// Who lives in the bottle.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAgent {
    /// The program, with the variables, files and, where the manifest names no routes, the routes that it needs.
    pub(super) preset: Option<Preset>,
    /// A text file that the agent is told at its start.
    #[schemars(with = "Option<String>")]
    pub(super) prompt: Option<Text>,
    /// Directories with a `SKILL.md` each.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) skills: Vec<Text>,
    /// Who its commits are by.
    pub(super) git: Option<RawGit>,
}

/// Who commits are by.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGit {
    /// `user.name`.
    #[schemars(with = "String")]
    pub(super) name: Text,
    /// `user.email`.
    #[schemars(with = "String")]
    pub(super) email: Text,
}

/// An agent's own file, which a repository may bring in `.bottlecap/agents/`: it says nothing of what may be reached.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAgentFile {
    /// A text file that the agent is told at its start.
    #[schemars(with = "Option<String>")]
    pub(super) prompt: Option<Text>,
    /// Directories with a `SKILL.md` each.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub(super) skills: Vec<Text>,
    /// Who its commits are by.
    pub(super) git: Option<RawGit>,
}

/// The JSON schema of a bottle, for editors.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(RawManifest).to_value()
}

const TEXT_MAX: usize = 1024 * 1024;

/// Reads the form of `text`; `what` is what it is, and `{}` the least that it may say.
pub(super) fn read<T: DeserializeOwned>(what: &str, file: &str, text: &str) -> Result<T, Diagnostics> {
    let fail = |line, column, message| {
        Diagnostics::from(Diagnostic { file: file.to_owned(), line, column, message })
    };
    if text.len() > TEXT_MAX {
        return Err(fail(1, 1, "larger than 1 MiB".to_owned()));
    }
    if text.lines().all(|line| line.trim_start().starts_with('#') || line.trim().is_empty()) {
        return Err(fail(1, 1, format!("the {what} is empty; write `{{}}` for one that says nothing")));
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
        Error::SerdeUnknownField { field, expected, .. } => unknown("field", field, expected),
        Error::SerdeUnknownVariant { variant, expected, .. } => unknown("word", variant, expected),
        Error::Unexpected { expected: "sequence start", .. } => "expected a list: `[a, b]`".to_owned(),
        Error::Unexpected { expected: "mapping start", .. } => "expected a mapping: `key: value`".to_owned(),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("duplicate key `{}`", key.escape_debug())
        }
        other => serde_saphyr::UserMessageFormatter.format_message(other).replace(char::is_control, " "),
    }
}

fn unknown(what: &str, word: &str, expected: &[&str]) -> String {
    let word_is = format!("unknown {what} `{}`", word.escape_debug());
    match nearest(word, expected) {
        Some(near) => format!("{word_is}: did you mean `{near}`?"),
        None => {
            let known: Vec<String> = expected.iter().map(|name| format!("`{name}`")).collect();
            format!("{word_is}, expected one of {}", known.join(", "))
        }
    }
}

/// Of `known`, the one that `word` may have been meant to be.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_lowercase();
    let distances = known.iter().map(|known| (strsim::damerau_levenshtein(&word, known), *known));
    let (distance, known) = distances.min()?;
    (distance <= 1 + known.chars().count() / 4).then_some(known)
}
