//! What is compressed: gzip and Zstandard wherever they begin, members of zip archives, zlib at the start.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use crate::codec::{Codec, Encoding};
use crate::finding::{Coding, Place};
use crate::layer::{Layer, Shared, stand_at};
use crate::scanner::Uninspectable;

/// What comes out at once.
const OUT_BYTES: usize = 16 * 1024;
const ZIP_HEADER_BYTES: usize = 30;
const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
const MAGIC_MAX_BYTES: usize = 6;

static STARTS: LazyLock<[(Finder<'static>, Start); 3]> = LazyLock::new(|| {
    [
        (Finder::new(&[0x1f, 0x8b, 8]), Start::Compressed(Encoding::Gzip)),
        (Finder::new(&[0x28, 0xb5, 0x2f, 0xfd]), Start::Compressed(Encoding::Zstd)),
        (Finder::new(ZIP_MAGIC), Start::ZipMember),
    ]
});

/// Archives that are not opened.
const CLOSED: [&[u8]; 5] = [b"\xfd7zXZ\0", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"BZh", b"LZIP\x01"];

#[derive(Debug, Clone, Copy)]
enum Start {
    Compressed(Encoding),
    ZipMember,
}

/// The packed parts of a text, one at a time.
#[derive(Default)]
pub(super) struct Packed {
    at: u64,
    open: Option<Unpacking>,
    /// A bound was reached: nothing more is unpacked.
    over: bool,
}

struct Unpacking {
    codec: Codec,
    child: Box<Layer>,
    place: Place,
    settled: u64,
}

impl Packed {
    pub(super) fn held_from(&self) -> Option<u64> {
        let open = self.open.as_ref()?;
        open.child.is_held().then_some(open.settled)
    }

    pub(super) fn needs(&self) -> u64 {
        self.at
    }
}

/// What a zip member's header says.
enum Member {
    /// More bytes are needed.
    Waits,
    /// It is none after all, or stored as it is.
    Plain,
    /// Data of this kind, so many bytes further.
    Data(Codec, usize),
    Closed(Uninspectable),
}

impl Layer {
    pub(super) fn unpack(&mut self, shared: &mut Shared<'_>, complete: bool) {
        let mut packed = std::mem::take(&mut self.packed);
        if packed.at == 0 && self.base == 0 && packed.open.is_none() {
            if self.bytes.len() < MAGIC_MAX_BYTES && !complete {
                self.packed = packed;
                return;
            }
            self.look_at_head(&mut packed, shared);
        }
        while !packed.over {
            match packed.open.take() {
                Some(open) => self.go_on(&mut packed, open, shared),
                None => {
                    if !self.find_start(&mut packed, shared, complete) {
                        break;
                    }
                }
            }
            if packed.open.is_some() && self.index(packed.at) >= self.bytes.len() {
                break;
            }
        }
        if packed.over {
            packed.at = self.end();
        }
        if complete && let Some(open) = packed.open.take() {
            close(open, shared);
        }
        self.packed = packed;
    }

    fn look_at_head(&mut self, packed: &mut Packed, shared: &mut Shared<'_>) {
        if CLOSED.iter().any(|magic| self.bytes.starts_with(magic)) {
            shared.state.cannot(Uninspectable::Archive);
        }
        if let [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..] = self.bytes[..] {
            self.open(packed, shared, Encoding::Deflate, 0);
        }
    }

    fn open(&mut self, packed: &mut Packed, shared: &mut Shared<'_>, encoding: Encoding, start: u64) {
        match (self.inner(encoding.coding(), shared.bounds), Codec::new(encoding)) {
            (Some(child), Some(codec)) => {
                let (place, _) = self.locate(&(start..start));
                packed.open = Some(Unpacking { codec, child, place, settled: start });
            }
            _ => shared.state.cannot(Uninspectable::Depth),
        }
    }

