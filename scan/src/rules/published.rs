//! How a token begins that follows a published format: what everybody knows, and nobody has to guess.

use regex_automata::{Anchored, Input};

use super::bytes_regex;
use crate::builtin::{FORMATS, Rule};
use crate::check::Check;

/// A run of so many characters holds what is secret; a shorter one numbers a version or an account.
const SECRET_RUN_MIN: usize = 8;

/// How many of the first bytes of `value` everybody knows who knows the formats.
pub(crate) fn published(value: &[u8]) -> usize {
    let begins = |word: &&&str| {
        value.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
    };
    let rules = FORMATS.iter().copied().flatten().filter(|rule| rule.lead == (0, 0));
    let lengths = rules.filter_map(|rule| {
        let keyword = rule.keywords.iter().filter(begins).map(|word| word.len()).max()?;
        Some(keyword.max(matched(rule, value)))
    });
    lengths.max().unwrap_or(0)
}

/// How far the head of the rule's pattern matches.
fn matched(rule: &Rule, value: &[u8]) -> usize {
    if let Check::Jwt = rule.check {
        // Its first part says how it is signed, as all of one issuer do.
        return value.iter().position(|byte| *byte == b'.').map_or(0, |dot| dot + 1);
    }
    let regex = bytes_regex(head(rule.pattern)).ok();
    let found = regex.and_then(|regex| regex.find(Input::new(value).anchored(Anchored::Yes)));
    found.map_or(0, |found| found.end())
}

/// What stands in a pattern before the first run that holds what is secret, or before the group that this is in.
fn head(pattern: &str) -> &str {
    let bytes = pattern.as_bytes();
    let (mut at, mut groups) = (0, Vec::new());
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 1,
            b'(' => groups.push(at),
            b')' => drop(groups.pop()),
            b'[' => {
                let start = at;
                at += bytes[at..].iter().position(|byte| *byte == b']').unwrap_or(bytes.len() - at);
                if is_long_run(&pattern[at..]) {
                    return &pattern[..groups.first().copied().unwrap_or(start)];
                }
            }
            _ => {}
        }
        at += 1;
    }
    pattern
}

/// Whether what a class ends with, such as `]{20,40}`, makes it stand for a long run.
fn is_long_run(after: &str) -> bool {
    let repeated = after.strip_prefix("]{").unwrap_or_default();
    let least: String = repeated.chars().take_while(char::is_ascii_digit).collect();
    least.parse::<usize>().is_ok_and(|least| least >= SECRET_RUN_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_everybody_knows_ends_where_the_secret_begins() {
        let rest = "q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe";
        for (prefix, more) in [
            ("sk-ant-api03-", ""),
            ("sk-ant-admin01-", ""),
            ("github_pat_", ""),
            ("ghp_", ""),
            ("glpat-", ""),
            ("sk_live_", ""),
            ("sk-proj-", ""),
            ("sk-or-v1-", ""),
            ("xapp-1-", ""),
            ("dor_v1_", ""),
            ("pypi-AgEIcHlwaS5vcmc", ""),
            ("AKIA", ""),
            ("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.", "eyJzdWIiOiIx."),
            ("", ""),
        ] {
            assert_eq!(published(format!("{prefix}{more}{rest}").as_bytes()), prefix.len(), "{prefix}");
        }
    }

    #[test]
    fn every_head_is_a_pattern() {
        for rule in FORMATS.iter().copied().flatten() {
            assert!(bytes_regex(head(rule.pattern)).is_ok(), "{}: {}", rule.id, head(rule.pattern));
        }
    }
}
