//! How fast clean input goes through the scanner and the scrubber on one core, and what it takes to compile the rules, as a
//! Markdown table. The figure is the processor time of the thread, the best of several runs: the machine may be noisy.
//! Arguments choose rows by name.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::hint::black_box;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::time::{ClockId, clock_gettime};
use scan::{Bounds, Known, Rules, Scanner, Scrubber};

const SIZE: usize = 16 << 20;
const PACKED_SIZE: usize = 1 << 20;
const PIECE: usize = 16 << 10;
const RUNS: usize = 5;

/// A program's text.
const SOURCE: &str = concat!(
    include_str!("../src/scanner.rs"),
    include_str!("../src/layer.rs"),
    include_str!("../src/codec.rs"),
    include_str!("../src/finding.rs")
);
/// What people write.
const PROSE: &str = concat!(include_str!("../../ARCHITECTURE.md"), include_str!("../../SECURITY.md"));

type Input = fn() -> Vec<u8>;

fn repeated(text: &[u8]) -> Vec<u8> {
    text.iter().copied().cycle().take(SIZE).collect()
}

fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..size).map(|_| next()).collect()
}

/// What an agent sends to a model: a program's text in JSON strings.
fn conversation() -> Vec<u8> {
    let mut text = String::from("{\"model\":\"some-model\",\"max_tokens\":4096,\"messages\":[");
    for part in SOURCE.split("\n\n") {
        let part = part.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        text.push_str(&format!(
            "{{\"role\":\"user\",\"content\":[{{\"type\":\"text\",\"text\":\"{part}\"}}]}},"
        ));
    }
    repeated(text.as_bytes())
}

/// Several pictures in JSON strings.
fn pictures() -> Vec<u8> {
    let data = STANDARD.encode(noise(150_000));
    repeated(
        format!("{{\"type\":\"image\",\"source\":{{\"type\":\"base64\",\"data\":\"{data}\"}}}},").as_bytes(),
    )
}

/// A program's text in gzip, some of it after some.
fn packed() -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&SOURCE.as_bytes()[..32 << 10]).unwrap();
    let mut packed = encoder.finish().unwrap();
    packed.truncate(PACKED_SIZE);
    packed.iter().copied().cycle().take(PACKED_SIZE).collect()
}

/// What begins like gzip again and again, and is none.
fn false_starts() -> Vec<u8> {
    let start = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &noise(54)].concat();
    start.iter().copied().cycle().take(PACKED_SIZE).collect()
}

fn known() -> Arc<Known> {
    let mut known = Known::default();
    known.add(b"q8Zr2LkT0vWcN5mYx1JdB7sHfG3a").unwrap();
    Arc::new(known)
}

fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

fn best(mut work: impl FnMut()) -> Duration {
    let run = |_| {
        let before = processor_time();
        work();
        processor_time() - before
    };
    (0..RUNS).map(run).min().unwrap()
}

fn scanned(mut scanner: Scanner<'_>, input: &[u8]) {
    input.chunks(PIECE).for_each(|piece| scanner.feed(piece));
    let report = scanner.finish();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
    let inputs: [(&str, Input); 7] = [
        ("source text", || repeated(SOURCE.as_bytes())),
        ("prose", || repeated(PROSE.as_bytes())),
        ("JSON to a model", conversation),
        ("pictures in base64", pictures),
        ("noise", || noise(SIZE)),
        ("text in gzip", packed),
        ("false starts of gzip", false_starts),
    ];
    println!(
        "| clean input, MB/s of one core | rules, known secrets, decoders | rules alone | scrubber | scrubber, and what is hidden |"
    );
    println!("|---|---:|---:|---:|---:|");
    for (name, input) in inputs.into_iter().filter(|(name, _)| is_wanted(name)) {
        let input = input();
        let rate = |time: Duration| input.len() as f64 / time.as_secs_f64() / 1e6;
        let whole =
            best(|| scanned(Scanner::new(Rules::builtin(), Some(known()), Bounds::default()), &input));
        let rules = best(|| scanned(Scanner::plain(Rules::builtin(), None), &input));
        let scrub = best(|| {
            let mut scrubber = Scrubber::new(known());
            input.chunks(PIECE).for_each(|piece| drop(black_box(scrubber.feed(piece))));
            black_box(scrubber.finish());
        });
        // As an answer passes: what the scrubber lets go on is searched for what is compressed or encoded in it.
        let answer = best(|| {
            let mut scrubber = Scrubber::new(known());
            let mut after = Scanner::new(None, Some(known()), Bounds::default());
            input.chunks(PIECE).for_each(|piece| match black_box(scrubber.feed(piece)) {
                Some(masked) => after.feed(&masked),
                None => after.feed(piece),
            });
            black_box((scrubber.finish(), after.finish()));
        });
        println!(
            "| {name} | {:.0} | {:.0} | {:.0} | {:.0} |",
            rate(whole),
            rate(rules),
            rate(scrub),
            rate(answer)
        );
    }
    if is_wanted("compile") {
        let compiled = best(|| drop(black_box(Rules::with_gitleaks(""))));
        println!("\nThe rules are compiled in {:.2} ms.", compiled.as_secs_f64() * 1e3);
    }
}
