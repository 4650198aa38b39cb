//! What leaves is searched for secrets: the head as a whole, bodies and messages as they stream.

mod body;
mod messages;

use std::sync::{Arc, OnceLock};

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use policy::{Detector, Dlp, OnMatch};
use scan::{Bounds, Encoding, Finding, Known, Report, Rules, Scanner};
use tokio::sync::Notify;

pub(crate) use body::examined;
pub(crate) use messages::Messages;

use crate::refusal::{Code, Refusal};

/// The search of one request.
#[derive(Debug, Clone)]
pub(crate) struct Inspection {
    rules: Option<&'static Rules>,
    known: Option<Arc<Known>>,
    on_match: OnMatch,
    /// Why the request was cut, once it was.
    verdict: Arc<Verdict>,
}

#[derive(Debug, Default)]
struct Verdict {
    objection: OnceLock<Objection>,
    raised: Notify,
}

/// Why something may not leave.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Objection {
    /// A secret: the rule that knows it.
    Secret(&'static str),
    /// It cannot be looked into.
    Uninspectable(scan::Uninspectable),
    /// More would have to be held back than may.
    Held,
    /// The frames of a WebSocket do not follow each other as the protocol has it.
    Disordered,
}

impl Inspection {
    /// What the route asks for; nothing when requests are not searched.
    pub(crate) fn of(dlp: &Dlp, known: &Arc<Known>) -> Option<Inspection> {
        let wants = |detector| dlp.outbound.contains(&detector);
        let rules = wants(Detector::TokenPatterns).then(Rules::builtin);
        let known = (wants(Detector::KnownSecrets) && !known.is_empty()).then(|| Arc::clone(known));
        (rules.is_some() || known.is_some()).then(|| Inspection {
            rules,
            known,
            on_match: dlp.on_match,
            verdict: Arc::default(),
        })
    }

    /// Why the body was cut.
    pub(crate) fn objection(&self) -> Option<Refusal> {
        self.verdict.objection.get().map(|objection| objection.refusal("body"))
    }

    /// Returns when the body is cut: the client of upstream may not tell while it waits for an answer.
    pub(crate) async fn objected(&self) -> Refusal {
        loop {
            if let Some(refusal) = self.objection() {
                return refusal;
            }
            self.verdict.raised.notified().await;
        }
    }

    fn object(&self, objection: Objection) {
        let _ = self.verdict.objection.set(objection);
        self.verdict.raised.notify_one();
    }

