//! How fast clean and busy text goes through the scanner and the scrubber, and what it takes to compile the rules.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use scan::{Bounds, Known, Rules, Scanner, Scrubber};

const SIZE: usize = 8 << 20;
const PIECE: usize = 64 << 10;

/// Prose with a source file's punctuation, the same on each run.
fn text() -> Vec<u8> {
    let words = "the quick brown fox let value = object.method(argument); // a comment, with { braces } and \"strings\" of some kind\n";
    words.bytes().cycle().take(SIZE).collect()
}

fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..SIZE).map(|_| next()).collect()
}

fn known() -> Arc<Known> {
    let mut known = Known::default();
    known.add(b"q8Zr2LkT0vWcN5mYx1JdB7sHfG3a").expect("long and varied");
    Arc::new(known)
}

fn stream(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stream");
    group.sample_size(10).throughput(Throughput::Bytes(SIZE as u64));
    Rules::builtin().scan(b"compiled before the clock starts");
    for (name, input) in [("text", text()), ("noise", noise())] {
        group.bench_function(format!("scan/{name}"), |bencher| {
            bencher.iter(|| {
                let mut scanner = Scanner::new(Rules::builtin(), Some(known()), Bounds::default());
                input.chunks(PIECE).for_each(|piece| scanner.feed(piece));
                black_box(scanner.finish())
            });
        });
        group.bench_function(format!("rules/{name}"), |bencher| {
            bencher.iter(|| {
                let mut scanner = Scanner::plain(Rules::builtin(), None);
                input.chunks(PIECE).for_each(|piece| scanner.feed(piece));
                black_box(scanner.finish())
            });
        });
        group.bench_function(format!("scrub/{name}"), |bencher| {
            bencher.iter(|| {
                let mut scrubber = Scrubber::new(known());
                input.chunks(PIECE).for_each(|piece| drop(black_box(scrubber.feed(piece))));
                black_box(scrubber.finish())
            });
        });
    }
    group.finish();
    criterion.bench_function("compile", |bencher| {
        bencher.iter_batched(|| (), |()| black_box(Rules::with_gitleaks("")), BatchSize::PerIteration);
    });
}

criterion_group!(benches, stream);
criterion_main!(benches);
