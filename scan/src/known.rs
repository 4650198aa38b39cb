//! Secrets that are known by value, looked for in every form that software commonly gives them.
//!
//! A form is kept as a chain of keyed fingerprints, one for each of its prefixes, so that a place can be followed byte by
//! byte and the values themselves are not kept. The characters of a form may be escaped one by one, each in its own way.

mod lines;
mod unit;

use std::hash::{BuildHasher, RandomState};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use crate::entropy::shannon;
use crate::rules::published;
use unit::{INTROS, LETTERS, NAMED, REPEATED_ESCAPES_MAX, Unit, inner_escape, unit};

/// A value that is shorter occurs by chance, or could be guessed by watching what is masked.
pub const KNOWN_MIN_BYTES: usize = 16;
/// A longer value is no credential.
pub const KNOWN_MAX_BYTES: usize = 8 * 1024;
/// What a value must look like, in bits per byte.
pub const KNOWN_MIN_ENTROPY: f32 = 2.5;
/// The rule of a finding that is a known secret.
pub const KNOWN_RULE: &str = "known-secret";

/// How many pairs of bytes there are.
const PAIRS: usize = 1 << 16;
/// A form can begin with the pair.
const BEGINS: u8 = 1;
/// The pair can stand one byte behind where a form begins.
const FOLLOWS: u8 = 2;
/// The pair is a line end, escaped as in JSON, that can stand there. Nearly every backslash begins one: the pair behind it is looked for.
const LINE_END: u8 = 4;
/// How many of those there are at most, and how long each is.
const LINE_ENDS_MAX: usize = 2;
const LINE_END_BYTES: usize = 2;
/// So many bytes are looked at together, at every second pair.
const BLOCK_BYTES: usize = 16;
/// Blanks are passed over where so much of a form has been read that it is no chance.
const BLANKS_BEHIND_BYTES: usize = 16;
const BLANKS_MAX: usize = 64;
/// In how many ways a place is read at most.
const READINGS_MAX: usize = 64;

/// Why a value is not looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KnownError {
    /// It is too short.
    #[error("it has {0} bytes; a secret that is looked for has at least {KNOWN_MIN_BYTES}")]
    Short(usize),
    /// It is too long.
    #[error("it has {0} bytes; a secret that is looked for has at most {KNOWN_MAX_BYTES}")]
    Long(usize),
    /// It could stand in a text that means something else.
    #[error("it looks like a word or a pattern, not like chance: it could not be told from other text")]
    Plain,
}

/// Known secrets, as fingerprints.
#[derive(Clone)]
pub struct Known {
    key: u64,
    forms: Vec<Form>,
    /// What each pair of bytes can be to a form: [`BEGINS`], [`FOLLOWS`] and [`LINE_END`].
    pairs: Box<[u8]>,
    /// Forms by their first byte.
    by_first: Box<[Vec<usize>; 256]>,
}

#[derive(Clone)]
struct Form {
    /// The fingerprint of each prefix, from one byte on.
    chain: Vec<u64>,
    gaps: Gaps,
    /// How many of its first characters everybody knows.
    published: usize,
}

/// What may stand between the characters of a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gaps {
    Nothing,
    /// One line end, as wrapped base64 has: an empty line is the end of a message.
    LineEnd,
    /// Line ends and blanks, as what wraps and indents the lines of a key puts there.
    Blanks,
}

/// What was passed over since the last character.
#[derive(Default)]
struct Gap {
    length: usize,
    last: Option<u8>,
}

impl Gaps {
    /// Whether `byte` may stand behind so many characters and this gap.
    fn allow(self, matched: usize, gap: &Gap, byte: u8) -> bool {
        match self {
            Gaps::Nothing => false,
            Gaps::LineEnd => {
                matched > 0 && matches!((gap.last, byte), (None, b'\r' | b'\n') | (Some(b'\r'), b'\n'))
            }
            Gaps::Blanks => {
                matched >= BLANKS_BEHIND_BYTES
                    && gap.length < BLANKS_MAX
                    && matches!(byte, b'\r' | b'\n' | b' ' | b'\t')
            }
        }
    }
}

