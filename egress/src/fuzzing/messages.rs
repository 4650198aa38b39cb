//! What the passage of WebSocket frames makes of any stream.

use std::sync::{Arc, LazyLock};

use policy::{Detector, Dlp, OnMatch, Unreadable};
use scan::Budget;

use crate::credential::{Knowns, Lookout, Secret};
use crate::frames::Filter;
use crate::inspect::{Inspection, Objection};
use crate::scrub::Scrub;

/// A secret in the streams; `0xff` in a content stands for it.
const SECRET: &[u8] = b"kV9/xQ+2mZ=7pL4&wR8\"tY1%uN6";

static KNOWNS: LazyLock<Arc<Knowns>> = LazyLock::new(|| {
    let knowns = Arc::<Knowns>::default();
    knowns.learn(&Secret::new(SECRET.to_vec()), None).expect("it is long and mixed");
    knowns
});

/// However a stream is cut the same goes on: whole frames, as they came, none of which completes the secret. The first byte
/// is how the stream is cut, and whether it is made of frames or is the rest of the bytes.
pub fn frames(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let step = usize::from(first >> 1).max(1);
    let stream = if first & 1 == 0 { rest.to_vec() } else { built(rest) };
    let dlp = Dlp {
        outbound: vec![Detector::KnownSecrets],
        inbound: Vec::new(),
        on_match: OnMatch::Block,
        unreadable: Unreadable::Refuse,
    };
    let searched = || {
        let inspection = Inspection::of(&dlp, &Lookout::new(&KNOWNS), Arc::default(), &Budget::UNBOUNDED);
        Filter::searched(inspection.expect("something is looked for"))
    };
    let scrubbed = || Filter::scrubbed(&Scrub::new(Lookout::new(&KNOWNS), Arc::default(), Budget::UNBOUNDED));

    let (out, ended) = cut_and_whole(searched, &stream, step);
    same_frames(&stream, &out, |before, after| before == after);
    if ended.is_ok() {
        assert!(!shows_secret(&out, Borders::Ignored));
    }
    let (out, _) = cut_and_whole(scrubbed, &stream, step);
    same_frames(&stream, &out, |before, after| before == after || after == b'*');
    assert!(!shows_secret(&out, Borders::Kept));
}

/// Whole frames went on, in their order; only a control frame may have overtaken a message that waits.
fn same_frames(stream: &[u8], out: &[u8], may_become: fn(u8, u8) -> bool) {
    let (came, went) = (parsed(stream), parsed(out));
    assert_eq!(went.iter().map(Frame::bytes).sum::<usize>(), out.len());
    for control in [true, false] {
        let kind = |frames: &[Frame]| -> Vec<Frame> {
            frames.iter().filter(|frame| frame.is_control() == control).cloned().collect()
        };
        let (came, went) = (kind(&came), kind(&went));
        assert!(came.len() >= went.len());
        for (came, went) in came.iter().zip(&went) {
            assert_eq!((&came.head, came.content.len()), (&went.head, went.content.len()));
            let contents = came.content.iter().zip(&went.content);
            assert!(contents.into_iter().all(|(before, after)| may_become(*before, *after)));
        }
    }
}

/// What goes on when the stream comes as a whole, and in pieces.
fn cut_and_whole(make: impl Fn() -> Filter, stream: &[u8], step: usize) -> (Vec<u8>, Result<(), Objection>) {
    let passed = |step: usize| {
        let (mut filter, mut all) = (make(), Vec::new());
        for part in stream.chunks(step) {
            let mut out = Vec::new();
            if let Err(objection) = filter.feed(part, &mut out) {
                return (all, Err(objection));
            }
            all.append(&mut out);
        }
        (all, Ok(()))
    };
    let (whole, cut) = (passed(stream.len().max(1)), passed(step));
    assert_eq!(whole.1.is_ok(), cut.1.is_ok());
    if whole.1.is_ok() {
        assert_eq!(whole.0, cut.0);
        whole
    } else {
        cut
    }
}

#[derive(Clone)]
struct Frame {
    head: Vec<u8>,
    content: Vec<u8>,
}

impl Frame {
    fn is_control(&self) -> bool {
        self.head[0] & 0x08 != 0
    }

