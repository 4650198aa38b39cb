//! One text as a stream: what the rules and the known secrets say of it, and what lies hidden in it.
//!
//! Everything here depends on positions in the stream alone, never on how it was cut into pieces.

mod escapes;
mod marks;
mod packed;
mod runs;
mod words;

use std::ops::Range;

use crate::budget::Permit;
use crate::finding::{Coding, Lines, Place, Through};
use crate::known::{Known, Seen};
use crate::mark::{Mark, Marks};
use crate::rules::{AROUND_BYTES, Judgement, Rules, Woken};
use crate::scanner::{Bounds, Uninspectable};
use escapes::Escapes;
use packed::Packed;
pub(crate) use packed::begins;
use runs::Runs;
use words::{Percents, Zeros};

/// How much is taken at once.
const PIECE_BYTES: usize = 16 * 1024;
/// What stays in sight behind everything that was looked at.
const BEHIND_BYTES: usize = 512;
/// A place that is as long is asked about again only when it has grown by a part of it.
const LONG_BYTES: u64 = 1024;
/// What a text inside another has at least, and grows by.
const ROOM_BYTES: usize = 1024;
/// How many findings are kept; more say nothing more.
const HITS_MAX: usize = 4096;
/// The number of the rule for known secrets.
pub(crate) const KNOWN: u16 = u16::MAX;

/// A secret, before rules are weighed against each other.
#[derive(Debug, Clone)]
pub(crate) struct Hit {
    pub(crate) rule: u16,
    pub(crate) place: Place,
    pub(crate) line_end: u32,
    /// Where what hides it begins; 0 when nothing does.
    pub(crate) carrier: u64,
    /// Where it lies in what was hidden.
    pub(crate) span: Range<u64>,
    pub(crate) through: Through,
    pub(crate) mark: Option<Mark>,
}

/// What all layers of one scan share.
pub(crate) struct Shared<'a> {
    pub(crate) rules: Option<&'a Rules>,
    pub(crate) known: Option<&'a Known>,
    pub(crate) marks: Option<&'a Marks>,
    pub(crate) bounds: &'a Bounds,
    pub(crate) state: &'a mut State,
}

/// What a scan has come to.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) fed: u64,
    pub(crate) expanded: u64,
    pub(crate) hits: Vec<Hit>,
    /// More was found than there is room for.
    pub(crate) overfull: bool,
    pub(crate) uninspectable: Option<Uninspectable>,
    /// Whether that is one of the reasons, whichever is kept.
    pub(crate) is_for_want_of_memory: bool,
}

impl State {
    /// Of several reasons the first in their order is kept: which one is met first may depend on the pieces.
    pub(crate) fn cannot(&mut self, reason: Uninspectable) {
        self.is_for_want_of_memory |= reason == Uninspectable::Memory;
        self.uninspectable = Some(self.uninspectable.map_or(reason, |known| known.min(reason)));
    }

    /// Whether so many more bytes may come out of what is compressed.
    pub(crate) fn expand(&mut self, bytes: usize, bounds: &Bounds) -> bool {
        self.expanded += bytes as u64;
        let by_ratio = self.fed.saturating_mul(u64::from(bounds.ratio)).saturating_add(bounds.ratio_free);
        let within = self.expanded <= bounds.expanded.min(by_ratio);
        if !within {
            self.cannot(Uninspectable::Size);
        }
        within
    }
}

/// A place where a rule needs more bytes.
struct Open {
    rule: u16,
    start: u64,
    /// Where the keyword ends, or a secret begins that stands around its keyword: what may not go on before the rule has spoken begins here.
    held: u64,
    /// Where the text ended when the rule was asked last.
    asked: u64,
}

impl Open {
    /// Whether it is worth asking again by now. A rule reads the place from its beginning each time, so that a long place that grows byte
    /// by byte would cost the square of its length.
    fn has_grown(&self, end: u64) -> bool {
        let length = self.asked - self.start;
        length < LONG_BYTES || end - self.asked >= length / 8
    }
}

/// One text.
pub(crate) struct Layer {
    through: Through,
    decodes: bool,
    /// What stands before a match has no say.
    joined: bool,
    /// For what it keeps; the text that is not inside another needs none.
    permit: Option<Permit>,
    /// What others keep for it.
    beside: usize,
    /// There was no memory for it: what comes is passed over.
    over: bool,
    bytes: Vec<u8>,
    base: u64,
    /// At `base`, and at the last position asked for.
    floor: Lines,
    lines: Lines,
    searched: u64,
    open: Vec<Open>,
    /// How much at the end may belong to a secret whose keyword has not come.
    leading: u64,
    around: Vec<(u16, u64)>,
    around_until: Vec<(u16, u64)>,
    everywhere: u64,
    known_at: u64,
    known_open: bool,
    woken: Vec<Woken>,
    runs: Runs,
    percents: Percents,
    escapes: Escapes,
    zeros: Zeros,
    packed: Packed,
}

