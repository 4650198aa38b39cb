//! What is compressed where it begins falsely, is damaged, or asks for more than is given.

use super::*;

/// A gzip header whose extra field takes what follows.
fn gzip_with_extra(bytes: u16) -> Vec<u8> {
    [&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff][..], &bytes.to_le_bytes()].concat()
}

#[test]
fn false_starts_hide_no_packed_secret_however_they_are_cut() {
    let text = format!("key: {} and words\n", token());
    let gzip_start = b"\x1f\x8b\x08".to_vec();
    let zstd_start = b"\x28\xb5\x2f\xfd".to_vec();
    let zip_start = zip_member(0, 8, b"");
    // Far enough in that something comes out before the damage.
    let mut damaged = gzip(&b"some words before it, and more ".repeat(40));
    let middle = damaged.len() / 2;
    damaged.truncate(middle);
    let false_starts = [
        gzip_start.clone(),
        [gzip_start.clone(), gzip_start.clone()].concat(),
        [gzip_start.clone(), gzip(text.as_bytes())[..30].to_vec()].concat(),
        zstd_start.clone(),
        zip_start.clone(),
        damaged.clone(),
        gzip(b"text")[..10].to_vec(),
        zlib(text.as_bytes())[..6].to_vec(),
        gzip_with_extra(u16::MAX),
        // A name that does not end.
        b"\x1f\x8b\x08\x08\0\0\0\0\0\xffname".to_vec(),
        // A stored block that takes all of it, but is too short.
        b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01\xff\xff\0\0".to_vec(),
        [gzip_start, zstd_start, zip_start, damaged].concat(),
    ];
    for start in &false_starts {
        for packed in
            [gzip(text.as_bytes()), zstd(text.as_bytes()), zip_member(0, 8, &deflate(text.as_bytes()))]
        {
            for between in [0, 1, 2, 3, 7, 20, 100] {
                let input = [&start[..], &vec![0x55; between], &packed].concat();
                let report = scan_both_ways(&input);
                let last = (start.len() + between, "gitlab-pat");
                let found = report.findings.iter().any(|one| {
                    (one.offset, one.rule) == last
                        && matches!(&*one.through.to_string(), "gzip" | "zstd" | "zip")
                });
                assert!(found, "{between} bytes after {start:02x?}: {report:?}");
                assert_eq!(report.uninspectable, None);
            }
        }
    }
}

#[test]
fn what_came_out_before_the_damage_is_looked_at_however_it_is_cut() {
    let text = format!("key: {} and words\n", token());
    for packed in [gzip(text.as_bytes()), zlib(text.as_bytes())] {
        // A reserved kind of block follows the one with the text.
        let mut encoder = flate2::Compress::new(flate2::Compression::default(), false);
        let mut body = Vec::with_capacity(1000);
        encoder.compress_vec(text.as_bytes(), &mut body, flate2::FlushCompress::Sync).unwrap();
        let header = if packed[0] == 0x78 { &packed[..2] } else { &packed[..10] };
        let report = scan_both_ways(&[header, &body, &[0xff; 100]].concat());
        assert!(!report.findings.iter().all(|one| one.through.is_nothing()), "{report:?}");
    }
}

/// A block of Brotli that is not compressed, in a stream that does not end with it (RFC 7932 section 9.2).
pub(super) fn brotli_block(text: &[u8]) -> Vec<u8> {
    const NOT_COMPRESSED: u32 = 1 << 20;
    let header = u32::try_from(text.len() - 1).unwrap() << 4 | NOT_COMPRESSED;
    [&header.to_le_bytes()[..3], text].concat()
}

#[test]
fn what_came_out_of_a_declared_encoding_before_its_damage_is_looked_at_however_it_is_cut() {
    let text = format!("key: {} and words\n", token());
    let mut encoder = flate2::Compress::new(flate2::Compression::default(), false);
    let mut body = Vec::with_capacity(1000);
    encoder.compress_vec(text.as_bytes(), &mut body, flate2::FlushCompress::Sync).unwrap();
    // A kind of block follows that there is not.
    let (deflated, reserved) = ([&body[..], &[0xff; 40]].concat(), [0x0e; 40]);
    let block = (u32::try_from(text.len()).unwrap() << 3).to_le_bytes();
    let frame = [b"\x28\xb5\x2f\xfd\0\x68", &block[..3], text.as_bytes(), &[0x07; 40]].concat();
    for (encoding, damaged) in [
        (Encoding::Gzip, [&gzip(b"first")[..], &gzip(b"")[..10], &deflated].concat()),
        (Encoding::Deflate, deflated.clone()),
        (Encoding::Zstd, frame),
        (Encoding::Brotli, [&brotli_block(text.as_bytes())[..], &reserved].concat()),
    ] {
        let report = |size: usize| {
            let mut scanner = Scanner::new(Rules::builtin(), None, Bounds::default()).encoded(encoding);
            damaged.chunks(size).for_each(|piece| scanner.feed(piece));
            scanner.finish()
        };
        let whole = report(damaged.len());
        assert_eq!(whole.uninspectable, Some(Uninspectable::Damaged), "{encoding:?}");
        assert_eq!(whole.findings.len(), 1, "{encoding:?}");
        for size in [1, 3, 17, 50] {
            let pieces = report(size);
            assert_eq!(
                (pieces.uninspectable, pieces.findings.len()),
                (whole.uninspectable, 1),
                "{encoding:?} by {size}"
            );
        }
    }
}

