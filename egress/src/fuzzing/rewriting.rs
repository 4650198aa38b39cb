//! What the replacement of the placeholder makes of any body, query and header.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use policy::{AgentCredentials, Policy};
use serde_json::Value;

use crate::credential::rewrite::Rewriter;
use crate::credential::{self, CREDENTIAL_HEADERS, Placeholder, Secret, percent_decode};
use crate::headers;

/// Stands for a credential in the claims.
const WORD: &str = "placeholder-0123456789";
/// Takes its place; in JSON and in forms it has to be escaped.
const SECRET: &str = "s3\"cr&t/\u{e9}+";
const FIELD: &str = "client_secret";
/// How deep the rewriter follows a document.
const DEPTH_MAX: usize = 64;

const POINTERS: [&[&str]; 3] = [&["auth", "token"], &["list", "1"], &["a/b"]];

/// However a body is cut the same goes out; and it is the same document with the word replaced at its positions alone.
/// The first byte is how it is cut.
pub fn body(bytes: &[u8]) {
    let Some((step, body)) = bytes.split_first() else { return };
    let step = usize::from(*step).max(1);
    let pointers = || POINTERS.iter().map(|tokens| tokens.iter().map(|&token| token.to_owned()).collect());
    let json = || {
        let made = Rewriter::json(pointers().collect(), WORD, SECRET.as_bytes());
        made.ok().flatten().expect("the secret is text")
    };
    let form = || Rewriter::form(vec![FIELD.to_owned()], WORD, SECRET.as_bytes()).expect("there is a field");
    is_json_replaced(body, &cut_and_whole(json, body, step));
    is_form_replaced(body, &cut_and_whole(form, body, step));
}

fn cut_and_whole(make: impl Fn() -> Rewriter, body: &[u8], step: usize) -> Vec<u8> {
    let rewritten = |step: usize| {
        let mut rewriter = make();
        let mut out: Vec<u8> = body.chunks(step).flat_map(|part| rewriter.feed(part)).collect();
        out.append(&mut rewriter.finish());
        out
    };
    let whole = rewritten(body.len().max(1));
    assert_eq!(rewritten(step), whole);
    whole
}

/// By a parser that knows nothing of the rewriter.
fn is_json_replaced(body: &[u8], out: &[u8]) {
    let Ok(mut expected) = serde_json::from_slice::<Value>(body) else {
        // Whatever was made of it: nothing came in but the secret, once for each word.
        let count =
            |text: &[u8], part: &str| text.windows(part.len()).filter(|w| *w == part.as_bytes()).count();
        let secret = serde_json::to_string(SECRET).expect("text is JSON");
        if !body.contains(&b'\\') {
            assert!(count(out, &secret) <= count(body, WORD) + count(body, &secret));
        }
        return;
    };
    if depth(&expected) > DEPTH_MAX || body.len() > 4096 {
        return;
    }
    for pointer in POINTERS {
        replace(&mut expected, pointer);
    }
    assert_eq!(
        serde_json::from_slice::<Value>(out).ok(),
        Some(expected),
        "{:?}",
        String::from_utf8_lossy(body)
    );
}

fn replace(value: &mut Value, pointer: &[&str]) {
    match (pointer, value) {
        ([], Value::String(text)) if text == WORD => SECRET.clone_into(text),
        ([first, rest @ ..], Value::Object(members)) => {
            if let Some(member) = members.get_mut(*first) {
                replace(member, rest);
            }
        }
        ([first, rest @ ..], Value::Array(elements)) => {
            let element = first.parse().ok().and_then(|at: usize| elements.get_mut(at));
            if let Some(element) = element {
                replace(element, rest);
            }
        }
        _ => {}
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Pair by pair: the word alone, in the field alone.
fn is_form_replaced(body: &[u8], out: &[u8]) {
    let mut escaped = String::new();
    credential::escape(&mut escaped, SECRET.as_bytes());
    let pairs = |text: &[u8]| text.split(|byte| *byte == b'&').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (before, after) = (pairs(body), pairs(out));
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        if before == after {
            continue;
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("only text is replaced");
        let (before, after) = (text(before), text(after));
        let (key, value) = before.split_once('=').expect("only a pair is replaced");
        assert_eq!(percent_decode(&key.replace('+', " ")), FIELD.as_bytes());
        assert_eq!(percent_decode(value), WORD.as_bytes());
        assert_eq!(after, format!("{key}={escaped}"));
    }
}

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let routes = "routes:\n  - host: api.test\n    token_env: TOKEN\n    placeholder_in: [header:authorization, header:x-note, query:k, basic:user, basic:password]\n";
    Policy::parse("routes.yaml", routes).expect("valid routes")
});

