//! What comes back is freed of the secrets that went out, before the bottle sees it.

mod body;
mod cleaner;
mod ending;
mod hits;

use std::sync::Arc;

use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue,
};
use http::{Method, StatusCode};
use scan::{Bounds, Budget, Encoding, KNOWN_MIN_BYTES, Scanner, Scrubber};

pub(crate) use body::scrubbed;
pub(crate) use cleaner::{Cleaner, Cut};
pub(crate) use ending::Ending;
pub(crate) use hits::{Counts, Hits};

use crate::credential::Lookout;
use crate::headers;
use crate::refusal::{Code, Refusal};

/// What RPC messages are compressed with, each by itself: asked for, and told.
const MESSAGE_CODINGS: [(&str, &str); 2] =
    [("grpc-accept-encoding", "grpc-encoding"), ("connect-accept-encoding", "connect-content-encoding")];
/// What asks for a part of an answer: httpd takes the third for the first, Azure's storage the fourth, and what goes with it.
const RANGES: [&str; 6] = [
    "range",
    "if-range",
    "request-range",
    "x-ms-range",
    "x-ms-range-get-content-md5",
    "x-ms-range-get-content-crc64",
];
const CODINGS: [&str; 6] = ["gzip", "x-gzip", "deflate", "br", "zstd", "identity"];

/// What is said of an upstream that sent secrets back too often.
fn reflected() -> Refusal {
    let hint = "answers of this host held a secret too often; the operator has to look at it, and replace the secret or restart egress";
    Refusal::new(Code::SecretReflected, hint)
}

/// The scrub of one answer.
#[derive(Debug, Clone)]
pub(crate) struct Scrub {
    lookout: Lookout,
    hits: Arc<Hits>,
    /// What all decoders of the bottle share.
    memory: Budget,
}

impl Scrub {
    pub(crate) fn new(lookout: Lookout, hits: Arc<Hits>, memory: Budget) -> Scrub {
        Scrub { lookout, hits, memory }
    }

