//! The compiled rules: where they look, and what they say of one place.

mod before;
mod gitleaks;
mod machine;
mod published;

use std::ops::Range;
use std::sync::{LazyLock, OnceLock};

use regex_automata::util::syntax;
use regex_automata::{Input, meta};

pub use gitleaks::RulesError;
pub(crate) use published::published;

use crate::builtin::{BUILTIN, FORMATS, Rule};
use crate::finding::Finding;
use crate::keywords::Keywords;
use crate::scanner::{Bounds, Report, Scanner};
use before::{Before, emphasised, told_lengths};
use machine::Machine;

/// Names the built-in rule set; a new value means that a text may be judged differently.
pub const RULES_VERSION: &str = "builtin-5";

/// No match is longer.
pub(crate) const MATCH_MAX_BYTES: usize = 16 * 1024;
/// How far around a keyword a rule of somebody else's looks: a match begins and ends within.
pub(crate) const AROUND_BYTES: usize = 2048;

/// A shorter run of letters and digits goes on, so that ordinary words do.
const LEAD_MIN_BYTES: usize = 8;
/// What an escape right before a secret may add to the run.
const LEAD_ESCAPE_BYTES: usize = 8;

/// Compiled rules.
pub struct Rules {
    rules: Vec<Compiled>,
    keywords: Keywords,
    /// Which rules a keyword wakes, each with the gate that it stands behind.
    woken: Vec<Vec<(u16, Option<usize>)>>,
    /// Rules without a keyword, which look everywhere.
    everywhere: Vec<u16>,
    /// Rules that follow each other and have the same keywords are asked together first.
    gates: Vec<Gate>,
    /// Rules whose matches begin before their keyword, and how far at most.
    led: Vec<u16>,
    lead_most: usize,
    /// Whether a text that ends with this byte may end with the beginning of such a match.
    leads: Box<[bool; 256]>,
}

/// Whether any of several rules may match.
struct Gate {
    rules: Range<u16>,
    machine: OnceLock<Box<Machine>>,
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Rules({})", self.rules.len())
    }
}

struct Compiled {
    id: &'static str,
    search: Search,
}

enum Search {
    /// A match begins at its keyword, or so many bytes before.
    Anchored(Rule, OnceLock<Box<Machine>>),
    /// A match lies somewhere around its keyword.
    Around(Around),
}

/// A rule of somebody else's.
pub(super) struct Around {
    regex: meta::Regex,
    group: usize,
    entropy: Option<f32>,
    allowed: Vec<meta::Regex>,
    stopwords: Vec<String>,
}

/// What a rule says of one place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Nothing is there.
    Nothing,
    /// More bytes may make it a match.
    Open,
    /// A secret.
    Secret(Range<usize>),
}

