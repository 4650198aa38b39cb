//! Bodies in which a value is replaced while they stream: memory does not grow with the body.

use zeroize::Zeroizing;

use super::json::{Inside, Word};
use super::{Error, escape, percent_decode};

/// The longest key, and the longest pair of a form, that is looked at.
const HELD_MAX: usize = 4 * 1024;
/// Nested deeper than this, a document goes out as it is.
const DEPTH_MAX: usize = 64;

/// Replaces the word in one body.
pub(crate) struct Rewriter(Kind);

enum Kind {
    Form(Form),
    Json(Box<Json>),
}

impl Rewriter {
    pub(crate) fn form(fields: Vec<String>, word: &str, secret: &[u8]) -> Option<Rewriter> {
        if fields.is_empty() {
            return None;
        }
        let mut escaped = String::new();
        escape(&mut escaped, secret);
        let secret = Zeroizing::new(escaped.into_bytes());
        Some(Rewriter(Kind::Form(Form {
            fields,
            word: word.into(),
            secret,
            held: Vec::new(),
            passing: false,
        })))
    }

    pub(crate) fn json(
        pointers: Vec<Vec<String>>,
        word: &str,
        secret: &[u8],
    ) -> Result<Option<Rewriter>, Error> {
        if pointers.is_empty() {
            return Ok(None);
        }
        let text = std::str::from_utf8(secret).map_err(|_| Error::NotText)?;
        let secret = serde_json::to_vec(text).map_err(|_| Error::NotText)?;
        Ok(Some(Rewriter(Kind::Json(Box::new(Json {
            pointers,
            word: word.to_owned(),
            secret: Zeroizing::new(secret),
            levels: Vec::new(),
            state: State::Value,
            held: Vec::new(),
        })))))
    }

    /// What goes out for the next part of the body.
    pub(crate) fn feed(&mut self, part: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(part.len() + 64);
        match &mut self.0 {
            Kind::Form(form) => part.iter().for_each(|byte| form.take(*byte, &mut out)),
            Kind::Json(json) => part.iter().for_each(|byte| json.take(*byte, &mut out)),
        }
        out
    }

    /// Begins anew, with the next message of a stream.
    pub(crate) fn restart(&mut self) {
        match &mut self.0 {
            Kind::Form(form) => {
                form.held.clear();
                form.passing = false;
            }
            Kind::Json(json) => {
                json.levels.clear();
                json.held.clear();
                json.state = State::Value;
            }
        }
    }

    /// What was held back until the end.
    pub(crate) fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        match &mut self.0 {
            Kind::Form(form) => form.end_pair(&mut out),
            Kind::Json(json) => out.append(&mut json.held),
        }
        out
    }
}

struct Form {
    fields: Vec<String>,
    word: String,
    /// As it stands in a form.
    secret: Zeroizing<Vec<u8>>,
    held: Vec<u8>,
    /// The pair is too long to be the one, and goes through.
    passing: bool,
}

impl Form {
    fn take(&mut self, byte: u8, out: &mut Vec<u8>) {
        if byte == b'&' {
            self.end_pair(out);
            out.push(byte);
        } else if self.passing {
            out.push(byte);
        } else {
            self.held.push(byte);
            if self.held.len() > HELD_MAX {
                out.append(&mut self.held);
                self.passing = true;
            }
        }
    }

    fn end_pair(&mut self, out: &mut Vec<u8>) {
        self.passing = false;
        match self.key_of_word() {
            Some(key) => {
                out.extend_from_slice(&self.held[..key]);
                out.push(b'=');
                out.extend_from_slice(&self.secret);
                self.held.clear();
            }
            None => out.append(&mut self.held),
        }
    }

    /// The length of the key, when the pair is one of the fields with the word.
    fn key_of_word(&self) -> Option<usize> {
        let (key, value) = std::str::from_utf8(&self.held).ok()?.split_once('=')?;
        let decoded = percent_decode(&key.replace('+', " "));
        let here = self.fields.iter().any(|field| field.as_bytes() == decoded);
        (here && percent_decode(value) == self.word.as_bytes()).then_some(key.len())
    }
}

/// Follows a document strictly: at the first byte that JSON does not have there, nothing more is replaced, because upstream may
/// read what follows in another way.
struct Json {
    pointers: Vec<Vec<String>>,
    word: String,
    /// With its quotes.
    secret: Zeroizing<Vec<u8>>,
    levels: Vec<Level>,
    state: State,
    /// The string that is being read, from its quote on.
    held: Vec<u8>,
}