    /// Looks for the next beginning; whether something was opened or passed over.
    fn find_start(&mut self, packed: &mut Packed, shared: &mut Shared<'_>, complete: bool) -> bool {
        let from = self.index(packed.at);
        let rest = &self.bytes[from..];
        let mut next: Option<(usize, Start)> = None;
        for (finder, start) in &*STARTS {
            // What lies behind the first that was found is not looked at again and again.
            let before = next.map_or(rest.len(), |(at, _)| rest.len().min(at + ZIP_MAGIC.len()));
            let found = finder.find(&rest[..before]);
            next = next.into_iter().chain(found.map(|at| (at, *start))).min_by_key(|(at, _)| *at);
        }
        let Some((offset, start)) = next else {
            // The beginning of a magic number may stand at the end.
            let seen = self.bytes.len().saturating_sub(ZIP_MAGIC.len() - 1).max(from);
            packed.at = if complete { self.end() } else { self.position(seen) };
            return false;
        };
        let at = self.position(from + offset);
        packed.at = at;
        match start {
            Start::Compressed(encoding) => {
                self.open(packed, shared, encoding, at);
                packed.at += u64::from(packed.open.is_none());
            }
            Start::ZipMember => match member(&self.bytes[from + offset..]) {
                Member::Waits if !complete => return false,
                Member::Waits | Member::Plain => packed.at += ZIP_MAGIC.len() as u64,
                Member::Closed(reason) => {
                    shared.state.cannot(reason);
                    packed.at += ZIP_MAGIC.len() as u64;
                }
                Member::Data(codec, header) => match self.inner(Coding::Zip, shared.bounds) {
                    Some(child) => {
                        let (place, _) = self.locate(&(at..at));
                        packed.open = Some(Unpacking { codec, child, place, settled: at });
                        packed.at += header as u64;
                    }
                    None => {
                        shared.state.cannot(Uninspectable::Depth);
                        packed.at += ZIP_MAGIC.len() as u64;
                    }
                },
            },
        }
        true
    }

    fn go_on(&mut self, packed: &mut Packed, mut open: Unpacking, shared: &mut Shared<'_>) {
        let mut out = vec![0; OUT_BYTES];
        loop {
            let input = &self.bytes[self.index(packed.at)..];
            if input.is_empty() && !open.codec.replays() {
                break;
            }
            let replayed = open.codec.replays();
            let Ok(step) = open.codec.step(input, &mut out) else {
                // What came out before the damage has been looked at; the rest is no more than bytes.
                let start = open.place.offset;
                close(open, shared);
                packed.at = packed.at.max(start + 1);
                return;
            };
            packed.at += step.read as u64;
            if !shared.state.expand(step.written, shared.bounds) {
                packed.over = true;
                return;
            }
            let first = shared.state.hits.len();
            open.child.feed(shared, &out[..step.written]);
            stand_at(shared.state, first, open.place);
            if !open.child.is_held() {
                open.settled = packed.at;
            }
            if step.ended {
                close(open, shared);
                return;
            }
            if step.read == 0 && step.written == 0 && !replayed {
                break;
            }
        }
        packed.open = Some(open);
    }
}

fn close(mut open: Unpacking, shared: &mut Shared<'_>) {
    let first = shared.state.hits.len();
    open.child.finish(shared);
    stand_at(shared.state, first, open.place);
}

fn member(bytes: &[u8]) -> Member {
    const ENCRYPTED: u16 = 1;
    const VERSION_MAX: u16 = 63;
    let Some(header) = bytes.get(..ZIP_HEADER_BYTES) else { return Member::Waits };
    let number = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let (version, flags, method) = (number(4) & 0xff, number(6), number(8));
    let length = ZIP_HEADER_BYTES + usize::from(number(26)) + usize::from(number(28));
    if version > VERSION_MAX {
        return Member::Plain;
    }
    match method {
        _ if flags & ENCRYPTED != 0 => Member::Closed(Uninspectable::Encrypted),
        0 => Member::Plain,
        8 => Member::Data(Codec::bare(), length),
        93 => Codec::new(Encoding::Zstd).map_or(Member::Plain, |codec| Member::Data(codec, length)),
        99 => Member::Closed(Uninspectable::Encrypted),
        1..=20 | 94..=98 => Member::Closed(Uninspectable::Archive),
        _ => Member::Plain,
    }
}
