//! The scanner as a stream: what hides a secret, how the input is cut, and where it stops.
#![allow(clippy::unwrap_used)]

mod budget;
mod escapes;
mod lines;
mod packed;
mod written;

use std::io::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use scan::{Bounds, Encoding, Known, KnownError, Report, Rules, Scanner, Scrubber, Uninspectable};

/// A secret, made at run time so that no scanner trips over this file.
fn token() -> String {
    format!("glpat{}q8Zr2LkT0vWcN5mYx1Jd", "-")
}

const VALUE: &str = "kV9/xQ+2mZ=7pL4&wR8\"tY1%uN6";

fn known() -> Arc<Known> {
    let mut known = Known::default();
    known.add(VALUE.as_bytes()).unwrap();
    Arc::new(known)
}

fn scan_in_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Report {
    let mut scanner = Scanner::new(Rules::builtin(), Some(known()), Bounds::default());
    pieces.into_iter().for_each(|piece| scanner.feed(piece));
    scanner.finish()
}

fn rules_and_ways(input: &[u8]) -> Vec<(&'static str, String)> {
    let report = scan_in_pieces([input]);
    assert_eq!(report.uninspectable, None);
    report.findings.into_iter().map(|finding| (finding.rule, finding.through.to_string())).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).unwrap()
}

/// One member of a zip archive, as a stream has it.
fn zip_member(flags: u16, method: u16, data: &[u8]) -> Vec<u8> {
    let name = b"notes.txt";
    let mut member = b"PK\x03\x04\x14\x00".to_vec();
    member.extend(flags.to_le_bytes());
    member.extend(method.to_le_bytes());
    member.extend([0; 8]);
    member.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    member.extend([0; 4]);
    member.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
    member.extend([0; 2]);
    member.extend(name);
    member.extend(data);
    member
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn percent(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02X}")).collect()
}

#[test]
fn a_secret_is_seen_through_each_coding_and_not_without_it() {
    let text = format!("{}key: {}\nand after it\n", "some text before\n".repeat(8), token());
    let base64 = STANDARD.encode(&text);
    let wrapped: String = base64
        .as_bytes()
        .chunks(60)
        .map(|line| format!("  {}\n", std::str::from_utf8(line).unwrap()))
        .collect();
    // So many that they are not stored as they are: then they would be seen without the one around.
    let many = gzip(text.as_bytes()).repeat(20);
    let tar_like = [&[b'x'; 512][..], &gzip(text.as_bytes()), &[0; 512]].concat();
    for (way, input) in [
        ("base64", format!("data: {base64}\n").into_bytes()),
        ("base64", format!("data: {}\n", URL_SAFE_NO_PAD.encode(&text)).into_bytes()),
        ("base64", format!("path/a{base64}").into_bytes()),
        ("base64", format!("path/ab{base64}").into_bytes()),
        ("base64", format!("path/abc{base64}").into_bytes()),
        ("base64", format!("data: |\n{wrapped}end").into_bytes()),
        ("base64/base64", STANDARD.encode(&base64).into_bytes()),
        ("hex", format!("x = '{}'", hex(text.as_bytes())).into_bytes()),
        ("percent", format!("q={}&a=b", percent(text.as_bytes())).into_bytes()),
        ("percent/percent", format!("q={}", percent(percent(text.as_bytes()).as_bytes())).into_bytes()),
        ("gzip", gzip(text.as_bytes())),
        ("gzip/gzip", gzip(&gzip(text.as_bytes()))),
        ("gzip", tar_like),
        ("deflate", zlib(text.as_bytes())),
        ("zstd", zstd(text.as_bytes())),
        ("zip", zip_member(8, 8, &deflate(text.as_bytes()))),
        ("base64/gzip", STANDARD.encode(gzip(text.as_bytes())).into_bytes()),
        ("base64/zip/gzip", STANDARD.encode(zip_member(0, 8, &deflate(&many))).into_bytes()),
        ("gzip/utf-16", gzip(&text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>())),
    ] {
        // Short texts may stand in compressed data as they are.
        let seen = rules_and_ways(&input);
        assert!(seen.contains(&("gitlab-pat", way.to_owned())), "{way}: {seen:?}");
    }
    // The same carriers without the secret.
    for input in [
        base64.replace("Z2xwYXQ", "Z2xwYXI").into_bytes(),
        gzip(b"nothing"),
        zip_member(0, 8, &deflate(b"x")),
    ] {
        assert_eq!(rules_and_ways(&input), []);
    }
}

