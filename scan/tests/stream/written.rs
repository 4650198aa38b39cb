//! Secrets as JSON and forms write them down, with some of their characters escaped.

use proptest::prelude::*;
use scan::{Bounds, Rules, Scanner};

use crate::scan_both_ways;

const RUN: &str = "q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe4zU6oKiQ9wE";

/// Secrets that have characters which somebody escapes, made at run time so that no scanner trips over this file.
fn secrets() -> Vec<(&'static str, String)> {
    let base64 = format!("{}+{}/{}+x/{}", &RUN[..15], &RUN[..20], &RUN[..20], &RUN[..27]);
    let lines = format!("{}+{}/\n", &RUN[..31], &RUN[..31]).repeat(5);
    vec![
        ("azure-storage-key", format!("Account{}{}==", "Key=", &base64[..86])),
        ("aws-secret-access-key", format!("aws_secret_access_{} = {}", "key", &base64[..40])),
        (
            "slack-webhook-url",
            format!(
                "https://hooks.slack{}/services/T0{}/B0{}/{}",
                ".com",
                &RUN[..9],
                &RUN[9..18],
                &RUN[..24]
            ),
        ),
        (
            "azure-sas-signature",
            format!("https://x.blob.test/c?sv=2022&ss=b&si{}{}=", "g=", &RUN.repeat(2)[..43]),
        ),
        ("basic-auth-url", "postgres://admin:q8Zr2LkT0vWcN5mY@db.internal:5432/app".to_owned()),
        ("private-key", format!("-----BEGIN PRIVATE {}-----\n{lines}-----END PRIVATE KEY-----\n", "KEY")),
    ]
}

fn json(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// As PHP has it.
fn slashes(text: &str) -> String {
    json(text).replace('/', "\\/")
}

/// As .NET has it.
fn codes(text: &str) -> String {
    let code = |char: char| match char {
        '+' | '&' | '<' | '>' | '\'' | '`' => format!("\\u{:04X}", u32::from(char)),
        _ => char.to_string(),
    };
    json(text).chars().map(code).collect()
}

/// As Go has it.
fn few_codes(text: &str) -> String {
    json(text).replace('&', "\\u0026").replace('=', "\\u003d")
}

fn form(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b' ' => "+".to_owned(),
        b'-' | b'_' | b'.' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}

fn rules(input: &str) -> Vec<&'static str> {
    scan_both_ways(input.as_bytes()).findings.into_iter().map(|finding| finding.rule).collect()
}

#[test]
fn a_secret_is_found_as_json_and_forms_write_it() {
    let filler = "some words that stand before it, ".repeat(30);
    for (rule, secret) in secrets() {
        for write in
            [slashes, codes, few_codes, |text: &str| json(&slashes(text)), |text: &str| json(&codes(text))]
        {
            let written = write(&secret);
            for input in
                [format!("{{\"k\":\"{written}\"}}"), format!("{{\"k\":\"{filler}{written} {filler}\"}}")]
            {
                assert_eq!(rules(&input), [rule], "{input}");
            }
        }
        for input in [
            format!("k={}", form(&secret)),
            format!("a=1+2&k={}&b=3", form(&format!("{filler}\n{secret}\n{filler}"))),
        ] {
            assert_eq!(rules(&input), [rule], "{input}");
        }
    }
}

#[test]
fn expressions_and_paths_with_such_escapes_hold_no_secret() {
    for text in [
        r#"const url = /^(https?:\/\/)([^:\/]+):([^@\/]+)@(.*)$/;"#,
        r#"{"url":"https:\/\/user:password@example.com\/path","a":"\u003cb\u003e"}"#,
        r#""postgres:\/\/postgres:postgres@localhost\/db""#,
        r#"{"integrity":"sha512-q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPeq8Zr2LkT0vWcN5mYx1JdB7sHfG3a\/e=="}"#,
        r"C:\users\u0026\new",
        "q=a+b%20c+secret+token+of+a+day",
    ] {
        assert_eq!(rules(text), Vec::<&str>::new(), "{text}");
    }
}

#[test]
fn what_stands_as_it_is_beside_an_escape_has_a_place_and_what_is_escaped_has_none() {
    let spans = |input: &str| {
        let mut scanner = Scanner::new(Rules::builtin(), None, Bounds::default());
        scanner.feed(input.as_bytes());
        scanner.end();
        assert!(scanner.found().is_some(), "{input}");
        scanner.take_spans().map(|spans| {
            spans
                .into_iter()
                .map(|span| input[span.start as usize..span.end as usize].to_owned())
                .collect::<Vec<_>>()
        })
    };
    let token = crate::token();
    for beside in ["https:\\/\\/a.test ", "%20a+b ", "a%20", "\\u0026"] {
        let spans = spans(&format!("{{\"a\":\"{beside}{token}\"}}")).unwrap();
        assert!(spans.iter().all(|span| *span == token), "{beside}: {spans:?}");
    }
    for (_, secret) in &secrets()[..2] {
        assert_eq!(spans(&slashes(secret)), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_escaped_is_read_the_same_however_it_is_cut(
        parts in prop::collection::vec(
            prop_oneof![
                prop::sample::select(secrets()).prop_map(|(_, secret)| slashes(&secret)),
                prop::sample::select(secrets()).prop_map(|(_, secret)| codes(&secret)),
                prop::sample::select(secrets()).prop_map(|(_, secret)| form(&secret)),
                "[\\\\]{1,12}[/u]?(0[0-9a-f]{0,3})?",
                "[%+\\\\/a-zA-Z0-9\" ]{0,300}",
                "[a-z]{200,700}",
            ],
            0..8
        ),
        size in 1_usize..400,
    ) {
        let input = parts.concat();
        let report = |size: usize| {
            let mut scanner = Scanner::new(Rules::builtin(), None, Bounds::default());
            input.as_bytes().chunks(size).for_each(|piece| scanner.feed(piece));
            scanner.finish()
        };
        let whole = report(input.len().max(1));
        prop_assert_eq!(report(size), whole.clone());
        prop_assert_eq!(report(1), whole);
    }
}
