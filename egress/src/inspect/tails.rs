//! The ends of what went to a destination before: a secret may be sent in pieces, one in each of several requests.
//!
//! Pieces are put together where they stand in the same position (the last element of the path, the value of one query key,
//! the value of one header, bodies and messages), in the order of the requests; and within one head, in the order in which
//! they stand. What only another order, position or coding puts together is not seen.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use scan::{Known, Scanner};

use super::{Inspection, Objection};

/// How much is kept of each position, and how much of the next piece is put to it.
pub(crate) const TAIL_BYTES: usize = 512;
/// How many positions are kept of a destination, and how many destinations; of more, those that were used last.
pub(crate) const POSITIONS_MAX: usize = 64;
pub(crate) const DESTINATIONS_MAX: usize = 64;

/// The tails of every destination of the bottle.
#[derive(Debug, Default)]
pub(crate) struct Tails(Mutex<VecDeque<(String, Arc<Destination>)>>);

/// The tails of one destination, the one that was used last at the end.
#[derive(Debug, Default)]
pub(crate) struct Destination {
    tails: Mutex<VecDeque<Tail>>,
    /// By keys of its own, so that nobody finds two pieces with the same digest.
    digests: RandomState,
}

/// Where a piece stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Position {
    Path,
    Query(String),
    Header(String),
    Body,
    /// All pieces of one head, which are put together among themselves alone.
    All,
}

#[derive(Debug)]
struct Tail {
    position: Position,
    bytes: Vec<u8>,
    /// Of the last piece, where it was whole: one that is sent again and again puts nothing together.
    digest: Option<u64>,
}

impl Tails {
    /// Those of `host:port`.
    pub(crate) fn of(&self, authority: &str) -> Arc<Destination> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((last, destination)) = all.back()
            && last == authority
        {
            return Arc::clone(destination);
        }
        let known = all.iter().position(|(name, _)| name == authority).and_then(|at| all.remove(at));
        let entry = known.unwrap_or_else(|| (authority.to_owned(), Arc::default()));
        let destination = Arc::clone(&entry.1);
        if all.len() == DESTINATIONS_MAX {
            all.pop_front();
        }
        all.push_back(entry);
        destination
    }
}

impl Destination {
    /// Whether `piece` is the last piece of a secret whose first ones went before.
    pub(super) fn join(
        &self,
        inspection: &Inspection,
        position: Position,
        piece: &[u8],
    ) -> Result<(), Objection> {
        if piece.is_empty() {
            return Ok(());
        }
        let digest = self.digests.hash_one(piece);
        let Some(before) = self.before(&position, Some(digest)) else { return Ok(()) };
        if !before.is_empty() {
            let mut joint = Scanner::joined(inspection.rules, inspection.known());
            joint.feed(&before);
            joint.feed(&piece[..piece.len().min(TAIL_BYTES)]);
            joint.end();
            judge(&mut joint, &[before.len()])?;
        }
        self.keep(position, before, piece, Some(digest));
        Ok(())
    }

    /// Whether the pieces of one request hold a secret together.
    pub(super) fn together<'p>(
        &self,
        inspection: &Inspection,
        pieces: impl Iterator<Item = &'p [u8]>,
    ) -> Result<(), Objection> {
        let (mut text, mut borders) = (Vec::with_capacity(TAIL_BYTES), Vec::new());
        for piece in pieces.filter(|piece| !piece.is_empty()) {
            borders.push(text.len());
            text.extend_from_slice(piece);
        }
        let digest = self.digests.hash_one(&text[..]);
        if borders.len() < 2 || self.before(&Position::All, Some(digest)).is_none() {
            return Ok(());
        }
        let mut joint = Scanner::joined(inspection.rules, inspection.known());
        joint.feed(&text);
        joint.end();
        judge(&mut joint, &borders)?;
        self.keep(Position::All, Vec::new(), &[], Some(digest));
        Ok(())
    }

    /// What went before in this position; none where the last piece was the same as what comes now.
    fn before(&self, position: &Position, now: Option<u64>) -> Option<Vec<u8>> {
        let all = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        match all.iter().find(|tail| tail.position == *position) {
            Some(tail) if now.is_some() && tail.digest == now => None,
            Some(tail) => Some(tail.bytes.clone()),
            None => Some(Vec::new()),
        }
    }

    fn keep(&self, position: Position, mut bytes: Vec<u8>, piece: &[u8], digest: Option<u64>) {
        append(&mut bytes, piece);
        let mut all = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = all.iter().position(|tail| tail.position == position) {
            all.remove(at);
        } else if all.len() == POSITIONS_MAX {
            all.pop_front();
        }
        all.push_back(Tail { position, bytes, digest });
    }
}