/// What stands at a position; of two ways to read it the greater counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seen {
    /// No form.
    Nothing,
    /// A form that ends here.
    Ends(usize),
    /// The beginning of one, up to the end of the text; of so many characters, not counting those that everybody knows.
    Open(usize),
}

/// How far a form has been read, in one of several ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    at: usize,
    matched: usize,
}

/// The ways to read on that fit.
#[derive(Default)]
struct Readings {
    first: Option<Reading>,
    others: Vec<Reading>,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Known({} forms)", self.forms.len())
    }
}

impl Default for Known {
    fn default() -> Self {
        Self {
            key: RandomState::new().hash_one(0_u8) | 1,
            forms: Vec::new(),
            pairs: vec![0; PAIRS].into(),
            by_first: Box::new([const { Vec::new() }; 256]),
        }
    }
}

impl Known {
    /// Looks for this value too.
    pub fn add(&mut self, value: &[u8]) -> Result<(), KnownError> {
        acceptable(value)?;
        let published = published(value);
        self.add_form(value, Gaps::Nothing, published);
        // As the name of a header has it.
        self.add_form(&Zeroizing::new(value.to_ascii_lowercase()), Gaps::Nothing, published);
        for (once, published) in encodings(value, published) {
            self.add_form(&once, Gaps::LineEnd, published);
            for (twice, published) in encodings(&once, published) {
                self.add_form(&twice, Gaps::LineEnd, published);
            }
        }
        for digits in [b"0123456789abcdef", b"0123456789ABCDEF"] {
            let hex: Zeroizing<Vec<u8>> = Zeroizing::new(
                value.iter().flat_map(|b| [b >> 4, b & 15]).map(|n| digits[usize::from(n)]).collect(),
            );
            self.add_form(&hex, Gaps::LineEnd, 2 * published);
        }
        let wide: Zeroizing<Vec<u8>> = Zeroizing::new(value.iter().flat_map(|b| [*b, 0]).collect());
        self.add_form(&wide[..wide.len() - 1], Gaps::Nothing, 2 * published);
        for body in lines::bodies(value) {
            self.add_form(&Zeroizing::new(body.concat()), Gaps::Blanks, 0);
            for line in body.into_iter().filter(|line| lines::is_long(line)) {
                self.add_form(line, Gaps::Nothing, 0);
            }
        }
        Ok(())
    }

    /// Whether nothing is looked for.
    pub fn is_empty(&self) -> bool {
        self.forms.is_empty()
    }

    fn add_form(&mut self, text: &[u8], gaps: Gaps, published: usize) {
        let mut fingerprint = self.key;
        let chain: Vec<u64> = text
            .iter()
            .map(|byte| {
                fingerprint = self.step(fingerprint, *byte);
                fingerprint
            })
            .collect();
        if self.forms.iter().any(|form| form.chain == chain) {
            return;
        }
        let (first, second) = (text[0], text[1]);
        for second in begins_with(second, gaps) {
            self.mark(BEGINS, first, second);
            if first == b' ' {
                self.mark(BEGINS, b'+', second);
            }
        }
        self.mark_escaped(BEGINS, first);
        self.mark_behind(text, gaps);
        let number = self.forms.len();
        self.by_first[usize::from(first)].push(number);
        self.forms.push(Form { chain, gaps, published });
    }

    fn mark(&mut self, what: u8, first: u8, second: u8) {
        self.pairs[pair_number([first, second])] |= what;
    }

    /// What `first` may begin with when it is escaped, as [`unit`] reads it: in JSON most escapes are of line ends and quotation marks, at
    /// which hardly any form begins.
    fn mark_escaped(&mut self, what: u8, first: u8) {
        for letter in [b'u', b'x', b'\\'] {
            self.mark(what, b'\\', letter);
        }
        for (letter, _) in LETTERS.iter().filter(|(_, meant)| *meant == first) {
            self.mark(what, b'\\', *letter);
        }
        // As the percent sign of a backslash has it.
        self.mark(what, b'%', b'5');
        // Of the character itself, or of the percent sign of its escape.
        for digit in format!("2{0:x}{0:X}", first >> 4).bytes() {
            self.mark(what, b'%', digit);
        }
        self.mark(what, b'&', b'#');
        for (name, _) in NAMED.iter().filter(|(_, named)| *named == first) {
            self.mark(what, b'&', name[0]);
        }
    }

