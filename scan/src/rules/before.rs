//! What may stand right before a token although it ends in a letter or a digit: an escape, a colour, emphasis, a length.

use super::is_of_token;

/// A longer sequence colours nothing.
const COLOUR_MAX_BYTES: usize = 24;
/// As markdown has it.
const EMPHASIS_MAX_BYTES: usize = 3;
/// So far its end is looked for: who writes many beginnings would have each of them look through all of the text.
const EMPHASISED_MAX_BYTES: usize = 256;

/// What the bytes before a place are to a token that begins there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// No character of a token.
    Other,
    /// Characters of a token, which may be a longer one.
    Token,
    /// An escape or a colour that ends here.
    Escape,
    /// So many underscores around the token.
    Emphasis(usize),
    /// How many bytes the text has that begins here, as binary formats say it.
    Length(usize),
}

impl Before {
    /// What stands before `start`: never more than some 40 bytes are looked at.
    pub(super) fn of(text: &[u8], start: usize) -> Self {
        let (text, behind) = text.split_at(start);
        let begins_word = behind.first().is_some_and(u8::is_ascii_alphanumeric);
        match text {
            [.., last] if !is_of_token(*last) => Self::Other,
            [] => Self::Other,
            _ if is_escape(text) || is_colour(text) => Self::Escape,
            [.., b'_'] => emphasis(text),
            // The tag of a field in protobuf, the kind of a string in MessagePack, or that in CBOR.
            [.., tag, length]
                if begins_word
                    && length.is_ascii_alphanumeric()
                    && !matches!(tag, b' '..=b'w' | b'y'..=b'~') =>
            {
                Self::Length(usize::from(*length))
            }
            _ => Self::Token,
        }
    }
}

/// Whether `text` ends with `\n`, `\u000a`, `\x0a`, `\033` or their like, behind one backslash or more.
fn is_escape(text: &[u8]) -> bool {
    let behind = |bytes: usize| {
        let (before, escape) = text.split_at_checked(text.len().checked_sub(bytes)?)?;
        before.ends_with(b"\\").then_some(escape)
    };
    let hex = |digits: &[u8]| digits.iter().all(u8::is_ascii_hexdigit);
    matches!(behind(1), Some([b'n' | b'r' | b't' | b'b' | b'f' | b'v' | b'a' | b'e' | b'0']))
        || matches!(behind(3), Some([b'x', digits @ ..]) if hex(digits))
        || matches!(behind(3), Some([b'0'..=b'3', b'0'..=b'7', b'0'..=b'7']))
        || matches!(behind(5), Some([b'u', digits @ ..]) if hex(digits))
}

/// Whether `text` ends with what a terminal takes for a colour or the end of a line, `ESC [ 1 ; 3 1 m`, also with its first character escaped.
fn is_colour(text: &[u8]) -> bool {
    let Some((b'm' | b'K', rest)) = text.split_last() else { return false };
    let of_numbers = |byte: &&u8| byte.is_ascii_digit() || matches!(byte, b';' | b':');
    let numbers = rest.iter().rev().take(COLOUR_MAX_BYTES).take_while(of_numbers).count();
    let Some((b'[', intro)) = rest[..rest.len() - numbers].split_last() else { return false };
    let escaped: [&[u8]; 5] = [b"\\e", b"\\033", b"\\x1b", b"\\u001b", b"^["];
    intro.ends_with(b"\x1b")
        || escaped.iter().any(|escape| {
            let end = intro.len().checked_sub(escape.len()).map(|at| &intro[at..]);
            end.is_some_and(|end| end.eq_ignore_ascii_case(escape))
        })
}

fn emphasis(text: &[u8]) -> Before {
    let marks = text.iter().rev().take(EMPHASIS_MAX_BYTES + 1).take_while(|byte| **byte == b'_').count();
    let outside = text.len() - marks;
    if marks <= EMPHASIS_MAX_BYTES && matches!(Before::of(text, outside), Before::Other | Before::Escape) {
        Before::Emphasis(marks)
    } else {
        Before::Token
    }
}

/// Where the token at the start of `text` ends that has so many underscores around it; nothing when that cannot be said yet.
pub(super) fn emphasised(text: &[u8], marks: usize, complete: bool) -> Option<usize> {
    let word = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let closing = &b"___"[..marks.min(EMPHASIS_MAX_BYTES)];
    let near = &text[..text.len().min(EMPHASISED_MAX_BYTES)];
    let mut at = 0;
    while let Some(ahead) = memchr::memchr2(b'_', b'\n', &near[at..]) {
        at += ahead;
        if text[at] == b'\n' {
            return Some(text.len());
        }
        let rest = &text[at..];
        match rest.get(marks) {
            None if !complete => return None,
            after if rest.starts_with(closing) && !after.is_some_and(word) => return Some(at),
            _ => at += 1,
        }
    }
    Some(text.len())
}
