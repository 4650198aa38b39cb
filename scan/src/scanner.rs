//! The scanner: input in pieces, findings out.

use std::ops::Range;
use std::sync::Arc;

use crate::budget::Budget;
use crate::codec::{Decoder, Encoding, Fault, NotDecoded};
use crate::finding::{Finding, Through};
use crate::known::{KNOWN_RULE, Known};
use crate::layer::{Hit, KNOWN, Layer, Shared, State, begins};
use crate::mark::{Mark, Marks};
use crate::rules::Rules;

const OUT_BYTES: usize = 16 * 1024;
/// So much of that is searched at once.
const LOOK_BYTES: usize = 4 * 1024;

/// How far a scan goes into what hides something.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// How many codings one in another are undone; at most six.
    pub depth: u8,
    /// How many bytes may come out of what is compressed.
    pub expanded: u64,
    /// How many times the input may come out of it, once `ratio_free` is used up.
    pub ratio: u32,
    /// What may come out whatever the ratio.
    pub ratio_free: u64,
    /// The memory that it may take for that, which others may share.
    pub memory: Budget,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { depth: 5, expanded: 512 << 20, ratio: 200, ratio_free: 8 << 20, memory: Budget::UNBOUNDED }
    }
}

/// Why some of the input could not be looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Uninspectable {
    /// A content coding that cannot be undone here.
    #[error("its encoding is not one that can be undone")]
    Encoding,
    /// An archive of a kind that is not opened.
    #[error("it is, or holds, an archive of a kind that is not opened")]
    Archive,
    /// An encrypted archive.
    #[error("it is, or holds, an encrypted archive")]
    Encrypted,
    /// More comes out of it than the bounds allow.
    #[error("more comes out of it than may")]
    Size,
    /// It is packed more often than the bounds allow.
    #[error("it is packed too many times over")]
    Depth,
    /// It is not what it says it is compressed with.
    #[error("it is not compressed as it says, or damaged")]
    Damaged,
    /// So much is decoded at once that there is no memory for more.
    #[error("so much is being decoded that there is no memory to look into it now")]
    Memory,
}

/// What a scan came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What was found, in the order of the input.
    pub findings: Vec<Finding>,
    /// Why something may have been missed.
    pub uninspectable: Option<Uninspectable>,
}

/// A scan in progress. It does not matter how the input is cut into pieces.
pub struct Scanner<'r> {
    rules: Option<&'r Rules>,
    known: Option<Arc<Known>>,
    marks: Option<Arc<Marks>>,
    bounds: Bounds,
    state: State,
    layer: Layer,
    outer: Option<Outer>,
}

/// The coding that the whole input is in.
struct Outer {
    decoder: Decoder,
    settled: u64,
    /// Nothing more comes out of it: it is damaged, or too much came.
    over: bool,
}

impl std::fmt::Debug for Scanner<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Scanner({} bytes)", self.state.fed)
    }
}

impl<'r> Scanner<'r> {
    /// Looks for what `rules` know and for the `known` secrets, also in what hides them.
    pub fn new(rules: impl Into<Option<&'r Rules>>, known: Option<Arc<Known>>, bounds: Bounds) -> Self {
        let (rules, state) = (rules.into(), State::default());
        let layer = Layer::new(Through::default(), true);
        Self { rules, known, marks: None, bounds, state, layer, outer: None }
    }

    /// The same, in the input as it stands: nothing is decoded.
    pub fn plain(rules: impl Into<Option<&'r Rules>>, known: Option<Arc<Known>>) -> Self {
        let plain = Layer::new(Through::default(), false);
        Self { layer: plain, ..Self::new(rules, known, Bounds::default()) }
    }

    /// The same, where the input is put together of pieces: a secret may begin right behind what ends a piece.
    pub fn joined(rules: impl Into<Option<&'r Rules>>, known: Option<Arc<Known>>) -> Self {
        let plain = Self::plain(rules, known);
        Self { layer: plain.layer.joined(), ..plain }
    }

    /// What is found has a name, and what is excepted is not found.
    #[must_use]
    pub fn marked(self, marks: Arc<Marks>) -> Self {
        Self { marks: Some(marks), ..self }
    }

