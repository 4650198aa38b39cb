//! Decompression, a bounded step at a time.

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{self, DParameter, InBuffer, Operation, OutBuffer};

use crate::finding::Coding;

/// An encoding that a message names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `gzip`, `x-gzip`
    Gzip,
    /// `deflate`
    Deflate,
    /// `br`
    Brotli,
    /// `zstd`
    Zstd,
}

impl Encoding {
    /// The encoding of this name, if it can be undone here.
    pub fn named(name: &str) -> Option<Self> {
        const NAMES: [(&str, Encoding); 5] = [
            ("gzip", Encoding::Gzip),
            ("x-gzip", Encoding::Gzip),
            ("deflate", Encoding::Deflate),
            ("br", Encoding::Brotli),
            ("zstd", Encoding::Zstd),
        ];
        NAMES.iter().find(|(known, _)| name.trim().eq_ignore_ascii_case(known)).map(|(_, encoding)| *encoding)
    }

    pub(crate) fn coding(self) -> Coding {
        match self {
            Self::Gzip => Coding::Gzip,
            Self::Deflate => Coding::Deflate,
            Self::Brotli => Coding::Brotli,
            Self::Zstd => Coding::Zstd,
        }
    }
}

/// What one step came to.
pub(crate) struct Step {
    pub(crate) read: usize,
    pub(crate) written: usize,
    pub(crate) ended: bool,
}

/// The compressed data is damaged. So much of the output was written before it.
#[derive(Debug)]
pub(crate) struct Damaged {
    pub(crate) written: usize,
    /// It is not damaged at all: others may well undo it, but not what is here.
    pub(crate) is_closed: bool,
}

impl Damaged {
    fn at(written: usize) -> Damaged {
        Damaged { written, is_closed: false }
    }
}

/// Something compressed, on its way.
pub(crate) enum Codec {
    /// The header of gzip comes first, byte by byte; deflate after it.
    Gzip(GzipHeader),
    Deflate(Decompress),
    /// zlib or bare deflate: its first two bytes say which.
    Unsure(Vec<u8>),
    /// The same, with the bytes that were looked at still to come.
    Replay(Vec<u8>, Decompress),
    Zstd(Box<Zstd>),
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
}

/// Zstandard, on its way.
pub(crate) struct Zstd {
    decoder: raw::Decoder<'static>,
    read: usize,
    /// What came first.
    head: [u8; Zstd::HEADER_BYTES],
    /// How much the decoder asks for.
    wanted: usize,
}

impl Zstd {
    /// No header of a frame is longer.
    const HEADER_BYTES: usize = 18;
    /// The header of the next block, which the decoder asks for with the one before it.
    const AHEAD_BYTES: usize = 3;
    /// The largest window, 8 MiB, as RFC 8878 (section 3.1.1.1.2) recommends: a frame of a few bytes has the decoder set aside what its header
    /// asks for.
    const WINDOW_MAX_LOG: u32 = 23;

    fn new() -> Option<Box<Zstd>> {
        let mut decoder = raw::Decoder::new().ok()?;
        decoder.set_parameter(DParameter::WindowLogMax(Self::WINDOW_MAX_LOG)).ok()?;
        Some(Box::new(Zstd { decoder, read: 0, head: [0; Self::HEADER_BYTES], wanted: 0 }))
    }

    /// What is no more than one block: with damage behind it in the same step, it would be lost. The header of a frame comes byte
    /// by byte, as a whole frame is judged by other rules.
    fn portion(&self) -> usize {
        if self.read < Self::HEADER_BYTES {
            return 1;
        }
        self.wanted.saturating_sub(Self::AHEAD_BYTES).max(1)
    }

    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Damaged> {
        let before = self.read.min(Self::HEADER_BYTES);
        let known = (Self::HEADER_BYTES - before).min(input.len());
        self.head[before..before + known].copy_from_slice(&input[..known]);
        let mut from = InBuffer::around(input);
        let mut to = OutBuffer::around(output);
        let Ok(hint) = self.decoder.run(&mut from, &mut to) else {
            let is_closed = self.read < Self::HEADER_BYTES && is_closed(&self.head[..before + known]);
            return Err(Damaged { written: 0, is_closed });
        };
        self.read = self.read.saturating_add(from.pos());
        self.wanted = hint;
        Ok(Step { read: from.pos(), written: to.pos(), ended: hint == 0 })
    }
}

/// Whether the head of a frame that was not accepted as far as it goes is sound, as encoders write it (RFC 8878): then it names a
/// dictionary, or asks for more memory than is given.
fn is_closed(head: &[u8]) -> bool {
    const RESERVED: u8 = 0b11000;
    let Some(descriptor) = head.get(4) else { return false };
    let single = descriptor >> 5 & 1;
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = [usize::from(single), 2, 4, 8][usize::from(descriptor >> 6)];
    descriptor & RESERVED == 0 && head.len() <= 5 + usize::from(1 - single) + dictionary + size
}