#[test]
fn a_declared_encoding_is_undone_and_must_be_true() {
    let text = format!("key: {}\n", token());
    for (encoding, bytes) in [
        (Encoding::Gzip, [gzip(b"first"), gzip(text.as_bytes())].concat()),
        (Encoding::Deflate, zlib(text.as_bytes())),
        (Encoding::Deflate, deflate(text.as_bytes())),
        (Encoding::Zstd, zstd(text.as_bytes())),
    ] {
        for size in [1, 7, 1000] {
            let mut scanner = Scanner::new(Rules::builtin(), None, Bounds::default()).encoded(encoding);
            bytes.chunks(size).for_each(|piece| scanner.feed(piece));
            let report = scanner.finish();
            assert_eq!(report.uninspectable, None, "{encoding:?}");
            assert_eq!(report.findings.len(), 1, "{encoding:?} in pieces of {size}");
        }
        for damaged in [
            &bytes[..bytes.len() / 2],
            b"plain text, which it is not, whatever was said",
            &[&bytes[..], b"more"].concat(),
        ] {
            let mut scanner = Scanner::new(Rules::builtin(), None, Bounds::default()).encoded(encoding);
            scanner.feed(damaged);
            assert_eq!(scanner.finish().uninspectable, Some(Uninspectable::Damaged), "{encoding:?}");
        }
    }
}

#[test]
fn what_cannot_be_looked_into_is_said() {
    let bomb = gzip(&vec![0; 64 << 20]);
    let deep = (0..8).fold(b"text".to_vec(), |inner, _| gzip(&inner));
    for (reason, input) in [
        (Uninspectable::Encrypted, zip_member(1, 8, b"????????????????")),
        (Uninspectable::Archive, zip_member(0, 14, b"????????????????")),
        (Uninspectable::Archive, b"7z\xbc\xaf\x27\x1c and so on".to_vec()),
        (Uninspectable::Size, bomb),
        (Uninspectable::Depth, deep),
    ] {
        assert_eq!(scan_in_pieces([&input[..]]).uninspectable, Some(reason));
    }
    assert_eq!(scan_in_pieces([&gzip(&vec![0; 1 << 20])[..]]).uninspectable, None);
}

/// Every common way to write the value down.
fn forms() -> Vec<String> {
    let json = serde_like_json(VALUE);
    let mut forms = vec![
        VALUE.to_owned(),
        percent(VALUE.as_bytes()),
        percent(VALUE.as_bytes()).to_lowercase(),
        VALUE.replace('%', "%25").replace('/', "%2F").replace('+', "%2B").replace('"', "%22"),
        json.clone(),
        json.replace('/', "\\/"),
        json.replace('&', "\\u0026").replace('=', "\\u003d"),
        serde_like_json(&json),
        VALUE.replace('&', "&amp;").replace('"', "&quot;"),
        VALUE.replace('&', "&#38;").replace('"', "&#x22;"),
        hex(VALUE.as_bytes()),
        hex(VALUE.as_bytes()).to_uppercase(),
        STANDARD.encode(STANDARD.encode(VALUE)),
    ];
    for before in ["", "a", "ab"] {
        forms.push(STANDARD.encode(format!("{before}{VALUE} after")));
        forms.push(URL_SAFE_NO_PAD.encode(format!("{before}{VALUE} after")));
        forms.push(percent(STANDARD.encode(format!("{before}{VALUE} after")).as_bytes()));
    }
    let encoded = STANDARD.encode(format!("user:{VALUE}"));
    forms.push(format!("{}\r\n{}", &encoded[..20], &encoded[20..]));
    forms
}