    /// The whole input is in this coding.
    #[must_use]
    pub fn encoded(mut self, encoding: Encoding) -> Self {
        let through = Through::default().and(encoding.coding()).unwrap_or_default();
        self.layer = Layer::new(through, true);
        let decoder = Decoder::new(encoding, &self.bounds.memory);
        self.outer = Some(Outer { decoder, settled: 0, over: false });
        self
    }

    /// Takes the next piece of the input.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut shared = Shared {
            rules: self.rules,
            known: self.known.as_deref(),
            marks: self.marks.as_deref(),
            bounds: &self.bounds,
            state: &mut self.state,
        };
        shared.state.fed += bytes.len() as u64;
        match &mut self.outer {
            None => self.layer.feed(&mut shared, bytes),
            Some(outer) => outer.feed(&mut self.layer, &mut shared, bytes),
        }
    }

    /// Looks for these known secrets from now on, also in what is held.
    pub fn look_for(&mut self, known: Arc<Known>) {
        self.known = Some(known);
        self.layer.look_again();
    }

    /// How many of the last bytes may belong to a secret that is not yet whole.
    pub fn held(&self) -> u64 {
        match &self.outer {
            None => self.layer.end() - self.layer.held_from(),
            Some(outer) if self.layer.is_held() => self.state.fed - outer.settled,
            Some(_) => 0,
        }
    }

    /// How many of the last bytes there are from where something began of which more may make a secret: one of the built-in rules or a known one,
    /// in the input as it stands. What begins before a place is known by [`Scanner::reach`] bytes behind it.
    pub fn open(&self) -> u64 {
        self.layer.end() - self.layer.open_from()
    }

    /// By so many bytes behind a place it is known whether a secret may have begun before it: its keyword has come.
    pub fn reach(&self) -> usize {
        self.rules.map_or(1, Rules::reach)
    }

    /// The rule of something that was found so far.
    pub fn found(&self) -> Option<&'static str> {
        self.state.hits.first().map(|hit| self.id(hit.rule))
    }

    /// The name of what [`Scanner::found`] tells of.
    pub fn found_mark(&self) -> Option<Mark> {
        self.state.hits.first().and_then(|hit| hit.mark)
    }

    /// The rule and the name of something that was found so far by its form, not by its value.
    pub fn found_by_form(&self) -> Option<(&'static str, Option<Mark>)> {
        let by_form = self.state.hits.iter().find(|hit| hit.rule != KNOWN);
        by_form.map(|hit| (self.id(hit.rule), hit.mark))
    }

    /// Whether the next piece may take much longer than its length says: something is being decompressed, or may be from here on.
    pub fn may_expand(&self, next: &[u8]) -> bool {
        self.outer.is_some() || self.state.expanded > 0 || begins(next)
    }

    /// Why something may have been missed so far.
    pub fn uninspectable(&self) -> Option<Uninspectable> {
        self.state.uninspectable
    }

    /// The reason, where something may have been missed because there was no memory to look into it, whatever else was.
    pub fn missed_for_want_of_memory(&self) -> Option<Uninspectable> {
        self.state.is_for_want_of_memory.then_some(Uninspectable::Memory)
    }

    /// Whether more was found between two calls of [`Scanner::take_spans`] than is kept.
    pub fn is_overfull(&self) -> bool {
        self.state.overfull
    }

    /// Where the secrets lie that were found since the last call. Nothing when one of them is hidden in something: then no
    /// part of the input is the secret itself. Nor when there were too many to know where all of them lie.
    pub fn take_spans(&mut self) -> Option<Vec<Range<u64>>> {
        let hits = std::mem::take(&mut self.state.hits);
        let plain =
            !self.state.overfull && hits.iter().all(|hit| hit.carrier == 0 && hit.through.is_nothing());
        plain.then(|| hits.into_iter().map(|hit| hit.span).collect())
    }

    /// The input ends here.
    pub fn finish(mut self) -> Report {
        self.end();
        self.report()
    }

    /// The input ends here; what is left to be asked for are the findings.
    pub fn end(&mut self) {
        let mut shared = Shared {
            rules: self.rules,
            known: self.known.as_deref(),
            marks: self.marks.as_deref(),
            bounds: &self.bounds,
            state: &mut self.state,
        };
        if let Some(outer) = &self.outer
            && outer.decoder.finish().is_err()
        {
            shared.state.cannot(Uninspectable::Damaged);
        }
        self.layer.finish(&mut shared);
    }

    pub(crate) fn whole(mut self, input: &[u8]) -> Report {
        self.feed(input);
        self.finish()
    }

    fn id(&self, rule: u16) -> &'static str {
        match self.rules {
            Some(rules) if rule != KNOWN => rules.id(rule),
            _ => KNOWN_RULE,
        }
    }

    fn report(mut self) -> Report {
        let hits = weigh(std::mem::take(&mut self.state.hits));
        let finding = |hit: Hit| Finding {
            rule: self.id(hit.rule),
            line: hit.place.line,
            line_end: hit.line_end,
            column: hit.place.column,
            offset: usize::try_from(hit.place.offset).unwrap_or(usize::MAX),
            through: hit.through,
            mark: hit.mark,
        };
        Report { findings: hits.into_iter().map(finding).collect(), uninspectable: self.state.uninspectable }
    }
}

