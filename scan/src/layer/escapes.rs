//! `\/` and `\u002b`, as JSON may write characters of a secret: undone around where they stand, with positions kept.

use std::sync::LazyLock;

use memchr::memchr;
use memchr::memmem::Finder;

use super::words::Thinned;
use crate::finding::Coding;
use crate::layer::{Layer, Shared, tokens_from};

/// How far before its first escape a text begins.
const BEFORE_BYTES: usize = 256;
/// How far behind its last one it goes on.
const BEHIND_BYTES: u64 = 512;
/// So much further when that is inside a run of letters and digits.
const WORD_BYTES: u64 = 512;
/// How often what is escaped may have been escaped again.
const SLASHES_MAX: usize = 8;

/// How an escape goes on behind the last of its backslashes. In JSON most backslashes escape something else: looking for both bytes
/// together passes over those.
static SIGNS: LazyLock<[Finder<'static>; 2]> = LazyLock::new(|| [Finder::new(br"\/"), Finder::new(br"\u")]);

/// Text with such escapes in it.
#[derive(Default)]
pub(super) struct Escapes {
    at: u64,
    text: Option<Thinned>,
    /// Where the last escape ends.
    last: u64,
    /// Whether an escape may begin at `at`, of which more is to come.
    waits: bool,
}

/// What backslashes begin.
enum Escape {
    /// This character, of so many bytes.
    Of(u8, usize),
    /// So many bytes of something else.
    Other(usize),
    Waits,
}

/// Where the signs of an escape stand next, as far as they were looked for.
#[derive(Default)]
struct Signs([Option<usize>; 2]);

impl Signs {
    /// The backslashes from `from` on that may begin an escape.
    fn next(&mut self, bytes: &[u8], from: usize, complete: bool) -> Option<usize> {
        let mut last = if complete || !bytes.ends_with(b"\\") { bytes.len() } else { bytes.len() - 1 };
        for (finder, found) in SIGNS.iter().zip(&mut self.0) {
            let at = match *found {
                Some(at) if at >= from => at,
                _ => finder.find(&bytes[from..]).map_or(bytes.len(), |ahead| from + ahead),
            };
            *found = Some(at);
            last = last.min(at);
        }
        let before = bytes[from..last].iter().rev().take(SLASHES_MAX).take_while(|byte| **byte == b'\\');
        (last < bytes.len()).then(|| last - before.count())
    }
}

impl Escapes {
    pub(super) fn held_from(&self) -> Option<u64> {
        match &self.text {
            Some(text) => text.held_from(),
            // What stands before may be the first part of a secret that goes on behind the escape.
            None => self.waits.then(|| self.at.saturating_sub(BEFORE_BYTES as u64)),
        }
    }

    pub(super) fn needs(&self) -> u64 {
        self.text.as_ref().map_or(self.at, |text| text.needs().min(self.at))
    }
}

impl Layer {
    pub(super) fn undo_escapes(&mut self, shared: &mut Shared<'_>, complete: bool) {
        if self.through.has(Coding::Escape) {
            self.escapes.at = self.end();
            return;
        }
        let mut escapes = std::mem::take(&mut self.escapes);
        escapes.waits = false;
        let mut signs = Signs::default();
        while self.index(escapes.at) < self.bytes.len() {
            let at = self.index(escapes.at);
            let Some(mut text) = escapes.text.take() else {
                let Some(slash) = signs.next(&self.bytes, at, complete) else {
                    escapes.at = self.end();
                    break;
                };
                escapes.at = self.position(slash);
                match escape(&self.bytes, slash, complete) {
                    Escape::Waits => {
                        escapes.waits = true;
                        break;
                    }
                    Escape::Other(length) => escapes.at += length as u64,
                    Escape::Of(..) => {
                        let Some(child) = self.inner(Coding::Escape, shared.bounds) else {
                            escapes.at = self.end();
                            break;
                        };
                        escapes.last = escapes.at;
                        let before = slash.saturating_sub(BEFORE_BYTES);
                        let start =
                            before + tokens_from(&self.bytes[before..slash], before == 0 && self.base == 0);
                        escapes.at = self.position(start);
                        escapes.text = Some(Thinned::new(child, escapes.at));
                    }
                }
                continue;
            };
            let (next, ended) = escapes.read(&mut text, &self.bytes, self.base, at, complete);
            escapes.at = self.position(next);
            self.pass_on(&mut text, shared, escapes.at, ended || complete, Coding::Escape);
            if !ended {
                escapes.text = Some(text);
                break;
            }
        }
        if complete && let Some(mut text) = escapes.text.take() {
            self.pass_on(&mut text, shared, escapes.at, true, Coding::Escape);
        }
        self.escapes = escapes;
    }
}

impl Escapes {
    /// Reads on until no escape has come for long, or one is not whole: where it stopped, and whether the text is over.
    fn read(
        &mut self,
        text: &mut Thinned,
        bytes: &[u8],
        base: u64,
        from: usize,
        complete: bool,
    ) -> (usize, bool) {
        let mut at = from;
        while at < bytes.len() {
            let position = base + at as u64;
            if bytes[at] == b'\\' {
                match escape(bytes, at, complete) {
                    Escape::Waits => return (at, false),
                    Escape::Other(length) => {
                        text.extend(&bytes[at..at + length], position);
                        at += length;
                    }
                    Escape::Of(byte, length) => {
                        text.push(byte, position);
                        at += length;
                        self.last = base + at as u64;
                    }
                }
                continue;
            }
            let free =
                usize::try_from((self.last + BEHIND_BYTES).saturating_sub(position)).unwrap_or(usize::MAX);
            if free > 0 {
                let rest = &bytes[at..bytes.len().min(at.saturating_add(free))];
                let length = memchr(b'\\', rest).unwrap_or(rest.len());
                text.extend(&rest[..length], position);
                at += length;
            } else if position < self.last + BEHIND_BYTES + WORD_BYTES && bytes[at].is_ascii_alphanumeric() {
                text.push(bytes[at], position);
                at += 1;
            } else {
                return (at, true);
            }
        }
        (at, false)
    }
}

/// What the backslashes at `at` begin.
fn escape(bytes: &[u8], at: usize, complete: bool) -> Escape {
    let rest = &bytes[at..];
    let run = rest.iter().take(SLASHES_MAX + 1).take_while(|byte| **byte == b'\\').count();
    let goes_on = at > 0 && bytes[at - 1] == b'\\';
    if run > SLASHES_MAX || goes_on {
        return Escape::Other(run);
    }
    match &rest[run..] {
        [] if !complete => Escape::Waits,
        [b'/', ..] => Escape::Of(b'/', run + 1),
        [b'u', digits @ ..] => {
            let digits = &digits[..digits.len().min(4)];
            let code =
                digits.iter().try_fold(0, |code, digit| Some(code << 4 | char::from(*digit).to_digit(16)?));
            match code.and_then(|code| u8::try_from(code).ok()) {
                Some(_) if digits.len() < 4 && !complete => Escape::Waits,
                Some(byte @ b' '..=b'~') if digits.len() == 4 && byte != b'\\' => Escape::Of(byte, run + 5),
                _ => Escape::Other(run),
            }
        }
        _ => Escape::Other(run),
    }
}