    fn bytes(&self) -> usize {
        self.head.len() + self.content.len()
    }
}

/// The whole frames of a stream, unmasked, by a reader of its own.
fn parsed(mut stream: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let [_, second, ..] = stream {
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some(number) = stream.get(2..2 + extended) else { break };
        let length = match extended {
            0 => usize::from(second & 0x7f),
            _ => number.iter().fold(0_usize, |number, byte| number.wrapping_shl(8) | usize::from(*byte)),
        };
        let head = 2 + extended + if second & 0x80 == 0 { 0 } else { 4 };
        let end = head.saturating_add(length);
        let Some(frame) = stream.get(..end) else { break };
        let mut content = frame[head..].to_vec();
        if second & 0x80 != 0 {
            let key = &frame[head - 4..head];
            content.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        }
        frames.push(Frame { head: frame[..head].to_vec(), content });
        stream = &stream[end..];
    }
    frames
}

/// Whether the borders of messages are looked over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Borders {
    Kept,
    Ignored,
}

fn shows_secret(stream: &[u8], borders: Borders) -> bool {
    let holds = |text: &[u8]| text.windows(SECRET.len()).any(|window| window == SECRET);
    let mut message = Vec::new();
    for frame in parsed(stream) {
        if frame.is_control() {
            if holds(&frame.content) {
                return true;
            }
            continue;
        }
        message.extend(&frame.content);
        if holds(&message) {
            return true;
        }
        if borders == Borders::Kept && frame.head[0] & 0x80 != 0 {
            message.clear();
        }
    }
    false
}

/// Frames from a script: for each a first byte, a length of which the highest bit says whether it is masked, and a content
/// in which some bytes stand for the secret or a part of it.
fn built(mut script: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    while let [first, length, rest @ ..] = script {
        let (content, rest) = rest.split_at(rest.len().min(usize::from(length & 0x3f)));
        script = rest;
        let mut text = Vec::new();
        for byte in content {
            match byte {
                0xff => text.extend(SECRET),
                0xe0..=0xfa => text.extend(&SECRET[..usize::from(byte - 0xe0)]),
                0xc0..=0xda => text.extend(&SECRET[usize::from(byte - 0xc0)..]),
                other => text.push(*other),
            }
        }
        // Reserved bits end the stream, which a fuzzer finds soon enough.
        stream.push(first & 0x8f);
        let masked = length & 0x80;
        match u8::try_from(text.len()) {
            Ok(short) if short < 126 => stream.push(masked | short),
            _ => {
                stream.push(masked | 126);
                stream.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
            }
        }
        if masked != 0 {
            let key = [*first, 0x5a, *length, 0xc3];
            stream.extend(key);
            text.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        }
        stream.extend(text);
    }
    stream
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            4 => Just(b' '),
            1 => Just(0xff),
            2 => 0xe0_u8..=0xfa,
            2 => 0xc0_u8..=0xda,
            1 => any::<u8>(),
        ];
        let first = prop::sample::select(vec![0x01_u8, 0x81, 0x00, 0x80, 0x02, 0x82, 0x89, 0x8a, 0x88]);
        (first, any::<bool>(), prop::collection::vec(byte, 0..6)).prop_map(|(first, masked, content)| {
            let length = u8::try_from(content.len()).unwrap_or(0) | if masked { 0x80 } else { 0 };
            [&[first, length][..], &content].concat()
        })
    }

    proptest! {
        #[test]
        fn frames_go_on_whole_and_without_the_secret_however_they_come(
            step in 1_u8..60, frames in prop::collection::vec(frame(), 0..8)
        ) {
            super::frames(&[&[step << 1 | 1][..], &frames.concat()].concat());
        }

        #[test]
        fn any_bytes_pass_as_frames_or_not_at_all(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            super::frames(&bytes);
        }
    }

    #[test]
    fn a_stream_with_the_secret_shows_it_to_a_reader_and_is_not_passed_on() {
        let stream = super::built(&[0x81, 0x81, 0xff]);
        assert!(super::shows_secret(&stream, super::Borders::Kept));
        super::frames(&[0x7f, 0x81, 0x81, 0xff]);
    }
}
