//! Which streams upstream has ended, read off its frames.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Length, kind, flags and stream (RFC 9113, section 4.1).
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// The streams that were ended, which h2 forgets where they are reset afterwards: with NO_ERROR, that says that the rest of the request is not
/// wanted (RFC 9113, section 8.1). Some servers send the same in the middle of an answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Ended(Arc<Mutex<HashSet<u32>>>);

impl Ended {
    pub(super) fn contains(&self, stream: u32) -> bool {
        self.streams().contains(&stream)
    }

    /// Whoever read it is done.
    pub(super) fn forget(&self, stream: u32) {
        self.streams().remove(&stream);
    }

    fn streams(&self) -> MutexGuard<'_, HashSet<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the heads of frames as they come.
#[derive(Debug, Default)]
pub(super) struct Heads {
    head: Vec<u8>,
    /// How much of a frame is still to come.
    payload: usize,
    ended: Ended,
}

impl Heads {
    pub(super) fn ended(&self) -> Ended {
        self.ended.clone()
    }

    /// Takes what came next.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD_BYTES - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = self.head[..] else { return };
            self.head.clear();
            self.payload = u32::from_be_bytes([0, l1, l2, l3]) as usize;
            if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                self.ended.streams().insert(u32::from_be_bytes([s1 & 0x7f, s2, s3, s4]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    proptest! {
        #[test]
        fn frames_are_told_apart_wherever_they_are_cut(
            frames in prop::collection::vec((0..10_u8, 0..8_u8, 1..6_u32, prop::collection::vec(any::<u8>(), 0..30)), 0..20),
            cuts in prop::collection::vec(1..12_usize, 1..20),
        ) {
            let mut wanted = HashSet::new();
            let mut bytes = Vec::new();
            for (kind, flags, stream, payload) in &frames {
                bytes.extend(frame(*kind, *flags, *stream, payload));
                if *kind <= HEADERS && flags & END_STREAM != 0 {
                    wanted.insert(*stream);
                }
            }
            let mut heads = Heads::default();
            let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at((*cuts.next().unwrap_or(&1)).min(rest.len()));
                heads.feed(piece);
                rest = after;
            }
            let ended = heads.ended();
            prop_assert_eq!(&*ended.streams(), &wanted);
        }
    }
}
