//! What decoders take of the process' memory, with a budget and without: alone in its process, whose most is asked for.
#![allow(clippy::unwrap_used)]

use scan::{Budget, Decoder, Encoding};

const MIB: u64 = 1 << 20;
const WINDOW_BYTES: usize = 8 << 20;
const STREAMS: usize = 24;

/// The most memory that this process ever had resident.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A frame of some hundred bytes that fills the largest window, and does not end.
fn bomb() -> Vec<u8> {
    const BLOCK_BYTES: usize = 128 * 1024;
    const REPEATED: u32 = 1 << 1;
    let header = (u32::try_from(BLOCK_BYTES).unwrap() << 3 | REPEATED).to_le_bytes();
    let block = [&header[..3], b"a"].concat();
    [b"\x28\xb5\x2f\xfd", &[0, 13 << 3][..], &block.repeat(WINDOW_BYTES / BLOCK_BYTES)].concat()
}

/// So many streams at once, each with its window filled; how many were refused memory.
fn attack(memory: &Budget) -> usize {
    let (bomb, mut out) = (bomb(), vec![0; 64 * 1024]);
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..STREAMS {
        let mut decoder = Decoder::new(Encoding::Zstd, memory);
        let mut rest = &bomb[..];
        loop {
            match decoder.step(rest, &mut out) {
                Ok((0, 0)) => break,
                Ok((read, _)) => rest = &rest[read..],
                Err(error) => {
                    assert!(error.is_for_want_of_memory());
                    refused += 1;
                    break;
                }
            }
        }
        open.push(decoder);
    }
    refused
}

#[test]
fn many_large_windows_at_once_take_no_more_than_the_budget() {
    let before = peak();
    let memory = Budget::of(64 << 20);
    assert_eq!(attack(&memory), STREAMS - 7);
    assert_eq!(memory.held(), 0);
    let within = peak() - before;
    assert!(within < 72 * MIB, "{within}");
    // The control.
    assert_eq!(attack(&Budget::UNBOUNDED), 0);
    let without = peak() - before;
    assert!(without > 180 * MIB, "{without}");
}
