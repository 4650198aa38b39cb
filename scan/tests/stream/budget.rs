//! The memory of what decodes: counted, bounded, given back.

use scan::{Bounds, Budget, Decoder, Encoding, Report, Rules, Scanner, Uninspectable};

use super::*;

/// Of one window as large as it may be, with what goes with it.
const WINDOW_BYTES: usize = 9 << 20;

fn scanner(memory: &Budget) -> Scanner<'static> {
    let bounds = Bounds { memory: memory.clone(), ..Bounds::default() };
    Scanner::new(Rules::builtin(), Some(known()), bounds)
}

/// The beginning of a frame with a window as large as it may be.
fn wide_frame() -> Vec<u8> {
    let block = (4_u32 << 3).to_le_bytes();
    [b"\x28\xb5\x2f\xfd", &[0, packed::WINDOW_MAX][..], &block[..3], b"text"].concat()
}

#[test]
fn what_decodes_is_counted_until_it_is_over_and_plain_text_is_not() {
    let text = format!("key: {} and words. ", token());
    let long = text.repeat(400);
    let wide: Vec<u8> = long.bytes().flat_map(|byte| [byte, 0]).collect();
    let percents: String = long.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let hidden = [
        ("gzip", gzip(long.as_bytes())),
        ("zstd", zstd(long.as_bytes())),
        ("zlib", zlib(long.as_bytes())),
        ("zip", zip_member(0, 8, &deflate(long.as_bytes()))),
        ("base64", STANDARD.encode(&long).into_bytes()),
        ("hex", hex(long.as_bytes()).into_bytes()),
        ("utf-16", wide),
        ("percent", percents.into_bytes()),
    ];
    for (name, bytes) in hidden {
        let memory = Budget::of(64 << 20);
        let mut half = scanner(&memory);
        half.feed(&bytes[..bytes.len() * 3 / 4]);
        assert!(memory.held() > 1024, "{name}: {}", memory.held());
        drop(half);
        assert_eq!(memory.held(), 0, "{name}");
    }
    for encoding in [Encoding::Gzip, Encoding::Deflate, Encoding::Zstd, Encoding::Brotli] {
        let memory = Budget::of(64 << 20);
        let body = match encoding {
            Encoding::Gzip => gzip(long.as_bytes()),
            Encoding::Deflate => deflate(long.as_bytes()),
            Encoding::Zstd => zstd(long.as_bytes()),
            Encoding::Brotli => packed::brotli_block(text.as_bytes()),
        };
        let mut decoder = Decoder::new(encoding, &memory);
        assert_eq!(memory.held(), 0, "{encoding:?} before its first byte");
        decoder.step(&body, &mut [0; 64]).unwrap();
        assert!(memory.held() > 1024, "{encoding:?}: {}", memory.held());
        drop(decoder);
        assert_eq!(memory.held(), 0, "{encoding:?}");
    }
    let (memory, plain) = (Budget::of(0), "nothing hides here, in words or in lines.\n".repeat(5000));
    let mut scanner = scanner(&memory);
    scanner.feed(plain.as_bytes());
    assert_eq!(scanner.finish().uninspectable, None);
}

#[test]
fn where_memory_is_spent_it_cannot_be_inspected_and_once_it_is_given_back_it_can() {
    let memory = Budget::of(2 * WINDOW_BYTES);
    let opened = |in_encoding: bool| {
        let mut scanner = scanner(&memory);
        if in_encoding {
            scanner = scanner.encoded(Encoding::Zstd);
        }
        scanner.feed(&wide_frame());
        scanner
    };
    let whole =
        |scanner: Scanner<'static>| (scanner.missed_for_want_of_memory().is_some(), scanner.uninspectable());
    for in_encoding in [true, false] {
        let first = [opened(false), opened(true)];
        assert!(first.iter().all(|one| one.uninspectable().is_none()));
        assert_eq!(whole(opened(in_encoding)), (true, Some(Uninspectable::Memory)));
        // What takes little still has its place.
        let mut small = scanner(&memory);
        small.feed(&gzip(token().as_bytes()));
        assert_eq!(small.found(), Some("gitlab-pat"));
        drop((first, small));
        assert_eq!(memory.held(), 0);
        assert_eq!(whole(opened(in_encoding)), (false, None));
    }
    let mut decoder = Decoder::new(Encoding::Zstd, &Budget::of(WINDOW_BYTES / 2));
    let refused = decoder.step(&wide_frame(), &mut [0; 64]).unwrap_err();
    assert!(refused.is_for_want_of_memory());
}

