//! Known secrets in a stream, replaced by a mask of the same length.

use std::sync::Arc;

use crate::known::{Known, Seen};

/// What stands in place of each byte of a secret.
const MASK: u8 = b'*';

/// A beginning of at least so many characters that was waited for in vain is no chance.
const GUESS_MIN: usize = 6;
/// It shows, by the wait, how a secret begins: as bad as so many masks.
const GUESS_HITS: u64 = 250;

/// A stream on its way. Only bytes that may be the beginning of a known form wait for what follows.
#[derive(Debug)]
pub struct Scrubber {
    known: Arc<Known>,
    held: Vec<u8>,
    /// How many characters of a form are held.
    begun: usize,
    hits: u64,
}

impl Scrubber {
    /// Takes these secrets out.
    pub fn new(known: Arc<Known>) -> Self {
        Self { known, held: Vec::new(), begun: 0, hits: 0 }
    }

    /// Takes these out from now on; what is held is judged anew with what follows.
    pub fn look_for(&mut self, known: Arc<Known>) {
        self.known = known;
        // What begins nothing that is still looked for is no guess.
        self.begun = match self.held.first().map(|_| self.known.at(&self.held, 0, false)) {
            Some(Seen::Open(begun)) => begun,
            Some(Seen::Nothing | Seen::Ends(_)) | None => 0,
        };
    }

    /// How many forms of a secret have been replaced; with more for each guess at how one begins.
    pub fn hits(&self) -> u64 {
        self.hits
    }

    /// Takes the next piece, and gives what may go on; nothing when the piece goes on as it is.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.held.is_empty() && self.is_harmless(bytes) {
            return None;
        }
        let mut text = std::mem::take(&mut self.held);
        text.extend_from_slice(bytes);
        let begun = std::mem::take(&mut self.begun);
        let open = self.mask(&mut text, false);
        self.judge(begun, &text[..open]);
        self.held = text.split_off(open);
        Some(text)
    }

    /// The stream ends here; what waited goes on.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.held);
        self.mask(&mut text, true);
        let begun = std::mem::take(&mut self.begun);
        self.judge(begun, &text);
        text
    }

    /// Counts what was held and goes on as it is.
    fn judge(&mut self, begun: usize, goes_on: &[u8]) {
        if begun >= GUESS_MIN && goes_on.first().is_some_and(|first| *first != MASK) {
            self.hits += GUESS_HITS;
        }
    }

    /// How many bytes wait for what follows.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// The text without the secrets, taken for the whole; nothing when none is in it.
    pub fn whole(&mut self, text: &[u8]) -> Option<Vec<u8>> {
        let known = &self.known;
        let mut starts =
            std::iter::successors(known.next_start(text, 0), |at| known.next_start(text, at + 1));
        // Nearly every text holds none, and is not copied.
        starts.any(|start| matches!(known.at(text, start, true), Seen::Ends(_))).then(|| {
            let mut scrubbed = text.to_vec();
            self.mask(&mut scrubbed, true);
            scrubbed
        })
    }

    fn is_harmless(&self, bytes: &[u8]) -> bool {
        let mut from = 0;
        while let Some(start) = self.known.next_start(bytes, from) {
            if self.known.at(bytes, start, false) != Seen::Nothing {
                return false;
            }
            from = start + 1;
        }
        bytes.last().is_none_or(|last| !self.known.may_begin(*last))
    }

    /// Masks what is there; where something begins that is not yet whole.
    fn mask(&mut self, text: &mut [u8], complete: bool) -> usize {
        let mut from = 0;
        while let Some(start) = self.known.next_start(text, from) {
            match self.known.at(text, start, complete) {
                Seen::Nothing => from = start + 1,
                Seen::Ends(end) => {
                    text[start..end].fill(MASK);
                    self.hits += 1;
                    from = end;
                }
                Seen::Open(begun) => {
                    self.begun = begun;
                    return start;
                }
            }
        }
        match text.last() {
            Some(last) if !complete && from < text.len() && self.known.may_begin(*last) => text.len() - 1,
            _ => text.len(),
        }
    }
}