/// The lines of `text` are a query and headers. The secret stands where the word was the whole value at a position of the
/// route, and nowhere else; what is no credential stays byte for byte.
pub fn head(text: &str) {
    // A colon could not be a user.
    let secret = "s3cr3t-that-is-ours";
    if text.contains(secret) {
        return;
    }
    let mut lines = text.split('\n');
    let query = lines.next().unwrap_or_default();
    let mut sent = HeaderMap::new();
    for line in lines.take(64) {
        let Some((name, value)) = line.split_once(':') else { continue };
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        let Ok(value) = HeaderValue::from_str(value.trim()) else { continue };
        sent.append(name, value);
    }
    let wanted = POLICY.routes()[0].credential().expect("the route has one");
    let word = Placeholder::parse(WORD).expect("a valid word");
    let mut out = sent.clone();
    let secret_value = Secret::new(secret.as_bytes().to_vec());
    let what = AgentCredentials::TakenOut;
    let exchanged = credential::exchange(what, wanted, &word, &secret_value, &mut out, Some(query));
    let exchanged = exchanged.expect("a secret without a colon fits every position");

    for (name, value) in &out {
        let before: BTreeSet<&[u8]> = sent.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        if before.contains(value.as_bytes()) {
            assert!(!CREDENTIAL_HEADERS.iter().any(|listed| headers::reads_as(name, listed)), "{name} stays");
            continue;
        }
        let [before] = Vec::from_iter(before)[..] else { panic!("{name} was there once, and is replaced") };
        let (before, after) = (text_of(before), text_of(value.as_bytes()));
        assert!(*name == AUTHORIZATION || name == "x-note", "{name}: {before}");
        assert!(
            was_the_whole_value(&before, &after, secret, *name == AUTHORIZATION),
            "{name}: {before} {after}"
        );
    }
    let asked: Vec<&str> = query.split('&').collect();
    for pair in exchanged.query.as_deref().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        if !asked.contains(&pair) {
            let (key, value) = pair.split_once('=').expect("what is replaced is a pair");
            assert_eq!((percent_decode(&key.replace('+', " ")).as_slice(), value), (&b"k"[..], secret));
            assert!(asked.iter().any(|pair| {
                let parts = pair.split_once('=');
                parts.is_some_and(|(named, value)| named == key && percent_decode(value) == WORD.as_bytes())
            }));
        }
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("made of text")
}

/// Whether `after` is `before` with a whole value, the word, replaced: all of it, behind a scheme, or one half of a pair.
fn was_the_whole_value(before: &str, after: &str, secret: &str, authorization: bool) -> bool {
    if before == WORD && after == secret {
        return true;
    }
    let (Some((scheme, before)), Some((now, after))) = (before.split_once(' '), after.split_once(' ')) else {
        return false;
    };
    if !authorization || !scheme.eq_ignore_ascii_case(now) {
        return false;
    }
    if before == WORD {
        return after == secret;
    }
    let pair = |text: &str| {
        let decoded = BASE64_STANDARD.decode(text.trim()).ok()?;
        let colon = decoded.iter().position(|byte| *byte == b':')?;
        Some((decoded[..colon].to_vec(), decoded[colon + 1..].to_vec()))
    };
    let (Some(before), Some(after)) = (pair(before), pair(after)) else { return false };
    let half = |before: &[u8], after: &[u8]| {
        before == after && before != WORD.as_bytes()
            || before == WORD.as_bytes() && after == secret.as_bytes()
    };
    half(&before.0, &after.0) && half(&before.1, &after.1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{BASE64_STANDARD, Engine, WORD};

    fn piece() -> impl Strategy<Value = String> {
        let fixed = [
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "\"auth\"",
            "\"token\"",
            "\"list\"",
            "\"a/b\"",
            "\"@\"",
            "\"\\u0061uth\"",
            "\"x@\"",
            "null",
            "-1.5e3",
            " ",
            "\\",
            "\"",
            "&",
            "=",
            "client_secret",
            "client%5fsecret",
            "@",
            "+",
            "{\"auth\":{\"token\":\"@\"}}",
            "{\"list\":[0,\"@\"],\"auth\":{\"token\":\"@\",\"token\":\"@\"}}",
        ];
        let fixed = fixed.map(|text| text.replace('@', WORD));
        prop_oneof![5 => prop::sample::select(fixed.to_vec()), 1 => "[ -~]{0,12}"]
    }

    fn line() -> impl Strategy<Value = String> {
        let basic =
            |pair: &str| format!("authorization: basic {}", BASE64_STANDARD.encode(pair.replace('@', WORD)));
        let fixed = [
            "authorization: Bearer @",
            "authorization: @",
            "authorization: x @",
            "x-note: @",
            "x-note: a @",
            "x_note: @",
            "x-api-key: @",
            "cookie: @",
            "x-other: @",
        ];
        let mut fixed = Vec::from(fixed.map(|text| text.replace('@', WORD)));
        fixed.extend(["@:@", "@:pw", "user:@", "user:x@", "@"].map(basic));
        prop_oneof![4 => prop::sample::select(fixed), 1 => "[a-z-]{1,8}: [ -~]{0,12}"]
    }

    fn pair() -> impl Strategy<Value = String> {
        let fixed =
            ["k=@", "%6b=@", "k=x@", "a=@", "token=@", "a;k=@", "k", ""].map(|text| text.replace('@', WORD));
        prop_oneof![4 => prop::sample::select(fixed.to_vec()), 1 => "[a-z;=%+]{0,8}"]
    }

    proptest! {
        #[test]
        fn a_body_goes_out_with_the_word_replaced_at_its_positions_alone(
            step in 1_u8..40, pieces in prop::collection::vec(piece(), 0..24)
        ) {
            super::body(&[&[step][..], pieces.concat().as_bytes()].concat());
        }

        #[test]
        fn a_head_goes_out_with_the_word_replaced_at_its_positions_alone(
            pairs in prop::collection::vec(pair(), 0..5), lines in prop::collection::vec(line(), 0..6)
        ) {
            super::head(&format!("{}\n{}", pairs.join("&"), lines.join("\n")));
        }
    }
}