fn serde_like_json(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// What of the secret is left in a text, read in each way.
fn shows_secret(text: &[u8]) -> bool {
    let mut scanner = Scanner::new(None, Some(known()), Bounds::default());
    scanner.feed(text);
    !scanner.finish().findings.is_empty()
        || text.windows(VALUE.len()).any(|window| window == VALUE.as_bytes())
}

#[test]
fn every_form_of_a_known_secret_is_masked_however_it_is_cut() {
    for form in forms() {
        let text = format!("before \\% & {form} after & \\");
        assert!(shows_secret(text.as_bytes()), "{form}");
        for size in 1..text.len() {
            let mut scrubber = Scrubber::new(known());
            let mut out = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                out.extend(scrubber.feed(piece).unwrap_or_else(|| piece.to_vec()));
            }
            out.extend(scrubber.finish());
            assert_eq!(out.len(), text.len(), "{form}");
            assert_eq!(scrubber.hits(), 1, "{form} in pieces of {size}");
            assert!(out.starts_with(b"before \\% & ") && out.ends_with(b" after & \\") || form.len() > 36);
            assert!(!shows_secret(&out), "{form} in pieces of {size}: {}", String::from_utf8_lossy(&out));
        }
    }
}

#[test]
fn what_becomes_known_while_a_beginning_is_held_is_masked_and_what_was_known_stays_so() {
    let (old, new) = ("q8Zr2LkT0vWcN5mYx1Jd", "q8Zr7Xr5TqLw9vBn2KcPd7sHf");
    let mut known = Known::default();
    known.add(old.as_bytes()).unwrap();
    let before = Arc::new(known.clone());
    known.add(new.as_bytes()).unwrap();
    let after = Arc::new(known);
    // Of both, and of one.
    for (secret, held) in [(old, 3), (new, 4), (old, 9)] {
        let text = format!("-{secret}-");
        let mut scrubber = Scrubber::new(Arc::clone(&before));
        let mut out = scrubber.feed(&text.as_bytes()[..=held]).unwrap();
        assert_eq!(scrubber.held(), held);
        scrubber.look_for(Arc::clone(&after));
        out.extend(scrubber.feed(&text.as_bytes()[held + 1..]).unwrap());
        out.extend(scrubber.finish());
        assert_eq!(String::from_utf8(out).unwrap(), format!("-{}-", "*".repeat(secret.len())));

        let mut scanner = Scanner::new(None, Some(Arc::clone(&before)), Bounds::default());
        scanner.feed(&text.as_bytes()[..=held]);
        scanner.look_for(Arc::clone(&after));
        scanner.feed(&text.as_bytes()[held + 1..]);
        assert_eq!(scanner.finish().findings.len(), 1);
    }
}

#[test]
fn no_run_of_line_ends_is_waited_through() {
    let starts: Vec<u8> = (b'!'..=b'~').collect();
    for ends in ["\r", "\n", "\r\n", "\n\r", "\\r", "%0d", "%0D%0A"] {
        let mut scrubber = Scrubber::new(known());
        for start in &starts {
            let piece = [&[*start][..], ends.repeat(1000).as_bytes()].concat();
            scrubber.feed(&piece);
            assert!(scrubber.held() < 100, "{ends:?} after {:?}: {}", char::from(*start), scrubber.held());
        }
    }
}

#[test]
fn what_everybody_knows_of_a_token_is_no_guess_and_what_follows_it_is() {
    let random = "q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe";
    for prefix in ["sk-ant-api03-", "github_pat_", "glpat-", "sk_live_", ""] {
        let mut known = Known::default();
        known.add(format!("{prefix}{random}").as_bytes()).unwrap();
        let known = Arc::new(known);
        let hits = |guess: String| {
            let mut scrubber = Scrubber::new(Arc::clone(&known));
            scrubber.feed(guess.as_bytes());
            scrubber.finish();
            scrubber.hits()
        };
        for write in [|text: &str| text.to_owned(), |text: &str| hex(text.as_bytes())] {
            assert_eq!(hits(write(prefix)), 0, "{prefix}");
            assert_eq!(hits(write(&format!("{prefix}{}", &random[..2]))), 0, "{prefix}");
            assert_eq!(hits(write(&format!("{prefix}{}", &random[..6]))), 250, "{prefix}");
        }
        assert_eq!(hits(STANDARD.encode(prefix)), 0, "{prefix}");
        let begun = format!("{prefix}{}", &random[..9]);
        // The last character of a group that is not whole says less than the secret's does.
        let whole = STANDARD.encode(&begun)[..begun.len() * 8 / 6].to_owned();
        assert_eq!(hits(whole), 250, "{prefix}");
    }
}

