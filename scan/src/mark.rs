//! Names of what was found, which tell nothing of it without a key; and what a person excepted by such a name.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

const MARK_BYTES: usize = 16;
/// The length of a [`MarkKey`].
pub const MARK_KEY_BYTES: usize = 32;

/// The name of a text that a rule found: the same for the same rule and text, under the same key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark([u8; MARK_BYTES]);

impl Mark {
    /// The name in 32 hexadecimal digits, lower case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Mark> {
        let digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 2 * MARK_BYTES || !text.bytes().all(digit) {
            return None;
        }
        let mut mark = [0; MARK_BYTES];
        for (at, byte) in mark.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Mark(mark))
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// What the names are made with. Whoever has it can try texts out, so it stays with the daemon.
#[derive(Clone)]
pub struct MarkKey(Zeroizing<[u8; MARK_KEY_BYTES]>);

impl MarkKey {
    /// A key of random bytes.
    #[must_use]
    pub fn new(bytes: [u8; MARK_KEY_BYTES]) -> MarkKey {
        MarkKey(Zeroizing::new(bytes))
    }

    /// The bytes, for a process of the same daemon.
    #[must_use]
    pub fn open(&self) -> &[u8; MARK_KEY_BYTES] {
        &self.0
    }

    fn mark(&self, rule: &str, text: &[u8]) -> Mark {
        let mut mac = Hmac::<Sha256>::new_from_slice(&*self.0).expect("HMAC takes a key of any length");
        mac.update(rule.as_bytes());
        mac.update(&[0]);
        mac.update(text);
        let mut mark = [0; MARK_BYTES];
        mark.copy_from_slice(&mac.finalize().into_bytes()[..MARK_BYTES]);
        Mark(mark)
    }
}

impl fmt::Debug for MarkKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MarkKey(..)")
    }
}

/// Marks what one search finds, and passes over what is excepted. Secrets known by value are neither marked nor excepted.
pub struct Marks {
    key: Arc<MarkKey>,
    excepted: Vec<(String, Mark)>,
    harmless: Option<Harmless>,
    met: Mutex<BTreeSet<usize>>,
}

/// Whether a text that looks like a secret is none.
type Harmless = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

impl fmt::Debug for Marks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Marks({} excepted)", self.excepted.len())
    }
}

impl Marks {
    /// With what is excepted: a rule and a name each.
    #[must_use]
    pub fn new(key: Arc<MarkKey>, excepted: Vec<(String, Mark)>) -> Marks {
        Marks { key, excepted, harmless: None, met: Mutex::default() }
    }

    /// The same, where a text of which this is true is passed over, whatever rule finds it.
    #[must_use]
    pub fn passing(self, harmless: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Marks {
        Marks { harmless: Some(Arc::new(harmless)), ..self }
    }

    /// The same for another search, in which nothing is excepted.
    #[must_use]
    pub fn strict(&self) -> Marks {
        let harmless = self.harmless.clone();
        Marks { harmless, ..Marks::new(Arc::clone(&self.key), Vec::new()) }
    }

    /// Whether anything is excepted.
    #[must_use]
    pub fn excepts(&self) -> bool {
        !self.excepted.is_empty()
    }

    /// Those of what is excepted that were met, by their place in the list.
    #[must_use]
    pub fn met(&self) -> Vec<usize> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }

