//! What is compressed: gzip and Zstandard wherever they begin, members of zip archives, zlib at the start.

use std::sync::LazyLock;

use memchr::memchr3;
use memchr::memmem::Finder;

use crate::budget::{Budget, Permit};
use crate::codec::{Codec, Encoding, Fault};
use crate::finding::{Coding, Place};
use crate::layer::{Layer, Shared, stand_at};
use crate::scanner::Uninspectable;

/// What comes out at once, and the room for one more portion.
const OUT_BYTES: usize = 28 * 1024;
/// How many that begin inside one another are followed at once; a further one cannot be inspected.
const OPEN_MAX: usize = 8;
/// Each layer further in follows half as many, as all of them could be open in each of those around, but no fewer than this.
const OPEN_INSIDE: usize = 3;
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

/// Whether something compressed may begin in `bytes`: of so much, much more may come out.
pub(crate) fn begins(bytes: &[u8]) -> bool {
    has_rare_byte(bytes) && STARTS.iter().any(|(finder, _)| finder.find(bytes).is_some())
}

/// Whether the byte of a magic number is there that text hardly has: it is sooner seen than all of the number.
fn has_rare_byte(bytes: &[u8]) -> bool {
    memchr3(0x8b, 0xb5, 0x03, bytes).is_some()
}

/// Archives that are not opened.
const CLOSED: [&[u8]; 5] = [b"\xfd7zXZ\0", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"BZh", b"LZIP\x01"];

#[derive(Debug, Clone, Copy)]
enum Start {
    Compressed(Encoding),
    ZipMember,
}

/// The packed parts of a text.
///
/// Each start is followed on its own, also those inside what another decoder eats: a false start, damage or a long header then
/// hides nothing that lies behind it, and no byte has to be looked at twice.
#[derive(Default)]
pub(super) struct Packed {
    at: u64,
    head_seen: bool,
    open: Vec<Unpacking>,
    /// Where those ended that were still open at `at`.
    ended: Vec<u64>,
    /// A bound was reached: nothing more is unpacked.
    over: bool,
}

struct Unpacking {
    codec: Codec,
    child: Box<Layer>,
    place: Place,
    /// Where its data begins.
    from: u64,
    at: u64,
    settled: u64,
}

/// More than deflate can give of so much, at most 1032 times as much, and of what is read ahead: so that all of it comes out before damage.
fn room(portion: usize) -> usize {
    (portion + 8) * 1032
}

/// Where decoders write.
struct Out {
    bytes: Vec<u8>,
    permit: Permit,
}

/// What has become of a decoder.
enum Went {
    /// It waits for more.
    On,
    /// It is through, or its input is damaged.
    Ended,
    /// More has come out than may.
    Over,
}

impl Packed {
    pub(super) fn held_from(&self) -> Option<u64> {
        self.open.iter().filter(|open| open.child.is_held()).map(|open| open.settled).min()
    }

    pub(super) fn needs(&self) -> u64 {
        self.open.iter().map(|open| open.at).fold(self.at, u64::min)
    }

    /// How many are open at a position, however far they have been followed.
    fn open_at(&mut self, position: u64) -> usize {
        self.ended.retain(|end| *end > position);
        self.open.len() + self.ended.len()
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
        if !packed.head_seen && (complete || self.bytes.len() >= MAGIC_MAX_BYTES) {
            packed.head_seen = true;
            self.look_at_head(&mut packed, shared);
        }
        let mut out = Out { bytes: Vec::new(), permit: shared.bounds.memory.permit() };
        while packed.head_seen && !packed.over {
            self.go_on(&mut packed, &mut out, shared);
            if packed.over || !self.find_start(&mut packed, shared, complete) {
                break;
            }
        }
        if packed.over {
            packed.open.clear();
            packed.at = self.end();
        }
        if complete {
            packed.open.drain(..).for_each(|open| close(open, shared));
        }
        self.packed = packed;
    }

    fn look_at_head(&mut self, packed: &mut Packed, shared: &mut Shared<'_>) {
        if CLOSED.iter().any(|magic| self.bytes.starts_with(magic)) {
            shared.state.cannot(Uninspectable::Archive);
        }
        if let [0x78, 0x01 | 0x5e | 0x9c | 0xda, ..] = self.bytes[..] {
            let codec = Codec::new(Encoding::Deflate, &shared.bounds.memory);
            self.open(packed, shared, Coding::Deflate, codec, 0, 0);
        }
    }

    /// Follows what begins at `start`, with its data `header` bytes further.
    fn open(
        &mut self,
        packed: &mut Packed,
        shared: &mut Shared<'_>,
        coding: Coding,
        codec: Codec,
        start: u64,
        header: u64,
    ) {
        let most = (OPEN_MAX >> self.through.depth()).max(OPEN_INSIDE);
        let child = if packed.open_at(start) < most { self.inner(coding, shared.bounds) } else { None };
        let Some(child) = child else { return shared.state.cannot(Uninspectable::Depth) };
        let (place, _) = self.locate(&(start..start));
        let from = start + header;
        packed.open.push(Unpacking { codec, child, place, from, at: from, settled: start });
    }

