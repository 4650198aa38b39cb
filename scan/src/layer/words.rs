//! Percent-encoding, and zero bytes between characters as in UTF-16: taken out, with positions kept.

use memchr::memchr;

use super::marks::Marks;
use crate::finding::{Coding, Lines};
use crate::layer::{Layer, Shared};

/// How far before its first escape a word may begin.
const WORD_BEFORE_BYTES: usize = 256;
/// More zero bytes than any wide character has.
const ZEROS_MAX: u64 = 3;
/// What no rule takes for a part of a secret.
const SEPARATOR: u8 = 0xff;

/// A text inside, whose positions are known outside.
struct Thinned {
    child: Box<Layer>,
    marks: Marks,
    fresh: Vec<u8>,
    length: u64,
    /// What had been taken when the child last waited for nothing.
    settled: u64,
}

impl Thinned {
    fn new(child: Box<Layer>, at: u64) -> Self {
        Self { child, marks: Marks::default(), fresh: Vec::new(), length: 0, settled: at }
    }

    fn push(&mut self, byte: u8, outer: u64) {
        self.marks.push(self.length, outer);
        self.length += 1;
        self.fresh.push(byte);
    }

    fn held_from(&self) -> Option<u64> {
        self.child.is_held().then_some(self.settled)
    }

    fn needs(&self) -> u64 {
        self.marks.outer(self.child.base)
    }
}

/// Words with `%41` in them.
#[derive(Default)]
pub(super) struct Percents {
    at: u64,
    word: Option<Thinned>,
}

/// Text with zero bytes in it, from the first of them on.
#[derive(Default)]
pub(super) struct Zeros {
    at: u64,
    zeros: u64,
    /// The zero bytes of a character stand before it.
    zeros_first: bool,
    text: Option<Thinned>,
}

impl Percents {
    pub(super) fn held_from(&self) -> Option<u64> {
        self.word.as_ref().and_then(Thinned::held_from)
    }

    pub(super) fn needs(&self) -> u64 {
        self.word.as_ref().map_or(self.at, |word| word.needs().min(self.at))
    }
}

impl Zeros {
    pub(super) fn held_from(&self) -> Option<u64> {
        self.text.as_ref().and_then(Thinned::held_from)
    }

    pub(super) fn needs(&self) -> u64 {
        self.text.as_ref().map_or(self.at, |text| text.needs().min(self.at))
    }
}

impl Layer {
    pub(super) fn decode_percents(&mut self, shared: &mut Shared<'_>, complete: bool) {
        let mut percents = std::mem::take(&mut self.percents);
        while self.index(percents.at) < self.bytes.len() {
            let at = self.index(percents.at);
            let Some(mut word) = percents.word.take() else {
                let Some(sign) = memchr(b'%', &self.bytes[at..]).map(|offset| at + offset) else {
                    percents.at = self.end();
                    break;
                };
                match escape(&self.bytes[sign..]) {
                    None if sign + 3 > self.bytes.len() && !complete => {
                        percents.at = self.position(sign);
                        break;
                    }
                    None => percents.at = self.position(sign + 1),
                    Some(_) => {
                        let Some(child) = self.inner(Coding::Percent, shared.bounds) else {
                            percents.at = self.end();
                            break;
                        };
                        let before = &self.bytes[sign.saturating_sub(WORD_BEFORE_BYTES)..sign];
                        let length = before.iter().rev().take_while(|byte| !ends_word(**byte)).count();
                        percents.at = self.position(sign - length);
                        percents.word = Some(Thinned::new(child, percents.at));
                    }
                }
                continue;
            };
            let (next, ended) = read_word(&mut word, &self.bytes, self.base, at, complete);
            percents.at = self.position(next);
            self.pass_on(&mut word, shared, percents.at, ended || complete, Coding::Percent);
            if !ended {
                percents.word = Some(word);
                break;
            }
        }
        if complete && let Some(mut word) = percents.word.take() {
            self.pass_on(&mut word, shared, percents.at, true, Coding::Percent);
        }
        self.percents = percents;
    }