/// Puts `piece` to the end, of which only so much stays.
fn append(tail: &mut Vec<u8>, piece: &[u8]) {
    let piece = &piece[piece.len().saturating_sub(TAIL_BYTES)..];
    let over = (tail.len() + piece.len()).saturating_sub(TAIL_BYTES);
    tail.drain(..over.min(tail.len()));
    tail.extend_from_slice(piece);
}

/// An objection when a secret lies across a border: one that lies on a side of it is told where that side is searched.
fn judge(joint: &mut Scanner<'_>, borders: &[usize]) -> Result<(), Objection> {
    let Some(rule) = joint.found() else { return Ok(()) };
    let across = |span: &Range<u64>| {
        borders.iter().any(|border| span.start < *border as u64 && (*border as u64) < span.end)
    };
    let is_overfull = joint.is_overfull();
    let spans = joint.take_spans().unwrap_or_default();
    if is_overfull || spans.iter().any(across) { Err(Objection::Secret(rule, None)) } else { Ok(()) }
}

/// A body, or the messages of a stream, put to what went before.
pub(crate) struct Joint {
    destination: Arc<Destination>,
    /// While what comes may belong to what went before.
    scanner: Option<Box<Scanner<'static>>>,
    before: Vec<u8>,
    fed: usize,
    /// The end of what has come.
    tail: Vec<u8>,
}

impl Joint {
    /// Nothing where only what is whole is looked for.
    pub(super) fn of(inspection: &Inspection) -> Option<Joint> {
        inspection.looks_at_heads().then(|| Joint::new(inspection))
    }

    fn new(inspection: &Inspection) -> Joint {
        let destination = Arc::clone(&inspection.destination);
        let before = destination.before(&Position::Body, None).unwrap_or_default();
        let scanner = (!before.is_empty()).then(|| {
            let mut scanner = Scanner::joined(inspection.rules, inspection.known());
            scanner.feed(&before);
            Box::new(scanner)
        });
        Joint { destination, scanner, before, fed: 0, tail: Vec::new() }
    }

    /// Takes the next part.
    pub(super) fn feed(&mut self, part: &[u8]) -> Result<(), Objection> {
        let mut rest = part;
        while let Some(scanner) = &mut self.scanner
            && !rest.is_empty()
        {
            // Most often nothing has begun before the border, which is known soon.
            let reach = scanner.reach().min(TAIL_BYTES);
            let until = if self.fed < reach { reach } else { TAIL_BYTES };
            let next = rest.split_off(..rest.len().min(until - self.fed)).unwrap_or_default();
            scanner.feed(next);
            self.fed += next.len();
            if let Err(objection) = judge(scanner, &[self.before.len()]) {
                self.tail.clear();
                self.scanner = None;
                return Err(objection);
            }
            if self.fed == TAIL_BYTES || self.fed >= reach && scanner.open() <= self.fed as u64 {
                self.scanner = None;
            }
        }
        append(&mut self.tail, part);
        Ok(())
    }

    /// All has come.
    pub(super) fn end(&mut self) -> Result<(), Objection> {
        match self.scanner.take() {
            Some(mut scanner) => {
                scanner.end();
                judge(&mut scanner, &[self.before.len()]).inspect_err(|_| self.tail.clear())
            }
            None => Ok(()),
        }
    }

    /// Looks for these known secrets from now on, also in what went before.
    pub(super) fn look_for(&mut self, inspection: &Inspection, known: Arc<Known>) {
        // A shorter tail is all that has come.
        if !self.before.is_empty() && self.tail.len() < TAIL_BYTES {
            let mut scanner = Scanner::joined(inspection.rules, Some(known));
            scanner.feed(&self.before);
            scanner.feed(&self.tail);
            self.fed = self.tail.len();
            self.scanner = Some(Box::new(scanner));
        }
    }

    /// How many of the last bytes may complete a secret that began before.
    pub(super) fn held(&self) -> u64 {
        self.scanner.as_ref().map_or(0, |scanner| scanner.held().min(self.fed as u64))
    }

    /// What was taken did not leave.
    pub(super) fn forget(&mut self) {
        self.tail.clear();
    }
}

