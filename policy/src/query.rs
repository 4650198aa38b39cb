//! The pairs of a query, and which of them a server may take for the key that a route names.

use crate::matches::{NamedValue, Purpose};

/// Whether the query has the pair. For an allow whatever some server may take for the key has to have the value, and the key
/// itself has to be there; for a deny one of them is enough, and the value in any spelling.
pub(crate) fn fits(wanted: &NamedValue, query: &str, purpose: Purpose) -> bool {
    let mut found = occurrences(query, &wanted.name);
    match purpose {
        Purpose::Allow => {
            let is_wanted = |value: &str| plain(value).eq(wanted.value.bytes());
            is_named(query, &wanted.name) && found.all(is_wanted)
        }
        Purpose::Deny => found.any(|value| says(value, &wanted.value)),
    }
}

/// The values of all that some server may take for this key, as they stand in the query: those between `&`, then those
/// between `&` or `;`.
pub(crate) fn occurrences<'q>(query: &'q str, name: &'q str) -> impl Iterator<Item = &'q str> {
    let by_both = query.contains(';').then(|| query.split(['&', ';'])).into_iter().flatten();
    let pairs = query.split('&').chain(by_both).map(split_pair);
    pairs.filter(|(key, _)| may_be(key, name)).map(|(_, value)| value)
}

/// Decoded as form data.
pub(crate) fn plain(text: &str) -> impl Iterator<Item = u8> {
    Decoded { rest: text.as_bytes(), escapes: Escapes::Strict }
}

/// Decoded as the most lenient server does it.
pub(crate) fn lenient(text: &str) -> impl Iterator<Item = u8> {
    let decoded = Decoded { rest: text.as_bytes(), escapes: Escapes::Lenient };
    // To a server in C the text ends here.
    decoded.take_while(|byte| *byte != 0)
}

/// Whether the key stands there as every server reads it.
fn is_named(query: &str, name: &str) -> bool {
    query.split('&').any(|pair| plain(split_pair(pair).0).eq(name.bytes()))
}

fn split_pair(pair: &str) -> (&str, &str) {
    pair.split_once('=').unwrap_or((pair, ""))
}

fn says(value: &str, wanted: &str) -> bool {
    let value: Vec<u8> = lenient(value).collect();
    value.trim_ascii().eq_ignore_ascii_case(wanted.trim().as_bytes())
}

/// Whether some server takes `key` for `name`: ignoring case (ASP.NET) and blanks around it, `.`, a blank and a `[` that is not closed as `_` (PHP), and what is an
/// element of the other for it (`name[]`, `name[x]`, in Ruby also `name]` and `[name]`).
fn may_be(key: &str, name: &str) -> bool {
    let mut found = folded(lenient(key));
    let mut wanted = folded(name.bytes());
    let is_joint = |byte: u8| matches!(byte, b' ' | b'_' | b'[');
    loop {
        match (found.next(), wanted.next()) {
            (None, None) | (Some(b'['), None) | (None, Some(b'[')) => return true,
            (Some(one), Some(other)) if one == other || is_joint(one) && is_joint(other) => {}
            (Some(b' '), None) => return found.find(|byte| *byte != b' ').is_none_or(|byte| byte == b'['),
            _ => return false,
        }
    }
}

fn folded(key: impl Iterator<Item = u8>) -> impl Iterator<Item = u8> {
    let key = key.skip_while(|byte| byte.is_ascii_whitespace() || matches!(byte, b'?' | b'[' | b']'));
    key.filter(|byte| *byte != b']').map(|byte| match byte {
        b'.' => b'_',
        blank if blank.is_ascii_whitespace() => b' ',
        other => other.to_ascii_lowercase(),
    })
}

/// What a `%` may begin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    /// `%XX`; any other `%` stands for itself.
    Strict,
    /// Also `%uXXXX`, and any other `%` is left out, as in ASP.
    Lenient,
}

struct Decoded<'q> {
    rest: &'q [u8],
    escapes: Escapes,
}

impl Iterator for Decoded<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        loop {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            match byte {
                b'+' => return Some(b' '),
                b'%' => {}
                other => return Some(other),
            }
            if let Some(escaped) = hexadecimal(rest, 2) {
                self.rest = &rest[2..];
                return u8::try_from(escaped).ok();
            }
            if self.escapes == Escapes::Strict {
                return Some(b'%');
            }
            if let Some((b'u' | b'U', rest)) = rest.split_first()
                && let Some(escaped) = hexadecimal(rest, 4)
            {
                self.rest = &rest[4..];
                // No name is compared with what is not ASCII in this spelling.
                return Some(u8::try_from(escaped).ok().filter(u8::is_ascii).unwrap_or(u8::MAX));
            }
        }
    }
}

/// The number that so many hexadecimal digits at the front stand for.
fn hexadecimal(rest: &[u8], digits: usize) -> Option<u32> {
    let digits = rest.get(..digits)?;
    digits.iter().try_fold(0, |number, digit| Some(number * 16 + char::from(*digit).to_digit(16)?))
}