    /// The pairs one byte behind where the form begins: of its second character, or inside the escape of its first.
    fn mark_behind(&mut self, text: &[u8], gaps: Gaps) {
        let (first, second) = (text[0], text[1]);
        let third = text.get(2).map_or(Vec::new(), |third| begins_with(*third, gaps));
        for third in third {
            self.mark(FOLLOWS, second, third);
            if second == b' ' {
                self.mark(FOLLOWS, b'+', third);
            }
        }
        self.mark_escaped(FOLLOWS, second);
        self.mark(FOLLOWS, b'%', b'5');
        if gaps == Gaps::LineEnd {
            for end in [b'\r', b'\n'] {
                begins_with(second, gaps).into_iter().for_each(|next| self.mark(FOLLOWS, end, next));
                LETTERS
                    .iter()
                    .filter(|(_, meant)| *meant == end)
                    .for_each(|(letter, _)| self.mark(LINE_END, b'\\', *letter));
            }
            self.mark(FOLLOWS, b'%', b'0');
        }
        for (letter, _) in LETTERS.iter().filter(|(_, meant)| *meant == first) {
            begins_with(second, gaps).into_iter().for_each(|next| self.mark(FOLLOWS, *letter, next));
        }
        // Each in either case, of the character itself, of a percent sign and of a backslash.
        for code in [first, b'%', b'\\'] {
            let [high, low] = [code >> 4, code & 15].map(|digit| format!("{digit:x}{digit:X}").into_bytes());
            for high in high {
                low.iter().for_each(|low| self.mark(FOLLOWS, high, *low));
            }
        }
        let of_any: &[u8] = b"0123456789abcdefABCDEF";
        let of_ascii = format!("{0:x}{0:X}", first >> 4).into_bytes();
        let (digits, long) = if first.is_ascii() { (&of_ascii[..], &b"0"[..]) } else { (of_any, of_any) };
        digits.iter().for_each(|digit| self.mark(FOLLOWS, b'x', *digit));
        long.iter().for_each(|digit| self.mark(FOLLOWS, b'u', *digit));
        b"xX0123456789".iter().for_each(|digit| self.mark(FOLLOWS, b'#', *digit));
        for (name, _) in NAMED.iter().filter(|(_, named)| *named == first) {
            self.mark(FOLLOWS, name[0], name[1]);
        }
        // An escape whose backslash was escaped again.
        self.mark_escaped(FOLLOWS, first);
        if first == b'\\' {
            begins_with(second, gaps).into_iter().for_each(|next| self.mark(FOLLOWS, b'\\', next));
        }
    }

