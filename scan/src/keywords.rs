//! Where words stand in a text. At each place three bytes are looked up in a table that a processor's first cache holds; the
//! words are compared only where those three belong to one. A text of ordinary words costs little more than being read.

/// How many marks there are: as many as 16 bits can number.
const MARKS: usize = 1 << 16;
const GRAM_BYTES: usize = 3;
/// At how many places of eight bytes three of them stand.
const PLACES: usize = 8 - GRAM_BYTES + 1;
/// Case is folded by this bit; some signs become others by it, which only costs a comparison.
const FOLD: u32 = 0x0020_2020;
const HEAD_FOLD: u32 = 0x2020_2020;

/// Words to be found in either case.
pub(crate) struct Keywords {
    words: Vec<Box<[u8]>>,
    /// Whether a mark has a group: half the size of `group`, because it is read at every place.
    marks: Box<[u8]>,
    /// For each mark, which of `groups`; 0 for none.
    group: Box<[u32]>,
    groups: Vec<Vec<Part>>,
    longest: usize,
}

/// Three bytes of a word, and how far into it they stand.
#[derive(Debug, Clone, Copy)]
struct Part {
    word: usize,
    offset: usize,
    /// The word's first bytes, folded; nothing of a shorter word.
    head: Option<u32>,
}

impl Keywords {
    /// A word has at least so many bytes.
    pub(crate) const MIN_BYTES: usize = 2;

    /// Looks for these, each of which is told by its number.
    pub(crate) fn new(words: Vec<String>) -> Self {
        let mut keywords = Self {
            words: words.into_iter().map(|word| word.into_bytes().into()).collect(),
            marks: vec![0; MARKS].into(),
            group: vec![0; MARKS].into(),
            groups: vec![Vec::new()],
            longest: 0,
        };
        for number in 0..keywords.words.len() {
            keywords.add(number);
        }
        keywords
    }

    /// The length of the longest.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// The length of one.
    pub(crate) fn length(&self, word: usize) -> usize {
        self.words[word].len()
    }

    fn add(&mut self, word: usize) {
        let bytes = self.words[word].clone();
        self.longest = self.longest.max(bytes.len());
        match bytes[..] {
            [first, second] => {
                for third in 0..=u8::MAX {
                    let part = Part { word, offset: 0, head: None };
                    self.mark(mark(u32::from_le_bytes([first, second, third, 0])), part);
                }
            }
            _ => {
                let parts = bytes.windows(GRAM_BYTES).enumerate();
                let rarest =
                    parts.min_by_key(|(_, gram)| gram.iter().map(|byte| commonness(*byte)).sum::<u32>());
                let Some((offset, [first, second, third])) = rarest else { return };
                let part = Part { word, offset, head: bytes.first_chunk().map(head) };
                self.mark(mark(u32::from_le_bytes([*first, *second, *third, 0])), part);
            }
        }
    }

    fn mark(&mut self, mark: usize, part: Part) {
        self.marks[mark] = 1;
        if self.group[mark] == 0 {
            self.group[mark] = u32::try_from(self.groups.len()).expect("no more than there are marks");
            self.groups.push(Vec::new());
        }
        let group = &mut self.groups[self.group[mark] as usize];
        if !group.iter().any(|known| known.word == part.word) {
            group.push(part);
        }
    }

    /// Calls `visit` with the number of each word in `text[from..]` and where it begins, in no particular order.
    pub(crate) fn find(&self, text: &[u8], from: usize, mut visit: impl FnMut(usize, usize)) {
        let marks: &[u8; MARKS] = self.marks.as_ref().try_into().expect("made so long");
        let rest = text.get(from..).unwrap_or_default();
        let mut at = 0;
        while let Some(bytes) = rest[at..].first_chunk() {
            let bytes = u64::from_le_bytes(*bytes);
            // One question for as many places as have three bytes here.
            if (0..PLACES).fold(0, |any, ahead| any | marks[mark_at(bytes, ahead)]) != 0 {
                for ahead in (0..PLACES).filter(|ahead| marks[mark_at(bytes, *ahead)] != 0) {
                    self.check(mark_at(bytes, ahead), text, from, from + at + ahead, &mut visit);
                }
            }
            at += PLACES;
        }
        for at in at..rest.len() {
            let byte = |ahead: usize| rest.get(at + ahead).copied().unwrap_or(0);
            let mark = mark(u32::from_le_bytes([byte(0), byte(1), byte(2), 0]));
            self.check(mark, text, from, from + at, &mut visit);
        }
    }

