//! A place where a rule matched.

use std::fmt;

use memchr::{memchr_iter, memrchr};

use crate::mark::Mark;

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
    /// What had to be undone to see it. Line, column and offset are then those of what was undone.
    pub through: Through,
    /// Its name, where what is found is marked ([`crate::Marks`]).
    pub mark: Option<Mark>,
}

/// What had to be undone to see a secret, from the outside in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Through([Option<Coding>; Through::MOST]);

/// One thing that hides a text from whoever looks for words in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coding {
    /// Zero bytes between the characters.
    Utf16,
    /// `%41`.
    Percent,
    /// `\/` and `\u002b`.
    Escape,
    /// Base64 in either alphabet.
    Base64,
    /// Hexadecimal digits.
    Hex,
    /// gzip.
    Gzip,
    /// zlib, as HTTP's `deflate`; or deflate without its header.
    Deflate,
    /// Zstandard.
    Zstd,
    /// Brotli.
    Brotli,
    /// A member of a zip archive.
    Zip,
}

impl Through {
    pub(crate) const MOST: usize = 6;

    /// Whether the secret stands there as it is.
    pub fn is_nothing(&self) -> bool {
        self.0[0].is_none()
    }

    /// Whether this is one of them.
    pub(crate) fn has(&self, coding: Coding) -> bool {
        self.0.contains(&Some(coding))
    }

    /// How many things had to be undone.
    pub(crate) fn depth(&self) -> usize {
        self.0.iter().flatten().count()
    }

    /// One more thing, if there is room.
    pub(crate) fn and(mut self, coding: Coding) -> Option<Self> {
        *self.0.iter_mut().find(|place| place.is_none())? = Some(coding);
        Some(self)
    }
}

impl fmt::Display for Coding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Utf16 => "utf-16",
            Self::Percent => "percent",
            Self::Escape => "escape",
            Self::Base64 => "base64",
            Self::Hex => "hex",
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Zip => "zip",
        })
    }
}

impl fmt::Display for Through {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, coding) in self.0.iter().flatten().enumerate() {
            if i > 0 {
                formatter.write_str("/")?;
            }
            coding.fmt(formatter)?;
        }
        Ok(())
    }
}

/// A position for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) offset: u64,
}

/// Turns positions into lines and columns, forwards.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    pub(crate) position: u64,
    line: u32,
    line_start: u64,
}

impl Lines {
    /// Begins at a position that stands in this line and column.
    pub(crate) fn at(position: u64, line: u32, column: u32) -> Self {
        Self { position, line, line_start: position.saturating_sub(u64::from(column.saturating_sub(1))) }
    }

    /// Line and column of a position that is not before the last one, in `text` that starts at the position `base`.
    pub(crate) fn locate(&mut self, text: &[u8], base: u64, position: u64) -> (u32, u32) {
        let between = &text[index(self.position - base)..index(position - base)];
        if let Some(last) = memrchr(b'\n', between) {
            self.line = self.line.saturating_add(clamp(memchr_iter(b'\n', between).count() as u64));
            self.line_start = self.position + last as u64 + 1;
        }
        self.position = position;
        (self.line, clamp(position - self.line_start).saturating_add(1))
    }
}

fn index(distance: u64) -> usize {
    usize::try_from(distance).expect("a distance inside a text fits")
}

fn clamp(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
