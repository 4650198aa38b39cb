//! How one character may be written: as it is, or escaped as in URLs, JSON or HTML, also one in the other.

/// How often what is escaped may have been escaped again.
pub(super) const REPEATED_ESCAPES_MAX: usize = 8;

/// What escapes begin with.
pub(super) const INTROS: [u8; 3] = [b'%', b'\\', b'&'];

/// What a letter behind a backslash means.
pub(super) const LETTERS: [(u8, u8); 8] = [
    (b'n', b'\n'),
    (b'r', b'\r'),
    (b't', b'\t'),
    (b'b', 0x08),
    (b'f', 0x0c),
    (b'/', b'/'),
    (b'"', b'"'),
    (b'\'', b'\''),
];

/// Entities with a name.
pub(super) const NAMED: [(&[u8], u8); 7] = [
    (b"amp", b'&'),
    (b"lt", b'<'),
    (b"gt", b'>'),
    (b"quot", b'"'),
    (b"apos", b'\''),
    (b"sol", b'/'),
    (b"equals", b'='),
];

/// What is read as one character.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    Byte(u8, usize),
    /// A character by its number: in UTF-8 it may be several bytes, in Latin-1 it is one.
    Char(char, usize),
    Open,
    Plain,
}

impl Unit {
    /// As one byte.
    pub(super) fn byte(self) -> Option<(u8, usize)> {
        match self {
            Unit::Byte(byte, length) => Some((byte, length)),
            Unit::Char(char, length) => Some((u8::try_from(u32::from(char)).ok()?, length)),
            Unit::Open | Unit::Plain => None,
        }
    }

    /// The bytes that a form may have here, where `raw` stands.
    pub(super) fn firsts(self, raw: u8) -> [Option<u8>; 3] {
        let byte = self.byte().map(|(byte, _)| byte);
        let first = match self {
            Unit::Char(char, _) => Some(char.encode_utf8(&mut [0; 4]).as_bytes()[0]),
            Unit::Byte(..) | Unit::Open | Unit::Plain => None,
        };
        [
            first,
            byte.filter(|byte| first != Some(*byte)),
            Some(raw).filter(|raw| first != Some(*raw) && byte != Some(*raw)),
        ]
    }
}

/// Reads `%41`, `%2541`, `+`, `\/`, `\u0041`, `\ud83d\ude00`, `\x41`, `&amp;`, `&#65;` and their like as one character.
pub(super) fn unit(text: &[u8], at: usize, complete: bool) -> Unit {
    match text[at] {
        b'%' => percent(text, at, complete),
        b'\\' => backslash(text, at, complete),
        b'&' => entity(text, at, complete),
        b'+' => Unit::Byte(b' ', 1),
        _ => Unit::Plain,
    }
}

fn short(complete: bool) -> Unit {
    if complete { Unit::Plain } else { Unit::Open }
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0_u32, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}

fn percent(text: &[u8], at: usize, complete: bool) -> Unit {
    let mut digits = at + 1;
    for _ in 0..REPEATED_ESCAPES_MAX {
        let Some(pair) = text.get(digits..digits + 2) else { return short(complete) };
        match hex(pair) {
            Some(0x25) if text.get(digits + 2).is_none() && !complete => return Unit::Open,
            // `%25` may be a percent sign, or one that was itself escaped.
            Some(0x25) if text.get(digits + 2..digits + 4).and_then(hex).is_some() => digits += 2,
            Some(0x25) if text.len() < digits + 4 && !complete => return Unit::Open,
            Some(value) => return Unit::Byte(u8::try_from(value).unwrap_or(b'%'), digits + 2 - at),
            None => return Unit::Plain,
        }
    }
    Unit::Plain
}

