//! What may stand in the strings and bare words of JSON, byte by byte (RFC 8259, sections 3, 6, 7 and 8).

/// How far a string has come, between its quotes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Inside {
    Text,
    /// So many bytes of a character are missing, and the next one lies between these (RFC 3629, section 4).
    Char {
        left: u8,
        low: u8,
        high: u8,
    },
    /// Behind a backslash; `second` where the second half of a surrogate pair has to follow.
    Escape {
        second: bool,
    },
    /// In the digits of `\u`.
    Hex {
        left: u8,
        number: u16,
        second: bool,
    },
    /// Behind the first half of a surrogate pair.
    Half,
}

impl Inside {
    /// Behind `byte`, which does not end the string; nothing where JSON does not have it.
    pub(super) fn step(self, byte: u8) -> Option<Inside> {
        let char = |left, low, high| Some(Inside::Char { left, low, high });
        match (self, byte) {
            (Inside::Text, b'\\') => Some(Inside::Escape { second: false }),
            (Inside::Text, b'"') => None,
            (Inside::Text, b' '..=0x7f) => Some(Inside::Text),
            (Inside::Text, 0xc2..=0xdf) => char(1, 0x80, 0xbf),
            (Inside::Text, 0xe0) => char(2, 0xa0, 0xbf),
            (Inside::Text, 0xed) => char(2, 0x80, 0x9f),
            (Inside::Text, 0xe1..=0xef) => char(2, 0x80, 0xbf),
            (Inside::Text, 0xf0) => char(3, 0x90, 0xbf),
            (Inside::Text, 0xf1..=0xf3) => char(3, 0x80, 0xbf),
            (Inside::Text, 0xf4) => char(3, 0x80, 0x8f),
            (Inside::Char { left, low, high }, _) if (low..=high).contains(&byte) => match left {
                1 => Some(Inside::Text),
                _ => char(left - 1, 0x80, 0xbf),
            },
            (Inside::Escape { second: false }, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                Some(Inside::Text)
            }
            (Inside::Escape { second }, b'u') => Some(Inside::Hex { left: 4, number: 0, second }),
            (Inside::Half, b'\\') => Some(Inside::Escape { second: true }),
            (Inside::Hex { left, number, second }, _) => {
                let digit = u16::try_from(char::from(byte).to_digit(16)?).ok()?;
                let number = number << 4 | digit;
                match (left, number) {
                    (2.., _) => Some(Inside::Hex { left: left - 1, number, second }),
                    (_, 0xd800..=0xdbff) if !second => Some(Inside::Half),
                    (_, 0xdc00..=0xdfff) => second.then_some(Inside::Text),
                    _ => (!second).then_some(Inside::Text),
                }
            }
            _ => None,
        }
    }
}

/// How far a number, `true`, `false` or `null` has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// What is still to come.
    Literal(&'static [u8]),
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
}

impl Word {
    /// The one that begins with `byte`.
    pub(super) fn begin(byte: u8) -> Option<Word> {
        match byte {
            b't' => Some(Word::Literal(b"rue")),
            b'f' => Some(Word::Literal(b"alse")),
            b'n' => Some(Word::Literal(b"ull")),
            b'-' => Some(Word::Minus),
            b'0' => Some(Word::Zero),
            b'1'..=b'9' => Some(Word::Whole),
            _ => None,
        }
    }

    /// Behind `byte`; nothing where it does not go on so.
    pub(super) fn step(self, byte: u8) -> Option<Word> {
        match (self, byte) {
            (Word::Literal([next, rest @ ..]), _) if *next == byte => Some(Word::Literal(rest)),
            (Word::Minus, b'0') => Some(Word::Zero),
            (Word::Minus, b'1'..=b'9') | (Word::Whole, b'0'..=b'9') => Some(Word::Whole),
            (Word::Zero | Word::Whole, b'.') => Some(Word::Point),
            (Word::Point | Word::Fraction, b'0'..=b'9') => Some(Word::Fraction),
            (Word::Zero | Word::Whole | Word::Fraction, b'e' | b'E') => Some(Word::Exponent),
            (Word::Exponent, b'+' | b'-') => Some(Word::Sign),
            (Word::Exponent | Word::Sign | Word::Power, b'0'..=b'9') => Some(Word::Power),
            _ => None,
        }
    }

    /// Whether it may end here.
    pub(super) fn is_whole(self) -> bool {
        matches!(self, Word::Literal([]) | Word::Zero | Word::Whole | Word::Fraction | Word::Power)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    fn is_string(text: &[u8]) -> bool {
        let inside = text.iter().try_fold(Inside::Text, |inside, byte| inside.step(*byte));
        inside == Some(Inside::Text)
    }

    fn is_word(text: &[u8]) -> bool {
        let Some((first, rest)) = text.split_first() else { return false };
        let word = Word::begin(*first);
        word.and_then(|word| rest.iter().try_fold(word, |word, byte| word.step(*byte)))
            .is_some_and(Word::is_whole)
    }

    fn quoted(text: &[u8]) -> Vec<u8> {
        [b"\"", text, b"\""].concat()
    }

    proptest! {
        /// A parser that knows nothing of this one says the same.
        #[test]
        fn a_string_is_one_for_serde_too(
            parts in proptest::collection::vec(
                prop_oneof![
                    any::<u8>().prop_map(|byte| vec![byte]),
                    any::<char>().prop_map(|char| char.to_string().into_bytes()),
                    any::<u8>().prop_map(|byte| vec![b'\\', byte]),
                    any::<u16>().prop_map(|unit| format!("\\u{unit:04x}").into_bytes()),
                    (0xd800_u16..0xe000).prop_map(|unit| format!("\\u{unit:04X}").into_bytes()),
                ],
                0..4,
            ),
        ) {
            let text = parts.concat();
            let known = serde_json::from_slice::<String>(&quoted(&text)).is_ok();
            prop_assert_eq!(is_string(&text), known, "{:?}", text);
        }

        #[test]
        fn a_bare_word_is_one_for_serde_too(text in "(true|false|null|[-+.0-9eE]{1,5}|[a-z]{1,5}|-?[0-9]{1,2}(\\.[0-9]{0,2})?([eE][-+]?[0-9]{0,2})?)") {
            let known = serde_json::from_str::<IgnoredAny>(&text).is_ok();
            prop_assert_eq!(is_word(text.as_bytes()), known, "{}", text);
        }
    }
}