impl Codec {
    /// The most of deflate that is given at once.
    pub(crate) const CELL_MAX_BYTES: usize = 256;
    /// The same near the beginning, where what is none mostly ends.
    const CELL_MIN_BYTES: usize = 16;
    /// Where the beginning ends.
    const NEAR_BYTES: u64 = 512;

    /// What is given at once of `at`, counted from where it began, ends at a multiple of this.
    pub(crate) fn cell(at: u64) -> u64 {
        if at < Self::NEAR_BYTES { Self::CELL_MIN_BYTES as u64 } else { Self::CELL_MAX_BYTES as u64 }
    }

    /// How much to give at once from the position `at` on, so that it does not depend on the pieces what comes out before damage.
    pub(crate) fn portion(&self, at: u64) -> usize {
        match self {
            Self::Zstd(zstd) => zstd.portion(),
            // What has not come out of it when it fails is lost.
            Self::Brotli(_) => 1,
            _ => (Self::cell(at) - at % Self::cell(at)) as usize,
        }
    }

    pub(crate) fn new(encoding: Encoding) -> Option<Self> {
        Some(match encoding {
            Encoding::Gzip => Self::Gzip(GzipHeader::default()),
            Encoding::Deflate => Self::Unsure(Vec::new()),
            Encoding::Zstd => Self::Zstd(Zstd::new()?),
            Encoding::Brotli => {
                let alloc = StandardAlloc::default;
                // As RFC 7932 has it: windows end at 16 MiB, not at the GiB of "large window Brotli".
                Self::Brotli(Box::new(BrotliState::new_strict(alloc(), alloc(), alloc())))
            }
        })
    }

    /// Deflate without a header, as in zip.
    pub(crate) fn bare() -> Self {
        Self::Deflate(Decompress::new(false))
    }

    /// Takes some of `input` and writes some of `output`; neither read nor written means that there is no more.
    pub(crate) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Damaged> {
        match self {
            Self::Gzip(header) => {
                let read = header.take(input)?;
                if header.part == Part::Done {
                    *self = Self::bare();
                }
                Ok(Step { read, written: 0, ended: false })
            }
            Self::Deflate(inflate) => inflated(inflate, input, output),
            Self::Unsure(seen) => {
                let Some(byte) = input.first() else { return Ok(Step { read: 0, written: 0, ended: false }) };
                seen.push(*byte);
                if let [first, second] = seen[..] {
                    let zlib = first & 15 == 8 && (u16::from(first) << 8 | u16::from(second)) % 31 == 0;
                    *self = Self::Replay(vec![first, second], Decompress::new(zlib));
                }
                Ok(Step { read: 1, written: 0, ended: false })
            }
            Self::Replay(seen, inflate) => {
                let held = std::mem::take(seen);
                let mut inflate = std::mem::replace(inflate, Decompress::new(false));
                let step = inflated(&mut inflate, &held, output)?;
                *self = if step.read < held.len() && !step.ended {
                    Self::Replay(held[step.read..].to_vec(), inflate)
                } else {
                    Self::Deflate(inflate)
                };
                Ok(Step { read: 0, ..step })
            }
            Self::Zstd(zstd) => zstd.step(input, output),
            Self::Brotli(state) => {
                let (mut available_in, mut read) = (input.len(), 0);
                let (mut available_out, mut written) = (output.len(), 0);
                let mut total = 0;
                let result = BrotliDecompressStream(
                    &mut available_in,
                    &mut read,
                    input,
                    &mut available_out,
                    &mut written,
                    output,
                    &mut total,
                    state,
                );
                match result {
                    BrotliResult::ResultFailure => Err(Damaged::at(written)),
                    BrotliResult::ResultSuccess => Ok(Step { read, written, ended: true }),
                    BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {
                        Ok(Step { read, written, ended: false })
                    }
                }
            }
        }
    }

    /// Whether bytes are left to be written although no more are read.
    pub(crate) fn replays(&self) -> bool {
        matches!(self, Self::Replay(..))
    }
}

fn inflated(inflate: &mut Decompress, input: &[u8], output: &mut [u8]) -> Result<Step, Damaged> {
    let (read, written) = (inflate.total_in(), inflate.total_out());
    let status = inflate.decompress(input, output, FlushDecompress::None);
    let moved = |now: u64, before: u64| usize::try_from(now - before).expect("no more than the buffers hold");
    let status = status.map_err(|_| Damaged::at(moved(inflate.total_out(), written)))?;
    Ok(Step {
        read: moved(inflate.total_in(), read),
        written: moved(inflate.total_out(), written),
        ended: status == Status::StreamEnd,
    })
}

/// A whole body is not what its encoding says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the content is not encoded as it says")]
pub struct NotDecoded {
    /// So much of the output was written before that was seen.
    pub(crate) written: usize,
    /// It may well be, but is not undone here.
    pub(crate) is_closed: bool,
}

impl NotDecoded {
    const BARE: NotDecoded = NotDecoded { written: 0, is_closed: false };
}

