//! Where words stand in a text. At every second place three bytes are looked up in a table that a processor's first cache holds; the
//! words are compared only where those three belong to one. A text of ordinary words costs little more than being read.

/// A byte counts by its last five bits, in which a letter is the same in either case. What else becomes the same by that only costs a
/// comparison.
const CLASS_BITS: usize = 5;
const CLASSES: usize = 1 << CLASS_BITS;
const GRAM_BYTES: usize = 3;
/// How many marks there are: one for each three classes.
const MARKS: usize = CLASSES * CLASSES * CLASSES;
/// As long as any sixteen bits go, so that no bound has to be checked.
const MARKED: usize = 1 << u16::BITS;
/// Every second place is looked at: so many are one step.
const STEP: usize = 2;
/// At so many places the marks are worked out together.
const PLACES: usize = 32;
/// At so many of them it is asked together whether a word may stand there.
const PLACES_AT_ONCE: usize = 8;
/// How many bytes that are, with those that belong to the last three.
const BLOCK_BYTES: usize = (PLACES + 1) * STEP;
const HEAD_FOLD: u32 = 0x2020_2020;

/// Words to be found in either case.
pub(crate) struct Keywords {
    words: Vec<Box<[u8]>>,
    /// Whether a mark has a group: half as wide as `group`, because it is read at every place.
    marks: Box<[u8]>,
    /// For each mark, which of `groups`; 0 for none.
    group: Box<[u16]>,
    groups: Vec<Vec<Part>>,
    longest: usize,
}

/// Three bytes at a word, and how far into it they stand: in a word of two or three, they may begin right before it.
#[derive(Debug, Clone, Copy)]
struct Part {
    word: usize,
    offset: isize,
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
            marks: vec![0; MARKED].into(),
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

    /// A word begins at a place that is looked at, or at the one behind it: it has a part for either.
    fn add(&mut self, word: usize) {
        let bytes = self.words[word].clone();
        self.longest = self.longest.max(bytes.len());
        let inside = bytes.len().saturating_sub(GRAM_BYTES - 1).cast_signed();
        let even = (0..inside.max(1)).step_by(STEP);
        let odd: Vec<isize> = match inside {
            ..2 => vec![-1, 1],
            _ => (1..inside).step_by(STEP).collect(),
        };
        let gram = |offset: isize| {
            [0, 1, 2].map(|ahead| usize::try_from(offset + ahead).ok().and_then(|at| bytes.get(at)).copied())
        };
        let rarest = |offset: &isize| gram(*offset).into_iter().map(commonness).sum::<u32>();
        let head = bytes.first_chunk().map(head);
        for offset in even.min_by_key(rarest).into_iter().chain(odd.into_iter().min_by_key(rarest)) {
            for mark in marks_of(gram(offset)) {
                self.mark(mark, Part { word, offset, head });
            }
        }
    }

    fn mark(&mut self, mark: usize, part: Part) {
        self.marks[mark] = 1;
        if self.group[mark] == 0 {
            self.group[mark] = u16::try_from(self.groups.len()).expect("no more than there are marks");
            self.groups.push(Vec::new());
        }
        self.groups[usize::from(self.group[mark])].push(part);
    }

    /// Calls `visit` with the number of each word in `text[from..]` and where it begins, in no particular order.
    pub(crate) fn find(&self, text: &[u8], from: usize, mut visit: impl FnMut(usize, usize)) {
        let marks: &[u8; MARKED] = self.marks.as_ref().try_into().expect("made so long");
        let rest = text.get(from..).unwrap_or_default();
        let mut at = 0;
        while let Some(block) = rest[at..].first_chunk() {
            self.look(marks, block, text, from, from + at, &mut visit);
            at += PLACES * STEP;
        }
        let mut last = [0; BLOCK_BYTES];
        last[..rest.len() - at].copy_from_slice(&rest[at..]);
        self.look(marks, &last, text, from, from + at, &mut visit);
    }

    /// Looks at the places of a block that begins at `at`.
    #[inline]
    fn look(
        &self,
        marks: &[u8; MARKED],
        block: &[u8; BLOCK_BYTES],
        text: &[u8],
        from: usize,
        at: usize,
        visit: &mut impl FnMut(usize, usize),
    ) {
        let of_places = marks_in(block);
        let (together, _) = of_places.as_chunks();
        for (at, of_places) in (at..).step_by(PLACES_AT_ONCE * STEP).zip(together) {
            if of_places.iter().fold(0, |any, mark| any | marks[usize::from(*mark)]) != 0 {
                self.look_closer(marks, of_places, text, from, at, visit);
            }
        }
    }

    /// Apart from what is done at every place, which stays small.
    #[inline(never)]
    fn look_closer(
        &self,
        marks: &[u8; MARKED],
        of_places: &[u16; PLACES_AT_ONCE],
        text: &[u8],
        from: usize,
        at: usize,
        visit: &mut impl FnMut(usize, usize),
    ) {
        // A byte of each place, which is 0 or 1.
        let mut left =
            of_places.iter().rev().fold(0_u64, |all, mark| all << 8 | u64::from(marks[usize::from(*mark)]));
        while left != 0 {
            let place = left.trailing_zeros() as usize / 8;
            self.check(usize::from(of_places[place]), text, from, at + place * STEP, visit);
            left &= left - 1;
        }
    }