#[test]
fn damage_anywhere_says_the_same_however_it_is_cut() {
    let text = format!("{}key: {} and words\n", "some text before\n".repeat(8), token());
    for packed in [
        gzip(text.as_bytes()),
        zlib(text.as_bytes()),
        zstd(text.as_bytes()),
        zip_member(0, 8, &deflate(text.as_bytes())),
    ] {
        for at in 0..packed.len() {
            for flipped in [1, 0x80, 0xff] {
                let mut input = [&packed[..], &zstd(text.as_bytes())].concat();
                input[at] ^= flipped;
                let found = scan_both_ways(&input).findings;
                assert!(found.iter().any(|one| one.offset == packed.len()), "{flipped} at {at}");
            }
        }
    }
    // Damage in a later block, of which the first has more than comes out at once.
    let lines: String =
        (0..30_000_u64).map(|n| format!("{:x}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    let text = format!("key: {} and words\n{lines}", token());
    for mut packed in [gzip(text.as_bytes()), zstd(text.as_bytes())] {
        let end = packed.len();
        packed[end - 20_000..end - 19_000].fill(0xff);
        let whole = scan_in_pieces([&packed[..]]);
        assert!(whole.findings.iter().any(|one| !one.through.is_nothing()), "{whole:?}");
        for size in [100, 1001, 16 * 1024] {
            assert_eq!(scan_in_pieces(packed.chunks(size)), whole, "{size}");
        }
    }
}

/// A Zstandard frame of one block that is not compressed, behind this header.
fn zstd_frame(header: &[u8], text: &[u8]) -> Vec<u8> {
    let block = u32::try_from(text.len()).unwrap() << 3 | 1;
    [b"\x28\xb5\x2f\xfd", header, &block.to_le_bytes()[..3], text].concat()
}

/// A window of 8 MiB, as the header of a Zstandard frame has it; one more is 9 MiB.
pub(super) const WINDOW_MAX: u8 = 13 << 3;

#[test]
fn a_sound_zstandard_frame_that_is_not_undone_here_cannot_be_inspected() {
    let text = format!("key: {} and words\n", token());
    let report = |header: &[u8]| {
        scan_both_ways(&[b"before ", &zstd_frame(header, text.as_bytes())[..], b" behind"].concat())
    };
    let whole = report(&[0, WINDOW_MAX]);
    assert_eq!(whole.uninspectable, None);
    assert!(whole.findings.iter().any(|one| one.through.to_string() == "zstd"), "{whole:?}");
    let gibibyte = (1_u32 << 30).to_le_bytes();
    let closed: [&[u8]; 6] = [
        &[0, WINDOW_MAX + 1],
        &[0, 17 << 3],
        &[4, 21 << 3],
        &[1, 0x50, 7],
        &[3, 0x50, 7, 0, 0, 0],
        &[&[0xa0][..], &gibibyte].concat(),
    ];
    for header in closed {
        assert_eq!(report(header).uninspectable, Some(Uninspectable::Encoding), "{header:x?}");
    }
    // What no encoder writes is no frame: the number stands in programs too.
    for header in [[8, 0x50], [0x74, 0x50], [0x75, 7]] {
        assert_eq!(report(&header).uninspectable, None, "{header:x?}");
    }
}

#[test]
fn a_window_that_takes_more_memory_than_is_given_cannot_be_inspected() {
    let text = format!("key: {} and words\n", token());
    let encoded = |encoding: Encoding, body: &[u8]| {
        let mut scanner = Scanner::new(Rules::builtin(), None, Bounds::default()).encoded(encoding);
        scanner.feed(body);
        let report = scanner.finish();
        (report.uninspectable, report.findings.len())
    };
    let frame = |window: u8, content: &[u8]| zstd_frame(&[0, window], content);
    assert_eq!(encoded(Encoding::Zstd, &frame(WINDOW_MAX, text.as_bytes())), (None, 1));
    let larger = encoded(Encoding::Zstd, &frame(WINDOW_MAX + 1, text.as_bytes()));
    assert_eq!(larger.0, Some(Uninspectable::Encoding));
    // Also the innermost of several.
    let nested =
        |window: u8| (0..3).fold(frame(window, text.as_bytes()), |inner, _| frame(WINDOW_MAX, &inner));
    assert_eq!(encoded(Encoding::Zstd, &nested(WINDOW_MAX)).0, None);
    assert_eq!(encoded(Encoding::Zstd, &nested(17 << 3)).0, Some(Uninspectable::Encoding));

    const LAST: u8 = 3;
    let brotli = [&brotli_block(text.as_bytes())[..], &[LAST]].concat();
    assert_eq!(encoded(Encoding::Brotli, &brotli), (None, 1));
    // The same with a window of 1 GiB, which no RFC knows.
    let header = 0x11 | 30 << 8 | (text.len() as u64 - 1) << 17 | 1 << 33;
    let large = [&header.to_le_bytes()[..5], text.as_bytes(), &[LAST]].concat();
    assert_eq!(encoded(Encoding::Brotli, &large), (Some(Uninspectable::Damaged), 0));
}

#[test]
fn more_false_starts_than_are_followed_cannot_be_inspected() {
    let text = format!("key: {} and words\n", token());
    for (count, uninspectable) in
        [(7, None), (8, Some(Uninspectable::Depth)), (500, Some(Uninspectable::Depth))]
    {
        let input = [gzip_with_extra(u16::MAX).repeat(count), zstd(text.as_bytes())].concat();
        let report = scan_both_ways(&input);
        assert_eq!(report.uninspectable, uninspectable, "{count}");
        assert_eq!(report.findings.iter().any(|one| one.through.to_string() == "zstd"), count < 8);
    }
    // Those that end make room for others.
    let input = [[gzip_with_extra(1), vec![7; 40]].concat().repeat(500), zstd(text.as_bytes())].concat();
    let report = scan_both_ways(&input);
    assert_eq!(report.uninspectable, None);
    assert!(report.findings.iter().any(|one| one.through.to_string() == "zstd"));
}
