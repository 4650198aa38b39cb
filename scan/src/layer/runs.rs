//! Base64 and hexadecimal: long runs of their characters, decoded at each alignment where text comes out.

use crate::finding::{Coding, Place};
use crate::layer::{Layer, Shared, stand_at};

/// A shorter run hides nothing that a rule would find.
const RUN_MIN_BYTES: usize = 20;
/// What is decoded before it is asked whether it is text.
const BLOCK_BYTES: usize = 48;
/// The characters of base64 that make a block.
const BLOCK_CHARS: usize = 64;
/// A shorter text holds nothing that a rule would find.
const TEXT_MIN_BYTES: usize = 10;
/// In a longer run an alignment that has given no text yet is given up, but for the first.
const TRIED_CHARS: u64 = 4096;
/// A line of a wrapped text is not shorter, but for the last.
const WRAP_MIN_CHARS: u64 = 40;
/// What may stand between two lines of a wrapped text.
const GAP_MAX_BYTES: usize = 24;

/// The runs of a text.
#[derive(Default)]
pub(super) struct Runs {
    at: u64,
    run: Option<Run>,
    /// A layer to be used again.
    spare: Option<Box<Layer>>,
}

struct Run {
    chars: u64,
    line_chars: u64,
    lanes: Vec<Lane>,
}

/// One way to read a run.
struct Lane {
    coding: Coding,
    is_first: bool,
    skip: u8,
    bits: u32,
    count: u8,
    block: [u8; BLOCK_BYTES],
    length: usize,
    /// Where the characters of the block begin.
    block_at: u64,
    state: Text,
    child: Option<Box<Layer>>,
    place: Place,
    /// Where the last block began after which the child waited for nothing.
    settled: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    /// No text has come out yet.
    Unseen,
    /// The last block was text.
    On,
    /// The last block was none, the one before was.
    Ending,
    /// It was text once.
    Off,
    /// It began like something compressed.
    Packed,
}

/// What follows the characters of a run.
enum Gap {
    Continues(usize),
    Ends,
    Waits,
}