    /// Compares the words of which three bytes may stand at `at`.
    fn check(&self, mark: usize, text: &[u8], from: usize, at: usize, visit: &mut impl FnMut(usize, usize)) {
        for part in &self.groups[self.group[mark] as usize] {
            let Some(start) = at.checked_sub(part.offset).filter(|start| *start >= from) else {
                continue;
            };
            // Of most words that share three bytes with the text the first ones show that they do not stand here.
            if part
                .head
                .is_some_and(|head_of_word| text[start..].first_chunk().map(head) != Some(head_of_word))
            {
                continue;
            }
            let word = &self.words[part.word];
            let found = text.get(start..start + word.len());
            if found.is_some_and(|found| found.eq_ignore_ascii_case(word)) {
                visit(part.word, start);
            }
        }
    }
}

/// Four bytes in either case.
fn head(bytes: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*bytes) | HEAD_FOLD
}

/// The mark of the three bytes that stand so far into eight.
fn mark_at(eight: u64, ahead: usize) -> usize {
    mark((eight >> (8 * ahead)) as u32)
}

/// The mark of the first three of four bytes, in either case.
fn mark(bytes: u32) -> usize {
    const SPREAD: u32 = 0x9e37_79b1;
    usize::from(((((bytes | FOLD) << 8).wrapping_mul(SPREAD)) >> 16) as u16)
}

/// How often a byte stands in text, roughly: the logarithm of parts in a thousand, times four.
fn commonness(byte: u8) -> u32 {
    match byte {
        b' ' | b'e' => 28,
        b't' | b'a' | b'o' | b'n' | b'i' | b's' | b'r' => 26,
        b'l' | b'd' | b'c' | b'u' | b'h' => 22,
        b'm' | b'f' | b'p' | b'g' | b'"' => 19,
        b'w' | b'y' | b'b' | b'.' | b'0' | b'1' | b'_' | b'-' | b':' | b'/' | b'=' => 16,
        b'v' | b'k' | b'2'..=b'9' => 13,
        _ => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(words: &[&str], text: &str) -> Vec<(usize, usize)> {
        let keywords = Keywords::new(words.iter().map(|word| (*word).to_owned()).collect());
        let mut found = Vec::new();
        keywords.find(text.as_bytes(), 0, |word, start| found.push((word, start)));
        found.sort_by_key(|(word, start)| (*start, *word));
        found
    }

    #[test]
    fn words_are_found_in_either_case_wherever_they_stand() {
        let words = ["secret", "s.", "q~", "://", "cret", " -u"];
        assert_eq!(found(&words, "seCRETs."), [(0, 0), (4, 2), (1, 6)]);
        assert_eq!(found(&words, "Q~"), [(2, 0)]);
        assert_eq!(found(&words, "q~x://"), [(2, 0), (3, 3)]);
        assert_eq!(found(&words, "a -U -u"), [(5, 1), (5, 4)]);
        assert_eq!(found(&words, "s"), []);
        assert_eq!(found(&words, "secre"), []);
    }

    #[test]
    fn every_word_is_found_after_every_byte_and_before_every_byte() {
        let words = ["s.", "api-", "-----begin", "aaaaaaaaaaaaaaaaaaaaa", "a3-"];
        for (number, word) in words.iter().enumerate() {
            for byte in 0..=127_u8 {
                let text = format!("{0}{word}{0}", char::from(byte));
                assert!(found(&words, &text).contains(&(number, 1)), "{text:?}");
            }
        }
    }
}