    /// Compares the words of which three bytes may stand at `at`.
    fn check(&self, mark: usize, text: &[u8], from: usize, at: usize, visit: &mut impl FnMut(usize, usize)) {
        for part in &self.groups[usize::from(self.group[mark])] {
            let Some(start) = at.checked_add_signed(-part.offset).filter(|start| *start >= from) else {
                continue;
            };
            // Of most words that share three bytes with the text the first ones show that they do not stand here.
            if part.head.is_some_and(|of_word| {
                text.get(start..).and_then(<[u8]>::first_chunk).map(head) != Some(of_word)
            }) {
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

/// The marks at every second place, without a branch, so that a processor works out many together.
#[inline]
fn marks_in(block: &[u8; BLOCK_BYTES]) -> [u16; PLACES] {
    const FIRST: u16 = CLASSES as u16 - 1;
    const SECOND: u16 = FIRST << CLASS_BITS;
    const THIRD: u16 = SECOND << CLASS_BITS;
    let (pairs, _) = block.as_chunks();
    let mut marks = [0; PLACES];
    for ((mark, here), next) in marks.iter_mut().zip(pairs).zip(&pairs[1..]) {
        let (here, next) = (u16::from_le_bytes(*here), u16::from_le_bytes(*next));
        *mark = here & FIRST | here >> (8 - CLASS_BITS) & SECOND | next << (2 * CLASS_BITS) & THIRD;
    }
    marks
}

/// The mark of three bytes, in either case.
fn mark(bytes: [u8; GRAM_BYTES]) -> usize {
    bytes.into_iter().rev().fold(0, |mark, byte| (mark << CLASS_BITS) | (usize::from(byte) % CLASSES))
}

/// The marks of three bytes, some of which may be any.
fn marks_of(gram: [Option<u8>; GRAM_BYTES]) -> Vec<usize> {
    let [first, second, third] = gram.map(|byte| match byte {
        Some(byte) => byte..=byte,
        None => 0..=CLASSES as u8 - 1,
    });
    let pairs = first.flat_map(move |first| second.clone().map(move |second| (first, second)));
    pairs.flat_map(|(first, second)| third.clone().map(move |third| mark([first, second, third]))).collect()
}

/// How often a byte of this class stands in text, roughly: the logarithm of parts in a thousand, times four.
fn commonness(byte: Option<u8>) -> u32 {
    match byte.map(|byte| byte.to_ascii_lowercase()) {
        None | Some(b' ' | b'@' | b'`' | b'e') => 28,
        Some(b't' | b'a' | b'o' | b'n' | b'i' | b's' | b'r' | b'.' | b'/' | b'2' | b'3' | b'4') => 26,
        Some(b'l' | b'd' | b'c' | b'u' | b'h' | b'$' | b',' | b'5' | b'(') => 22,
        Some(b'm' | b'f' | b'p' | b'g' | b'"' | b'-' | b'&' | b'0') => 19,
        Some(b'w' | b'y' | b'b' | b'1' | b'_' | b':' | b'=' | b'7' | b'9') => 16,
        Some(b'v' | b'k' | b'6' | b'8') => 13,
        Some(_) => 6,
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
    fn every_word_is_found_at_every_place_among_all_bytes() {
        let words = ["s.", "q~", "a3-", "sk0", "pat", "ghp_", "api-", "-----begin", "aaaaaaaaaaaaaaaaaaaaa"];
        let keywords = Keywords::new(words.map(str::to_owned).to_vec());
        for (number, word) in words.iter().enumerate() {
            for byte in 0..=u8::MAX {
                for before in 0..2 * BLOCK_BYTES {
                    let text =
                        [&vec![byte; before], word.as_bytes(), &vec![byte; byte as usize % 11]].concat();
                    for from in [0, before] {
                        let mut found = 0;
                        keywords.find(&text, from, |word, start| {
                            found += usize::from((word, start) == (number, before));
                        });
                        assert_eq!(found, 1, "{word} after {before} of {byte}, from {from}");
                    }
                }
            }
        }
    }

    #[test]
    fn words_are_found_on_the_border_of_what_is_looked_at_together() {
        let words = ["s.", "a3-", "ghp_", "-----begin"];
        let keywords = Keywords::new(words.map(str::to_owned).to_vec());
        for (number, word) in words.iter().enumerate() {
            for before in 0..2 * BLOCK_BYTES {
                for behind in (0..4).chain(BLOCK_BYTES - 2..BLOCK_BYTES + 2) {
                    let text = [&vec![b'x'; before], word.as_bytes(), &vec![b'x'; behind]].concat();
                    let mut found = Vec::new();
                    keywords.find(&text, 0, |word, start| found.push((word, start)));
                    assert_eq!(found, [(number, before)], "{word} after {before}, before {behind}");
                }
            }
        }
    }

    #[test]
    fn the_marks_of_a_block_are_those_of_each_place() {
        let block = std::array::from_fn(|at| (at * 37 + at / 7) as u8);
        let each = (0..PLACES).map(|place| mark(*block[place * STEP..].first_chunk().unwrap()));
        assert!(each.eq(marks_in(&block).map(usize::from)));
    }
}
