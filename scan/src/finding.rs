//! A place where a rule matched.

/// A place where a rule matched: never the match itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// The rule's identifier, such as `private-key`.
    pub rule: &'static str,
    /// First line of the secret, from 1.
    pub line: u32,
    /// Last line of the secret, from 1.
    pub line_end: u32,
    /// Column of the first character in its line, from 1. Bytes are counted; in UTF-16 text, code units.
    pub column: u32,
    /// Offset of the first byte in the input.
    pub offset: usize,
}

/// Turns positions into lines and columns, in increasing order of position.
pub(crate) struct Lines<'t> {
    text: &'t [u8],
    position: usize,
    line: u32,
    line_start: usize,
}

impl<'t> Lines<'t> {
    pub(crate) fn new(text: &'t [u8]) -> Self {
        Self { text, position: 0, line: 1, line_start: 0 }
    }

    /// Line and column of a position that is not before the last one asked for.
    pub(crate) fn locate(&mut self, position: usize) -> (u32, u32) {
        for (i, byte) in self.text[self.position..position].iter().enumerate() {
            if *byte == b'\n' {
                self.line = self.line.saturating_add(1);
                self.line_start = self.position + i + 1;
            }
        }
        self.position = position;
        (self.line, clamp(position - self.line_start + 1))
    }

    /// The line of a later position, without moving there.
    pub(crate) fn line_at(&self, position: usize) -> u32 {
        let more = self.text[self.position..position].iter().filter(|b| **b == b'\n').count();
        self.line.saturating_add(clamp(more))
    }
}

fn clamp(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
