//! Percent-encoding, with spaces as `+` in forms, and zero bytes between characters as in UTF-16: taken out, with positions kept.

use memchr::memchr;

use super::marks::Marks;
use crate::finding::{Coding, Lines};
use crate::layer::{Layer, Shared, tokens_from};
use crate::scanner::Bounds;

/// How far before its first escape a word may begin.
const WORD_BEFORE_BYTES: usize = 256;
/// More zero bytes than any wide character has.
const ZEROS_MAX: u64 = 3;
/// A text inside, whose positions are known outside.
pub(super) struct Thinned {
    child: Box<Layer>,
    marks: Marks,
    fresh: Vec<u8>,
    length: u64,
    /// What had been taken when the child last waited for nothing.
    settled: u64,
}

impl Thinned {
    pub(super) fn new(child: Box<Layer>, at: u64) -> Self {
        Self { child, marks: Marks::default(), fresh: Vec::new(), length: 0, settled: at }
    }

    pub(super) fn push(&mut self, byte: u8, outer: u64) {
        self.marks.push(self.length, outer);
        self.length += 1;
        self.fresh.push(byte);
    }

    /// Takes what stands outside as it does inside.
    pub(super) fn extend(&mut self, bytes: &[u8], outer: u64) {
        // So many say how far apart the others stand.
        const SAY: usize = 3;
        let (first, rest) = bytes.split_at(bytes.len().min(SAY));
        first.iter().zip(outer..).for_each(|(byte, outer)| self.push(*byte, outer));
        self.length += rest.len() as u64;
        self.fresh.extend_from_slice(rest);
    }

    pub(super) fn held_from(&self) -> Option<u64> {
        self.child.is_held().then_some(self.settled)
    }

    pub(super) fn needs(&self) -> u64 {
        self.marks.outer(self.child.base)
    }
}

/// Words with `%41` in them.
#[derive(Default)]
pub(super) struct Percents {
    at: u64,
    word: Option<Thinned>,
    /// The same with a space for each `+`, from the first one on and a little before.
    spaced: Option<Thinned>,
}

/// Text whose characters have zero bytes between them, where it stands.
#[derive(Default)]
pub(super) struct Zeros {
    at: u64,
    /// How many have come since the last character.
    zeros: u64,
    /// The zero bytes of a character stand before it.
    zeros_first: bool,
    /// More bytes are needed to say whether text begins at `at`.
    waits: bool,
    text: Option<Thinned>,
    /// A layer to be used again.
    spare: Option<Box<Layer>>,
}

/// What a zero byte and those around it say.
enum Wide {
    Text,
    Other,
    Waits,
}

/// Where the reading of a word stopped.
enum Stop {
    /// Where it ends.
    End,
    /// Where more bytes are needed.
    Wait,
    /// At the first `+`.
    Plus,
}

impl Percents {
    fn words(&self) -> impl Iterator<Item = &Thinned> {
        [&self.word, &self.spaced].into_iter().flatten()
    }

    pub(super) fn held_from(&self) -> Option<u64> {
        self.words().filter_map(Thinned::held_from).min()
    }

    pub(super) fn needs(&self) -> u64 {
        self.words().map(Thinned::needs).min().map_or(self.at, |needs| needs.min(self.at))
    }
}

impl Zeros {
    pub(super) fn held_from(&self) -> Option<u64> {
        let waits = self.waits.then(|| self.at.saturating_sub(1));
        self.text.as_ref().and_then(Thinned::held_from).or(waits)
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
            let spaced = percents.spaced.as_mut();
            let (next, stop) = read_word(&mut word, spaced, &self.bytes, self.base, at, complete);
            percents.at = self.position(next);
            if let Stop::Plus = stop {
                percents.spaced = Some(open_spaced(&word, shared.bounds));
                percents.word = Some(word);
                continue;
            }
            let ends = complete || matches!(stop, Stop::End);
            self.pass_on(&mut word, shared, percents.at, ends, Coding::Percent);
            percents.word = Some(word);
            if let Some(mut spaced) = percents.spaced.take() {
                self.pass_on(&mut spaced, shared, percents.at, ends, Coding::Percent);
                percents.spaced = Some(spaced);
            }
            if !matches!(stop, Stop::End) {
                break;
            }
            (percents.word, percents.spaced) = (None, None);
        }
        if complete {
            for mut word in [percents.word.take(), percents.spaced.take()].into_iter().flatten() {
                self.pass_on(&mut word, shared, percents.at, true, Coding::Percent);
            }
        }
        self.percents = percents;
    }

    pub(super) fn skip_zeros(&mut self, shared: &mut Shared<'_>, complete: bool) {
        let mut zeros = std::mem::take(&mut self.zeros);
        zeros.waits = false;
        while self.index(zeros.at) < self.bytes.len() {
            let at = self.index(zeros.at);
            let Some(mut text) = zeros.text.take() else {
                let Some(first) = memchr(0, &self.bytes[at..]).map(|offset| at + offset) else {
                    zeros.at = self.end();
                    break;
                };
                zeros.at = self.position(first);
                let goes_on = first > 0 && self.bytes[first - 1] == 0;
                let kind = if goes_on { Wide::Other } else { wide(&self.bytes[first..]) };
                match kind {
                    Wide::Waits if !complete => {
                        zeros.waits = true;
                        break;
                    }
                    Wide::Waits | Wide::Other => {
                        let run = self.bytes[first..].iter().take_while(|byte| **byte == 0).count();
                        zeros.at += run as u64;
                    }
                    Wide::Text => {
                        if !self.open_wide(&mut zeros, first, shared) {
                            zeros.at = self.end();
                            break;
                        }
                    }
                }
                continue;
            };
            let (next, ended) = zeros.read(&mut text, &self.bytes, self.base, at);
            zeros.at = self.position(next);
            self.pass_on(&mut text, shared, zeros.at, ended, Coding::Utf16);
            if ended {
                text.child.reset();
                zeros.spare = Some(text.child);
            } else {
                zeros.text = Some(text);
            }
        }
        if complete && let Some(mut text) = zeros.text.take() {
            self.pass_on(&mut text, shared, zeros.at, true, Coding::Utf16);
        }
        self.zeros = zeros;
    }

    /// Begins a text at the zero byte at `first`, or at the character before it.
    fn open_wide(&mut self, zeros: &mut Zeros, first: usize, shared: &Shared<'_>) -> bool {
        let Some(mut child) = zeros.spare.take().or_else(|| self.inner(Coding::Utf16, shared.bounds)) else {
            return false;
        };
        let before = first.checked_sub(1).map(|before| self.bytes[before]);
        zeros.zeros_first = !before.is_some_and(is_of_text);
        zeros.zeros = 0;
        zeros.at = self.position(first) - u64::from(!zeros.zeros_first);
        let (place, _) = self.locate(&(zeros.at..zeros.at));
        child.floor = Lines::at(0, place.line, place.column);
        child.lines = child.floor.clone();
        zeros.text = Some(Thinned::new(child, zeros.at));
        true
    }

    /// Feeds what has come to the text inside, and gives its findings their places here.
    pub(super) fn pass_on(
        &mut self,
        text: &mut Thinned,
        shared: &mut Shared<'_>,
        taken: u64,
        ends: bool,
        coding: Coding,
    ) {
        let first = shared.state.hits.len();
        text.child.keep_beside(shared, text.marks.room() + text.fresh.capacity());
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
            let is_as_it_stands = !hidden
                && coding != Coding::Utf16
                && hit.through == text.child.through
                && span.end - span.start == hit.span.end - hit.span.start
                && !self.bytes[..self.index(span.end)].ends_with(b"\\")
                && !self.bytes[..self.index(span.end)].ends_with(b"%");
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
            if is_as_it_stands {
                hit.through = self.through;
            }
        }
        text.marks.forget_before(text.child.base);
        if text.child.over {
            text.marks.shrink();
        }
    }
}

