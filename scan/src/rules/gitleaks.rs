//! Rules from a gitleaks configuration.

use regex_automata::meta;
use serde::Deserialize;

use super::{Around, bytes_regex};

/// Why rules cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// It is no TOML, or has keys or values that are not understood; the text names line and column.
    #[error("{0}")]
    Toml(Box<toml::de::Error>),
    /// A pattern is no regular expression.
    #[error("rule `{rule}`: the pattern is no regular expression: {cause}")]
    Pattern {
        /// Its identifier.
        rule: String,
        /// What is wrong.
        cause: String,
    },
    /// A rule looks at the names of files alone, or is made of others: these are not supported.
    #[error("rule `{rule}`: {what} is not supported")]
    Unsupported {
        /// Its identifier.
        rule: String,
        /// The key.
        what: &'static str,
    },
    /// `secretGroup` names a group that the pattern does not have.
    #[error("rule `{rule}`: the pattern has no group {group}")]
    Group {
        /// Its identifier.
        rule: String,
        /// The group.
        group: usize,
    },
    /// A rule has the identifier of another.
    #[error("rule `{0}` is there twice")]
    Twice(String),
}

/// A rule as it is compiled.
pub(super) struct Other {
    pub(super) id: &'static str,
    pub(super) keywords: Vec<String>,
    pub(super) around: Around,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawFile {
    #[expect(dead_code, reason = "a name for people")]
    title: Option<String>,
    #[expect(dead_code, reason = "a name for people")]
    description: Option<String>,
    #[expect(dead_code, reason = "says which gitleaks reads it")]
    min_version: Option<String>,
    allowlist: Option<RawAllowlist>,
    #[serde(default)]
    allowlists: Vec<RawAllowlist>,
    #[serde(default)]
    rules: Vec<RawRule>,
    /// Accepted where it only says `useDefault`: the built-in rules are always there.
    extend: Option<RawExtend>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawExtend {
    #[serde(default)]
    use_default: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRule {
    id: String,
    #[expect(dead_code, reason = "for people")]
    description: Option<String>,
    regex: Option<String>,
    path: Option<String>,
    secret_group: Option<usize>,
    entropy: Option<f32>,
    #[serde(default)]
    keywords: Vec<String>,
    #[expect(dead_code, reason = "for people")]
    #[serde(default)]
    tags: Vec<String>,
    allowlist: Option<RawAllowlist>,
    #[serde(default)]
    allowlists: Vec<RawAllowlist>,
    #[serde(default)]
    required: Vec<toml::Value>,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawAllowlist {
    #[expect(dead_code, reason = "for people")]
    description: Option<String>,
    #[serde(default)]
    regexes: Vec<String>,
    regex_target: Option<String>,
    #[serde(default)]
    stopwords: Vec<String>,
    /// Paths and commits are the writer's to choose, so they excuse nothing here.
    #[expect(dead_code, reason = "excuses nothing")]
    #[serde(default)]
    paths: Vec<String>,
    #[expect(dead_code, reason = "excuses nothing")]
    #[serde(default)]
    commits: Vec<String>,
    condition: Option<String>,
    #[expect(dead_code, reason = "every global allowlist is for every rule")]
    #[serde(default)]
    target_rules: Vec<String>,
}

pub(super) fn parse(text: &str) -> Result<Vec<Other>, RulesError> {
    let file: RawFile = toml::from_str(text).map_err(|error| RulesError::Toml(Box::new(error)))?;
    if file.extend.is_some_and(|extend| !extend.use_default) {
        return Err(RulesError::Unsupported { rule: "extend".to_owned(), what: "a path or URL" });
    }
    let everywhere: Vec<RawAllowlist> = file.allowlist.into_iter().chain(file.allowlists).collect();
    let mut others: Vec<Other> = Vec::new();
    for raw in file.rules {
        let other = rule(raw, &everywhere)?;
        if others.iter().any(|known| known.id == other.id) {
            return Err(RulesError::Twice(other.id.to_owned()));
        }
        others.push(other);
    }
    Ok(others)
}

fn rule(raw: RawRule, everywhere: &[RawAllowlist]) -> Result<Other, RulesError> {
    let unsupported = |what| RulesError::Unsupported { rule: raw.id.clone(), what };
    if raw.path.is_some() {
        return Err(unsupported("`path`"));
    }
    if !raw.required.is_empty() {
        return Err(unsupported("`required`"));
    }
    let Some(pattern) = &raw.regex else { return Err(unsupported("a rule without `regex`")) };
    let compile = |pattern: &str| {
        bytes_regex(pattern)
            .map_err(|error| RulesError::Pattern { rule: raw.id.clone(), cause: cause_of(&error) })
    };
    let regex = compile(pattern)?;
    let groups = regex.group_info().group_len(regex_automata::PatternID::ZERO);
    let group = raw.secret_group.unwrap_or(usize::from(groups > 1));
    if group >= groups {
        return Err(RulesError::Group { rule: raw.id.clone(), group });
    }
    let mut allowed = Vec::new();
    let mut stopwords = Vec::new();
    for list in raw.allowlist.iter().chain(&raw.allowlists).chain(everywhere) {
        let alone = list.condition.as_deref().is_none_or(|word| word.eq_ignore_ascii_case("or"));
        // What a list excuses by the whole line, or only together with a path, it does not excuse here.
        if alone && list.regex_target.as_deref().is_none_or(|target| target == "secret") {
            for pattern in &list.regexes {
                allowed.push(compile(pattern)?);
            }
        }
        if alone {
            stopwords.extend(list.stopwords.iter().map(|word| word.to_ascii_lowercase()));
        }
    }
    let keywords = raw.keywords.iter().map(|word| word.to_ascii_lowercase()).collect();
    // Findings name their rule by reference for as long as the program runs.
    let id: &'static str = Box::leak(raw.id.clone().into_boxed_str());
    Ok(Other { id, keywords, around: Around { regex, group, entropy: raw.entropy, allowed, stopwords } })
}

fn cause_of(error: &meta::BuildError) -> String {
    error.syntax_error().map_or_else(|| error.to_string(), |error| error.to_string())
}
