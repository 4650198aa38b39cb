//! Showing text that an agent wrote.

use std::fmt::Write as _;

/// `text` on one line, with everything that could move the cursor, reorder or hide what is shown written as `\u{…}`. A backslash is
/// doubled, so that the escapes cannot be imitated.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => shown.push_str("\\\\"),
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            _ if c.is_control() || is_invisible(c) => {
                write!(shown, "\\u{{{:x}}}", u32::from(c)).expect("a string takes every write");
            }
            _ => shown.push(c),
        }
    }
    shown
}

/// Whether it is not seen where it stands, or has others seen otherwise: bidirectional controls, zero-width characters, other line ends,
/// fillers, variation selectors, tags, private use, non-characters.
#[must_use]
pub fn is_invisible(c: char) -> bool {
    matches!(u32::from(c),
        0x00ad | 0x034f | 0x061c | 0x115f | 0x1160 | 0x17b4 | 0x17b5 | 0x180b..=0x180f
        | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0x2800 | 0x3164
        | 0xe000..=0xf8ff | 0xfe00..=0xfe0f | 0xfeff | 0xffa0 | 0xfff0..=0xfffb | 0xfffe | 0xffff
        | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0000..=0x10_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_hide_or_reorder_text_is_shown_by_number() {
        assert_eq!(escaped("read\u{202e}gpj.exe"), "read\\u{202e}gpj.exe");
        assert_eq!(escaped("a\u{1b}[2Jb\rc\nd"), "a\\u{1b}[2Jb\\u{d}c\\nd");
        assert_eq!(escaped("zero\u{200b}width\u{e0041}"), "zero\\u{200b}width\\u{e0041}");
    }

    #[test]
    fn an_escape_cannot_be_imitated() {
        assert_eq!(escaped("\\u{202e}"), "\\\\u{202e}");
    }

    #[test]
    fn ordinary_text_stays_as_it_is() {
        assert_eq!(escaped("für die Übersetzung – 日本語 👍"), "für die Übersetzung – 日本語 👍");
    }

    proptest::proptest! {
        #[test]
        fn nothing_shown_is_a_control_character(text in "\\PC*|.*") {
            proptest::prop_assert!(!escaped(&text).chars().any(|c| c.is_control() || is_invisible(c)));
        }
    }
}
