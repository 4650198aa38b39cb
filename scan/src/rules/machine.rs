//! A pattern as an automaton that can be asked whether more bytes would matter.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson::{self, NFA, State};
use regex_automata::util::primitives::StateID;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, meta};

use super::{Judgement, MATCH_MAX_BYTES, bytes_regex};
use crate::builtin::Rule;
use crate::check::Verdict;

/// An automaton's cache is kept for the next use, but not more than so many of each rule.
const CACHES_KEPT: usize = 4;
/// How many bytes are held against what may stand there before the automaton is asked.
const PEEK_BYTES: usize = 24;
const VALID: &str = "the patterns are constants that the tests compile";

/// A compiled pattern.
pub(super) struct Machine {
    dfa: DFA,
    caches: Mutex<Vec<Cache>>,
    /// Which bytes may stand at each of the first places of a match.
    peek: Vec<Bytes>,
    /// The pattern again, when a part of it is the secret.
    groups: Option<meta::Regex>,
}

/// A set of bytes.
type Bytes = [u64; 4];

impl Machine {
    /// One pattern.
    pub(super) fn new(pattern: &str) -> Self {
        let groups = pattern.contains("(?P<s>").then(|| bytes_regex(pattern).expect(VALID));
        Self { groups, ..Self::of(pattern) }
    }

    /// What matches where any of several patterns does.
    pub(super) fn any<'p>(patterns: impl Iterator<Item = &'p str>) -> Self {
        let patterns: Vec<String> =
            patterns.map(|pattern| format!("(?:{})", pattern.replace("(?P<s>", "(?:"))).collect();
        Self::of(&patterns.join("|"))
    }

    fn of(pattern: &str) -> Self {
        let dfa = DFA::builder()
            .configure(DFA::config().skip_cache_capacity_check(true))
            .syntax(syntax::Config::new().unicode(false).utf8(false))
            .thompson(thompson::Config::new().utf8(false).shrink(false))
            .build(pattern)
            .expect(VALID);
        let peek = peek(dfa.get_nfa());
        Self { dfa, caches: Mutex::default(), peek, groups: None }
    }

    /// What a rule with this pattern says of `start`.
    pub(super) fn judge(&self, rule: &Rule, text: &[u8], start: usize, complete: bool) -> Judgement {
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

    /// Whether no match begins at `start`, whatever may follow.
    pub(super) fn excludes(&self, text: &[u8], start: usize) -> bool {
        self.end(text, start, false) == Verdict::No
    }

    /// The end of the match that begins at `start`.
    fn end(&self, text: &[u8], start: usize, complete: bool) -> Verdict {
        const ENDLESS: &str = "the cache is cleared as often as it needs to be";
        let cannot_stand =
            |(bytes, byte): (&Bytes, &u8)| bytes[usize::from(byte >> 6)] >> (byte & 63) & 1 == 0;
        if self.peek.iter().zip(&text[start..]).any(cannot_stand) {
            return Verdict::No;
        }
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

/// Which bytes may stand at each of the first places of a match, as far as every match goes on.
fn peek(nfa: &NFA) -> Vec<Bytes> {
    let mut peek = Vec::new();
    let mut states = vec![nfa.start_anchored()];
    while peek.len() < PEEK_BYTES {
        let mut bytes: Bytes = [0; 4];
        let mut next = Vec::new();
        let mut at = 0;
        let mut add = |first: u8, last: u8, to: StateID| {
            (first..=last).for_each(|byte| bytes[usize::from(byte >> 6)] |= 1 << (byte & 63));
            if !next.contains(&to) {
                next.push(to);
            }
        };
        while let Some(state) = states.get(at) {
            at += 1;
            let leads_to: &[StateID] = match nfa.state(*state) {
                State::ByteRange { trans } => {
                    add(trans.start, trans.end, trans.next);
                    &[]
                }
                State::Sparse(sparse) => {
                    sparse.transitions.iter().for_each(|trans| add(trans.start, trans.end, trans.next));
                    &[]
                }
                State::Look { next, .. } | State::Capture { next, .. } => &[*next],
                State::BinaryUnion { alt1, alt2 } => &[*alt1, *alt2],
                State::Union { alternates } => alternates,
                State::Fail => &[],
                State::Dense(_) | State::Match { .. } => return peek,
            };
            let fresh: Vec<StateID> = leads_to.iter().copied().filter(|to| !states.contains(to)).collect();
            states.extend(fresh);
        }
        peek.push(bytes);
        states = next;
    }
    peek
}