enum Level {
    /// In an object, at this key.
    Key(Option<String>),
    /// In an array, at this element.
    Element(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Value,
    /// Behind `[`.
    ValueOrEnd,
    /// Behind `{`.
    KeyOrEnd,
    /// Behind a comma in an object.
    Key,
    Colon,
    CommaOrEnd,
    InKey(Inside),
    /// In a string that may be the word.
    InCandidate(Inside),
    InString(Inside),
    InWord(Word),
    /// Nothing is replaced any more.
    Lost,
}

impl Json {
    fn take(&mut self, byte: u8, out: &mut Vec<u8>) {
        match self.state {
            State::InKey(inside) | State::InCandidate(inside) => return self.hold(byte, inside, out),
            State::InString(Inside::Text) if byte == b'"' => self.state = State::CommaOrEnd,
            State::InString(inside) => self.state = inside.step(byte).map_or(State::Lost, State::InString),
            State::InWord(word) => match word.step(byte) {
                Some(word) => self.state = State::InWord(word),
                None => {
                    self.state = if word.is_whole() { State::CommaOrEnd } else { State::Lost };
                    return self.take(byte, out);
                }
            },
            State::Lost => {}
            _ if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') => {}
            state => {
                self.state = self.step(state, byte);
                if matches!(self.state, State::InKey(_) | State::InCandidate(_)) {
                    self.held.push(byte);
                    return;
                }
            }
        }
        out.push(byte);
    }

    /// What a byte of the structure leads to.
    fn step(&mut self, state: State, byte: u8) -> State {
        match (state, byte) {
            (State::Value | State::ValueOrEnd, b'{') if self.levels.len() < DEPTH_MAX => {
                self.levels.push(Level::Key(None));
                State::KeyOrEnd
            }
            (State::Value | State::ValueOrEnd, b'[') if self.levels.len() < DEPTH_MAX => {
                self.levels.push(Level::Element(0));
                State::ValueOrEnd
            }
            (State::Value | State::ValueOrEnd, b'"') if self.is_here() => State::InCandidate(Inside::Text),
            (State::Value | State::ValueOrEnd, b'"') => State::InString(Inside::Text),
            (State::KeyOrEnd | State::Key, b'"') => State::InKey(Inside::Text),
            (State::Colon, b':') => State::Value,
            (State::CommaOrEnd, b',') => match self.levels.last_mut() {
                Some(Level::Key(_)) => State::Key,
                Some(Level::Element(element)) => {
                    *element += 1;
                    State::Value
                }
                None => State::Lost,
            },
            (State::CommaOrEnd | State::KeyOrEnd, b'}') => match self.levels.pop() {
                Some(Level::Key(_)) => State::CommaOrEnd,
                Some(Level::Element(_)) | None => State::Lost,
            },
            (State::CommaOrEnd | State::ValueOrEnd, b']') => match self.levels.pop() {
                Some(Level::Element(_)) => State::CommaOrEnd,
                Some(Level::Key(_)) | None => State::Lost,
            },
            (State::Value | State::ValueOrEnd, _) => Word::begin(byte).map_or(State::Lost, State::InWord),
            _ => State::Lost,
        }
    }

    fn hold(&mut self, byte: u8, inside: Inside, out: &mut Vec<u8>) {
        self.held.push(byte);
        let key = matches!(self.state, State::InKey(_));
        if byte == b'"' && inside == Inside::Text {
            let text = serde_json::from_slice::<String>(&self.held).ok();
            if key {
                self.state = State::Colon;
                if let Some(level) = self.levels.last_mut() {
                    *level = Level::Key(text);
                }
            } else {
                self.state = State::CommaOrEnd;
                if text.as_ref() == Some(&self.word) {
                    out.extend_from_slice(&self.secret);
                    self.held.clear();
                }
            }
            out.append(&mut self.held);
            return;
        }
        let Some(inside) = inside.step(byte) else {
            self.state = State::Lost;
            out.append(&mut self.held);
            return;
        };
        if self.held.len() > HELD_MAX {
            // Too long for the word; and a key that is not known cannot be the one, but must not be taken for another.
            out.append(&mut self.held);
            self.state = if key { State::Lost } else { State::InString(inside) };
        } else {
            self.state = if key { State::InKey(inside) } else { State::InCandidate(inside) };
        }
    }

