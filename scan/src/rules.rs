//! The compiled rules: where they look, and what they say of one place.

mod gitleaks;

use std::ops::Range;
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, meta};

pub use gitleaks::RulesError;

use crate::builtin::{BUILTIN, Rule};
use crate::check::Verdict;
use crate::finding::Finding;
use crate::scanner::{Bounds, Report, Scanner};

/// Names the built-in rule set; a new value means that a text may be judged differently.
pub const RULES_VERSION: &str = "builtin-3";

/// No match is longer.
pub(crate) const MATCH_MAX_BYTES: usize = 16 * 1024;
/// How far around a keyword a rule of somebody else's looks: a match begins and ends within.
pub(crate) const AROUND_BYTES: usize = 2048;
/// An automaton's cache is kept for the next use, but not more than so many of each rule.
const CACHES_KEPT: usize = 4;

/// Compiled rules.
pub struct Rules {
    rules: Vec<Compiled>,
    keywords: AhoCorasick,
    /// Which rules a keyword wakes.
    woken: Vec<Vec<u16>>,
    longest_keyword: usize,
    /// Rules without a keyword, which look everywhere.
    everywhere: Vec<u16>,
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
        static RULES: LazyLock<Rules> = LazyLock::new(|| Rules::compile(Vec::new()));
        &RULES
    }

    /// The built-in rules, and those of a gitleaks configuration after them.
    pub fn with_gitleaks(toml: &str) -> Result<Self, RulesError> {
        Ok(Self::compile(gitleaks::parse(toml)?))
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

    fn compile(others: Vec<gitleaks::Other>) -> Self {
        let mut words: Vec<String> = Vec::new();
        let mut woken: Vec<Vec<u16>> = Vec::new();
        let mut everywhere = Vec::new();
        let mut wake = |word: &str, rule: u16| match words.iter().position(|known| known == word) {
            Some(at) => woken[at].push(rule),
            None => {
                words.push(word.to_owned());
                woken.push(vec![rule]);
            }
        };
        let mut rules = Vec::new();
        let mut number: u16 = 0;
        for rule in BUILTIN.iter().copied().flatten() {
            rule.keywords.iter().for_each(|word| wake(word, number));
            rules.push(Compiled { id: rule.id, search: Search::Anchored(*rule, OnceLock::new()) });
            number += 1;
        }
        for gitleaks::Other { id, keywords, around } in others {
            keywords.iter().for_each(|word| wake(word, number));
            if keywords.is_empty() {
                everywhere.push(number);
            }
            rules.push(Compiled { id, search: Search::Around(around) });
            number += 1;
        }
        let keywords = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .kind(Some(AhoCorasickKind::DFA))
            .build(&words)
            .expect("some hundred short words fit the automaton");
        let longest_keyword = words.iter().map(String::len).max().unwrap_or(0);
        Self { rules, keywords, woken, longest_keyword, everywhere }
    }

    pub(crate) fn longest_keyword(&self) -> usize {
        self.longest_keyword
    }

    pub(crate) fn everywhere(&self) -> &[u16] {
        &self.everywhere
    }

    /// Calls `visit` for every rule at every keyword in `text` that ends after `searched`.
    pub(crate) fn wake(&self, text: &[u8], from: usize, searched: usize, mut visit: impl FnMut(Woken)) {
        let input = aho_corasick::Input::new(text).range(from..);
        for hit in self.keywords.find_overlapping_iter(input) {
            if hit.end() > searched {
                for rule in &self.woken[hit.pattern().as_usize()] {
                    visit(Woken { rule: *rule, start: hit.start(), end: hit.end() });
                }
            }
        }
    }

    /// How far before its keyword a match of the rule may begin: the least and the most. Nothing when it is looked for around.
    pub(crate) fn lead(&self, rule: u16) -> Option<(usize, usize)> {
        match &self.rules[usize::from(rule)].search {
            Search::Anchored(rule, _) => Some(rule.lead),
            Search::Around(_) => None,
        }
    }

    /// What an anchored rule says of `start`; `complete` when the text ends where its stream ends.
    pub(crate) fn judge(&self, rule: u16, text: &[u8], start: usize, complete: bool) -> Judgement {
        match &self.rules[usize::from(rule)].search {
            Search::Anchored(rule, machine) => {
                let follows_token = start.checked_sub(1).is_some_and(|before| is_of_token(text[before]));
                if rule.alone && follows_token {
                    return Judgement::Nothing;
                }
                machine
                    .get_or_init(|| Box::new(Machine::new(rule.pattern)))
                    .judge(rule, text, start, complete)
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

fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// A pattern as an automaton that can be asked whether more bytes would matter.
struct Machine {
    dfa: DFA,
    caches: Mutex<Vec<Cache>>,
    /// The pattern again, when a part of it is the secret.
    groups: Option<meta::Regex>,
}

impl Machine {
    fn new(pattern: &str) -> Self {
        const VALID: &str = "the patterns are constants that the tests compile";
        let dfa = DFA::builder()
            .configure(DFA::config().skip_cache_capacity_check(true))
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .thompson(thompson::Config::new().utf8(false).shrink(false))
            .build(pattern)
            .expect(VALID);
        let groups = pattern.contains("(?P<s>").then(|| bytes_regex(pattern).expect(VALID));
        Self { dfa, caches: Mutex::default(), groups }
    }

    fn judge(&self, rule: &Rule, text: &[u8], start: usize, complete: bool) -> Judgement {
        let end = match self.end(text, start, complete) {
            Verdict::Ends(end) => end,
            Verdict::Open => return Judgement::Open,
            Verdict::No => return Judgement::Nothing,
        };
        let secret = match &self.groups {
            None => start..end,
            Some(regex) => match group(regex, text, start) {
                Some(secret) => secret,
                None => return Judgement::Nothing,
            },
        };
        match rule.check.judge(text, secret.start, secret.end, complete) {
            Verdict::Ends(end) => Judgement::Secret(secret.start..end),
            Verdict::Open => Judgement::Open,
            Verdict::No => Judgement::Nothing,
        }
    }

    /// The end of the match that begins at `start`.
    fn end(&self, text: &[u8], start: usize, complete: bool) -> Verdict {
        const ENDLESS: &str = "the cache is cleared as often as it needs to be";
        let stop = text.len().min(start + MATCH_MAX_BYTES);
        let kept = self.caches.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut cache = kept.unwrap_or_else(|| self.dfa.create_cache());
        let dfa = &self.dfa;
        let input = Input::new(text).range(start..).anchored(Anchored::Yes);
        let mut state = dfa.start_state_forward(&mut cache, &input).expect(ENDLESS);
        let mut end = None;
        let mut open = true;
        for (at, byte) in text[..stop].iter().enumerate().skip(start) {
            state = dfa.next_state(&mut cache, state, *byte).expect(ENDLESS);
            if state.is_tagged() {
                if state.is_match() {
                    end = Some(at);
                } else if state.is_dead() {
                    open = false;
                    break;
                }
            }
        }
        if open && !complete && stop == text.len() && state.is_tagged() && state.is_match() {
            // The automaton says one byte late that a match is over; with nothing that could prolong it, it is.
            open =
                (0..=u8::MAX).any(|byte| !dfa.next_state(&mut cache, state, byte).expect(ENDLESS).is_dead());
        }
        if open && (complete || stop < text.len()) {
            let last = match text.get(stop) {
                Some(byte) => dfa.next_state(&mut cache, state, *byte),
                None => dfa.next_eoi_state(&mut cache, state),
            };
            if last.expect(ENDLESS).is_match() {
                end = Some(stop);
            }
            open = false;
        }
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        if caches.len() < CACHES_KEPT {
            caches.push(cache);
        }
        drop(caches);
        match end {
            _ if open => Verdict::Open,
            Some(end) => Verdict::Ends(end),
            None => Verdict::No,
        }
    }
}

/// Where the part named `s` of the match at `start` lies.
fn group(regex: &meta::Regex, text: &[u8], start: usize) -> Option<Range<usize>> {
    let stop = text.len().min(start + MATCH_MAX_BYTES);
    let mut captures = regex.create_captures();
    regex.search_captures(&Input::new(text).range(start..stop).anchored(Anchored::Yes), &mut captures);
    captures.get_group_by_name("s").map(|span| span.range())
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
