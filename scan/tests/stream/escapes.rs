//! Known secrets in the escapes of URLs, JSON and HTML.

use std::sync::Arc;

use proptest::prelude::*;
use scan::{Known, Scrubber};

use crate::percent;

/// A secret with a space, a character of two bytes and one that JSON writes in two halves.
const WIDE: &str = "kV9 xQ\u{e9}2mZ+7p\u{1f600}L4wR8tY1uN6";

#[test]
fn spaces_letters_beyond_ascii_and_names_of_headers_are_masked_however_they_are_cut() {
    let coded = |write: fn(u16) -> String| -> String {
        let units = WIDE
            .encode_utf16()
            .map(|unit| if unit < 128 { char::from(unit as u8).to_string() } else { write(unit) });
        units.collect()
    };
    let form = percent(WIDE.as_bytes()).replace("%20", "+");
    let forms = [
        WIDE.to_owned(),
        WIDE.to_ascii_lowercase(),
        form,
        WIDE.replace('+', "%2B").replace(' ', "+"),
        coded(|unit| format!("\\u{unit:04x}")),
        coded(|unit| format!("\\\\u{unit:04X}")),
        WIDE.replace('\u{e9}', "&#233;").replace('\u{1f600}', "&#x1f600;"),
    ];
    let mut known = Known::default();
    known.add(WIDE.as_bytes()).unwrap();
    let known = Arc::new(known);
    for form in forms {
        let text = format!("a+b \\ud83d {form} + \\u00e9 c");
        for size in 1..=text.len() {
            let mut scrubber = Scrubber::new(Arc::clone(&known));
            let mut out = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                out.extend(scrubber.feed(piece).unwrap_or_else(|| piece.to_vec()));
            }
            out.extend(scrubber.finish());
            let masked = format!("a+b \\ud83d {} + \\u00e9 c", "*".repeat(form.len()));
            assert_eq!(String::from_utf8_lossy(&out), masked, "{form} in pieces of {size}");
        }
    }
}

