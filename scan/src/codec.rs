//! Decompression, a bounded step at a time.

mod brotli;
mod zstd;

use flate2::{Decompress, FlushDecompress, Status};

use crate::budget::{Budget, Permit, Spent};
use crate::finding::Coding;
use brotli::Brotli;
use zstd::Zstd;

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

/// What the decoder of deflate holds, with its window.
const INFLATE_BYTES: usize = 48 * 1024;

/// What one step came to.
pub(crate) struct Step {
    pub(crate) read: usize,
    pub(crate) written: usize,
    pub(crate) ended: bool,
}

/// Nothing more comes out of the compressed data. So much of the output was written before it.
#[derive(Debug)]
pub(crate) struct Damaged {
    pub(crate) written: usize,
    pub(crate) fault: Fault,
}

/// Why nothing more comes out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Damaged,
    /// It is not damaged at all: others may well undo it, but not what is here.
    Closed,
    /// There is no memory for it now.
    Spent,
}

impl Damaged {
    fn at(written: usize) -> Damaged {
        Damaged::by(Fault::Damaged, written)
    }

    fn by(fault: Fault, written: usize) -> Damaged {
        Damaged { written, fault }
    }
}

impl From<Spent> for Damaged {
    fn from(_: Spent) -> Damaged {
        Damaged::by(Fault::Spent, 0)
    }
}

/// Something compressed, on its way. It takes memory with its first byte.
pub(crate) struct Codec {
    kind: Kind,
    permit: Permit,
}

enum Kind {
    /// The header of gzip comes first, byte by byte; deflate after it.
    Gzip(GzipHeader),
    /// Deflate of which nothing has come.
    Bare,
    Deflate(Decompress),
    /// zlib or bare deflate: its first two bytes say which.
    Unsure(Vec<u8>),
    /// The same, with the bytes that were looked at still to come.
    Replay(Vec<u8>, Decompress),
    Zstd(Box<Zstd>),
    Brotli(Brotli),
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
        match &self.kind {
            Kind::Zstd(zstd) => zstd.portion(),
            // What has not come out of it when it fails is lost.
            Kind::Brotli(_) => 1,
            Kind::Gzip(_) | Kind::Bare | Kind::Deflate(_) | Kind::Unsure(_) | Kind::Replay(..) => {
                (Self::cell(at) - at % Self::cell(at)) as usize
            }
        }
    }

    pub(crate) fn new(encoding: Encoding, memory: &Budget) -> Self {
        let kind = match encoding {
            Encoding::Gzip => Kind::Gzip(GzipHeader::default()),
            Encoding::Deflate => Kind::Unsure(Vec::new()),
            Encoding::Zstd => Kind::Zstd(Zstd::new()),
            Encoding::Brotli => Kind::Brotli(Brotli::new()),
        };
        Self { kind, permit: memory.permit() }
    }

    /// Deflate without a header, as in zip.
    pub(crate) fn bare(memory: &Budget) -> Self {
        Self { kind: Kind::Bare, permit: memory.permit() }
    }

    /// Takes some of `input` and writes some of `output`; neither read nor written means that there is no more.
    pub(crate) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, Damaged> {
        let Codec { kind, permit } = self;
        let mut inflate = |zlib| permit.cover(INFLATE_BYTES).map(|()| Decompress::new(zlib));
        match kind {
            Kind::Gzip(header) => {
                let read = header.take(input)?;
                if header.part == Part::Done {
                    *kind = Kind::Deflate(inflate(false)?);
                }
                Ok(Step { read, written: 0, ended: false })
            }
            Kind::Bare => {
                *kind = Kind::Deflate(inflate(false)?);
                self.step(input, output)
            }
            Kind::Deflate(inflate) => inflated(inflate, input, output),
            Kind::Unsure(seen) => {
                let Some(byte) = input.first() else { return Ok(Step { read: 0, written: 0, ended: false }) };
                seen.push(*byte);
                if let [first, second] = seen[..] {
                    let zlib = first & 15 == 8 && (u16::from(first) << 8 | u16::from(second)) % 31 == 0;
                    *kind = Kind::Replay(vec![first, second], inflate(zlib)?);
                }
                Ok(Step { read: 1, written: 0, ended: false })
            }
            Kind::Replay(seen, inflate) => {
                let held = std::mem::take(seen);
                let mut inflate = std::mem::replace(inflate, Decompress::new(false));
                let step = inflated(&mut inflate, &held, output)?;
                *kind = if step.read < held.len() && !step.ended {
                    Kind::Replay(held[step.read..].to_vec(), inflate)
                } else {
                    Kind::Deflate(inflate)
                };
                Ok(Step { read: 0, ..step })
            }
            Kind::Zstd(zstd) => zstd.step(permit, input, output),
            Kind::Brotli(brotli) => brotli.step(permit, input, output),
        }
    }

    /// Whether bytes are left to be written although no more are read.
    pub(crate) fn replays(&self) -> bool {
        matches!(self.kind, Kind::Replay(..))
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

/// A whole body is not what its encoding says, or cannot be decoded now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.told())]
pub struct NotDecoded {
    /// So much of the output was written before that was seen.
    pub(crate) written: usize,
    pub(crate) fault: Fault,
}

impl NotDecoded {
    const BARE: NotDecoded = NotDecoded { written: 0, fault: Fault::Damaged };

    /// Whether there was no memory for it: it may be as sound as any.
    pub fn is_for_want_of_memory(&self) -> bool {
        self.fault == Fault::Spent
    }

    fn told(&self) -> &'static str {
        match self.fault {
            Fault::Damaged | Fault::Closed => "the content is not encoded as it says",
            Fault::Spent => "there is no memory left to decode the content in",
        }
    }
}

impl From<Damaged> for NotDecoded {
    fn from(Damaged { written, fault }: Damaged) -> NotDecoded {
        NotDecoded { written, fault }
    }
}

/// Undoes the encoding of a whole body, a bounded step at a time.
pub struct Decoder {
    encoding: Encoding,
    memory: Budget,
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

    /// For a body in this encoding, in memory of this budget.
    pub fn new(encoding: Encoding, memory: &Budget) -> Self {
        let (memory, codec) = (memory.clone(), Codec::new(encoding, memory));
        Self { encoding, memory, codec, at: 0, trailer: 0, ended: false, started: false }
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
                self.codec = Codec::new(self.encoding, &self.memory);
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
