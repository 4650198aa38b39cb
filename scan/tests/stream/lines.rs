//! Known secrets of several lines, as others put them under each other.

use std::sync::Arc;

use scan::{Known, Scrubber};

const RUN: &str = "q8Zr2LkT0vWcN5mYx1JdB7sHfG3aPe4zU6oKiQ9wE";

/// The lines of a key, made at run time so that no scanner trips over this file.
fn body() -> Vec<String> {
    let line = |turn: usize| format!("{}{}{}", &RUN[turn..], &RUN[..turn], &RUN[turn..turn + 23]);
    vec![line(1), line(5), line(9), RUN[10..24].to_owned() + "=="]
}

fn pem(body: &[String], end: &str) -> String {
    format!("-----BEGIN PRIVATE {}-----{end}{}{end}-----END PRIVATE KEY-----{end}", "KEY", body.join(end))
}

fn masked(text: &str, size: usize) -> String {
    let mut known = Known::default();
    known.add(pem(&body(), "\n").as_bytes()).unwrap();
    let mut scrubber = Scrubber::new(Arc::new(known));
    let mut out = Vec::new();
    for piece in text.as_bytes().chunks(size) {
        out.extend(scrubber.feed(piece).unwrap_or_else(|| piece.to_vec()));
    }
    out.extend(scrubber.finish());
    String::from_utf8(out).unwrap()
}

#[test]
fn no_line_of_a_known_key_is_shown_whatever_stands_between_its_lines() {
    let body = body();
    for text in ["\n", "\r\n", " ", "", "\n    ", "\\n", "\\r\\n", "%0A", "\\\\n"].map(|end| pem(&body, end))
    {
        for size in [1, 3, 50, text.len()] {
            let out = masked(&format!("a {text} b"), size);
            assert!(body.iter().all(|line| !out.contains(line)), "{text:?} in pieces of {size}: {out}");
            assert!(out.starts_with("a ") && out.ends_with(" b"), "{out}");
        }
    }
    // Between others, each by itself; the last one is too short to be told from other text.
    for text in [body.join("<br>\n"), body.join("\", \""), body[1].clone(), body[..3].join(" | ")] {
        for size in [1, 7, text.len()] {
            let out = masked(&format!("a \"{text}\" b"), size);
            assert!(body[..3].iter().all(|line| !out.contains(line)), "{text} in pieces of {size}: {out}");
        }
    }
}

#[test]
fn what_is_no_line_of_a_known_key_stays() {
    let other: Vec<String> = body().iter().map(|line| line.chars().rev().collect()).collect();
    for text in [pem(&other, "\n"), format!("{} {}", &body()[0][..39], &body()[1][1..]), body()[3].clone()] {
        assert_eq!(masked(&text, 5), text);
    }
    let mut known = Known::default();
    let account = "{\n  \"auth_uri\": \"https://accounts.example.com/o/oauth2/auth\",\n  \"key\": \"q8Zr2LkT0vWcN5mYx1Jd\"\n}\n";
    known.add(account.as_bytes()).unwrap();
    let line = account.lines().nth(1).unwrap();
    assert_eq!(Scrubber::new(Arc::new(known)).whole(line.as_bytes()), None);
}