    pub(super) fn skip_zeros(&mut self, shared: &mut Shared<'_>, complete: bool) {
        let mut zeros = std::mem::take(&mut self.zeros);
        let at = self.index(zeros.at);
        if zeros.text.is_none()
            && let Some(first) = memchr(0, &self.bytes[at..]).map(|offset| at + offset)
            && let Some(mut child) = self.inner(Coding::Utf16, shared.bounds)
        {
            zeros.zeros_first = first.checked_sub(1).is_none_or(|before| self.bytes[before] == 0xff);
            let start = if zeros.zeros_first { first } else { first - 1 };
            let start = self.position(start);
            let (place, _) = self.locate(&(start..start));
            child.floor = Lines::at(0, place.line, place.column);
            child.lines = child.floor.clone();
            zeros.at = start;
            zeros.text = Some(Thinned::new(child, start));
        }
        if let Some(text) = &mut zeros.text {
            for at in self.index(zeros.at)..self.bytes.len() {
                let byte = self.bytes[at];
                if byte != 0 {
                    let before = if zeros.zeros_first { zeros.zeros.min(ZEROS_MAX) } else { 0 };
                    zeros.zeros = 0;
                    text.push(byte, self.base + at as u64 - before);
                } else {
                    zeros.zeros += 1;
                    if zeros.zeros == ZEROS_MAX + 1 {
                        text.push(SEPARATOR, self.base + at as u64);
                    }
                }
            }
            let end = self.end();
            self.pass_on(text, shared, end, complete, Coding::Utf16);
        }
        zeros.at = self.end();
        self.zeros = zeros;
    }

    /// Feeds what has come to the text inside, and gives its findings their places here.
    fn pass_on(
        &mut self,
        text: &mut Thinned,
        shared: &mut Shared<'_>,
        taken: u64,
        ends: bool,
        coding: Coding,
    ) {
        let first = shared.state.hits.len();
        text.child.feed(shared, &text.fresh);
        text.fresh.clear();
        if ends {
            text.child.finish(shared);
        }
        if !text.child.is_held() {
            text.settled = taken;
        }
        for number in first..shared.state.hits.len() {
            let hit = &shared.state.hits[number];
            let start = text.marks.outer(hit.place.offset);
            let span = text.marks.outer(hit.span.start)..text.marks.outer(hit.span.end.saturating_sub(1)) + 1;
            let hidden = hit.carrier > 0;
            // In wide text lines and columns are those of its characters; otherwise those out here.
            let place = match coding {
                Coding::Utf16 => None,
                _ => Some(self.locate(&(start..start))),
            };
            let hit = &mut shared.state.hits[number];
            if let Some((place, _)) = place {
                hit.place = place;
                hit.line_end = place.line;
            }
            hit.place.offset = start;
            if hidden {
                hit.carrier = start + 1;
            } else {
                hit.span = span;
            }
        }
        text.marks.forget_before(text.child.base);
    }
}

fn ends_word(byte: u8) -> bool {
    byte <= b' ' || matches!(byte, b'"' | b'\'' | b'<' | b'>' | b'`')
}

fn escape(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()
}

/// Reads on until the word ends or an escape is not whole: where it stopped, and whether the word is over.
fn read_word(word: &mut Thinned, bytes: &[u8], base: u64, from: usize, complete: bool) -> (usize, bool) {
    let mut at = from;
    while let Some(byte) = bytes.get(at).copied() {
        if ends_word(byte) {
            return (at, true);
        }
        let outer = base + at as u64;
        match escape(&bytes[at..]) {
            Some(value) => {
                word.push(value, outer);
                at += 3;
            }
            None if byte == b'%' && at + 3 > bytes.len() && !complete => return (at, false),
            None => {
                word.push(byte, outer);
                at += 1;
            }
        }
    }
    (at, false)
}