impl Layer {
    /// A text that needs `through` to be seen; `decodes` when what is hidden in it is looked for.
    pub(crate) fn new(through: Through, decodes: bool) -> Self {
        Self {
            through,
            decodes,
            joined: false,
            permit: None,
            beside: 0,
            over: false,
            bytes: Vec::new(),
            base: 0,
            floor: Lines::at(0, 1, 1),
            lines: Lines::at(0, 1, 1),
            searched: 0,
            open: Vec::new(),
            leading: 0,
            around: Vec::new(),
            around_until: Vec::new(),
            everywhere: 0,
            known_at: 0,
            known_open: false,
            woken: Vec::new(),
            runs: Runs::default(),
            percents: Percents::default(),
            escapes: Escapes::default(),
            zeros: Zeros::default(),
            packed: Packed::default(),
        }
    }

    /// A text inside this one, unless that is deeper than the bounds allow.
    fn inner(&self, coding: Coding, bounds: &Bounds) -> Option<Box<Layer>> {
        if self.through.depth() >= usize::from(bounds.depth) {
            return None;
        }
        let permit = Some(bounds.memory.permit());
        Some(Box::new(Layer { permit, ..Layer::new(self.through.and(coding)?, true) }))
    }

    pub(crate) fn feed(&mut self, shared: &mut Shared<'_>, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE_BYTES) {
            if !self.make_room(shared, piece.len()) {
                self.base += piece.len() as u64;
                continue;
            }
            self.bytes.extend_from_slice(piece);
            self.advance(shared, false);
            self.forget();
        }
    }

    /// Whether there is memory for so many more bytes.
    fn make_room(&mut self, shared: &mut Shared<'_>, more: usize) -> bool {
        let wanted = self.bytes.len() + more;
        if self.permit.is_some() && wanted > self.bytes.capacity() {
            let capacity = wanted.max(2 * self.bytes.capacity()).next_multiple_of(ROOM_BYTES);
            if self.cover(shared, capacity) {
                self.bytes.reserve_exact(capacity - self.bytes.len());
            }
        }
        !self.over
    }

    /// Counts what others keep for it.
    fn keep_beside(&mut self, shared: &mut Shared<'_>, bytes: usize) {
        self.beside = bytes;
        self.cover(shared, self.bytes.capacity());
    }

    /// Counts its text and what goes with it. Where there is no memory for that, nothing of it is kept any more.
    fn cover(&mut self, shared: &mut Shared<'_>, text: usize) -> bool {
        let Some(permit) = &mut self.permit else { return !self.over };
        if permit.cover(size_of::<Layer>() + text + self.beside).is_err() {
            shared.state.cannot(Uninspectable::Memory);
            let (base, permit) = (self.end(), self.permit.take());
            *self = Layer { base, permit, over: true, ..Layer::new(self.through, self.decodes) };
            self.count_anew();
        }
        !self.over
    }

    /// Gives back what it does not keep any more.
    fn count_anew(&mut self) {
        if let Some(permit) = &mut self.permit {
            // Were it more than before, it would be counted with the next byte.
            let _ = permit.cover(size_of::<Layer>() + self.bytes.capacity());
        }
    }

    /// The text ends here.
    pub(crate) fn finish(&mut self, shared: &mut Shared<'_>) {
        self.advance(shared, true);
    }

    /// Forgets the text, so that another can begin in its place.
    fn reset(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let permit = self.permit.take();
        *self = Layer { bytes, permit, ..Layer::new(self.through, self.decodes) };
        self.count_anew();
    }

    pub(crate) fn end(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    /// From where on bytes may belong to a secret that is not yet whole.
    pub(crate) fn held_from(&self) -> u64 {
        let rules = self.open.iter().map(|open| open.held).min();
        let known = self.known_open.then_some(self.known_at);
        let hidden = [
            self.runs.held_from(),
            self.percents.held_from(),
            self.escapes.held_from(),
            self.zeros.held_from(),
            self.packed.held_from(),
        ];
        let hidden = hidden.into_iter().flatten().min();
        let leading = self.end() - self.leading;
        [rules, known, hidden, Some(leading)].into_iter().flatten().min().unwrap_or(u64::MAX).min(self.end())
    }

    /// From where on there may be a secret that is not yet whole, with what everybody knows of it; no earlier than its keyword has come.
    pub(crate) fn open_from(&self) -> u64 {
        let rules = self.open.iter().map(|open| open.start).min();
        let known = self.known_open.then_some(self.known_at);
        [rules, known].into_iter().flatten().min().unwrap_or(u64::MAX).min(self.end())
    }

    pub(crate) fn is_held(&self) -> bool {
        self.held_from() < self.end()
    }

    fn index(&self, position: u64) -> usize {
        usize::try_from(position.saturating_sub(self.base)).unwrap_or(usize::MAX).min(self.bytes.len())
    }

    fn position(&self, index: usize) -> u64 {
        self.base + index as u64
    }

    fn advance(&mut self, shared: &mut Shared<'_>, complete: bool) {
        if self.over {
            return;
        }
        if let Some(rules) = shared.rules {
            self.ask_again(rules, shared, complete);
            self.wake(rules, shared, complete);
            self.look_around(rules, shared, complete);
            // What hides a text, or was put together, is not let out in parts that could be told from here.
            if self.through.is_nothing() && !self.joined {
                self.leading = if complete { 0 } else { rules.leading(&self.bytes) as u64 };
            }
        }
        if let Some(known) = shared.known {
            self.look_for_known(known, shared, complete);
        }
        if self.decodes {
            self.decode_runs(shared, complete);
            self.decode_percents(shared, complete);
            self.undo_escapes(shared, complete);
            self.skip_zeros(shared, complete);
            self.unpack(shared, complete);
        }
    }

    fn ask_again(&mut self, rules: &Rules, shared: &mut Shared<'_>, complete: bool) {
        let mut open = std::mem::take(&mut self.open);
        let end = self.end();
        open.retain_mut(|place| {
            if !complete && !place.has_grown(end) {
                return true;
            }
            place.asked = end;
            self.ask(rules, shared, place.rule, place.start, complete)
        });
        self.open = open;
    }

    /// The text is put together of pieces: a match may begin with any of them.
    pub(crate) fn joined(self) -> Self {
        Self { joined: true, ..self }
    }

    /// Whether the rule needs more bytes to judge the place.
    fn ask(&mut self, rules: &Rules, shared: &mut Shared<'_>, rule: u16, start: u64, complete: bool) -> bool {
        let start = self.index(start);
        let skipped = if self.joined { start } else { 0 };
        match rules.judge(rule, &self.bytes[skipped..], start - skipped, complete) {
            Judgement::Open => return true,
            Judgement::Secret(secret) => {
                self.found(shared, rule, secret.start + skipped..secret.end + skipped);
            }
            Judgement::Nothing => {}
        }
        false
    }

    fn wake(&mut self, rules: &Rules, shared: &mut Shared<'_>, complete: bool) {
        if self.searched == self.end() {
            return;
        }
        let from = self.index(self.searched.saturating_sub(rules.longest_keyword() as u64));
        let mut woken = std::mem::take(&mut self.woken);
        rules.wake(&self.bytes, from, self.index(self.searched), |place| woken.push(place));
        woken.sort_unstable_by_key(|place| (place.end, place.start, place.rule));
        self.searched = self.end();
        for Woken { rule, start, end } in woken.drain(..) {
            let Some((least, most)) = rules.lead(rule) else {
                self.queue_around(rule, self.position(start));
                continue;
            };
            for lead in least..=most {
                if let Some(start) = start.checked_sub(lead) {
                    let start = self.position(start);
                    if self.ask(rules, shared, rule, start, complete) {
                        let held = if lead == 0 { self.position(end) } else { start };
                        self.open.push(Open { rule, start, held, asked: self.end() });
                    }
                }
            }
        }
        self.woken = woken;
    }

    /// A rule of somebody else's looks around each of its keywords once, in parts that overlap.
    fn queue_around(&mut self, rule: u16, at: u64) {
        let next = at + AROUND_BYTES as u64 / 2;
        match self.around_until.iter_mut().find(|(known, _)| *known == rule) {
            Some((_, until)) if at < *until => return,
            Some((_, until)) => *until = next,
            None => self.around_until.push((rule, next)),
        }
        self.around.push((rule, at));
    }

    fn look_around(&mut self, rules: &Rules, shared: &mut Shared<'_>, complete: bool) {
        const AROUND: u64 = AROUND_BYTES as u64;
        while !rules.everywhere().is_empty() && self.everywhere < self.end() {
            rules.everywhere().iter().for_each(|rule| self.around.push((*rule, self.everywhere)));
            self.everywhere += AROUND / 2;
        }
        let mut around = std::mem::take(&mut self.around);
        around.retain(|(rule, at)| {
            if !complete && at + AROUND >= self.end() {
                return true;
            }
            let part = self.index(at.saturating_sub(AROUND))..self.index(at + AROUND);
            let mut found = Vec::new();
            rules.look_around(*rule, &self.bytes, part, |secret| found.push(secret));
            found.into_iter().for_each(|secret| self.found(shared, *rule, secret));
            false
        });
        self.around = around;
    }

    /// Has what is held searched for known secrets again: there are others now.
    pub(crate) fn look_again(&mut self) {
        self.known_at = self.known_at.min(self.held_from());
    }

    fn look_for_known(&mut self, known: &Known, shared: &mut Shared<'_>, complete: bool) {
        self.known_open = false;
        let mut from = self.index(self.known_at);
        while let Some(start) = known.next_start(&self.bytes, from) {
            match known.at(&self.bytes, start, complete) {
                Seen::Nothing => from = start + 1,
                Seen::Ends(end) => {
                    self.found(shared, KNOWN, start..end);
                    from = end;
                }
                Seen::Open(_) => {
                    self.known_at = self.position(start);
                    self.known_open = true;
                    return;
                }
            }
        }
        let last = self.bytes.len().saturating_sub(1).max(from);
        self.known_at = self.position(last);
        self.known_open = self.bytes.get(last).is_some_and(|byte| !complete && known.may_begin(*byte));
    }

    /// What is excepted is passed over before anything else is made of it: it has no weight against what it overlaps, and no place.
    fn found(&mut self, shared: &mut Shared<'_>, rule: u16, secret: Range<usize>) {
        let mut mark = None;
        if let (Some(marks), Some(rules)) = (shared.marks, shared.rules.filter(|_| rule != KNOWN)) {
            mark = marks.judge(rules.id(rule), &self.bytes[secret.clone()]);
            if mark.is_none() {
                return;
            }
        }
        if shared.state.hits.len() >= HITS_MAX {
            shared.state.overfull = true;
            return;
        }
        let span = self.position(secret.start)..self.position(secret.end);
        let (place, line_end) = self.locate(&span);
        let through = self.through;
        shared.state.hits.push(Hit { rule, place, line_end, carrier: 0, span, through, mark });
    }

    fn locate(&mut self, span: &Range<u64>) -> (Place, u32) {
        if self.lines.position > span.start {
            self.lines = self.floor.clone();
        }
        let (line, column) = self.lines.locate(&self.bytes, self.base, span.start);
        let mut ahead = self.lines.clone();
        let (line_end, _) = ahead.locate(&self.bytes, self.base, span.end.min(self.end()));
        (Place { line, column, offset: span.start }, line_end)
    }

    fn forget(&mut self) {
        let open = self.open.iter().map(|open| open.start).min();
        let around = self.around.iter().map(|(_, at)| at.saturating_sub(AROUND_BYTES as u64)).min();
        let everywhere = self.everywhere.saturating_sub(AROUND_BYTES as u64);
        let known = self.known_at;
        let hidden = [
            self.runs.needs(),
            self.percents.needs(),
            self.escapes.needs(),
            self.zeros.needs(),
            self.packed.needs(),
        ];
        let hidden = if self.decodes { hidden.into_iter().min() } else { None };
        let needed = [open, around, hidden].into_iter().flatten().min().unwrap_or(u64::MAX);
        let everywhere = if self.everywhere == 0 { u64::MAX } else { everywhere };
        let known = if known == 0 { u64::MAX } else { known };
        let needed = needed.min(everywhere).min(known).min(self.end()).saturating_sub(BEHIND_BYTES as u64);
        if needed < self.base + PIECE_BYTES as u64 {
            return;
        }
        self.floor.locate(&self.bytes, self.base, needed);
        if self.lines.position < needed {
            self.lines = self.floor.clone();
        }
        let gone = self.index(needed);
        self.bytes.drain(..gone);
        self.base = needed;
    }
}

/// Where in `text` something may begin when it goes on before: not inside a run of letters and digits.
fn tokens_from(text: &[u8], is_first: bool) -> usize {
    let run = text.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    if is_first { 0 } else { run }
}

/// Findings of a text inside another, from the one numbered `first` on, stand where what hides it begins.
fn stand_at(state: &mut State, first: usize, place: Place) {
    for hit in &mut state.hits[first..] {
        hit.place = place;
        hit.line_end = place.line;
        hit.carrier = place.offset + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::MATCH_MAX_BYTES;

    /// How often a rule is asked about a place that grows byte by byte to this length.
    fn asked(length: u64) -> usize {
        let mut place = Open { rule: 0, start: 7, held: 10, asked: 10 };
        let grown = |end: &u64| {
            let grown = place.has_grown(*end);
            if grown {
                place.asked = *end;
            }
            grown
        };
        (11..=7 + length).filter(grown).count()
    }

    #[test]
    fn a_place_that_grows_byte_by_byte_does_not_cost_the_square_of_its_length() {
        assert_eq!(asked(LONG_BYTES), LONG_BYTES as usize - 3);
        assert!(asked(MATCH_MAX_BYTES as u64) < LONG_BYTES as usize + 32);
    }
}