    /// Whether the value that begins here is at one of the pointers.
    fn is_here(&self) -> bool {
        let fits = |(level, token): (&Level, &String)| match level {
            Level::Key(key) => key.as_ref() == Some(token),
            Level::Element(element) => element.to_string() == *token,
        };
        let here = |pointer: &Vec<String>| {
            pointer.len() == self.levels.len() && self.levels.iter().zip(pointer).all(fits)
        };
        self.pointers.iter().any(here)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const WORD: &str = "placeholder-0123456789";

    /// In one part, and byte by byte: both must give the same.
    fn rewritten(make: impl Fn() -> Rewriter, body: &str) -> String {
        let mut whole = make();
        let mut out = whole.feed(body.as_bytes());
        out.append(&mut whole.finish());
        let mut split = make();
        let mut parts: Vec<u8> = body.as_bytes().chunks(1).flat_map(|part| split.feed(part)).collect();
        parts.append(&mut split.finish());
        assert_eq!(out, parts);
        String::from_utf8(out).unwrap()
    }

    fn json(body: &str) -> String {
        let pointer = |tokens: &[&str]| tokens.iter().map(|token| (*token).to_owned()).collect();
        let pointers = vec![pointer(&["auth", "token"]), pointer(&["list", "1"])];
        rewritten(
            || Rewriter::json(pointers.clone(), WORD, b"s\"3").unwrap().unwrap(),
            &body.replace('@', WORD),
        )
    }

    #[test]
    fn the_word_is_replaced_at_its_pointer_and_nowhere_else() {
        let kept = [
            r#"{"text": "@", "auth": {"other": "@", "token": "x@", "deep": {"token": "@"}}}"#,
            r#"{"list": ["@", ["@"], "@"], "token": "@"}"#,
            r#"["@", "@"]"#,
            r#"{"auth": {"token": ["@"]}, "say": "\"auth\": {\"token\": \"@\"}"}"#,
            r#""@""#,
        ];
        for body in kept {
            assert_eq!(json(body), body.replace('@', WORD));
        }
        assert_eq!(
            json(r#" { "a":[1,{}],"auth" : {"x":null , "token" : "@" },"list":[-1.5e3,"@"]} "#),
            r#" { "a":[1,{}],"auth" : {"x":null , "token" : "s\"3" },"list":[-1.5e3,"s\"3"]} "#
        );
        let escaped = r#"{"\u0061uth": {"token": "\u0070laceholder-0123456789"}}"#;
        assert_eq!(json(escaped), r#"{"\u0061uth": {"token": "s\"3"}}"#);
    }

    #[test]
    fn after_what_is_no_json_nothing_is_replaced() {
        for body in [
            r#"{/* " */ "auth": {"token": "@"}}"#,
            r#"{'a': 1, "auth": {"token": "@"}}"#,
            r#"{"a": 1} {"auth": {"token": "@"}}"#,
            r#"{"a": ], "auth": {"token": "@"}}"#,
            r#"{"auth" {"token": "@"}}"#,
            r#"{"\x": 1, "auth": {"token": "@"}}"#,
            r#"{"a": "\x", "auth": {"token": "@"}}"#,
            r#"{"a": "\ud800", "auth": {"token": "@"}}"#,
            "{\"a\": \"\u{1b}$B\", \"auth\": {\"token\": \"@\"}}",
            r#"{"auth": {"token": "\x", "token": "@"}}"#,
            r#"{"a": nope, "auth": {"token": "@"}}"#,
            r#"{"a": 1.2.3e, "auth": {"token": "@"}}"#,
            r#"{"a": -, "auth": {"token": "@"}}"#,
            r#"{"a": truefalse, "auth": {"token": "@"}}"#,
            r#"[nulL, {"auth": {"token": "@"}}]"#,
        ] {
            assert_eq!(json(body), body.replace('@', WORD));
        }
        let long = format!("{{\"{}\": 1, \"auth\": {{\"token\": \"@\"}}}}", "k".repeat(HELD_MAX));
        assert_eq!(json(&long), long.replace('@', WORD));
    }

    #[test]
    fn a_field_of_a_form_is_replaced_when_it_is_the_word() {
        let form = |body: &str| {
            let fields = || vec!["client_secret".to_owned()];
            rewritten(|| Rewriter::form(fields(), WORD, b"s 3&").unwrap(), &body.replace('@', WORD))
        };
        assert_eq!(form("a=@&client%5fsecret=@&b"), "a=@&client%5fsecret=s%203%26&b".replace('@', WORD));
        for body in ["client_secret=x@", "client_secret=@+", "text=client_secret=@", "client_secret"] {
            assert_eq!(form(body), body.replace('@', WORD));
        }
        let long = format!("client_secret={}&client_secret=@", "x".repeat(2 * HELD_MAX));
        assert_eq!(form(&long), format!("{}s%203%26", &long[..long.len() - 1]));
    }
}
