//! A set of files with known secrets in known lines, made anew from a seed: what a scanner is measured on.
//!
//! Written from the formats that the vendors publish, by someone who had not seen the scanner's rules: a figure
//! taken on it says something about secrets, not about the rules.

mod alphabet;
mod families;
mod keys;
mod negatives;
mod places;
mod score;

pub use score::{Score, Tool, score};

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

/// One file of the set.
#[derive(Debug)]
pub struct Sample {
    /// Its path below the directory of the set.
    pub path: String,
    /// What it holds.
    pub text: String,
    /// The secrets in it; none in a file that must stay silent.
    pub labels: Vec<Label>,
    /// What kind of file it is, for the account by kind.
    pub kind: &'static str,
}

/// Where a secret stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The kind of secret.
    pub family: &'static str,
    /// Its first line, from 1.
    pub first: usize,
    /// Its last line.
    pub last: usize,
    /// `Secret` must be found; `Beside` may be: the public half of a pair.
    pub weight: Weight,
}

/// Whether a finding on these lines is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// A finding is right, none is a miss.
    Secret,
    /// A finding is neither right nor wrong.
    Beside,
}

/// How many files of each sort.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Files that hold secrets.
    pub positives: usize,
    /// Files that hold none, but much that looks like one.
    pub negatives: usize,
}

/// The set for this seed. The same seed gives the same set.
pub fn generate(seed: u64, size: Size) -> Vec<Sample> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut samples = Vec::with_capacity(size.positives + size.negatives);
    for index in 0..size.positives {
        let planted = families::pick(&mut rng, index);
        samples.push(places::place(&mut rng, &planted, index));
    }
    for index in 0..size.negatives {
        samples.push(negatives::make(&mut rng, index));
    }
    samples
}

/// Writes the set below `directory`, and `labels.json` beside it.
pub fn write(directory: &Path, seed: u64, samples: &[Sample]) -> Result<()> {
    let files = directory.join("files");
    let mut labels = BTreeMap::new();
    for sample in samples {
        let path = files.join(&sample.path);
        let parent = path.parent().context("a sample has a directory")?;
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        std::fs::write(&path, &sample.text).with_context(|| format!("cannot write {}", path.display()))?;
        let lines: Vec<_> = sample
            .labels
            .iter()
            .map(|label| {
                let wanted = label.weight == Weight::Secret;
                json!({"family": label.family, "first": label.first, "last": label.last, "secret": wanted})
            })
            .collect();
        labels.insert(&sample.path, json!({"kind": sample.kind, "labels": lines}));
    }
    let text = serde_json::to_string_pretty(&json!({"seed": seed, "files": labels}))?;
    let path = directory.join("labels.json");
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { positives: 400, negatives: 400 };

    #[test]
    fn one_seed_makes_one_set_and_another_seed_another() {
        let texts = |seed| generate(seed, SIZE).into_iter().map(|sample| sample.text).collect::<Vec<_>>();
        assert_eq!(texts(1), texts(1));
        assert_ne!(texts(1), texts(2));
    }

    #[test]
    fn every_label_names_lines_that_the_file_has_and_negatives_have_none() {
        let samples = generate(3, SIZE);
        for (index, sample) in samples.iter().enumerate() {
            let lines = sample.text.lines().count();
            assert_eq!(
                sample.labels.iter().any(|label| label.weight == Weight::Secret),
                index < SIZE.positives
            );
            for label in &sample.labels {
                assert!(1 <= label.first && label.first <= label.last && label.last <= lines, "{sample:?}");
            }
        }
    }

    #[test]
    fn every_family_and_every_kind_of_negative_is_in_a_set() {
        let samples = generate(4, SIZE);
        let families: std::collections::BTreeSet<_> =
            samples.iter().flat_map(|sample| &sample.labels).map(|label| label.family).collect();
        for family in families::names() {
            assert!(families.contains(family), "{family}");
        }
        let kinds: std::collections::BTreeSet<_> = samples.iter().map(|sample| sample.kind).collect();
        assert!(kinds.len() > 40, "{kinds:?}");
    }

    #[test]
    fn paths_are_distinct() {
        let samples = generate(5, SIZE);
        let paths: std::collections::BTreeSet<_> = samples.iter().map(|sample| &sample.path).collect();
        assert_eq!(paths.len(), samples.len());
    }
}
