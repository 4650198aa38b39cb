//! What a scanner finds in a set, against what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{Sample, Weight};

/// A scanner that can be run.
#[derive(Debug, Clone)]
pub enum Tool {
    /// `git-gate scan --json DIR`.
    GitGate(PathBuf),
    /// `detect-secrets scan --all-files DIR`, from PyPI.
    DetectSecrets(PathBuf),
}

/// Lines of a file that a scanner named.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    file: String,
    first: usize,
    last: usize,
    rule: String,
}

/// The account of one scanner over one set.
#[derive(Debug)]
pub struct Score {
    /// Which scanner.
    pub tool: &'static str,
    /// Secrets found.
    pub found: usize,
    /// Secrets in the set.
    pub secrets: usize,
    /// Findings, by file and line, that lie on a secret.
    pub right: usize,
    /// Findings that do not.
    pub wrong: usize,
    /// Family to the number missed.
    pub missed: BTreeMap<&'static str, usize>,
    /// Kind of file and rule to the number of wrong findings.
    pub false_alarms: BTreeMap<(&'static str, String), usize>,
    /// The first few misses and false alarms as `path:line`, to look at.
    pub examples: Vec<String>,
}

impl Score {
    /// The share of findings that are right.
    pub fn precision(&self) -> f64 {
        share(self.right, self.right + self.wrong)
    }

    /// The share of secrets that were found.
    pub fn recall(&self) -> f64 {
        share(self.found, self.secrets)
    }