/// A run of backslashes as the escape of what follows; that each of them stands for a backslash is another way to read it.
fn backslash(text: &[u8], at: usize, complete: bool) -> Unit {
    let run = text[at..].iter().take(REPEATED_ESCAPES_MAX + 1).take_while(|byte| **byte == b'\\').count();
    if run > REPEATED_ESCAPES_MAX {
        return Unit::Plain;
    }
    let Some(letter) = text.get(at + run) else { return short(complete) };
    let coded = |digits: usize| {
        let length = run + 1 + digits;
        let Some(code) = text.get(at + length - digits..at + length) else { return short(complete) };
        match hex(code) {
            Some(high @ 0xd800..0xdc00) => surrogates(high, text, at, length, complete),
            Some(value) => char::from_u32(value).map_or(Unit::Plain, |char| Unit::Char(char, length)),
            None => Unit::Plain,
        }
    };
    match letter {
        b'u' => coded(4),
        b'x' => coded(2),
        _ => {
            let meant = LETTERS.iter().find(|(known, _)| known == letter);
            meant.map_or(Unit::Plain, |(_, byte)| Unit::Byte(*byte, run + 1))
        }
    }
}

/// The second half of a character that JSON writes in two, behind the first, `high`, which is `length` bytes long.
fn surrogates(high: u32, text: &[u8], at: usize, length: usize, complete: bool) -> Unit {
    let rest = &text[at + length..];
    let run = rest.iter().take(REPEATED_ESCAPES_MAX).take_while(|byte| **byte == b'\\').count();
    match rest.get(run) {
        None => return short(complete),
        Some(b'u') if run > 0 => {}
        Some(_) => return Unit::Plain,
    }
    let Some(code) = rest.get(run + 1..run + 5) else { return short(complete) };
    match hex(code) {
        Some(low @ 0xdc00..0xe000) => char::from_u32(0x1_0000 + ((high & 0x3ff) << 10 | low & 0x3ff))
            .map_or(Unit::Plain, |char| Unit::Char(char, length + run + 5)),
        Some(_) | None => Unit::Plain,
    }
}

/// Reads `%5C%22` and `%5Cu0022` as one character: an escape of JSON whose backslash was percent-encoded.
pub(super) fn inner_escape(text: &[u8], at: usize, complete: bool) -> Unit {
    if text[at] != b'%' {
        return Unit::Plain;
    }
    let Unit::Byte(b'\\', length) = percent(text, at, complete) else { return Unit::Plain };
    let (letter, more) = match plain(text, at + length, complete) {
        Ok(letter) => letter,
        Err(unit) => return unit,
    };
    let mut end = length + more;
    match letter {
        b'\\' => Unit::Byte(b'\\', end),
        b'u' => {
            let mut code = 0;
            for _ in 0..4 {
                let (digit, more) = match plain(text, at + end, complete) {
                    Ok(digit) => digit,
                    Err(unit) => return unit,
                };
                let Some(value) = hex(&[digit]) else { return Unit::Plain };
                code = code << 4 | value;
                end += more;
            }
            char::from_u32(code).map_or(Unit::Plain, |char| Unit::Char(char, end))
        }
        _ => {
            let meant = LETTERS.iter().find(|(known, _)| *known == letter);
            meant.map_or(Unit::Plain, |(_, byte)| Unit::Byte(*byte, end))
        }
    }
}

/// The byte that stands at `at`, percent-encoded or as it is, and how long that is; or why none does.
fn plain(text: &[u8], at: usize, complete: bool) -> Result<(u8, usize), Unit> {
    match text.get(at) {
        None => Err(short(complete)),
        Some(b'%') => match percent(text, at, complete) {
            Unit::Byte(byte, length) => Ok((byte, length)),
            other => Err(other),
        },
        Some(byte) => Ok((*byte, 1)),
    }
}

fn entity(text: &[u8], at: usize, complete: bool) -> Unit {
    const LONGEST: usize = 10;
    let rest = &text[at + 1..text.len().min(at + LONGEST)];
    let Some(end) = rest.iter().position(|byte| !(byte.is_ascii_alphanumeric() || *byte == b'#')) else {
        return if rest.len() + 1 < LONGEST { short(complete) } else { Unit::Plain };
    };
    if rest[end] != b';' {
        return Unit::Plain;
    }
    let name = &rest[..end];
    let value = match name {
        [b'#', b'x' | b'X', digits @ ..] if !digits.is_empty() => hex(digits).and_then(char::from_u32),
        [b'#', digits @ ..] => {
            let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
            number.and_then(char::from_u32)
        }
        _ => NAMED.iter().find(|(named, _)| *named == name).map(|(_, byte)| char::from(*byte)),
    };
    value.map_or(Unit::Plain, |char| Unit::Char(char, end + 2))
}
