//! What may stand right before a token although it ends in a letter or a digit: an escape, a colour, emphasis, a length.
//! A length also says where the token may end, whatever follows.

use super::is_of_token;

/// A longer sequence colours nothing.
const COLOUR_MAX_BYTES: usize = 24;
/// As markdown has it.
const EMPHASIS_MAX_BYTES: usize = 3;
/// So far its end is looked for: who writes many beginnings would have each of them look through all of the text.
const EMPHASISED_MAX_BYTES: usize = 256;

/// A shorter text is no token.
const TOKEN_MIN_BYTES: usize = 16;
/// A text that begins with a token, and whose length has a greater second byte, goes on far behind it.
const LENGTH_HIGH_MAX: u8 = 7;

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
}

impl Before {
    /// What stands before `start`: never more than some 40 bytes are looked at.
    pub(super) fn of(text: &[u8], start: usize) -> Self {
        let text = &text[..start];
        match text {
            [.., last] if !is_of_token(*last) => Self::Other,
            [] => Self::Other,
            _ if is_escape(text) || is_colour(text) => Self::Escape,
            [.., b'_'] => emphasis(text),
            _ => Self::Token,
        }
    }
}

/// How many bytes the text has that begins behind `before`, in each of the ways in which binary formats may say it there.
pub(super) fn told_lengths(before: &[u8]) -> impl Iterator<Item = usize> {
    let byte = match before {
        [length] | [.., 0..=0x1f | 0x7f..=0xff, length] => Some(*length),
        // In CBOR, or behind the tag of a field in protobuf, as it is for one of the fields 4 to 15.
        [.., b'x', length] => Some(*length),
        [.., tag, length] if tag & 7 == 2 => Some(*length),
        _ => None,
    };
    // A short one in MessagePack, and in CBOR.
    let in_kind = match before {
        [.., kind @ 0xa0..=0xbf] => Some(kind - 0xa0),
        [.., kind @ b'p'..=b'w'] => Some(kind - 0x60),
        _ => None,
    };
    let in_two = match before {
        [.., low @ 0x80..=0xff, high @ 1..=LENGTH_HIGH_MAX] => {
            Some(usize::from(low & 0x7f) | usize::from(*high) << 7)
        }
        [.., high @ 1..=LENGTH_HIGH_MAX, low] => Some(usize::from(*high) << 8 | usize::from(*low)),
        _ => None,
    };
    let in_words = [2, 4, 8].into_iter().filter_map(move |width| {
        let (low, [high, zeros @ ..]) = before[before.len().checked_sub(width)?..].split_first()? else {
            return None;
        };
        let fits = *high <= LENGTH_HIGH_MAX && zeros.iter().all(|byte| *byte == 0);
        fits.then(|| usize::from(*high) << 8 | usize::from(*low))
    });
    let in_one = [byte, in_kind].into_iter().flatten().map(usize::from);
    in_one.chain(in_two).chain(in_words).filter(|length| *length >= TOKEN_MIN_BYTES)
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
