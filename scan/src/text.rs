//! UTF-16 text seen as bytes.

use std::borrow::Cow;

const SAMPLE_BYTES: usize = 4096;

/// The input as the rules see it, and how its positions map back.
pub(crate) struct View<'a> {
    pub(crate) bytes: Cow<'a, [u8]>,
    start: usize,
    step: usize,
}

impl<'a> View<'a> {
    /// The input as it is, and what looks like UTF-16 also with one byte for each code unit: its first bytes
    /// do not vouch for the rest.
    pub(crate) fn all(input: &'a [u8]) -> impl Iterator<Item = Self> {
        let plain = Self { bytes: Cow::Borrowed(input), start: 0, step: 1 };
        let wide = utf16(input).map(|(start, order)| {
            let units = input[start..].chunks_exact(2);
            let bytes = units.map(|unit| order.byte([unit[0], unit[1]])).collect();
            Self { bytes: Cow::Owned(bytes), start, step: 2 }
        });
        std::iter::once(plain).chain(wide)
    }

    pub(crate) fn offset(&self, position: usize) -> usize {
        self.start + position * self.step
    }
}

#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

impl Order {
    /// The ASCII character of a code unit, or a byte that no rule knows.
    fn byte(self, unit: [u8; 2]) -> u8 {
        let value = match self {
            Self::Little => u16::from_le_bytes(unit),
            Self::Big => u16::from_be_bytes(unit),
        };
        u8::try_from(value).ok().filter(u8::is_ascii).unwrap_or(0xff)
    }
}

/// Where UTF-16 text starts and its byte order: by its mark, or by zero bytes in every other place.
fn utf16(input: &[u8]) -> Option<(usize, Order)> {
    match input {
        [0xff, 0xfe, ..] => return Some((2, Order::Little)),
        [0xfe, 0xff, ..] => return Some((2, Order::Big)),
        _ => {}
    }
    let sample = &input[..input.len().min(SAMPLE_BYTES)];
    let zeros = |odd: usize| sample.iter().skip(odd).step_by(2).filter(|b| **b == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    let half = sample.len() / 2;
    if half < 8 {
        None
    } else if odd * 10 >= half * 7 && even * 10 < half {
        Some((0, Order::Little))
    } else if even * 10 >= half * 7 && odd * 10 < half {
        Some((0, Order::Big))
    } else {
        None
    }
}