#[test]
fn a_beginning_of_what_is_no_longer_looked_for_is_no_guess() {
    let known_by = |secret: &str| {
        let mut known = Known::default();
        known.add(secret.as_bytes()).unwrap();
        Arc::new(known)
    };
    let (old, new) = ("q8Zr2LkT0vWcN5mYx1Jd", "B7sHfG3aPeB7sHfG3aPe");
    for (renewed, hits) in [(new, 0), (old, 250)] {
        let mut scrubber = Scrubber::new(known_by(old));
        scrubber.feed(format!("-{}", &old[..9]).as_bytes());
        scrubber.look_for(known_by(renewed));
        assert_eq!(scrubber.feed(b"!").unwrap(), format!("{}!", &old[..9]).as_bytes());
        assert_eq!(scrubber.hits(), hits, "{renewed}");
    }
}

#[test]
fn only_the_beginning_of_a_secret_waits() {
    let mut scrubber = Scrubber::new(known());
    assert_eq!(scrubber.feed(b"data: {\"text\":\"hello\"}\n\n"), None);
    assert_eq!(scrubber.feed(b"data: kV9").unwrap(), b"data: ");
    assert_eq!(scrubber.feed(b"X\n").unwrap(), b"kV9X\n");
    assert_eq!(scrubber.hits(), 0);
}

#[test]
fn a_value_that_is_short_or_plain_is_not_looked_for() {
    let mut known = Known::default();
    assert_eq!(known.add(b"short"), Err(KnownError::Short(5)));
    assert_eq!(known.add(b"aaaaaaaaaaaaaaaaaaaaaaaa"), Err(KnownError::Plain));
    assert_eq!(known.add(&[b'x'; 9000]), Err(KnownError::Long(9000)));
    assert!(known.is_empty());
}

#[test]
fn what_is_held_back_is_enough_that_no_secret_goes_out_in_pieces() {
    let key = format!(
        "-----BEGIN PRIVATE {}-----\n{}\n{}\n",
        "KEY", "q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPeq8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe1234", "x"
    );
    for secret in [
        token(),
        VALUE.to_owned(),
        STANDARD.encode(format!("a {} z", token())),
        percent(token().as_bytes()),
        key,
    ] {
        let text = format!("{{\"a\":\"{secret}\"}}\n");
        let mut scanner = Scanner::new(Rules::builtin(), Some(known()), Bounds::default());
        let mut released = 0;
        for (at, byte) in text.as_bytes().iter().enumerate() {
            scanner.feed(&[*byte]);
            if scanner.found().is_some() {
                break;
            }
            released = released.max(at + 1 - usize::try_from(scanner.held()).unwrap());
        }
        scanner.end();
        assert!(scanner.found().is_some(), "{secret}");
        let out = released.saturating_sub(6);
        assert!(out < secret.len() / 2, "{out} of {} bytes of {secret} went out", secret.len());
    }
}

/// What went out before the secret was found that comes byte by byte, or was cut in two here.
fn out_of(secret: &str, cut: Option<usize>) -> usize {
    let text = format!("{{\"a\":\"{secret}\"}}\n");
    let mut scanner = Scanner::new(Rules::builtin(), None, Bounds::default());
    let pieces: Vec<&[u8]> = match cut {
        Some(cut) => [text.as_bytes().split_at(6 + cut)].iter().flat_map(|(a, b)| [*a, *b]).collect(),
        None => text.as_bytes().chunks(1).collect(),
    };
    let (mut fed, mut released) = (0, 0);
    for piece in pieces {
        scanner.feed(piece);
        fed += piece.len();
        if scanner.found().is_some() {
            break;
        }
        released = released.max(fed - usize::try_from(scanner.held()).unwrap());
    }
    scanner.end();
    assert!(scanner.found().is_some(), "{secret}");
    released.saturating_sub(6)
}

#[test]
fn what_stands_before_the_keyword_of_a_secret_waits_for_it() {
    const RUN: &str = "q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe4zU6oKiQ9wE";
    let run = RUN.repeat(3);
    for (secret, before) in [
        (format!("{}AZ{}{}", &run[..76], "DO", &run[..4]), 76),
        (format!("{}{}{}", &run[..14], ".atlasv1.", &run[..64]), 14),
        (format!("7123456789{}A{}", ":A", &run[..33]), 10),
        (format!("{}-us12", hex(&RUN.as_bytes()[..16])), 32),
    ] {
        for cut in 8..secret.len() {
            assert_eq!(out_of(&secret, Some(cut)), 0, "{secret} cut at {cut}");
        }
        assert!(out_of(&secret, None) < 8, "{secret} of which {before} bytes are before the keyword");
    }
}