    /// As a JSON object.
    pub fn to_json(&self) -> Value {
        let alarms: BTreeMap<_, _> = self
            .false_alarms
            .iter()
            .map(|((kind, rule), count)| (format!("{kind} ({rule})"), count))
            .collect();
        json!({
            "tool": self.tool, "precision": self.precision(), "recall": self.recall(), "found": self.found,
            "secrets": self.secrets, "right": self.right, "wrong": self.wrong, "missed": self.missed,
            "false_alarms": alarms, "examples": self.examples,
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few thousand")]
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

/// Runs the scanner over the set that was written to `directory`.
pub fn score(tool: &Tool, directory: &Path, samples: &[Sample]) -> Result<Score> {
    let (name, findings) = match tool {
        Tool::GitGate(program) => ("git-gate scan", git_gate(program, directory)?),
        Tool::DetectSecrets(program) => ("detect-secrets", detect_secrets(program, directory)?),
    };
    Ok(account(name, samples, &findings))
}

fn account(tool: &'static str, samples: &[Sample], findings: &BTreeSet<Finding>) -> Score {
    let mut score = Score {
        tool,
        found: 0,
        secrets: 0,
        right: 0,
        wrong: 0,
        missed: BTreeMap::new(),
        false_alarms: BTreeMap::new(),
        examples: Vec::new(),
    };
    let mut by_file: BTreeMap<&str, Vec<&Finding>> = BTreeMap::new();
    for finding in findings {
        by_file.entry(&finding.file).or_default().push(finding);
    }
    for sample in samples {
        let findings = by_file.remove(sample.path.as_str()).unwrap_or_default();
        for label in sample.labels.iter().filter(|label| label.weight == Weight::Secret) {
            score.secrets += 1;
            if findings.iter().any(|finding| finding.first <= label.last && label.first <= finding.last) {
                score.found += 1;
            } else {
                *score.missed.entry(label.family).or_default() += 1;
                score.examples.push(format!("missed {} {}:{}", label.family, sample.path, label.first));
            }
        }
        // Several rules on one line are one finding, as one reader sees it.
        let mut seen = BTreeSet::new();
        for finding in findings {
            let label =
                sample.labels.iter().find(|label| finding.first <= label.last && label.first <= finding.last);
            let place = label.map_or(finding.first, |label| label.first);
            if !seen.insert((label.is_some(), place)) {
                continue;
            }
            match label.map(|label| label.weight) {
                Some(Weight::Secret) => score.right += 1,
                Some(Weight::Beside) => {}
                None => {
                    score.wrong += 1;
                    *score.false_alarms.entry((sample.kind, finding.rule.clone())).or_default() += 1;
                    score.examples.push(format!("alarm {} {}:{}", finding.rule, sample.path, finding.first));
                }
            }
        }
    }
    // A finding in a file that is not of the set is not right either.
    score.wrong += by_file.values().map(Vec::len).sum::<usize>();
    score
}

fn run(command: &mut Command, good: &[i32]) -> Result<Vec<u8>> {
    let output =
        command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.code().is_some_and(|code| good.contains(&code)) {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

fn number(value: &Value, key: &str) -> Result<usize> {
    let number = value[key].as_u64().with_context(|| format!("a finding without {key}: {value}"))?;
    Ok(usize::try_from(number)?)
}

fn word(value: &Value, key: &str) -> Result<String> {
    Ok(value[key].as_str().with_context(|| format!("a finding without {key}: {value}"))?.to_owned())
}

fn git_gate(program: &Path, directory: &Path) -> Result<BTreeSet<Finding>> {
    let output = run(Command::new(program).args(["scan", "--json"]).arg(directory.join("files")), &[0, 1])?;
    let mut findings = BTreeSet::new();
    for line in String::from_utf8(output)?.lines() {
        let value: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let first = number(&value, "line")?;
        let last = number(&value, "line_end").unwrap_or(first);
        findings.insert(Finding { file: word(&value, "file")?, first, last, rule: word(&value, "rule")? });
    }
    Ok(findings)
}

fn detect_secrets(program: &Path, directory: &Path) -> Result<BTreeSet<Finding>> {
    let output =
        run(Command::new(program).args(["scan", "--all-files", "files"]).current_dir(directory), &[0])?;
    let value: Value = serde_json::from_slice(&output)?;
    let mut findings = BTreeSet::new();
    for (file, list) in value["results"].as_object().context("no results")? {
        let file = file.strip_prefix("files/").unwrap_or(file);
        for finding in list.as_array().into_iter().flatten() {
            let first = number(finding, "line_number")?;
            findings.insert(Finding {
                file: file.to_owned(),
                first,
                last: first,
                rule: word(finding, "type")?,
            });
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::super::Label;
    use super::*;

    fn sample() -> Sample {
        let label = |family, first, last, weight| Label { family, first, last, weight };
        Sample {
            path: "0/a".to_owned(),
            text: String::new(),
            kind: "plain",
            labels: vec![
                label("pair", 1, 1, Weight::Beside),
                label("pair", 2, 2, Weight::Secret),
                label("block", 5, 9, Weight::Secret),
            ],
        }
    }

    fn at(first: usize, last: usize) -> Finding {
        Finding { file: "0/a".to_owned(), first, last, rule: "r".to_owned() }
    }

    #[test]
    fn nothing_found_is_full_precision_and_no_recall() {
        let score = account("t", &[sample()], &BTreeSet::new());
        assert_eq!((score.precision(), score.recall()), (1.0, 0.0));
        assert_eq!(score.missed, BTreeMap::from([("pair", 1), ("block", 1)]));
    }

    #[test]
    fn two_findings_on_one_secret_count_once_and_one_elsewhere_is_wrong() {
        let findings = [at(1, 1), at(2, 2), at(5, 5), at(6, 9), at(20, 20)].into();
        let score = account("t", &[sample()], &findings);
        assert_eq!((score.found, score.secrets, score.right, score.wrong), (2, 2, 2, 1));
    }

    #[test]
    fn a_scanner_that_names_every_line_has_little_precision() {
        let findings = (1..=20).map(|line| at(line, line)).collect();
        let score = account("t", &[sample()], &findings);
        assert_eq!((score.recall(), score.right, score.wrong), (1.0, 2, 13));
    }
}
