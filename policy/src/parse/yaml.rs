//! YAML into raw structs, and the reader's errors in our words.

use serde::de::DeserializeOwned;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_saphyr::{Error, Location};

use crate::diagnostic::{Diagnostic, Diagnostics};

/// More than any policy that a person could review.
const TEXT_MAX: usize = 8 * 1024 * 1024;
const NODES_MAX: usize = 500_000;
const DEPTH_MAX: usize = 32;

pub(super) fn read<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, Diagnostics> {
    let fail = |line, column, message| {
        Diagnostics::from(Diagnostic { file: file.to_owned(), line, column, message })
    };
    if text.len() > TEXT_MAX {
        return Err(fail(1, 1, "larger than 8 MiB".to_owned()));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: NODES_MAX,
            max_events: 4 * NODES_MAX,
            max_depth: DEPTH_MAX,
            max_total_scalar_bytes: TEXT_MAX,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
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
    const MAPPING: &str = "expected a mapping: `key: value`";
    const LIST: &str = "expected a list: `[a, b]`, or a line with `- ` for each";
    match error {
        Error::SerdeUnknownField { field, expected, .. } => unknown_field(field, expected),
        Error::DuplicateMappingKey { key: Some(key), .. } => format!("duplicate key `{key}`"),
        Error::MergeKeyNotAllowed { .. } => {
            "merge keys (`<<`) are not supported: write the fields out".to_owned()
        }
        Error::NullIntoString { .. } => "a value is missing".to_owned(),
        Error::InvalidBooleanStrict { .. } => "expected `true` or `false`".to_owned(),
        Error::MultipleDocuments { .. } => "more than one YAML document in the file".to_owned(),
        Error::Budget { .. } => "larger or deeper than a configuration can be".to_owned(),
        Error::Unexpected { expected, .. } => match *expected {
            "mapping start" => MAPPING.to_owned(),
            "sequence start" => LIST.to_owned(),
            "string scalar" => "expected a single value".to_owned(),
            other => format!("expected {other}"),
        },
        Error::AliasError { error, .. } => message(error),
        other => plain(&other.to_string()),
    }
}

/// The reader's own words without the position that it appends.
fn plain(text: &str) -> String {
    let first = text.lines().next().unwrap_or(text);
    let end = first.rfind(" at line ").unwrap_or(first.len());
    first[..end].trim_end_matches([',', ' ']).to_owned()
}

fn unknown_field(field: &str, expected: &[&'static str]) -> String {
    let list: Vec<String> = expected.iter().map(|name| format!("`{name}`")).collect();
    let mut text = format!("unknown field `{field}`, expected one of {}", list.join(", "));
    if let Some(near) = nearest(field, expected) {
        text.push_str(&format!("; did you mean `{near}`?"));
    }
    text
}

/// The expected name within two edits.
pub(super) fn nearest<'e>(found: &str, expected: &[&'e str]) -> Option<&'e str> {
    let distances = expected.iter().map(|name| (edits(found, name), *name));
    distances.filter(|(distance, name)| *distance <= 2 && *distance < name.len()).min().map(|(_, name)| name)
}

/// The Levenshtein distance, one row at a time; both texts are short.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, from) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, to) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}