/// A place where a keyword stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Woken {
    pub(crate) rule: u16,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Rules {
    /// The built-in rules.
    pub fn builtin() -> &'static Self {
        static RULES: LazyLock<Rules> = LazyLock::new(|| Rules::compile(&BUILTIN, Vec::new()));
        &RULES
    }

    /// Those of them that know a credential by its published form: no name beside it makes a value one.
    pub fn formats() -> &'static Self {
        static FORMS: LazyLock<Rules> = LazyLock::new(|| Rules::compile(&FORMATS, Vec::new()));
        &FORMS
    }

    /// The built-in rules, and those of a gitleaks configuration after them.
    pub fn with_gitleaks(toml: &str) -> Result<Self, RulesError> {
        Ok(Self::compile(&BUILTIN, gitleaks::parse(toml)?))
    }

    /// The identifiers of the rules.
    pub fn ids(&self) -> impl Iterator<Item = &'static str> {
        self.rules.iter().map(|compiled| compiled.id)
    }

    /// Every place where a rule matches the input as it stands, in the order of the input.
    pub fn scan(&self, input: &[u8]) -> Vec<Finding> {
        self.inspect(input, Bounds::default()).findings
    }

    /// Every place where a rule matches the input or what is encoded, compressed or packed in it.
    pub fn inspect(&self, input: &[u8], bounds: Bounds) -> Report {
        Scanner::new(self, None, bounds).whole(input)
    }

    pub(crate) fn id(&self, rule: u16) -> &'static str {
        self.rules[usize::from(rule)].id
    }

    fn compile(tables: &[&[Rule]], others: Vec<gitleaks::Other>) -> Self {
        let mut words: Vec<String> = Vec::new();
        let gates = gates(tables);
        let mut woken: Vec<Vec<(u16, Option<usize>)>> = Vec::new();
        let mut everywhere = Vec::new();
        let mut wake = |word: &str, rule: u16| {
            let gate = gates.iter().position(|gate| gate.rules.contains(&rule));
            match words.iter().position(|known| known == word) {
                Some(at) => woken[at].push((rule, gate)),
                None => {
                    words.push(word.to_owned());
                    woken.push(vec![(rule, gate)]);
                }
            }
        };
        let mut rules = Vec::new();
        let mut number: u16 = 0;
        for rule in tables.iter().copied().flatten() {
            rule.keywords.iter().for_each(|word| wake(word, number));
            rules.push(Compiled { id: rule.id, search: Search::Anchored(*rule, OnceLock::new()) });
            number += 1;
        }
        for gitleaks::Other { id, keywords, around } in others {
            // A shorter word would stand nearly everywhere.
            if keywords.iter().any(|word| word.len() < Keywords::MIN_BYTES) || keywords.is_empty() {
                everywhere.push(number);
            } else {
                keywords.iter().for_each(|word| wake(word, number));
            }
            rules.push(Compiled { id, search: Search::Around(around) });
            number += 1;
        }
        let anchored = tables.iter().copied().flatten();
        let lead_most = anchored.clone().map(|rule| rule.lead.1).max().unwrap_or(0);
        let led_keywords = anchored.clone().filter(|rule| rule.lead.1 > 0).flat_map(|rule| rule.keywords);
        let leads = |byte: u8| {
            byte.is_ascii_alphanumeric() || led_keywords.clone().any(|word| word.contains(char::from(byte)))
        };
        let leads = Box::new(std::array::from_fn(|byte| leads(byte as u8)));
        let led = (0..).zip(anchored).filter(|(_, rule)| rule.lead.1 > 0).map(|(number, _)| number).collect();
        Self { rules, keywords: Keywords::new(words), woken, everywhere, gates, led, lead_most, leads }
    }

    pub(crate) fn longest_keyword(&self) -> usize {
        self.keywords.longest()
    }

    /// How many bytes from where a match begins its keyword ends at most.
    pub(crate) fn reach(&self) -> usize {
        self.longest_keyword() + self.lead_most
    }

    pub(crate) fn everywhere(&self) -> &[u16] {
        &self.everywhere
    }

    /// Calls `visit` for every rule at every keyword in `text` that ends after `searched`, but for those that what follows the keyword rules
    /// out.
    pub(crate) fn wake(&self, text: &[u8], from: usize, searched: usize, mut visit: impl FnMut(Woken)) {
        self.keywords.find(text, from, |word, start| {
            let end = start + self.keywords.length(word);
            if end <= searched {
                return;
            }
            let mut asked = None;
            for &(rule, gate) in &self.woken[word] {
                let is_closed = gate.is_some_and(|gate| match asked {
                    Some((last, is_closed)) if last == gate => is_closed,
                    _ => asked.insert((gate, self.is_closed(gate, text, start))).1,
                });
                if !is_closed {
                    visit(Woken { rule, start, end });
                }
            }
        });
    }

    /// How far before its keyword a match of the rule may begin: the least and the most. Nothing when it is looked for around.
    pub(crate) fn lead(&self, rule: u16) -> Option<(usize, usize)> {
        match &self.rules[usize::from(rule)].search {
            Search::Anchored(rule, _) => Some(rule.lead),
            Search::Around(_) => None,
        }
    }

    /// How much at the end of `text` may be the beginning of a secret whose keyword comes behind it: as many letters and digits as such a
    /// secret has before its keyword, or they and a part of that.
    pub(crate) fn leading(&self, text: &[u8]) -> usize {
        let mut held = 0;
        if !text.last().is_some_and(|last| self.leads[usize::from(*last)]) {
            return held;
        }
        for number in &self.led {
            let Search::Anchored(rule, _) = &self.rules[usize::from(*number)].search else { continue };
            let (least, most) = rule.lead;
            let run = text.iter().rev().take(most + LEAD_ESCAPE_BYTES + 1);
            let run = run.take_while(|byte| byte.is_ascii_alphanumeric()).count();
            if (LEAD_MIN_BYTES..=most + LEAD_ESCAPE_BYTES).contains(&run) {
                held = held.max(run.min(most));
            }
            for (word, part) in
                rule.keywords.iter().flat_map(|word| (1..word.len()).map(move |part| (word, part)))
            {
                let Some(at) = text.len().checked_sub(part) else { continue };
                if !text[at..].eq_ignore_ascii_case(&word.as_bytes()[..part]) {
                    continue;
                }
                for lead in (least..=most.min(at)).rev() {
                    if self.judge(*number, text, at - lead, false) == Judgement::Open {
                        held = held.max(lead + part);
                        break;
                    }
                }
            }
        }
        held
    }

    /// Whether none of the rules behind the gate matches at `start`, whatever may follow.
    fn is_closed(&self, gate: usize, text: &[u8], start: usize) -> bool {
        let Gate { rules, machine } = &self.gates[gate];
        let machine = machine.get_or_init(|| {
            let behind = &self.rules[usize::from(rules.start)..usize::from(rules.end)];
            let patterns = behind.iter().filter_map(|compiled| match &compiled.search {
                Search::Anchored(rule, _) => Some(rule.pattern),
                Search::Around(_) => None,
            });
            Box::new(Machine::any(patterns))
        });
        // What stands before has its say when the rules themselves are asked.
        machine.excludes(&text[start..], 0)
    }

    /// What an anchored rule says of `start`; `complete` when the text ends where its stream ends.
    pub(crate) fn judge(&self, rule: u16, text: &[u8], start: usize, complete: bool) -> Judgement {
        match &self.rules[usize::from(rule)].search {
            Search::Anchored(rule, machine) => {
                let machine = machine.get_or_init(|| Box::new(Machine::new(rule.pattern)));
                if !rule.is_bounded() {
                    return machine.judge(rule, text, start, complete);
                }
                let cut =
                    |end: usize, complete| within(machine.judge(rule, &text[start..end], 0, complete), start);
                let judgement = match Before::of(text, start) {
                    Before::Token if rule.alone => Judgement::Nothing,
                    Before::Token | Before::Other => machine.judge(rule, text, start, complete),
                    Before::Escape => cut(text.len(), complete),
                    Before::Emphasis(marks) => match emphasised(&text[start..], marks, complete) {
                        Some(length) => match cut(start + length, complete || start + length < text.len()) {
                            // What looks like its end may be a part of it.
                            Judgement::Nothing => cut(text.len(), complete),
                            judgement => judgement,
                        },
                        None => Judgement::Open,
                    },
                };
                if judgement != Judgement::Nothing {
                    return judgement;
                }
                let by_length = |bytes: usize| {
                    let end = text.len().min(start + bytes);
                    match cut(end, complete || end == start + bytes) {
                        Judgement::Secret(secret) if secret.end != start + bytes => Judgement::Nothing,
                        judgement => judgement,
                    }
                };
                told_lengths(&text[..start])
                    .map(by_length)
                    .find(|judgement| *judgement != Judgement::Nothing)
                    .unwrap_or(Judgement::Nothing)
            }
            Search::Around(_) => Judgement::Nothing,
        }
    }

    /// Calls `found` for every secret that a rule sees in a part of the text.
    pub(crate) fn look_around(
        &self,
        rule: u16,
        text: &[u8],
        part: Range<usize>,
        found: impl FnMut(Range<usize>),
    ) {
        if let Search::Around(around) = &self.rules[usize::from(rule)].search {
            around.search(text, part, found);
        }
    }
}