impl Zeros {
    /// Reads on until two characters stand side by side, or what is no character: where it stopped, and whether it did.
    fn read(&mut self, text: &mut Thinned, bytes: &[u8], base: u64, from: usize) -> (usize, bool) {
        for (at, byte) in bytes.iter().copied().enumerate().skip(from) {
            let position = base + at as u64;
            if byte == 0 {
                self.zeros += 1;
                if self.zeros > ZEROS_MAX {
                    return (at, true);
                }
                continue;
            }
            let is_first = text.length == 0;
            if !is_of_text(byte) || self.zeros == 0 && !is_first {
                return (at, true);
            }
            let before = if self.zeros_first { self.zeros } else { 0 };
            self.zeros = 0;
            text.push(byte, position - before);
        }
        (bytes.len(), false)
    }
}

/// Whether a character stands between the zero bytes that begin here and more of them.
fn wide(bytes: &[u8]) -> Wide {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).take(ZEROS_MAX as usize + 1).count();
    match &bytes[zeros..] {
        _ if zeros > ZEROS_MAX as usize => Wide::Other,
        [] => Wide::Waits,
        [byte, ..] if !is_of_text(*byte) => Wide::Other,
        [_] => Wide::Waits,
        [_, 0, ..] => Wide::Text,
        [_, _, ..] => Wide::Other,
    }
}

fn is_of_text(byte: u8) -> bool {
    matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r')
}

fn ends_word(byte: u8) -> bool {
    byte <= b' ' || matches!(byte, b'"' | b'\'' | b'<' | b'>' | b'`')
}

fn escape(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()
}

/// The end of what was read of a word, to be read on with spaces. What is encoded further in is read in the word itself.
fn open_spaced(word: &Thinned, bounds: &Bounds) -> Thinned {
    let permit = Some(bounds.memory.permit());
    let child = Box::new(Layer { permit, ..Layer::new(word.child.through, false) });
    let read =
        [&word.child.bytes[word.child.bytes.len().saturating_sub(WORD_BEFORE_BYTES)..], &word.fresh].concat();
    let before = read.len().saturating_sub(WORD_BEFORE_BYTES);
    let start = before + tokens_from(&read[before..], word.length <= WORD_BEFORE_BYTES as u64);
    let first = word.length - (read.len() - start) as u64;
    let mut spaced = Thinned::new(child, word.marks.outer(first));
    for (byte, inner) in read[start..].iter().zip(first..) {
        spaced.push(*byte, word.marks.outer(inner));
    }
    spaced
}

/// Reads on until the word ends, an escape is not whole, or the first `+` stands there.
fn read_word(
    word: &mut Thinned,
    mut spaced: Option<&mut Thinned>,
    bytes: &[u8],
    base: u64,
    from: usize,
    complete: bool,
) -> (usize, Stop) {
    let mut at = from;
    while let Some(byte) = bytes.get(at).copied() {
        if ends_word(byte) {
            return (at, Stop::End);
        }
        let outer = base + at as u64;
        let (value, space, length) = match escape(&bytes[at..]) {
            Some(value) => (value, value, 3),
            None if byte == b'%' && at + 3 > bytes.len() && !complete => return (at, Stop::Wait),
            None if byte == b'+' && spaced.is_none() => return (at, Stop::Plus),
            None if byte == b'+' => (byte, b' ', 1),
            None => (byte, byte, 1),
        };
        word.push(value, outer);
        if let Some(spaced) = &mut spaced {
            spaced.push(space, outer);
        }
        at += length;
    }
    (at, Stop::Wait)
}