#[test]
fn what_json_escapes_is_masked_in_a_url_too_however_it_is_cut() {
    // Each as JSON has it; a URL has the backslash in two ways, and percent signs of its own.
    let cases = [
        ("kV9/xQ+2mZ=7pL4&wR8\"tY1%uN6", r#"kV9\/xQ+2mZ=7pL4&wR8\"tY1%uN6"#),
        (r"CORP\robert:kV9xQ2mZ\\7pL4", r"CORP\\robert:kV9xQ2mZ\\\\7pL4"),
        ("\"kV9xQ2mZ7pL4wR8tY1uN6\n", r#"\"kV9xQ2mZ7pL4wR8tY1uN6\n"#),
        ("kV9xQ2mZ7pL4\"wR8/tY1uN6", r"kV9xQ2mZ7pL4\u0022wR8\u002ftY1uN6"),
    ];
    for (secret, json) in cases {
        let mut known = Known::default();
        known.add(secret.as_bytes()).unwrap();
        let known = Arc::new(known);
        let some = |text: &str| -> String {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:=&".contains(&byte);
            text.bytes()
                .map(|byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02x}") })
                .collect()
        };
        for form in [percent(json.as_bytes()), some(json), percent(json.as_bytes()).replace('%', "%25")] {
            let text = format!("q=%5C%22 {form} %5C");
            let masked = format!("q=%5C%22 {} %5C", "*".repeat(form.len()));
            for size in 1..=text.len() {
                let mut scrubber = Scrubber::new(Arc::clone(&known));
                let mut out = Vec::new();
                for piece in text.as_bytes().chunks(size) {
                    out.extend(scrubber.feed(piece).unwrap_or_else(|| piece.to_vec()));
                }
                out.extend(scrubber.finish());
                assert_eq!(String::from_utf8_lossy(&out), masked, "{form} in pieces of {size}");
            }
        }
    }
}

/// As JSON has it, with the short escapes.
fn short_json(text: &str) -> String {
    let escapes = [
        ("\\", "\\\\"),
        ("\"", "\\\""),
        ("\n", "\\n"),
        ("\r", "\\r"),
        ("\t", "\\t"),
        ("\u{8}", "\\b"),
        ("\u{c}", "\\f"),
    ];
    escapes.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn long_json(text: &str) -> String {
    let written = |char: char| {
        if char.is_ascii_alphanumeric() { char.to_string() } else { format!("\\u{:04x}", u32::from(char)) }
    };
    text.chars().map(written).collect()
}

fn escaped_forms(secret: &str) -> Vec<String> {
    let json = short_json(secret);
    let url = |text: &str| text.replace('%', "%25").replace('\\', "%5C").replace('"', "%22");
    vec![
        secret.to_owned(),
        short_json(&json),
        short_json(&short_json(&json)),
        json.replace('/', "\\/"),
        short_json(&json.replace('/', "\\/")),
        long_json(secret),
        short_json(&long_json(secret)),
        url(secret),
        url(&url(secret)),
        percent(secret.as_bytes()),
        secret.replace('&', "&amp;").replace('"', "&quot;"),
        json,
    ]
}

/// Fails unless each form is masked, it alone and all of it, whole and cut after each `size` bytes.
fn each_form_is_masked(secret: &str, size: usize) {
    let mut known = Known::default();
    known.add(secret.as_bytes()).unwrap();
    let known = Arc::new(known);
    for form in escaped_forms(secret) {
        let text = format!("\\t {{\"a\":\"{form}\",\"b\":\"\\\\\"}}");
        let masked = text.replacen(&form, &"*".repeat(form.len()), 1);
        for size in [size, text.len()] {
            let mut scrubber = Scrubber::new(Arc::clone(&known));
            let mut out = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                out.extend(scrubber.feed(piece).unwrap_or_else(|| piece.to_vec()));
            }
            out.extend(scrubber.finish());
            assert_eq!(String::from_utf8_lossy(&out), masked, "{secret:?} as {form} in pieces of {size}");
        }
    }
}

#[test]
fn secrets_with_backslashes_and_control_characters_are_masked_as_json_has_them() {
    for secret in [
        "CORP\\robert:Qm7vX2kL9pR4",
        "C:\\new\\Qm7vX2kL9pR4tab",
        "Qm7v\tX2kL\u{c}9pR4\u{8}wN6z",
        "Qm7vX2kL9pR4wN6z\"\\x",
        "\\\\share\\utf\\Qm7vX2kL9pR4",
        "\\\"\n\\n\r\\rQm7vX2kL9pR4\\",
        "\tQm7vX2kL9\\\tpR4\\\\",
        "Qm7v%25X2kL%419p&amp;R4wN6z",
    ] {
        for size in 1..20 {
            each_form_is_masked(secret, size);
        }
    }
}

proptest! {
    #[test]
    fn whatever_stands_behind_a_backslash_a_secret_is_masked(
        parts in prop::collection::vec("[\\\\]{1,3}|[\\\\]?[nrtbfux/\"']|[\\\\]?[\n\r\t\u{8}\u{c}]|%|%25|&|u005c|x5c|[a-zA-Z0-9]{1,3}", 0..12),
        behind in prop::collection::vec("[\\\\]{1,3}|[nrtbfux/\"']|[\n\r\t\u{8}\u{c}]", 0..4),
        size in 1_usize..12,
    ) {
        each_form_is_masked(&format!("{}Qm7vX2kL9pR4wN6z{}", parts.concat(), behind.concat()), size);
    }
}

/// With runs of backslashes where a form of it begins, in its middle and at its end.
const SLASHED: &str = "\\\\n\\\tQm7vX2\\\\\\u005c%25kL9pR4\\";

proptest! {
    #[test]
    fn a_run_of_backslashes_is_read_the_same_however_it_is_cut(
        parts in prop::collection::vec(
            prop_oneof![
                (0..escaped_forms(SLASHED).len(), 0_usize..80, 0_usize..80).prop_map(|(form, from, to)| {
                    let form = &escaped_forms(SLASHED)[form];
                    let (from, to) = (from.min(form.len()), to.min(form.len()));
                    form[if from < 40 { 0 } else { from.min(to) }..to].to_owned()
                }),
                prop::sample::select(escaped_forms(SLASHED)),
                "[\\\\]{1,20}[ntu%]?",
            ],
            1..8
        ),
        size in 1_usize..30,
    ) {
        let input = parts.concat().into_bytes();
        let mut known = Known::default();
        known.add(SLASHED.as_bytes()).unwrap();
        let known = Arc::new(known);
        let mut scrubber = Scrubber::new(Arc::clone(&known));
        let mut out = Vec::new();
        for piece in input.chunks(size) {
            out.extend(scrubber.feed(piece).unwrap_or_else(|| piece.to_vec()));
        }
        out.extend(scrubber.finish());
        let whole = Scrubber::new(known).whole(&input).unwrap_or_else(|| input.clone());
        prop_assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&whole));
    }
}
