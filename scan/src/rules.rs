//! The compiled rules and the search.

use std::ops::Range;
use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use regex::bytes::{Regex, RegexBuilder};

use crate::builtin::{BUILTIN, Rule};
use crate::finding::{Finding, Lines};
use crate::text::View;

/// Names the built-in rule set; a new value means that a text may be judged differently.
pub const RULES_VERSION: &str = "builtin-1";

/// How far before a keyword a match may begin.
const BEFORE_BYTES: usize = 128;
/// How far after a keyword a match may end.
const AFTER_BYTES: usize = 2048;
/// How far a window grows so that it does not end inside a word.
const WORD_MAX_BYTES: usize = 16 * 1024;

/// Compiled rules.
pub struct Rules {
    rules: Vec<Compiled>,
    keywords: AhoCorasick,
    /// Which rules a keyword wakes.
    woken: Vec<Vec<usize>>,
}

struct Compiled {
    rule: &'static Rule,
    regex: Regex,
}

/// A match that passed its check, before rules are weighed against each other.
struct Hit {
    rule: usize,
    secret: Range<usize>,
}

impl Rules {
    /// The built-in rules.
    pub fn builtin() -> &'static Self {
        static RULES: LazyLock<Rules> = LazyLock::new(|| Rules::compile(BUILTIN));
        &RULES
    }

    /// The identifiers of the rules.
    pub fn ids(&self) -> impl Iterator<Item = &'static str> {
        self.rules.iter().map(|compiled| compiled.rule.id)
    }

    /// Every place where a rule matches, in the order of the input.
    pub fn scan(&self, input: &[u8]) -> Vec<Finding> {
        let mut findings: Vec<Finding> = View::all(input).flat_map(|view| self.view(&view)).collect();
        findings.sort_by_key(|finding| finding.offset);
        findings
    }

    fn view(&self, view: &View<'_>) -> Vec<Finding> {
        let text: &[u8] = &view.bytes;
        let mut lines = Lines::new(text);
        let report = |hit: Hit| {
            let (line, column) = lines.locate(hit.secret.start);
            let line_end = lines.line_at(hit.secret.end);
            let rule = self.rules[hit.rule].rule.id;
            Finding { rule, line, line_end, column, offset: view.offset(hit.secret.start) }
        };
        weigh(self.hits(text)).into_iter().map(report).collect()
    }

    fn compile(rules: &'static [Rule]) -> Self {
        let mut words: Vec<&str> = Vec::new();
        let mut woken: Vec<Vec<usize>> = Vec::new();
        for (index, rule) in rules.iter().enumerate() {
            for keyword in rule.keywords {
                match words.iter().position(|w| w == keyword) {
                    Some(at) => woken[at].push(index),
                    None => {
                        words.push(keyword);
                        woken.push(vec![index]);
                    }
                }
            }
        }
        let keywords = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .build(&words)
            .expect("a few dozen short words fit any automaton");
        let rules = rules.iter().map(|rule| Compiled { rule, regex: regex(rule.pattern) }).collect();
        Self { rules, keywords, woken }
    }

    fn hits(&self, text: &[u8]) -> Vec<Hit> {
        let mut hits = Vec::new();
        for (index, windows) in self.windows(text).into_iter().enumerate() {
            for window in windows {
                self.rules[index].search(index, text, window, &mut hits);
            }
        }
        hits
    }

    /// For each rule the parts of the text that are near its keywords, without overlap.
    fn windows(&self, text: &[u8]) -> Vec<Vec<Range<usize>>> {
        let mut windows: Vec<Vec<Range<usize>>> = vec![Vec::new(); self.rules.len()];
        for hit in self.keywords.find_overlapping_iter(text) {
            let start = hit.start().saturating_sub(BEFORE_BYTES);
            let end = text.len().min(hit.end() + AFTER_BYTES);
            for rule in &self.woken[hit.pattern().as_usize()] {
                match windows[*rule].last_mut() {
                    Some(last) if last.end >= start => {
                        last.end = last.end.max(end);
                        last.start = last.start.min(start);
                    }
                    _ => windows[*rule].push(start..end),
                }
            }
        }
        for window in windows.iter_mut().flatten() {
            let rest = &text[window.end..text.len().min(window.end + WORD_MAX_BYTES)];
            window.end += rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
        }
        windows
    }
}

impl Compiled {
    fn search(&self, index: usize, text: &[u8], window: Range<usize>, hits: &mut Vec<Hit>) {
        let mut from = window.start;
        while let Some(found) = self.regex.captures_at(&text[..window.end], from) {
            let (Some(whole), Some(secret)) = (found.get(0), found.name("s").or_else(|| found.get(0))) else {
                break;
            };
            if let Some(end) = self.rule.check.accept(text, secret.start(), secret.end()) {
                hits.push(Hit { rule: index, secret: secret.start()..end });
            }
            from = whole.end().max(from + 1);
            if from > window.end {
                break;
            }
        }
    }
}

/// Sorts by place and keeps, of two that overlap, the rule that stands first in the table.
fn weigh(mut hits: Vec<Hit>) -> Vec<Hit> {
    hits.sort_by_key(|hit| (hit.secret.start, hit.rule));
    let mut kept: Vec<Hit> = Vec::with_capacity(hits.len());
    for hit in hits {
        match kept.last_mut() {
            Some(last) if last.secret.end > hit.secret.start => {
                if hit.rule < last.rule {
                    *last = hit;
                }
            }
            _ => kept.push(hit),
        }
    }
    kept
}

fn regex(pattern: &str) -> Regex {
    RegexBuilder::new(pattern)
        .unicode(false)
        .size_limit(16 << 20)
        .build()
        .expect("the patterns are constants that the tests compile")
}

#[cfg(test)]
mod tests;