    fn scanner(&self) -> Scanner<'static> {
        Scanner::new(self.rules, self.known.clone(), Bounds::default())
    }

    fn plain(&self) -> Scanner<'static> {
        Scanner::plain(self.rules, self.known.clone())
    }

    /// Searches the method, the host, the path, the query and the headers. Where the route says so a secret in a header or the query is
    /// masked.
    pub(crate) fn head(
        &self,
        first: [&str; 3],
        query: &mut Option<String>,
        headers: &mut HeaderMap,
    ) -> Result<(), Refusal> {
        let mut text = Vec::with_capacity(1024);
        let mut line = |parts: &[&[u8]]| {
            parts.iter().for_each(|part| text.extend_from_slice(part));
            text.push(b'\n');
        };
        first.iter().for_each(|part| line(&[part.as_bytes()]));
        line(&[query.as_deref().unwrap_or_default().as_bytes()]);
        for (name, value) in &*headers {
            line(&[name.as_str().as_bytes(), b": ", value.as_bytes()]);
        }
        let mut scanner = self.scanner();
        scanner.feed(&text);
        let Report { findings, uninspectable } = scanner.finish();
        if let Some(reason) = uninspectable {
            return Err(Objection::Uninspectable(reason).refusal("head"));
        }
        let Some(first) = findings.first() else { return Ok(()) };
        let in_head = |finding: &Finding| finding.line <= 3 || !finding.through.is_nothing();
        if self.on_match != OnMatch::Redact || findings.iter().any(in_head) {
            let place = place(first, headers);
            return Err(Objection::Secret(first.rule).refusal(&place));
        }
        self.mask(query, headers)
    }

    fn mask(&self, query: &mut Option<String>, headers: &mut HeaderMap) -> Result<(), Refusal> {
        if let Some(text) = query
            && let Some(masked) = self.masked(text.as_bytes())?
        {
            *text = String::from_utf8_lossy(&masked).into_owned();
        }
        for (name, value) in headers.iter_mut() {
            let line = [name.as_str().as_bytes(), b": ", value.as_bytes()].concat();
            if let Some(masked) = self.masked(&line)? {
                let masked = masked.get(name.as_str().len() + 2..).unwrap_or_default();
                *value = HeaderValue::from_bytes(masked)
                    .map_err(|_| Objection::Secret("header").refusal(name.as_str()))?;
            }
        }
        Ok(())
    }

    /// The text with its secrets masked; nothing when none is in it.
    fn masked(&self, text: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
        let mut scanner = self.scanner();
        scanner.feed(text);
        scanner.end();
        let Some(rule) = scanner.found() else { return Ok(None) };
        let spans = scanner.take_spans().ok_or_else(|| Objection::Secret(rule).refusal("head"))?;
        let mut text = text.to_vec();
        for span in spans {
            let index = |position| usize::try_from(position).unwrap_or(usize::MAX).min(text.len());
            let span = index(span.start)..index(span.end);
            text[span].fill(MASK);
        }
        Ok(Some(text))
    }

    /// How the body is to be searched, by what the headers say of it.
    pub(crate) fn format(headers: &HeaderMap) -> Result<Format, Refusal> {
        let unreadable = || Objection::Uninspectable(scan::Uninspectable::Encoding).refusal("body");
        let mut encodings = Vec::new();
        for named in named(headers, CONTENT_ENCODING.as_str()) {
            if !named.eq_ignore_ascii_case("identity") {
                encodings.push(Encoding::named(&named).ok_or_else(unreadable)?);
            }
        }
        let content_type = headers.get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let is_grpc = content_type.to_ascii_lowercase().starts_with(b"application/grpc");
        match encodings[..] {
            [] if is_grpc => match named(headers, "grpc-encoding").as_slice() {
                [] => Ok(Format::Grpc(None)),
                [one] if one.eq_ignore_ascii_case("identity") => Ok(Format::Grpc(None)),
                [one] => Encoding::named(one).map(|named| Format::Grpc(Some(named))).ok_or_else(unreadable),
                _ => Err(unreadable()),
            },
            [] => Ok(Format::Plain),
            [one] if !is_grpc => Ok(Format::Encoded(one)),
            _ => Err(unreadable()),
        }
    }
}

/// What stands in place of each byte of a secret.
const MASK: u8 = b'*';

/// What a body is, to whoever searches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Plain,
    Encoded(Encoding),
    /// gRPC messages; those that say so are in this encoding.
    Grpc(Option<Encoding>),
}

impl Objection {
    /// As an answer. It names the rule and the place, never what was found.
    pub(crate) fn refusal(self, place: &str) -> Refusal {
        match self {
            Objection::Secret(rule) => Refusal::new(
                Code::SecretDetected,
                format!("the request's {place} holds what looks like a secret (rule `{rule}`): leave it out"),
            ),
            Objection::Uninspectable(reason) => Refusal::new(
                Code::ContentUninspectable,
                format!("the request's {place} cannot be searched for secrets: {reason}"),
            ),
            Objection::Held => Refusal::new(
                Code::ContentUninspectable,
                format!(
                    "the request's {place} cannot be searched for secrets: too much of it looks like one"
                ),
            ),
            Objection::Disordered => Refusal::new(
                Code::ContentUninspectable,
                format!("the frames of the {place} do not follow each other as WebSocket has it (RFC 6455)"),
            ),
        }
    }
}

/// The names in a header that is a list.
fn named(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name);
    let names = values.iter().flat_map(|value| {
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        text.split(',').map(|name| name.trim().to_owned()).collect::<Vec<_>>()
    });
    names.filter(|name| !name.is_empty()).collect()
}

fn place(finding: &Finding, headers: &HeaderMap) -> String {
    match finding.line {
        1 => "method".to_owned(),
        2 => "host".to_owned(),
        3 => "path".to_owned(),
        4 => "query".to_owned(),
        line => {
            let number = usize::try_from(line - 5).unwrap_or(usize::MAX);
            headers
                .iter()
                .nth(number)
                .map_or_else(|| "head".to_owned(), |(name, _)| format!("header `{name}`"))
        }
    }
}