impl Outer {
    fn feed(&mut self, layer: &mut Layer, shared: &mut Shared<'_>, bytes: &[u8]) {
        if self.over {
            return;
        }
        let mut rest = bytes;
        let mut out = vec![0; OUT_BYTES];
        let mut filled = 0;
        let mut more = false;
        while !self.over {
            // It is emptied after each portion: what comes out before damage then depends on the bytes alone, not on the pieces.
            let portion = if more { 0 } else { rest.len().min(self.decoder.portion()) };
            let room = out.len() - filled;
            let (read, written) = match self.decoder.step(&rest[..portion], &mut out[filled..]) {
                Ok(moved) => moved,
                Err(NotDecoded { written, fault }) => {
                    shared.state.cannot(match fault {
                        Fault::Damaged => Uninspectable::Damaged,
                        Fault::Closed => Uninspectable::Encoding,
                        Fault::Spent => Uninspectable::Memory,
                    });
                    self.over = true;
                    (portion, written)
                }
            };
            rest = &rest[read..];
            if !shared.state.expand(written, shared.bounds) {
                self.over = true;
                break;
            }
            filled += written;
            if read == 0 && written == 0 && !more {
                break;
            }
            more = written > 0;
            // Searched together, because each look at it has its price, and some encodings give it byte by byte.
            if filled > LOOK_BYTES {
                layer.feed(shared, &out[..filled]);
                filled = 0;
                if written < room && !layer.is_held() {
                    self.settled = shared.state.fed - rest.len() as u64;
                }
            }
        }
        layer.feed(shared, &out[..filled]);
        if !layer.is_held() {
            self.settled = shared.state.fed - rest.len() as u64;
        }
    }
}

/// Sorts by place and keeps, of those that overlap, the rule that stands first in the table; what is seen in several ways
/// is told once, in the way that needs the least.
fn weigh(mut hits: Vec<Hit>) -> Vec<Hit> {
    hits.sort_by(|a, b| {
        let key = |hit: &Hit| (hit.carrier, hit.through, hit.span.start, hit.rule, hit.span.end);
        key(a).cmp(&key(b))
    });
    let mut kept: Vec<Hit> = Vec::with_capacity(hits.len());
    for hit in hits {
        match kept.last_mut() {
            Some(last)
                if (last.carrier, last.through) == (hit.carrier, hit.through)
                    && last.span.end > hit.span.start =>
            {
                if hit.rule < last.rule {
                    *last = hit;
                }
            }
            _ => kept.push(hit),
        }
    }
    kept.sort_by_key(|hit| (hit.place.offset, hit.through.depth(), hit.rule, hit.carrier, hit.span.start));
    let mut told: Vec<Hit> = Vec::with_capacity(kept.len());
    for hit in kept {
        let again =
            told.iter().rev().take_while(|other| other.place.offset == hit.place.offset).any(|other| {
                other.rule == hit.rule && (other.through != hit.through || other.span == hit.span)
            });
        if !again {
            told.push(hit);
        }
    }
    told
}