#[test]
fn however_little_memory_there_is_a_secret_is_found_or_it_is_said_that_it_may_not_be() {
    let text = format!("key: {} and words. ", token());
    let percents = |text: &[u8]| text.iter().map(|byte| format!("a%{byte:02x}%41")).collect::<String>();
    let wide: Vec<u8> = text.bytes().flat_map(|byte| [byte, 0]).collect();
    let inputs = [
        gzip(&zstd(text.as_bytes())),
        zstd(&gzip(STANDARD.encode(&text).as_bytes())),
        STANDARD.encode(gzip(text.repeat(200).as_bytes())).into_bytes(),
        zip_member(0, 8, &deflate(&zlib(text.as_bytes()))),
        hex(STANDARD.encode(&text).as_bytes()).into_bytes(),
        STANDARD.encode(wide.repeat(40)).into_bytes(),
        STANDARD.encode(percents(text.as_bytes()).repeat(40)).into_bytes(),
        percents(text.as_bytes()).repeat(100).into_bytes(),
    ];
    let report = |input: &[u8], memory: &Budget, piece: usize| -> Report {
        let mut scanner = scanner(memory);
        input.chunks(piece).for_each(|piece| scanner.feed(piece));
        scanner.finish()
    };
    for (number, input) in inputs.iter().enumerate() {
        let enough = report(input, &Budget::UNBOUNDED, input.len());
        let mut said = 0;
        for step in 0..16 {
            let memory = Budget::of(step * step * 3600);
            let report = report(input, &memory, 1 + 997 * (step % 3));
            assert_eq!(memory.held(), 0);
            match report.uninspectable {
                None => assert_eq!(report.findings.len(), enough.findings.len(), "{number} {step}"),
                Some(reason) => {
                    assert_eq!(reason, Uninspectable::Memory, "{number} {step}");
                    said += 1;
                }
            }
        }
        assert!(said > 0, "{number}");
    }
}

/// A line, 400 times, as an encoder writes it.
const WORDS: &[u8] = b"\x1b\x9f\x5a\xc0\xa4\x41\xca\xdc\xde\xc0\x44\x0e\xd8\x6b\x31\x9c\x8c\x0e\x1b\x63\x6b\
    \xc9\x37\xa2\x6c\x0a\x26\x99\x00\x1d\xa9\xcd\x98\x3c\x50\x29\xc6\x41\xa4\x00\x4e\x38";

#[test]
fn brotli_finds_no_memory_at_any_of_its_demands() {
    let text = "words and more of them, none of which is like another one ".repeat(400);
    let decoded = |memory: &Budget| -> Result<Vec<u8>, bool> {
        let mut decoder = Decoder::new(Encoding::Brotli, memory);
        let (mut out, mut buffer, mut rest) = (Vec::new(), vec![0; 4096], WORDS);
        loop {
            let stepped = decoder.step(rest, &mut buffer).map_err(|error| error.is_for_want_of_memory());
            let (read, written) = stepped?;
            rest = &rest[read..];
            out.extend_from_slice(&buffer[..written]);
            if read == 0 && written == 0 {
                return Ok(out);
            }
        }
    };
    assert_eq!(decoded(&Budget::UNBOUNDED).unwrap(), text.as_bytes());
    let mut enough = None;
    for bytes in (0..512 * 1024).step_by(4096) {
        let memory = Budget::of(bytes);
        match decoded(&memory) {
            Ok(out) => {
                assert_eq!(out, text.as_bytes());
                enough = enough.or(Some(bytes));
            }
            Err(is_for_want_of_memory) => assert!(is_for_want_of_memory && enough.is_none(), "{bytes}"),
        }
        assert_eq!(memory.held(), 0);
    }
    assert!(enough.is_some_and(|bytes| bytes > text.len()), "{enough:?}");
}