    fn step(&self, fingerprint: u64, byte: u8) -> u64 {
        let mixed = (fingerprint ^ u64::from(byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ self.key << 1);
        (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    /// Whether a form can begin with this byte.
    pub(crate) fn may_begin(&self, byte: u8) -> bool {
        let begins = |first: u8| !self.by_first[usize::from(first)].is_empty();
        INTROS.contains(&byte) && !self.forms.is_empty() || begins(byte) || byte == b'+' && begins(b' ')
    }

    /// The next position in `text`, from `from` on and before its last byte, where a form may begin.
    pub(crate) fn next_start(&self, text: &[u8], from: usize) -> Option<usize> {
        if self.forms.is_empty() || text.len() < 2 {
            return None;
        }
        let pairs: &[u8; PAIRS] = self.pairs.as_ref().try_into().expect("made so long");
        let mut at = from;
        while let Some(block) = text.get(at..).and_then(<[u8]>::first_chunk) {
            let (places, _) = block.as_chunks();
            // One question for all of them.
            let any = places.iter().fold(0, |any, pair| any | pairs[pair_number(*pair)]);
            if any & (BEGINS | FOLLOWS) != 0 {
                let start = start_in(pairs, block, text, from, at);
                if start.is_some() {
                    return start;
                }
            }
            at += BLOCK_BYTES;
        }
        // So far before the place that tells of it a form may begin.
        let from = from.max(at.saturating_sub(LINE_ENDS_MAX * LINE_END_BYTES + 1));
        let begins = |pair: &[u8]| pairs[pair_number([pair[0], pair[1]])] & BEGINS != 0;
        text.get(from..)?.windows(2).position(begins).map(|ahead| from + ahead)
    }

    /// What stands at `start`: the longest form, or the beginning of one while more text may come.
    pub(crate) fn at(&self, text: &[u8], start: usize, complete: bool) -> Seen {
        let unit = unit(text, start, complete);
        if let Unit::Open = unit {
            return Seen::Open(0);
        }
        let inner = inner_escape(text, start, complete);
        if let Unit::Open = inner {
            return Seen::Open(0);
        }
        let mut best = Seen::Nothing;
        let inner = inner.byte().map(|(byte, _)| byte);
        for first in unit.firsts(text[start]).into_iter().chain([inner]).flatten() {
            for form in &self.by_first[usize::from(first)] {
                match self.follow(&self.forms[*form], text, start, complete) {
                    open @ Seen::Open(_) => return open,
                    seen => best = best.max(seen),
                }
            }
        }
        best
    }

    fn follow(&self, form: &Form, text: &[u8], start: usize, complete: bool) -> Seen {
        let mut others = Vec::new();
        let mut best = self.read_on(form, text, Reading { at: start, matched: 0 }, complete, &mut others);
        let mut next = 0;
        while let Some(reading) = others.get(next).copied() {
            best = best.max(self.read_on(form, text, reading, complete, &mut others));
            next += 1;
        }
        best
    }

    /// Reads on in one way. Where it parts, what does not lie on this one is put to the `others`.
    fn read_on(
        &self,
        form: &Form,
        text: &[u8],
        from: Reading,
        complete: bool,
        others: &mut Vec<Reading>,
    ) -> Seen {
        let Reading { mut at, mut matched } = from;
        let mut gap = Gap::default();
        while let Some(expected) = form.chain.get(matched) {
            let open = Seen::Open(matched.saturating_sub(form.published));
            let Some(byte) = text.get(at) else {
                return if complete { Seen::Nothing } else { open };
            };
            let here = Reading { at, matched };
            let unit = unit(text, at, complete);
            if let Unit::Open = unit {
                return open;
            }
            let mut ways = Readings { first: None, others: std::mem::take(others) };
            self.read_unit(form, text, here, unit, &mut ways);
            match inner_escape(text, at, complete) {
                Unit::Open => return open,
                inner => self.read_unit(form, text, here, inner, &mut ways),
            }
            let mut may_be_longer = false;
            if self.step(self.fingerprint(form, matched), *byte) == *expected {
                match byte {
                    b'\\' => may_be_longer = !self.read_backslashes(form, text, here, complete, &mut ways),
                    b'%' => {
                        let escaped = text[at + 1..].chunks_exact(2).take(REPEATED_ESCAPES_MAX);
                        for again in 0..=escaped.take_while(|digits| digits == b"25").count() {
                            self.fits(
                                form,
                                text,
                                Reading { at: at + 1 + 2 * again, matched: matched + 1 },
                                &mut ways,
                            );
                        }
                    }
                    _ => self.fits(form, text, Reading { at: at + 1, matched: matched + 1 }, &mut ways),
                }
            }
            *others = ways.others;
            if may_be_longer {
                return open;
            }
            if let Some(next) = ways.first {
                (at, matched, gap) = (next.at, next.matched, Gap::default());
                continue;
            }
            let (read, length) = unit.byte().unwrap_or((*byte, 1));
            if !form.gaps.allow(matched, &gap, read) {
                return Seen::Nothing;
            }
            gap = Gap { length: gap.length + 1, last: Some(read) };
            at += length;
        }
        Seen::Ends(at)
    }

    /// Takes what is escaped for the next of a form, where it fits.
    fn read_unit(&self, form: &Form, text: &[u8], from: Reading, unit: Unit, ways: &mut Readings) {
        let Reading { at, matched } = from;
        let fingerprint = self.fingerprint(form, matched);
        if let Unit::Char(char, length) = unit
            && let Some(bytes) = self.takes(char, fingerprint, &form.chain[matched..])
        {
            self.fits(form, text, Reading { at: at + length, matched: matched + bytes }, ways);
        }
        if let Some((byte, length)) = unit.byte()
            && form.chain.get(matched) == Some(&self.step(fingerprint, byte))
        {
            self.fits(form, text, Reading { at: at + length, matched: matched + 1 }, ways);
        }
    }

    /// Takes a run of backslashes for some of a form, each of them escaped equally often, and what is left of the run for the escape of what
    /// follows. False when that cannot be said before more of the text is there.
    fn read_backslashes(
        &self,
        form: &Form,
        text: &[u8],
        from: Reading,
        complete: bool,
        ways: &mut Readings,
    ) -> bool {
        let Reading { at, matched } = from;
        let mut fingerprint = self.fingerprint(form, matched);
        let wanted = form.chain[matched..]
            .iter()
            .take_while(|expected| {
                fingerprint = self.step(fingerprint, b'\\');
                fingerprint == **expected
            })
            .count();
        let most = REPEATED_ESCAPES_MAX * (wanted + 1);
        let run = text[at..].iter().take(most + 1).take_while(|byte| **byte == b'\\').count();
        if at + run == text.len() && run <= most && !complete {
            return false;
        }
        let ends = matched + wanted == form.chain.len();
        for each in [8, 4, 2, 1] {
            if ends && wanted * each <= run {
                self.fits(form, text, Reading { at: at + wanted * each, matched: matched + wanted }, ways);
            }
            for left in 0..=run.min(REPEATED_ESCAPES_MAX) {
                let taken = (run - left) / each;
                if run > most || taken == 0 || taken > wanted || taken * each + left != run {
                    continue;
                }
                let next = Reading { at: at + run - left, matched: matched + taken };
                if next.matched == form.chain.len() || left == 0 && taken == wanted {
                    self.fits(form, text, next, ways);
                    continue;
                }
                // The next is escaped, or it would belong to the run.
                if next.at == text.len() {
                    continue;
                }
                match unit(text, next.at, complete) {
                    Unit::Open => return false,
                    unit => self.read_unit(form, text, next, unit, ways),
                }
            }
        }
        true
    }

    /// Notes a way to read on, unless it ends with the next byte.
    fn fits(&self, form: &Form, text: &[u8], reading: Reading, ways: &mut Readings) {
        let goes_on = |reading: Reading| match (form.chain.get(reading.matched), text.get(reading.at)) {
            (Some(expected), Some(byte)) => {
                matches!(byte, b'+' | b'\r' | b'\n')
                    || INTROS.contains(byte)
                    || self.step(self.fingerprint(form, reading.matched), *byte) == *expected
            }
            _ => true,
        };
        match ways.first {
            None => ways.first = Some(reading),
            Some(first) if first == reading || ways.others.contains(&reading) || !goes_on(reading) => {}
            Some(first) if !goes_on(first) => ways.first = Some(reading),
            Some(_) if ways.others.len() < READINGS_MAX => ways.others.push(reading),
            Some(_) => {}
        }
    }

    /// Of so many characters of a form.
    fn fingerprint(&self, form: &Form, matched: usize) -> u64 {
        matched.checked_sub(1).map_or(self.key, |last| form.chain[last])
    }

    /// How many of the next bytes of a form a character is, when they are this one.
    fn takes(&self, char: char, mut fingerprint: u64, chain: &[u64]) -> Option<usize> {
        let mut buffer = [0; 4];
        let bytes = char.encode_utf8(&mut buffer).as_bytes();
        for (at, byte) in bytes.iter().enumerate() {
            fingerprint = self.step(fingerprint, *byte);
            if chain.get(at) != Some(&fingerprint) {
                return None;
            }
        }
        Some(bytes.len())
    }
}

/// The first position where a form may begin that a place in the block at `at` tells of. Apart from what is done at every place, which
/// stays small.
#[inline(never)]
fn start_in(
    pairs: &[u8; PAIRS],
    block: &[u8; BLOCK_BYTES],
    text: &[u8],
    from: usize,
    at: usize,
) -> Option<usize> {
    let can = |what: u8, at: usize| {
        let pair = text.get(at..)?.first_chunk()?;
        Some(pairs[pair_number(*pair)] & what != 0)
    };
    let is_line_end = |at: usize| matches!(text[..at], [.., b'\\', b'n' | b'r']);
    let (places, _) = block.as_chunks();
    // A byte of each place: of hardly any there is something to tell.
    let of_place = |pair: &[u8; 2]| pairs[pair_number(*pair)] & (BEGINS | FOLLOWS);
    let mut left = places.iter().rev().fold(0_u64, |all, pair| all << 8 | u64::from(of_place(pair)));
    while left != 0 {
        let place = left.trailing_zeros() / 8;
        let at = at + 2 * place as usize;
        let line_ends = (0..LINE_ENDS_MAX)
            .take_while(|before| at.checked_sub(LINE_END_BYTES * before).is_some_and(is_line_end));
        for before in (0..=line_ends.count()).rev() {
            let behind = at - LINE_END_BYTES * before;
            if behind > from && can(BEGINS, behind - 1) == Some(true) {
                return Some(behind - 1);
            }
        }
        if can(BEGINS, at) == Some(true) && can(FOLLOWS | LINE_END, at + 1) != Some(false) {
            return Some(at);
        }
        left &= !(0xff << (8 * place));
    }
    None
}

fn pair_number(pair: [u8; 2]) -> usize {
    usize::from(u16::from_le_bytes(pair))
}

/// What a character of a form may begin with: itself, an escape, what stands for a space, the end of a line before it.
fn begins_with(byte: u8, gaps: Gaps) -> Vec<u8> {
    let mut all = [&[byte][..], &INTROS].concat();
    if byte == b' ' {
        all.push(b'+');
    }
    if gaps == Gaps::LineEnd {
        all.extend([b'\r', b'\n']);
    }
    all
}

fn acceptable(value: &[u8]) -> Result<(), KnownError> {
    match value.len() {
        length if length < KNOWN_MIN_BYTES => Err(KnownError::Short(length)),
        length if length > KNOWN_MAX_BYTES => Err(KnownError::Long(length)),
        _ if shannon(value) < KNOWN_MIN_ENTROPY => Err(KnownError::Plain),
        _ => Ok(()),
    }
}

/// The characters of base64, in both alphabets, that depend on the value alone, wherever it stands in what is encoded; with how many of them
/// come of its `published` beginning.
fn encodings(value: &[u8], published: usize) -> Vec<(Zeroizing<Vec<u8>>, usize)> {
    let mut texts: Vec<(Zeroizing<Vec<u8>>, usize)> = Vec::new();
    for before in 0..3 {
        let padded = Zeroizing::new([&[0_u8; 2][..before], value].concat());
        let from = (before * 8).div_ceil(6);
        let to = padded.len() * 8 / 6;
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let text = Zeroizing::new(engine.encode(&*padded).into_bytes());
            let core = Zeroizing::new(text[from..to].to_vec());
            let known =
                if published == 0 { 0 } else { ((before + published) * 8).div_ceil(6).saturating_sub(from) };
            if !texts.iter().any(|(text, _)| *text == core) {
                texts.push((core, known));
            }
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use std::iter::successors;

    use proptest::prelude::*;

    use super::{BEGINS, Gaps, INTROS, Known, Seen, pair_number, unit};

    /// One character in one of the ways in which it may stand in a text.
    fn written(byte: u8, way: u8) -> Vec<u8> {
        let named = super::NAMED.iter().find(|(_, named)| *named == byte).map(|(name, _)| *name);
        let letter = super::LETTERS.iter().find(|(_, meant)| *meant == byte).map(|(letter, _)| *letter);
        match (way, named, letter) {
            (0, ..) => format!("%{byte:02X}").into(),
            (1, ..) => format!("%25{byte:02x}").into(),
            (2, ..) => format!("\\u{byte:04x}").into(),
            (3, ..) => format!("\\\\u{byte:04X}").into(),
            (4, ..) => format!("\\x{byte:02x}").into(),
            (5, ..) => format!("&#{byte};").into(),
            (6, ..) => format!("&#x{byte:X};").into(),
            (7, ..) => format!("%5Cu{byte:04x}").into(),
            (8, Some(name), _) => [b"&", name, b";"].concat(),
            (9, _, Some(letter)) => vec![b'\\', letter],
            (10, _, Some(letter)) => vec![b'\\', b'\\', letter],
            (11, ..) if byte == b'\\' => vec![b'\\'; 4],
            (12, ..) if byte == b' ' => vec![b'+'],
            (13, ..) => [&[byte], "\r\n".as_bytes()].concat(),
            (14, ..) => [&[byte], r"\n".as_bytes()].concat(),
            (15, ..) => [&[byte], "%0d%0A".as_bytes()].concat(),
            (16, ..) => [&[byte], r"\r\n".as_bytes()].concat(),
            (17, ..) => [&[byte], "\r\\n".as_bytes()].concat(),
            (18, ..) => [&[byte], "\\r\n".as_bytes()].concat(),
            _ => vec![byte],
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]
        #[test]
        fn no_form_is_passed_over_wherever_it_stands_and_however_it_is_written(
            form in prop::collection::vec(
                prop_oneof![any::<u8>(), prop::sample::select(b"ab5/\"\n\r\t %\\&+<=".to_vec())], 3..8
            ),
            ways in prop::collection::vec(0_u8..24, 8),
            before in "[ -~]{0,40}",
            behind in "[ -~]{0,40}",
            gaps in prop::sample::select(vec![Gaps::Nothing, Gaps::LineEnd]),
        ) {
            let mut known = Known::default();
            known.add_form(&form, gaps, 0);
            let written: Vec<u8> = form.iter().zip(&ways).flat_map(|(byte, way)| written(*byte, *way)).collect();
            let text = [before.as_bytes(), &written, behind.as_bytes()].concat();
            let begins = |start: usize| known.pairs[pair_number([text[start], text[start + 1]])] & BEGINS != 0;
            let passed = |length: usize, from: usize, start: usize| {
                let text = &text[..length];
                !successors(known.next_start(text, from), |at| known.next_start(text, at + 1))
                    .any(|at| at == start)
            };
            for start in (0..text.len() - 1).filter(|start| begins(*start)) {
                let Seen::Ends(end) = known.at(&text, start, true) else { continue };
                for from in 0..=start {
                    prop_assert!(!passed(text.len(), from, start), "{start} of {text:?} from {from}");
                }
                for length in start + 2..=end {
                    prop_assert!(!passed(length, 0, start), "{start} of {:?}", &text[..length]);
                }
            }
        }

        #[test]
        fn no_escape_of_the_first_character_of_a_form_is_passed_over(
            intro in prop::sample::select([&INTROS[..], b"+"].concat()),
            rest in "(25){0,2}[0-9a-fA-F]{2}|[xunrtbf/\"'\\\\]{1,3}[0-9a-f]{0,4}|#x?[0-9a-f]{1,3};|[a-z]{2,6};|amp;|lt;|gt;|quot;|apos;|sol;|equals;|[ -~]{1,6}"
        ) {
            let text = [&[intro], rest.as_bytes()].concat();
            for first in unit(&text, 0, true).firsts(intro).into_iter().flatten() {
                let mut known = Known::default();
                known.add_form(&[first, text[1], b'x'], Gaps::Nothing, 0);
                prop_assert_eq!(known.next_start(&text, 0), Some(0), "{:?}", rest);
            }
        }
    }
}