    /// The name of what was found; nothing when it is excepted.
    pub(crate) fn judge(&self, rule: &str, text: &[u8]) -> Option<Mark> {
        if self.harmless.as_ref().is_some_and(|harmless| harmless(text)) {
            return None;
        }
        let mark = self.key.mark(rule, text);
        let excepted = self.excepted.iter().position(|(of, known)| *known == mark && of == rule);
        match excepted {
            Some(at) => {
                self.met.lock().unwrap_or_else(PoisonError::into_inner).insert(at);
                None
            }
            None => Some(mark),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;

    use super::*;
    use crate::{Bounds, Rules, Scanner};

    const KEY: [u8; MARK_KEY_BYTES] = [7; MARK_KEY_BYTES];

    /// Made at run time, so that no scanner trips over this file.
    fn token(last: char) -> String {
        format!("glpat{}q8Zr2LkT0vWcN5mYx1J{last}", "-")
    }

    fn marks(excepted: &[(&str, Mark)]) -> Arc<Marks> {
        let excepted = excepted.iter().map(|(rule, mark)| ((*rule).to_owned(), *mark)).collect();
        Arc::new(Marks::new(Arc::new(MarkKey::new(KEY)), excepted))
    }

    fn found(text: &[u8], marks: &Arc<Marks>, piece: usize) -> Vec<(&'static str, Option<Mark>)> {
        let scanner = Scanner::new(Rules::builtin(), None, Bounds::default());
        let mut scanner = scanner.marked(Arc::clone(marks));
        text.chunks(piece).for_each(|piece| scanner.feed(piece));
        scanner.finish().findings.iter().map(|finding| (finding.rule, finding.mark)).collect()
    }

    #[test]
    fn a_mark_is_of_the_rule_the_text_and_the_key_and_has_one_form() {
        let key = MarkKey::new(KEY);
        let mark = key.mark("r", b"text");
        assert_eq!(mark, key.mark("r", b"text"));
        let others =
            [key.mark("s", b"text"), key.mark("r", b"texu"), MarkKey::new([8; 32]).mark("r", b"text")];
        assert!(others.iter().all(|other| *other != mark));
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
        for wrong in ["", "0", &"0".repeat(31), &"G".repeat(32), &"A".repeat(32), &"é".repeat(16)] {
            assert_eq!(Mark::parse(wrong), None, "{wrong}");
        }
        assert!(!format!("{key:?}").contains('7'));
    }

    #[test]
    fn what_is_excepted_passes_wherever_it_stands_and_nothing_else_does() {
        let (one, other) = (token('d'), token('e'));
        let all = found(format!("a = {one}\n").as_bytes(), &marks(&[]), usize::MAX);
        let [(rule, Some(mark))] = all[..] else { panic!("{all:?}") };
        let hidden = BASE64_STANDARD.encode(format!("what is hidden is {one}, twice {one}"));
        for piece in [1, 7, usize::MAX] {
            let excepted = marks(&[(rule, mark)]);
            let text = format!("a = {one}\nb = {hidden}\n");
            assert_eq!(found(text.as_bytes(), &excepted, piece), []);
            assert_eq!(excepted.met(), [0]);
            let text = format!("a = {one}\nb = {other}\n");
            let left = found(text.as_bytes(), &excepted, piece);
            assert!(matches!(left[..], [(_, Some(of))] if of != mark), "{left:?}");
        }
        let of_another_rule = marks(&[("private-key", mark)]);
        assert_eq!(found(one.as_bytes(), &of_another_rule, usize::MAX), [(rule, Some(mark))]);
        assert_eq!(of_another_rule.met(), [0; 0]);
    }

    #[test]
    fn what_is_excepted_often_hides_nothing_behind_it() {
        let (one, other) = (token('d'), token('e'));
        let all = found(one.as_bytes(), &marks(&[]), usize::MAX);
        let (rule, mark) = (all[0].0, all[0].1.unwrap());
        let text = format!("{}{other}\n", format!("{one}\n").repeat(5000));
        assert_eq!(found(text.as_bytes(), &marks(&[(rule, mark)]), usize::MAX).len(), 1);
    }

    #[test]
    fn what_is_harmless_passes_and_is_no_exception_that_was_met() {
        let (one, other) = (token('d'), token('e'));
        let passing = |one: &str| {
            let one = one.to_owned();
            Marks::new(Arc::new(MarkKey::new(KEY)), Vec::new()).passing(move |text| text == one.as_bytes())
        };
        for marks in [passing(&one), passing(&one).strict()] {
            let marks = Arc::new(marks);
            let text =
                format!("a = {one} b\n{}\n", BASE64_STANDARD.encode(format!("it is {one}, again {one}")));
            assert_eq!(found(text.as_bytes(), &marks, usize::MAX), []);
            assert!(!marks.excepts() && marks.met().is_empty());
            assert_eq!(found(format!("{one}\n{other}\n").as_bytes(), &marks, usize::MAX).len(), 1);
        }
    }

    #[test]
    fn a_secret_known_by_value_has_no_mark() {
        let mut known = crate::Known::default();
        known.add(b"a-value-that-is-known-1234").unwrap();
        let scanner = Scanner::new(None, Some(Arc::new(known)), Bounds::default());
        let mut scanner = scanner.marked(marks(&[]));
        scanner.feed(b"x a-value-that-is-known-1234 y");
        assert_eq!(scanner.finish().findings[0].mark, None);
    }
}
