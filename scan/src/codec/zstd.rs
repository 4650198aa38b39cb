//! Zstandard: how much memory a frame takes is read in its header, before the decoder sets it aside.

use zstd::stream::raw::{self, DParameter, InBuffer, Operation, OutBuffer};

use super::{Damaged, Fault, Step};
use crate::budget::Permit;

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A frame on its way.
pub(super) struct Zstd {
    /// Once something has come.
    decoder: Option<raw::Decoder<'static>>,
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
    /// The decoder itself, with its tables.
    const CONTEXT_BYTES: usize = 160 * 1024;

    pub(super) fn new() -> Box<Zstd> {
        Box::new(Zstd { decoder: None, read: 0, head: [0; Self::HEADER_BYTES], wanted: 0 })
    }

    /// What is no more than one block: with damage behind it in the same step, it would be lost. The header of a frame comes byte
    /// by byte, as a whole frame is judged by other rules.
    pub(super) fn portion(&self) -> usize {
        if self.read < Self::HEADER_BYTES {
            return 1;
        }
        self.wanted.saturating_sub(Self::AHEAD_BYTES).max(1)
    }

    pub(super) fn step(
        &mut self,
        permit: &mut Permit,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<Step, Damaged> {
        let before = self.read.min(Self::HEADER_BYTES);
        let known = (Self::HEADER_BYTES - before).min(input.len());
        self.head[before..before + known].copy_from_slice(&input[..known]);
        let head = &self.head[..before + known];
        if known > 0 {
            permit.cover(Self::CONTEXT_BYTES + buffers(head).unwrap_or(0))?;
        }
        let mut from = InBuffer::around(input);
        let mut to = OutBuffer::around(output);
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(decoder().ok_or(Damaged::by(Fault::Closed, 0))?),
        };
        let Ok(hint) = decoder.run(&mut from, &mut to) else {
            let is_closed = self.read < Self::HEADER_BYTES && is_closed(head);
            return Err(Damaged::by(if is_closed { Fault::Closed } else { Fault::Damaged }, 0));
        };
        self.read = self.read.saturating_add(from.pos());
        self.wanted = hint;
        Ok(Step { read: from.pos(), written: to.pos(), ended: hint == 0 })
    }
}

fn decoder() -> Option<raw::Decoder<'static>> {
    let mut decoder = raw::Decoder::new().ok()?;
    decoder.set_parameter(DParameter::WindowLogMax(Zstd::WINDOW_MAX_LOG)).ok()?;
    Some(decoder)
}

/// What a frame's header says (RFC 8878, section 3.1.1.1), without its magic number.
struct Header {
    descriptor: u8,
    window: usize,
    dictionary: usize,
    size: usize,
}

impl Header {
    /// How long its parts are.
    fn of(head: &[u8]) -> Option<Header> {
        let descriptor = *head.get(MAGIC.len())?;
        let single = usize::from(descriptor >> 5 & 1);
        Some(Header {
            descriptor,
            window: 1 - single,
            dictionary: [0, 1, 2, 4][usize::from(descriptor & 3)],
            size: [single, 2, 4, 8][usize::from(descriptor >> 6)],
        })
    }

    fn length(&self) -> usize {
        MAGIC.len() + 1 + self.window + self.dictionary + self.size
    }
}

/// What the decoder sets aside for the frame that begins so, as `ZSTD_estimateDStreamSize` has it; nothing before its header is whole, and for
/// a window that is not accepted.
fn buffers(head: &[u8]) -> Option<usize> {
    const BLOCK_MAX: u64 = 128 * 1024;
    const WINDOW_MIN: u64 = 1024;
    const SLACK: u64 = 64;
    let header =
        Header::of(head).filter(|header| head.starts_with(&MAGIC) && head.len() >= header.length())?;
    let size = &head[header.length() - header.size..header.length()];
    let number = size.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let content = match header.size {
        0 => None,
        2 => Some(number + 256),
        _ => Some(number),
    };
    let window = match head.get(MAGIC.len() + 1).filter(|_| header.window > 0) {
        Some(byte) => (8 + u64::from(byte & 7)) << (7 + (byte >> 3)),
        None => content?,
    };
    if window > 1 << Zstd::WINDOW_MAX_LOG {
        return None;
    }
    let window = window.max(WINDOW_MIN);
    let block = window.min(BLOCK_MAX);
    let ring = (window + 2 * block + SLACK).min(content.unwrap_or(u64::MAX));
    usize::try_from(block + ring).ok()
}

/// Whether the head of a frame that was not accepted as far as it goes is sound, as encoders write it: then it names a dictionary, or asks
/// for more memory than is given.
fn is_closed(head: &[u8]) -> bool {
    const RESERVED: u8 = 0b11000;
    Header::of(head).is_some_and(|header| header.descriptor & RESERVED == 0 && head.len() <= header.length())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use zstd::zstd_safe::{DCtx, InBuffer, OutBuffer};

    use super::*;

    /// What the decoder itself says that it holds once it has begun with this frame.
    fn held(frame: &[u8]) -> usize {
        let mut context = DCtx::create();
        let (mut output, mut at) = (vec![0; 1024], 0);
        while at < frame.len() {
            let mut input = InBuffer::around(&frame[at..=at]);
            context.decompress_stream(&mut OutBuffer::around(&mut output[..]), &mut input).unwrap();
            at += 1;
        }
        context.sizeof()
    }

    #[test]
    fn what_a_frame_takes_is_known_before_its_first_block() {
        let windows = [0, 1, 6 << 3, 7 << 3 | 5, 10 << 3 | 7, 13 << 3].map(|window| vec![0, window]);
        let sizes = [
            vec![0x20, 200],
            vec![0x60, 7, 1],
            vec![0xa0, 0, 0, 0x10, 0],
            vec![0x80, 13 << 3, 0, 0, 2, 0],
            vec![0xe0, 0, 0, 0x80, 0, 0, 0, 0, 0],
        ];
        for header in windows.into_iter().chain(sizes) {
            let head = [&MAGIC[..], &header].concat();
            for short in 0..head.len() {
                assert_eq!(buffers(&head[..short]), None, "{header:x?}");
            }
            let told = Zstd::CONTEXT_BYTES + buffers(&head).unwrap();
            let held = held(&[&head[..], &[0, 0, 0]].concat()[..head.len() + 2]);
            assert!(held <= told && told <= held + 72 * 1024, "{header:x?}: {held} is told as {told}");
        }
        // A larger one is not accepted, and what can be skipped takes nothing.
        assert_eq!(buffers(&[&MAGIC[..], &[0, 14 << 3]].concat()), None);
        assert_eq!(buffers(&[0x50, 0x2a, 0x4d, 0x18, 0, 13 << 3]), None);
    }
}