impl From<Damaged> for NotDecoded {
    fn from(Damaged { written, is_closed }: Damaged) -> NotDecoded {
        NotDecoded { written, is_closed }
    }
}

/// Undoes the encoding of a whole body, a bounded step at a time.
pub struct Decoder {
    encoding: Encoding,
    codec: Codec,
    /// How much it has taken.
    at: u64,
    /// How much of a trailer is still to come.
    trailer: usize,
    ended: bool,
    started: bool,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Decoder({:?})", self.encoding)
    }
}

impl Decoder {
    const GZIP_TRAILER_BYTES: usize = 8;

    /// For a body in this encoding.
    pub fn new(encoding: Encoding) -> Result<Self, NotDecoded> {
        let codec = Codec::new(encoding).ok_or(NotDecoded::BARE)?;
        Ok(Self { encoding, codec, at: 0, trailer: 0, ended: false, started: false })
    }

    /// How much to give at once, and to empty after, so that it does not depend on the pieces what comes out before damage.
    pub(crate) fn portion(&self) -> usize {
        self.codec.portion(self.at)
    }

    /// Takes some of `input` and writes some of `output`: how much of each. Neither means that more input is needed.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), NotDecoded> {
        let mut read = 0;
        loop {
            let passed = (input.len() - read).min(self.trailer);
            self.trailer -= passed;
            read += passed;
            let rest = &input[read..];
            if self.ended {
                if rest.is_empty() {
                    return Ok((read, 0));
                }
                // Another member follows, or something that nobody announced.
                if !matches!(self.encoding, Encoding::Gzip | Encoding::Zstd) {
                    return Err(NotDecoded::BARE);
                }
                self.codec = Codec::new(self.encoding).ok_or(NotDecoded::BARE)?;
                (self.at, self.ended) = (0, false);
            }
            self.started |= !rest.is_empty();
            let replayed = self.codec.replays();
            if rest.is_empty() && !self.started {
                return Ok((read, 0));
            }
            let step = self.codec.step(rest, output)?;
            read += step.read;
            self.at += step.read as u64;
            if step.ended {
                self.ended = true;
                self.trailer = if self.encoding == Encoding::Gzip { Self::GZIP_TRAILER_BYTES } else { 0 };
            }
            if step.written > 0 || step.read == 0 && !replayed && !step.ended {
                return Ok((read, step.written));
            }
        }
    }

    /// The body ends here.
    pub fn finish(&self) -> Result<(), NotDecoded> {
        if self.ended || !self.started { Ok(()) } else { Err(NotDecoded::BARE) }
    }
}

/// The header of a gzip member, passed over.
#[derive(Debug, Default)]
pub(crate) struct GzipHeader {
    seen: usize,
    flags: u8,
    extra: usize,
    part: Part,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Part {
    #[default]
    Fixed,
    ExtraLength(u8),
    Extra,
    Name,
    Comment,
    Checksum(u8),
    Done,
}

impl GzipHeader {
    const FIXED: usize = 10;
    /// No decoder accepts one of them.
    const RESERVED_FLAGS: u8 = 0xe0;

    /// Takes one byte of the header; how many were there.
    fn take(&mut self, input: &[u8]) -> Result<usize, Damaged> {
        let Some(byte) = input.first().copied() else { return Ok(0) };
        match self.part {
            Part::Fixed => {
                let expected = [0x1f, 0x8b, 8].get(self.seen);
                if expected.is_some_and(|expected| *expected != byte) {
                    return Err(Damaged::at(0));
                }
                if self.seen == 3 {
                    self.flags = byte;
                    if byte & Self::RESERVED_FLAGS != 0 {
                        return Err(Damaged::at(0));
                    }
                }
                self.seen += 1;
                if self.seen == Self::FIXED {
                    self.part = self.after(0);
                }
            }
            Part::ExtraLength(0) => {
                self.extra = usize::from(byte);
                self.part = Part::ExtraLength(1);
            }
            Part::ExtraLength(_) => {
                self.extra |= usize::from(byte) << 8;
                self.part = if self.extra == 0 { self.after(1) } else { Part::Extra };
            }
            Part::Extra => {
                self.extra -= 1;
                if self.extra == 0 {
                    self.part = self.after(1);
                }
            }
            Part::Name if byte == 0 => self.part = self.after(2),
            Part::Comment if byte == 0 => self.part = self.after(3),
            Part::Name | Part::Comment => {}
            Part::Checksum(0) => self.part = Part::Checksum(1),
            Part::Checksum(_) => self.part = Part::Done,
            Part::Done => {}
        }
        Ok(1)
    }

    fn after(&self, done: u8) -> Part {
        let parts = [
            (1, 4, Part::ExtraLength(0)),
            (2, 8, Part::Name),
            (3, 16, Part::Comment),
            (4, 2, Part::Checksum(0)),
        ];
        let next = parts.iter().find(|(order, flag, _)| *order > done && self.flags & flag != 0);
        next.map_or(Part::Done, |(_, _, part)| *part)
    }
}