    /// Looks for the next beginning; whether there was one.
    fn find_start(&mut self, packed: &mut Packed, shared: &mut Shared<'_>, complete: bool) -> bool {
        let from = self.index(packed.at);
        let rest = &self.bytes[from..];
        let mut next: Option<(usize, Start)> = None;
        let starts = if has_rare_byte(rest) { &STARTS[..] } else { &[] };
        for (finder, start) in starts {
            // What lies behind the first that was found is not looked at again and again.
            let before = next.map_or(rest.len(), |(at, _)| rest.len().min(at + ZIP_MAGIC.len()));
            let found = finder.find(&rest[..before]);
            next = next.into_iter().chain(found.map(|at| (at, *start))).min_by_key(|(at, _)| *at);
        }
        let Some((offset, start)) = next else {
            // The beginning of a magic number may stand at the end.
            let seen = self.bytes.len().saturating_sub(ZIP_MAGIC.len() - 1).max(from);
            packed.at = if complete { self.end() } else { self.position(seen) };
            packed.open_at(packed.at);
            return false;
        };
        let at = self.position(from + offset);
        packed.at = at;
        match start {
            Start::Compressed(encoding) => {
                let codec = Codec::new(encoding, &shared.bounds.memory);
                self.open(packed, shared, encoding.coding(), codec, at, 0);
            }
            Start::ZipMember => match member(&self.bytes[from + offset..], &shared.bounds.memory) {
                Member::Waits if !complete => return false,
                Member::Waits | Member::Plain => {}
                Member::Closed(reason) => shared.state.cannot(reason),
                Member::Data(codec, header) => {
                    self.open(packed, shared, Coding::Zip, codec, at, header as u64);
                }
            },
        }
        packed.at += 1;
        true
    }

    /// Follows all that are open through the bytes that are there.
    fn go_on(&self, packed: &mut Packed, out: &mut Out, shared: &mut Shared<'_>) {
        let most = packed.open.iter().map(|open| self.bytes.len() - self.index(open.at)).max().unwrap_or(0);
        if most == 0 {
            return;
        }
        let wanted = OUT_BYTES + room(most.min(Codec::CELL_MAX_BYTES));
        if out.bytes.len() < wanted {
            if out.permit.cover(wanted).is_err() {
                shared.state.cannot(Uninspectable::Memory);
                packed.over = true;
                return;
            }
            out.bytes = vec![0; wanted];
        }
        for mut open in std::mem::take(&mut packed.open) {
            match self.follow(&mut open, &mut out.bytes, shared) {
                Went::On => packed.open.push(open),
                Went::Ended => {
                    packed.ended.push(open.at);
                    close(open, shared);
                }
                Went::Over => {
                    packed.over = true;
                    return;
                }
            }
        }
    }

    /// Follows one through the bytes that are there. It is given small
    /// portions and emptied after each: where it stands and what came out then depend on the bytes alone, not on the pieces.
    fn follow(&self, open: &mut Unpacking, out: &mut [u8], shared: &mut Shared<'_>) -> Went {
        let (mut filled, mut given) = (0, false);
        let went = loop {
            let replays = open.codec.replays();
            let rest = &self.bytes[self.index(open.at)..];
            let portion = if given || replays {
                &[]
            } else {
                &rest[..rest.len().min(open.codec.portion(open.at - open.from))]
            };
            if portion.is_empty() && !given && !replays {
                break Went::On;
            }
            if out.len() - filled < room(portion.len()) {
                if !open.pass_on(&out[..filled], shared) {
                    return Went::Over;
                }
                filled = 0;
            }
            let step = match open.codec.step(portion, &mut out[filled..]) {
                Ok(step) => step,
                Err(damaged) => {
                    filled += damaged.written;
                    match damaged.fault {
                        Fault::Damaged => {}
                        Fault::Closed => shared.state.cannot(Uninspectable::Encoding),
                        Fault::Spent => shared.state.cannot(Uninspectable::Memory),
                    }
                    // Of a portion it is not known which of its bytes is at fault.
                    let taken = open.at - open.from;
                    open.at = open.from + (taken + portion.len() as u64).next_multiple_of(Codec::cell(taken));
                    break Went::Ended;
                }
            };
            open.at += step.read as u64;
            filled += step.written;
            let stalls = step.read == 0 && step.written == 0;
            if step.ended || stalls && !given && !replays {
                break Went::Ended;
            }
            given = !stalls;
        };
        if !open.pass_on(&out[..filled], shared) {
            return Went::Over;
        }
        went
    }
}

impl Unpacking {
    /// Passes on what came out; whether so much may.
    fn pass_on(&mut self, bytes: &[u8], shared: &mut Shared<'_>) -> bool {
        if !shared.state.expand(bytes.len(), shared.bounds) {
            return false;
        }
        let first = shared.state.hits.len();
        self.child.feed(shared, bytes);
        stand_at(shared.state, first, self.place);
        if !self.child.is_held() {
            self.settled = self.at;
        }
        true
    }
}

fn close(mut open: Unpacking, shared: &mut Shared<'_>) {
    let first = shared.state.hits.len();
    open.child.finish(shared);
    stand_at(shared.state, first, open.place);
}

fn member(bytes: &[u8], memory: &Budget) -> Member {
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
        8 => Member::Data(Codec::bare(memory), length),
        93 => Member::Data(Codec::new(Encoding::Zstd, memory), length),
        99 => Member::Closed(Uninspectable::Encrypted),
        1..=20 | 94..=98 => Member::Closed(Uninspectable::Archive),
        _ => Member::Plain,
    }
}
