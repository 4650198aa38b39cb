//! A whole says the same as any split, and a finding lies inside what was given.

#![no_main]

use libfuzzer_sys::fuzz_target;
use scan::{Budget, Bounds, Encoding, Report, Rules, Scanner};

#[allow(dead_code)]
mod script;

/// Small, so that an input that expands is as quick as another.
const BOUNDS: Bounds =
    Bounds { depth: 3, expanded: 4 << 20, ratio: 100, ratio_free: 1 << 20, memory: Budget::UNBOUNDED };

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let input = script::text(rest);
    let encoding =
        [None, Some(Encoding::Gzip), Some(Encoding::Deflate), Some(Encoding::Zstd), Some(Encoding::Brotli)];
    let encoding = *encoding.get(usize::from(first & 7)).unwrap_or(&None);
    let whole = report(&input, input.len().max(1), encoding);
    assert_eq!(report(&input, usize::from(first >> 3) + 1, encoding), whole);
    let lines = input.iter().filter(|&&byte| byte == b'\n').count() + 1;
    for finding in whole.findings.iter().filter(|_| encoding.is_none()) {
        assert!(finding.offset < input.len());
        assert!(finding.line >= 1 && finding.line <= finding.line_end && finding.column >= 1);
        assert!(finding.line_end as usize <= lines);
    }
});

fn report(input: &[u8], step: usize, encoding: Option<Encoding>) -> Report {
    let mut scanner = Scanner::new(Rules::builtin(), Some(script::known()), BOUNDS);
    if let Some(encoding) = encoding {
        scanner = scanner.encoded(encoding);
    }
    let mut fed = 0;
    for piece in input.chunks(step) {
        scanner.feed(piece);
        fed += piece.len() as u64;
        assert!(scanner.held() <= fed);
    }
    scanner.finish()
}