#[test]
fn no_more_than_a_word_waits_for_a_keyword_behind_it() {
    let held = |text: &str| {
        let mut scanner = Scanner::new(Rules::builtin(), None, Bounds::default());
        scanner.feed(text.as_bytes());
        scanner.held()
    };
    for text in ["a short word", "configuration ", "configuration.", "configuration:", "configuration-u"] {
        assert_eq!(held(text), 0, "{text}");
    }
    assert_eq!(held("the configuration"), 13);
    assert_eq!(held(&"deadbeef".repeat(8)), 64);
    assert_eq!(held(&format!("{}=", "q8Zr2LkT0vWcN5mY".repeat(1000))), 0);
}

#[test]
fn ordinary_messages_are_not_held_back() {
    for text in ["{\"role\":\"user\",\"content\":\"hi\"}\n", "data: x\n\n", "a line of text.\n", "}"] {
        let mut scanner = Scanner::new(Rules::builtin(), Some(known()), Bounds::default());
        scanner.feed(text.as_bytes());
        assert_eq!(scanner.held(), 0, "{text}");
    }
}

/// Parts that mean something to some decoder or rule.
fn part() -> impl Strategy<Value = Vec<u8>> {
    let text = format!("key: {} and words\n", token());
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let fixed = vec![
        text.clone().into_bytes(),
        STANDARD.encode(&text).into_bytes(),
        STANDARD.encode(STANDARD.encode(&text)).into_bytes(),
        hex(text.as_bytes()).into_bytes(),
        percent(text.as_bytes()).into_bytes(),
        gzip(text.as_bytes()),
        zstd(text.as_bytes()),
        zip_member(0, 8, &deflate(text.as_bytes())),
        wide,
        VALUE.as_bytes().to_vec(),
        STANDARD.encode(VALUE).into_bytes(),
        b"-----BEGIN PRIVATE KEY-----\n".to_vec(),
        b"q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPeq8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe1234\n".to_vec(),
        b"-----END PRIVATE KEY-----\n".to_vec(),
        b"secret_token = \"".to_vec(),
        b"eyJ".to_vec(),
        b"://user:".to_vec(),
        b"\"\n".to_vec(),
        b"%4".to_vec(),
        b"\\n".to_vec(),
        b"\x1b[1m".to_vec(),
        b" _".to_vec(),
        b"\x12l".to_vec(),
        format!("_{}_", token()).into_bytes(),
        [&b"\nl"[..], format!("sk-{}-api03-{}AA", "ant", "q8Zr2LkT0vWcN5mYx1Jd".repeat(5)).as_bytes()]
            .concat(),
        b"\\".to_vec(),
        b"\0".to_vec(),
        b"PK\x03\x04".to_vec(),
        b"\x1f\x8b\x08".to_vec(),
    ];
    prop_oneof![
        prop::sample::select(fixed),
        prop::collection::vec(any::<u8>(), 0..60),
        "[ a-zA-Z0-9+/=\n]{0,200}".prop_map(String::into_bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_whole_says_the_same_as_any_split(parts in prop::collection::vec(part(), 0..12), cuts in prop::collection::vec(1_usize..300, 1..40)) {
        let input = parts.concat();
        let whole = scan_in_pieces([&input[..]]);
        let mut pieces = Vec::new();
        let mut rest = &input[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        prop_assert_eq!(scan_in_pieces(pieces), whole.clone());
        prop_assert_eq!(scan_in_pieces(input.chunks(1)), whole);
    }

    #[test]
    fn a_scrubbed_stream_is_the_scrubbed_whole(parts in prop::collection::vec(part(), 0..12), size in 1_usize..50) {
        let input = parts.concat();
        let mut scrubber = Scrubber::new(known());
        let mut out = Vec::new();
        for piece in input.chunks(size) {
            out.extend(scrubber.feed(piece).unwrap_or_else(|| piece.to_vec()));
        }
        out.extend(scrubber.finish());
        let whole = Scrubber::new(known()).whole(&input).unwrap_or_else(|| input.clone());
        prop_assert_eq!(out, whole);
    }
}

/// The same report whole and byte by byte.
fn scan_both_ways(input: &[u8]) -> Report {
    let whole = scan_in_pieces([input]);
    assert_eq!(scan_in_pieces(input.chunks(1)), whole, "{input:02x?}");
    whole
}

#[test]
fn a_secret_in_two_pieces_after_a_long_text_is_found_with_its_second() {
    let mut scanner = Scanner::new(Rules::builtin(), None, Bounds::default());
    let start = "harmless text. ".repeat(1000);
    scanner.feed(&start.as_bytes()[..8192]);
    scanner.feed(&start.as_bytes()[8192..]);
    assert_eq!(scanner.held(), 0);
    scanner.feed(&token().as_bytes()[..15]);
    assert_eq!((scanner.found(), scanner.held()), (None, 9));
    scanner.feed(format!("{}\n", &token()[15..]).as_bytes());
    assert_eq!(scanner.found(), Some("gitlab-pat"));
}

#[test]
fn hexadecimal_with_other_characters_behind_it_is_read_however_it_is_cut() {
    let text = format!("\"{}PK\"", hex(token().as_bytes()));
    let whole = scan_in_pieces([text.as_bytes()]);
    assert_eq!(whole.findings.iter().map(|finding| finding.rule).collect::<Vec<_>>(), ["gitlab-pat"]);
    assert_eq!(scan_in_pieces(text.as_bytes().chunks(1)), whole);
}

#[test]
fn hexadecimal_behind_its_mark_is_read_however_it_is_cut() {
    for mark in ["0x", "0X", "\\\\x", "\\x", "x"] {
        for text in ["key: ", "key: 1"] {
            let input = format!("insert {mark}{} into", hex(format!("{text}{}", token()).as_bytes()));
            let whole = scan_both_ways(input.as_bytes());
            let ways: Vec<_> = whole.findings.iter().map(|one| (one.rule, one.through.to_string())).collect();
            let expected = if text.ends_with('1') { vec![] } else { vec![("gitlab-pat", "hex".to_owned())] };
            assert_eq!(ways, expected, "{input}");
        }
    }
}

#[test]
fn base64_in_indented_lines_is_read_as_one_text() {
    let text = format!("{} {} {}", "x".repeat(100), token(), "y".repeat(100));
    let lines = STANDARD.encode(text);
    for indent in [0, 2, 4, 8, 20] {
        let block: String = lines
            .as_bytes()
            .chunks(76)
            .map(|line| format!("{}{}\n", " ".repeat(indent), std::str::from_utf8(line).unwrap()))
            .collect();
        let seen = rules_and_ways(format!("key: |\n{block}other: x\n").as_bytes());
        assert_eq!(seen, [("gitlab-pat", "base64".to_owned())], "{indent}");
    }
}

#[test]
fn what_base64_hides_stands_where_its_first_character_does_however_it_is_cut() {
    let text = format!("key: {} and words\n", token());
    let input = format!("-- {} --", STANDARD.encode(STANDARD.encode(text)));
    for size in [1, 7, 64, 1000] {
        let found = scan_in_pieces(input.as_bytes().chunks(size)).findings;
        assert_eq!(found.iter().map(|one| (one.offset, one.column)).collect::<Vec<_>>(), [(3, 4)], "{size}");
    }
}

#[test]
fn wide_text_between_other_bytes_is_read_however_it_is_cut() {
    let wide = |text: &str| text.bytes().flat_map(|byte| [byte, 0]).collect::<Vec<u8>>();
    let binary = [0xfe_u8, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0x80];
    let text = [&binary[..], &wide("text"), &binary, &wide(&token()), &binary].concat();
    let whole = scan_in_pieces([&text[..]]);
    assert_eq!(whole.findings.iter().map(|finding| finding.rule).collect::<Vec<_>>(), ["gitlab-pat"]);
    for step in 1..12 {
        assert_eq!(scan_in_pieces(text.chunks(step)), whole, "{step}");
    }
}

#[test]
fn of_more_secrets_than_are_kept_no_place_is_told() {
    let spans = |secrets: usize| {
        let mut scanner = Scanner::new(Rules::builtin(), None, Bounds::default());
        scanner.feed(format!("{} ", token()).repeat(secrets).as_bytes());
        scanner.end();
        scanner.found().unwrap();
        scanner.take_spans()
    };
    assert_eq!(spans(4096).unwrap().len(), 4096);
    assert_eq!(spans(4097), None);
}