    /// For what is searched after it was masked.
    fn scanner(&self) -> Scanner<'static> {
        let bounds = Bounds { memory: self.memory.clone(), ..Bounds::default() };
        Scanner::new(None, Some(self.lookout.newest()), bounds)
    }

    /// Has upstream answer in a way that can be scrubbed: in codings that can be undone, and whole, because a part may begin
    /// in the middle of a secret. Not compressed where only the head comes: the length of what was compressed says which of several guesses
    /// stood in it beside the secret, and nothing could be counted.
    pub(crate) fn prepare(method: &Method, headers: &mut HeaderMap) {
        headers::remove_all(headers, |name| {
            headers::reads_as_one_of(name, &RANGES)
                || MESSAGE_CODINGS.iter().any(|(asked, _)| headers::reads_as(name, asked))
        });
        if *method == Method::HEAD {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            return;
        }
        let asked = headers.get_all(ACCEPT_ENCODING).iter().flat_map(|value| {
            let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
            text.split(',').map(|one| one.trim().to_owned()).collect::<Vec<_>>()
        });
        let kept: Vec<String> = asked
            .filter(|one| {
                let name = one.split(';').next().unwrap_or_default().trim();
                CODINGS.iter().any(|known| known.eq_ignore_ascii_case(name))
            })
            .collect();
        let kept = if kept.is_empty() { "identity".to_owned() } else { kept.join(", ") };
        let kept = HeaderValue::try_from(kept).unwrap_or(HeaderValue::from_static("identity"));
        headers.insert(ACCEPT_ENCODING, kept);
    }

    /// Refuses a part of an answer's bytes: none was asked for in a way that is known here. Parts of a list, which have a unit of their own or
    /// none (PostgREST's `0-14/*`), are whole answers.
    pub(crate) fn whole(status: StatusCode, headers: &HeaderMap) -> Result<(), Refusal> {
        let is_of_parts = |value: &HeaderValue| {
            let kind = value.as_bytes().to_ascii_lowercase();
            kind.trim_ascii_start().starts_with(b"multipart/")
                && kind.windows(9).any(|part| part == b"byterange")
        };
        let is_in_bytes = |range: &HeaderValue| {
            range
                .as_bytes()
                .trim_ascii_start()
                .get(..5)
                .is_some_and(|unit| unit.eq_ignore_ascii_case(b"bytes"))
        };
        let is_unexplained = status == StatusCode::PARTIAL_CONTENT && !headers.contains_key(CONTENT_RANGE);
        if is_unexplained
            || headers.get_all(CONTENT_RANGE).iter().any(is_in_bytes)
            || headers.get_all(CONTENT_TYPE).iter().any(is_of_parts)
        {
            let hint =
                "the upstream host sent a part of an answer, which may begin in the middle of a secret";
            return Err(Refusal::new(Code::UpstreamFailed, hint));
        }
        Ok(())
    }

    pub(crate) fn cleaner(&self) -> Cleaner {
        Cleaner::new(self.clone())
    }

    /// Scrubs headers or trailers. A name that is a secret goes with its value, and a value in which one is hidden, as in something that is
    /// encoded twice, is emptied.
    pub(crate) fn headers(&self, headers: &mut HeaderMap) {
        let mut scrubber = Scrubber::new(self.lookout.newest());
        let mut hit = |text: &[u8]| scrubber.whole(text);
        let names: Vec<HeaderName> =
            headers.keys().filter(|name| hit(name.as_str().as_bytes()).is_some()).cloned().collect();
        for name in names {
            headers.remove(name);
        }
        for value in headers.values_mut() {
            if let Some(masked) = hit(value.as_bytes()) {
                // A value of which nothing is known to be good any more is better empty.
                *value = HeaderValue::from_bytes(&masked).unwrap_or(HeaderValue::from_static(""));
            }
        }
        self.hits.add(scrubber.hits());
        self.empty_hidden(headers);
    }

    fn empty_hidden(&self, headers: &mut HeaderMap) {
        let searched = |text: &[u8]| {
            let mut scanner = self.scanner();
            scanner.feed(text);
            scanner.end();
            (scanner.found().is_some(), scanner.missed_for_want_of_memory().is_some())
        };
        let is_long = |value: &HeaderValue| value.len() >= KNOWN_MIN_BYTES;
        // Together, for most have nothing to hide.
        let mut all = Vec::with_capacity(512);
        for value in headers.values().filter(|value| is_long(value)) {
            all.extend_from_slice(value.as_bytes());
            all.push(b' ');
        }
        if all.is_empty() || searched(&all) == (false, false) {
            return;
        }
        for value in headers.values_mut().filter(|value| is_long(value)) {
            let (hides, is_missed) = searched(value.as_bytes());
            if hides {
                self.hits.add(1);
            }
            if hides || is_missed {
                *value = HeaderValue::from_static("");
            }
        }
    }

    /// What the body is encoded with, which is undone on its way, and the headers say so.
    pub(crate) fn decoding(
        &self,
        headers: &mut HeaderMap,
        has_body: bool,
    ) -> Result<Option<Encoding>, Refusal> {
        let unknown = || {
            Refusal::new(
                Code::UpstreamFailed,
                "the upstream host answered in an encoding that was not asked for",
            )
        };
        let values = headers.get_all(CONTENT_ENCODING);
        let text: Vec<String> =
            values.iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
        let names = text.iter().flat_map(|text| text.split(',')).map(str::trim);
        let names: Vec<&str> =
            names.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity")).collect();
        if !has_body {
            if !names.is_empty() {
                headers.remove(CONTENT_LENGTH);
            }
            return Ok(None);
        }
        let is_coded = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
        if MESSAGE_CODINGS.iter().any(|(_, told)| headers.get_all(*told).iter().any(is_coded)) {
            return Err(unknown());
        }
        let encoding = match names[..] {
            [] => return Ok(None),
            [one] => Encoding::named(one).ok_or_else(unknown)?,
            _ => return Err(unknown()),
        };
        headers.remove(CONTENT_ENCODING);
        headers.remove(CONTENT_LENGTH);
        Ok(Some(encoding))
    }
}