const fn classes() -> [u8; 256] {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut table = [NO_CLASS; 256];
    let mut i = 0;
    while i < 64 {
        table[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    table[b'-' as usize] = 62;
    table[b'_' as usize] = 63;
    table
}

const NO_CLASS: u8 = 255;

/// The value of each character in either alphabet of base64; [`NO_CLASS`] for all others.
static CLASSES: [u8; 256] = classes();

fn value(byte: u8) -> Option<u8> {
    Some(CLASSES[usize::from(byte)]).filter(|value| *value < 64)
}

impl Runs {
    pub(super) fn held_from(&self) -> Option<u64> {
        let run = self.run.as_ref()?;
        let waiting = run.lanes.iter().filter_map(Lane::held_from).min();
        Some(waiting.unwrap_or(self.at))
    }

    pub(super) fn needs(&self) -> u64 {
        let lanes = self.run.iter().flat_map(|run| &run.lanes);
        lanes.filter(|lane| lane.length > 0).map(|lane| lane.block_at).min().unwrap_or(self.at)
    }
}

impl Layer {
    pub(super) fn decode_runs(&mut self, shared: &mut Shared<'_>, complete: bool) {
        let mut runs = std::mem::take(&mut self.runs);
        loop {
            let at = self.index(runs.at);
            let Some(mut run) = runs.run.take() else {
                match next_run(&self.bytes, at) {
                    Ok(start) => {
                        runs.at = self.position(start);
                        if let Some(end) = dull_run(&self.bytes[start..], complete) {
                            runs.at = self.position(self.bytes.len().min(start + end + 1));
                            continue;
                        }
                        runs.run = Some(Run::new(runs.at));
                        continue;
                    }
                    Err(rest) => {
                        runs.at = self.position(rest);
                        break;
                    }
                }
            };
            let left = self.bytes.len() - at;
            let length = self.bytes[at..].iter().position(|byte| value(*byte).is_none()).unwrap_or(left);
            self.read(&mut run, &mut runs.spare, runs.at, length, shared);
            runs.at += length as u64;
            let gap = if length == left && !complete {
                Gap::Waits
            } else {
                gap(&self.bytes[at + length..], run.line_chars, complete)
            };
            match gap {
                Gap::Waits => {
                    runs.run = Some(run);
                    break;
                }
                Gap::Continues(length) => {
                    runs.at += length as u64;
                    run.line_chars = 0;
                    runs.run = Some(run);
                }
                Gap::Ends => {
                    for mut lane in run.lanes {
                        self.end_lane(&mut lane, &mut runs.spare, shared);
                    }
                    if self.index(runs.at) >= self.bytes.len() {
                        break;
                    }
                    // What ends a run is no part of the next.
                    runs.at += 1;
                }
            }
        }
        self.runs = runs;
    }

    fn read(
        &mut self,
        run: &mut Run,
        spare: &mut Option<Box<Layer>>,
        from: u64,
        length: usize,
        shared: &mut Shared<'_>,
    ) {
        // Where a lane is given up depends on the run alone, not on where its pieces end.
        let tried = usize::try_from(TRIED_CHARS.saturating_sub(run.chars)).unwrap_or(usize::MAX);
        let now = if tried == 0 { length } else { length.min(tried) };
        let start = self.index(from);
        let begun = run.chars;
        let mut lanes = std::mem::take(&mut run.lanes);
        lanes.retain_mut(|lane| {
            let (mut at, mut end) = (start, start + now);
            if lane.coding == Coding::Hex {
                if let Some(mark) = hex_mark(&self.bytes, start, end, begun) {
                    at = mark;
                    lane.forget();
                }
                let digits = self.bytes[at..end].iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
                end = at + digits;
            }
            while at < end {
                if lane.takes_block() && end - at >= BLOCK_CHARS {
                    let chars = self.bytes[at..].first_chunk().expect("more are there");
                    lane.take_block(chars, self.base + at as u64);
                    self.block(lane, spare, shared);
                    at += BLOCK_CHARS;
                    continue;
                }
                if lane.take(self.bytes[at], self.base + at as u64) {
                    self.block(lane, spare, shared);
                }
                at += 1;
            }
            let is_over = end < start + now;
            if is_over {
                self.end_lane(lane, spare, shared);
            }
            !is_over
        });
        run.chars += now as u64;
        run.line_chars += now as u64;
        if run.chars >= TRIED_CHARS {
            lanes.retain(|lane| lane.is_first || lane.state != Text::Unseen);
        }
        run.lanes = lanes;
        if now < length {
            self.read(run, spare, from + now as u64, length - now, shared);
        }
    }

    /// Judges a block, and passes it on when it is text.
    fn block(&mut self, lane: &mut Lane, spare: &mut Option<Box<Layer>>, shared: &mut Shared<'_>) {
        let block = &lane.block[..lane.length];
        let text = is_text(block);
        let fresh = matches!(lane.state, Text::Unseen | Text::Off);
        lane.state = match lane.state {
            Text::Packed => Text::Packed,
            Text::Unseen if is_packed(block) => Text::Packed,
            _ if text => Text::On,
            Text::On => Text::Ending,
            Text::Ending => {
                self.settle(lane, spare, shared);
                Text::Off
            }
            same => same,
        };
        if matches!(lane.state, Text::On | Text::Ending | Text::Packed) {
            if fresh {
                lane.place = self.locate(&(lane.block_at..lane.block_at)).0;
                lane.child = match spare.take() {
                    Some(mut child) => self.through.and(lane.coding).map(|through| {
                        child.through = through;
                        child
                    }),
                    None => self.inner(lane.coding, shared.bounds),
                };
            }
            if let Some(child) = &mut lane.child {
                let first = shared.state.hits.len();
                child.feed(shared, &lane.block[..lane.length]);
                stand_at(shared.state, first, lane.place);
                if !child.is_held() {
                    lane.settled = lane.block_at;
                }
            }
        }
        lane.length = 0;
    }

    fn settle(&mut self, lane: &mut Lane, spare: &mut Option<Box<Layer>>, shared: &mut Shared<'_>) {
        if let Some(mut child) = lane.child.take() {
            let first = shared.state.hits.len();
            child.finish(shared);
            stand_at(shared.state, first, lane.place);
            child.reset();
            *spare = Some(child);
        }
    }

    fn end_lane(&mut self, lane: &mut Lane, spare: &mut Option<Box<Layer>>, shared: &mut Shared<'_>) {
        if lane.length > 0 {
            self.block(lane, spare, shared);
        }
        self.settle(lane, spare, shared);
    }
}

impl Run {
    fn new(start: u64) -> Self {
        let lane = |coding, skip| Lane {
            coding,
            is_first: skip == 0,
            skip,
            bits: 0,
            count: 0,
            block: [0; BLOCK_BYTES],
            length: 0,
            block_at: start,
            state: Text::Unseen,
            child: None,
            place: Place { line: 1, column: 1, offset: start },
            settled: start,
        };
        let mut lanes: Vec<Lane> = (0..4).map(|skip| lane(Coding::Base64, skip)).collect();
        lanes.push(lane(Coding::Hex, 0));
        Self { chars: 0, line_chars: 0, lanes }
    }
}

impl Lane {
    fn held_from(&self) -> Option<u64> {
        let waits = self.child.as_ref().is_some_and(|child| child.is_held());
        let waits = waits.then_some(self.settled);
        let undecoded = (self.length > 0).then_some(self.block_at);
        [waits, undecoded].into_iter().flatten().min()
    }

    /// Begins anew.
    fn forget(&mut self) {
        (self.bits, self.count, self.length) = (0, 0, 0);
    }

    /// Whether nothing of a block has come yet.
    fn takes_block(&self) -> bool {
        self.coding == Coding::Base64 && self.skip == 0 && self.length == 0 && self.count == 0
    }

    /// Takes the characters of a whole block.
    fn take_block(&mut self, chars: &[u8; BLOCK_CHARS], position: u64) {
        self.block_at = position;
        decode_block(chars, &mut self.block);
        self.length = BLOCK_BYTES;
    }

    /// Takes one character; whether the block is full.
    fn take(&mut self, byte: u8, position: u64) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if self.length == 0 && self.count == 0 {
            self.block_at = position;
        }
        let (value, width) = match self.coding {
            Coding::Hex => (char::from(byte).to_digit(16).unwrap_or(0), 4),
            _ => (u32::from(CLASSES[usize::from(byte)]), 6),
        };
        self.bits = self.bits << width | value;
        self.count += width;
        if self.count >= 8 {
            self.count -= 8;
            self.block[self.length] = (self.bits >> self.count) as u8;
            self.bits &= (1 << self.count) - 1;
            self.length += 1;
        }
        self.length == BLOCK_BYTES
    }
}

/// The start of the next run from `from` on, or where to go on when more has come.
fn next_run(bytes: &[u8], from: usize) -> Result<usize, usize> {
    let mut start = from;
    while let Some(window) = bytes[start..].first_chunk::<RUN_MIN_BYTES>() {
        match window.iter().rposition(|byte| CLASSES[usize::from(*byte)] == NO_CLASS) {
            Some(other) => start += other + 1,
            None => return Ok(start),
        }
    }
    Err(start)
}

/// Where a run at the start of `bytes` ends, when all of it is there and none of the ways to read it gives text.
fn dull_run(bytes: &[u8], complete: bool) -> Option<usize> {
    let most = bytes.len().min(TRIED_CHARS as usize);
    let end = bytes[..most].iter().position(|byte| value(*byte).is_none());
    let end = end.or_else(|| (complete && most == bytes.len()).then_some(most))?;
    if !matches!(gap(&bytes[end..], end as u64, complete), Gap::Ends) {
        return None;
    }
    let run = &bytes[..end];
    let digits = &run[hex_mark(run, 0, end, 0).unwrap_or(0)..];
    let digits = digits.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let mut block = [0; BLOCK_BYTES];
    let mut is_dull = |chars: &[u8]| {
        let length = decode(chars, &mut block);
        length < TEXT_MIN_BYTES || !(is_text(&block[..length]) || is_packed(&block[..length]))
    };
    let dull =
        digits < 2 * TEXT_MIN_BYTES && (0..4).all(|skip| run[skip..].chunks(BLOCK_CHARS).all(&mut is_dull));
    dull.then_some(end)
}

/// Behind the `0x`, or the `x` of `\x`, that a run begins with to say that digits follow; of the run `begun` characters stand before `start`.
fn hex_mark(bytes: &[u8], start: usize, end: usize, begun: u64) -> Option<usize> {
    let is_x = |at: &usize| matches!(bytes[*at], b'x' | b'X');
    match begun {
        0 if start < end && is_x(&start) => Some(start + 1),
        0 if start + 1 < end && bytes[start] == b'0' => Some(start + 1).filter(is_x).map(|x| x + 1),
        1 if start < end && bytes[start - 1] == b'0' => Some(start).filter(is_x).map(|x| x + 1),
        _ => None,
    }
}

/// Decodes the characters of a whole block: eight by eight, of a length that is known when this is compiled.
fn decode_block(chars: &[u8; BLOCK_CHARS], block: &mut [u8; BLOCK_BYTES]) {
    let (eights, _) = chars.as_chunks::<8>();
    let (sixes, _) = block.as_chunks_mut::<6>();
    for (eight, six) in eights.iter().zip(sixes) {
        let bits = eight.iter().fold(0_u64, |bits, byte| bits << 6 | u64::from(CLASSES[usize::from(*byte)]));
        let [_, _, bytes @ ..] = bits.to_be_bytes();
        *six = bytes;
    }
}

/// Decodes the characters of at most one block; how many bytes that gives.
fn decode(chars: &[u8], block: &mut [u8; BLOCK_BYTES]) -> usize {
    let (fours, rest) = chars.as_chunks::<4>();
    let bits = |chars: &[u8]| {
        chars.iter().fold(0_u32, |bits, byte| bits << 6 | u32::from(CLASSES[usize::from(*byte)]))
    };
    for (four, three) in fours.iter().zip(block.as_chunks_mut::<3>().0) {
        let [_, bytes @ ..] = bits(four).to_be_bytes();
        *three = bytes;
    }
    let (length, more) = (fours.len() * 3, rest.len() * 6 / 8);
    let bytes = (bits(rest) << (6 * (4 - rest.len()))).to_be_bytes();
    block.iter_mut().skip(length).zip(&bytes[1..=more]).for_each(|(to, byte)| *to = *byte);
    length + more
}

/// What the bytes after a run say: line ends, spaces of an indentation, or their escapes, and then more of it.
fn gap(bytes: &[u8], line_chars: u64, complete: bool) -> Gap {
    if line_chars < WRAP_MIN_CHARS {
        return Gap::Ends;
    }
    let mut at = 0;
    let mut lines = 0;
    while at < GAP_MAX_BYTES {
        match bytes.get(at..) {
            Some([b'\r' | b'\n', ..]) => {
                lines += 1;
                at += 1;
            }
            Some([b' ' | b'\t', ..]) if lines > 0 => at += 1,
            Some([b'\\', b'r' | b'n', ..]) => {
                lines += 1;
                at += 2;
            }
            Some([b'\\']) | Some([]) | None if !complete => return Gap::Waits,
            Some([next, ..]) if lines > 0 && value(*next).is_some() => return Gap::Continues(at),
            _ => return Gap::Ends,
        }
    }
    Gap::Ends
}

fn is_text(block: &[u8]) -> bool {
    // Without a branch, so that many are looked at together.
    let printable = |byte: &u8| {
        u8::from(byte.wrapping_sub(b' ') <= b'~' - b' ')
            | u8::from(*byte == b'\n')
            | u8::from(*byte == b'\r')
            | u8::from(*byte == b'\t')
    };
    let wide = block.len() >= 8 && block.iter().skip(1).step_by(2).all(|byte| *byte == 0);
    let texts = usize::from(block.iter().map(printable).sum::<u8>());
    wide || texts * 5 >= block.len() * 3
}

fn is_packed(block: &[u8]) -> bool {
    const MAGIC: [&[u8]; 4] = [&[0x1f, 0x8b, 8], b"PK\x03\x04", &[0x28, 0xb5, 0x2f, 0xfd], &[0x78, 0x9c]];
    MAGIC.iter().any(|magic| block.starts_with(magic))
}