impl Drop for Joint {
    /// What has left stays in mind, however the stream ended.
    fn drop(&mut self) {
        if !self.tail.is_empty() {
            let (before, tail) = (std::mem::take(&mut self.before), std::mem::take(&mut self.tail));
            self.destination.keep(Position::Body, before, &tail, None);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use policy::{Detector, Dlp, OnMatch, Unreadable};

    use super::*;
    use crate::credential::{Knowns, Lookout, Secret};
    use crate::inspect::Messages;

    fn inspection(destination: &Arc<Destination>) -> Inspection {
        let outbound = vec![Detector::TokenPatterns];
        let dlp =
            Dlp { outbound, inbound: Vec::new(), on_match: OnMatch::Block, unreadable: Unreadable::Refuse };
        Inspection::of(&dlp, &Lookout::default(), Arc::clone(destination), &scan::Budget::UNBOUNDED).unwrap()
    }

    /// In two pieces, made at run time so that no scanner trips over this file.
    fn pieces() -> (String, String) {
        (format!("glpat{}q8Zr2LkT", "-"), "0vWcN5mYx1Jd".to_owned())
    }

    #[test]
    fn pieces_are_put_together_in_one_position_of_one_destination() {
        let (first, second) = pieces();
        let header = |name: &str| Position::Header(name.to_owned());
        for (position, other_position, joined) in
            [(header("x-a"), header("x-a"), true), (header("x-a"), header("x-b"), false)]
        {
            let destination = Arc::default();
            let inspection = inspection(&destination);
            destination.join(&inspection, position, first.as_bytes()).unwrap();
            // The same once more is no other piece.
            destination.join(&inspection, header("x-a"), first.as_bytes()).unwrap();
            let told = destination.join(&inspection, other_position.clone(), second.as_bytes());
            assert_eq!(told.is_err(), joined, "{other_position:?}");
            // What was refused has not left, and is refused again.
            assert_eq!(destination.join(&inspection, other_position, second.as_bytes()).is_err(), joined);
        }
        let tails = Tails::default();
        assert!(Arc::ptr_eq(&tails.of("a:443"), &tails.of("a:443")));
        assert!(!Arc::ptr_eq(&tails.of("a:443"), &tails.of("b:443")));
    }

    #[test]
    fn bodies_are_put_together_however_small_they_are() {
        let (first, second) = pieces();
        let destination = Arc::default();
        let inspection = inspection(&destination);
        let mut refused = None;
        let text = format!("{first}{second} ");
        for (at, byte) in text.bytes().enumerate() {
            let mut joint = Joint::new(&inspection);
            if joint.feed(&[byte]).is_err() || joint.end().is_err() {
                joint.forget();
                refused = refused.or(Some(at));
            }
        }
        assert!(refused.is_some_and(|at| at < text.len() - 1), "{refused:?}");
    }

    /// A keyword may stand in a secret's middle, or at its end.
    #[test]
    fn a_secret_is_put_together_wherever_it_is_cut() {
        let hex = "9f8e7d6c5b4a39281706f5e4d3c2b1a0";
        let letters = "q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe6uR4iO9tKwE2nMzQ5hLbVgXyCj8dUSpFA1xZk7mRtWq0Yv";
        let (first, second) = pieces();
        for token in [format!("{first}{second}"), format!("{hex}-us12"), format!("{letters}AZ{}", "DOx7Qp")] {
            for at in 1..token.len() {
                let destination = Arc::default();
                let inspection = inspection(&destination);
                let (first, second) = token.split_at(at);
                let mut before = Joint::new(&inspection);
                before.feed(format!("{} {first}", "text ".repeat(200)).as_bytes()).unwrap();
                before.end().unwrap();
                drop(before);
                let mut behind = Joint::new(&inspection);
                let fed = behind.feed(format!("{second} {}", "text ".repeat(200)).as_bytes());
                assert!(fed.and_then(|()| behind.end()).is_err(), "{token} at {at}");
            }
        }
    }

    #[test]
    fn pieces_of_what_becomes_known_on_the_way_of_the_last_are_put_together() {
        let secret = b"Xr5TqLw9vBn2KcPd7sHf";
        let (knowns, destination) = (Arc::<Knowns>::default(), Arc::<Destination>::default());
        let dlp = Dlp {
            outbound: vec![Detector::KnownSecrets],
            inbound: Vec::new(),
            on_match: OnMatch::Block,
            unreadable: Unreadable::Refuse,
        };
        let stream = || {
            let lookout = Lookout::new(&knowns);
            let of = Inspection::of(&dlp, &lookout, Arc::clone(&destination), &scan::Budget::UNBOUNDED);
            Messages::new(of.unwrap())
        };
        let mut first = stream();
        first.feed(&secret[..8], None).unwrap();
        first.end_message().unwrap();
        let mut second = stream();
        second.feed(&secret[8..12], None).unwrap();
        knowns.learn(&Secret::new(secret.to_vec()), None).unwrap();
        assert!(second.feed(&secret[12..], None).is_err());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let tails = Tails::default();
        for number in 0..2 * DESTINATIONS_MAX {
            let destination = tails.of(&number.to_string());
            let inspection = inspection(&destination);
            for key in 0..2 * POSITIONS_MAX {
                destination.join(&inspection, Position::Query(key.to_string()), &[b'x'; 4096]).unwrap();
            }
            let kept = destination.tails.lock().unwrap();
            assert!(kept.len() == POSITIONS_MAX && kept.iter().all(|tail| tail.bytes.len() == TAIL_BYTES));
        }
        assert_eq!(tails.0.lock().unwrap().len(), DESTINATIONS_MAX);
    }
}