/// The gates of the built-in rules: where rules without a lead have the same keywords.
fn gates(tables: &[&[Rule]]) -> Vec<Gate> {
    let mut gates: Vec<Gate> = Vec::new();
    let mut before: Option<&Rule> = None;
    for (number, rule) in (0_u16..).zip(tables.iter().copied().flatten()) {
        let alike = before.is_some_and(|before| before.keywords == rule.keywords) && rule.lead == (0, 0);
        match gates.last_mut() {
            Some(gate) if alike => gate.rules.end = number + 1,
            _ => gates.push(Gate { rules: number..number + 1, machine: OnceLock::new() }),
        }
        before = Some(rule).filter(|rule| rule.lead == (0, 0));
    }
    gates.retain(|gate| gate.rules.len() > 1);
    gates
}

fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// What was said of the text from `start` on, said of all of it.
fn within(judgement: Judgement, start: usize) -> Judgement {
    match judgement {
        Judgement::Secret(secret) => Judgement::Secret(secret.start + start..secret.end + start),
        Judgement::Nothing | Judgement::Open => judgement,
    }
}

impl Around {
    fn search(&self, text: &[u8], part: Range<usize>, mut found: impl FnMut(Range<usize>)) {
        let mut captures = self.regex.create_captures();
        let mut from = part.start;
        while from <= part.end {
            self.regex.search_captures(&Input::new(text).range(from..part.end), &mut captures);
            let Some(whole) = captures.get_match() else { break };
            let secret = captures.get_group(self.group).map_or(whole.range(), |span| span.range());
            if self.accepts(&text[secret.clone()]) && !secret.is_empty() {
                found(secret);
            }
            from = whole.end().max(from + 1);
        }
    }

    fn accepts(&self, secret: &[u8]) -> bool {
        let lower = secret.to_ascii_lowercase();
        let is_in = |word: &String| memchr::memmem::find(&lower, word.as_bytes()).is_some();
        self.entropy.is_none_or(|bits| crate::entropy::shannon(secret) >= bits)
            && !self.stopwords.iter().any(is_in)
            && !self.allowed.iter().any(|regex| regex.is_match(secret))
    }
}

fn bytes_regex(pattern: &str) -> Result<meta::Regex, Box<meta::BuildError>> {
    meta::Regex::builder()
        .configure(meta::Config::new().utf8_empty(false).nfa_size_limit(Some(16 << 20)))
        .syntax(syntax::Config::new().unicode(false).utf8(false))
        .build(pattern)
        .map_err(Box::new)
}

#[cfg(test)]
mod tests;
