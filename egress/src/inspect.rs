//! What leaves is searched for secrets: the head as a whole, bodies and messages as they stream.

mod body;
mod messages;
mod suspect;
mod tails;
mod verdict;

use std::sync::Arc;

use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE,
    HeaderMap, HeaderName, HeaderValue, PRAGMA, TE, USER_AGENT,
};
use policy::{Detector, Dlp, OnMatch, Unreadable};
use scan::{Bounds, Budget, Encoding, Finding, Known, Mark, Marks, Rules, Scanner};

pub(crate) use body::examined;
pub(crate) use messages::{Across, Messages};
pub(crate) use suspect::Suspicion;
pub(crate) use tails::{Destination, Tails};
use tails::{Joint, Position};
use verdict::Verdict;
pub(crate) use verdict::ended_by;

use crate::credential::Lookout;
use crate::except::Named;
use crate::refusal::{Code, Refusal};
use crate::scrub::Cut;

/// The search of one request.
#[derive(Debug, Clone)]
pub(crate) struct Inspection {
    rules: Option<&'static Rules>,
    known: Option<Lookout>,
    /// What no body and no message may hold, whatever follows on what else is found.
    credentials: Option<&'static Rules>,
    on_match: OnMatch,
    unreadable: Unreadable,
    /// Names what is found, and passes over what is excepted.
    marks: Option<Arc<Marks>>,
    /// What all decoders of the bottle share.
    memory: Budget,
    /// What went to the same place before.
    destination: Arc<Destination>,
    /// Why the request was cut, once it was.
    verdict: Arc<Verdict>,
}

/// Headers whose values clients do not choose freely: they would stand between the pieces of a secret.
const ROUTINE: [HeaderName; 9] = [
    ACCEPT,
    ACCEPT_ENCODING,
    ACCEPT_LANGUAGE,
    CACHE_CONTROL,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    PRAGMA,
    TE,
    USER_AGENT,
];

/// Why something may not leave.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Objection {
    /// A secret: the rule that knows it, and its name.
    Secret(&'static str, Option<Mark>),
    /// It cannot be looked into.
    Uninspectable(scan::Uninspectable),
    /// More would have to be held back than may.
    Held,
    /// A frame of a WebSocket is larger than one that is read may be.
    TooBig,
    /// The frames of a WebSocket do not follow each other as the protocol has it.
    Disordered,
    /// Answers held a secret too often, or where it cannot be masked.
    Reflected(Cut),
}

impl Inspection {
    /// What the route asks for; nothing when requests are not searched.
    pub(crate) fn of(
        dlp: &Dlp,
        known: &Lookout,
        destination: Arc<Destination>,
        memory: &Budget,
    ) -> Option<Inspection> {
        let wants = |detector| dlp.outbound.contains(&detector);
        let rules = wants(Detector::TokenPatterns).then(Rules::builtin);
        let known = wants(Detector::KnownSecrets).then(|| known.clone());
        (rules.is_some() || known.is_some()).then(|| Inspection {
            rules,
            known,
            credentials: None,
            on_match: dlp.on_match,
            unreadable: dlp.unreadable,
            marks: None,
            memory: memory.clone(),
            destination,
            verdict: Arc::default(),
        })
    }

    /// The same, or where requests are not searched a search of bodies and messages alone, in which a credential of the agent's own ends the
    /// request.
    pub(crate) fn without_credentials(inspection: Option<Inspection>, memory: &Budget) -> Inspection {
        let inspection = inspection.unwrap_or_else(|| Inspection {
            rules: None,
            known: None,
            credentials: None,
            on_match: OnMatch::Block,
            // Only what is found is refused.
            unreadable: Unreadable::Pass,
            marks: None,
            memory: memory.clone(),
            destination: Arc::default(),
            verdict: Arc::default(),
        });
        Inspection { credentials: Some(Rules::formats()), ..inspection }
    }

    /// Whether the route has the rules look everywhere.
    pub(crate) fn has_rules(&self) -> bool {
        self.rules.is_some()
    }

    /// Whether anything is looked for in a head, and in what is put together of pieces.
    pub(crate) fn looks_at_heads(&self) -> bool {
        self.rules.is_some() || self.known.is_some()
    }

    /// The same, where what is found is named, and some of it excepted.
    pub(crate) fn marked(self, marks: Arc<Marks>) -> Inspection {
        Inspection { marks: Some(marks), ..self }
    }

    /// The same, without exceptions.
    pub(crate) fn strict(self) -> Inspection {
        Inspection { marks: self.marks.map(|marks| Arc::new(marks.strict())), ..self }
    }

    /// Whether anything is excepted.
    pub(crate) fn excepts(&self) -> bool {
        self.marks.as_ref().is_some_and(|marks| marks.excepts())
    }

    /// Which of what is excepted was met.
    pub(crate) fn met(&self) -> Vec<usize> {
        self.marks.as_ref().map(|marks| marks.met()).unwrap_or_default()
    }

    fn known(&self) -> Option<Arc<Known>> {
        self.known.as_ref().map(|lookout| Arc::clone(lookout.known()))
    }

    /// What is looked for by now, for what is under search already, when that is something else than before.
    fn renewed(&mut self) -> Option<Arc<Known>> {
        self.known.as_mut()?.renewed().cloned()
    }

    fn bounds(&self) -> Bounds {
        Bounds { memory: self.memory.clone(), ..Bounds::default() }
    }

    fn scanner(&self) -> Scanner<'static> {
        self.marking(Scanner::new(self.rules, self.known(), self.bounds()))
    }

    /// For a body or a message.
    fn body_scanner(&self) -> Scanner<'static> {
        let rules = self.rules.or(self.credentials);
        self.marking(Scanner::new(rules, self.known(), self.bounds()))
    }

    /// For messages one after the other.
    fn plain(&self) -> Scanner<'static> {
        self.marking(Scanner::plain(self.rules.or(self.credentials), self.known()))
    }

    /// An objection to a credential of the agent's own, which neither a mask nor a person lets pass.
    fn foreign(&self, scanner: &Scanner<'_>) -> Result<(), Objection> {
        match self.credentials.and_then(|_| scanner.found_by_form()) {
            Some((rule, mark)) => Err(Objection::Secret(rule, mark)),
            None => Ok(()),
        }
    }

    fn marking<'r>(&self, scanner: Scanner<'r>) -> Scanner<'r> {
        match &self.marks {
            Some(marks) => scanner.marked(Arc::clone(marks)),
            None => scanner,
        }
    }

    /// The ways in which a body of this format is read: decoded, and as it stands. Names, comments and frames to be skipped are in the clear
    /// in what is compressed, and what is not encoded as it says leaves as it stands.
    fn readings(&self, format: Format) -> Vec<Scanner<'static>> {
        match format {
            Format::Encoded(encoding) => vec![self.body_scanner().encoded(encoding), self.body_scanner()],
            Format::Plain | Format::Grpc(_) => vec![self.body_scanner()],
        }
    }

    /// Searches a body as a whole, so that what is excepted in it is met before any of it leaves.
    pub(crate) fn whole(&self, body: &[u8], format: Format) -> Result<(), Refusal> {
        let mut found = None;
        for mut scanner in self.readings(format) {
            scanner.feed(body);
            scanner.end();
            found = found.or_else(|| Some((scanner.found()?, scanner.found_mark())));
        }
        match (found, self.on_match) {
            // Masked as it leaves.
            (Some(_), OnMatch::Redact) | (None, _) => Ok(()),
            (Some((rule, mark)), OnMatch::Block | OnMatch::Supervise) => {
                Err(Objection::Secret(rule, mark).refusal("body"))
            }
        }
    }

    /// Whether a person is asked about what is found.
    pub(crate) fn asks(&self) -> bool {
        self.on_match == OnMatch::Supervise
    }

    /// Whether what is found is masked, and the rest goes out.
    pub(crate) fn masks(&self) -> bool {
        self.on_match == OnMatch::Redact
    }

    /// Searches the method, the host, the path, the query and the headers. Where the route says so a secret in a header or the query is
    /// masked, or what was found is given, for a person to be asked about.
    pub(crate) fn head(
        &self,
        first: [&str; 3],
        query: &mut Option<String>,
        headers: &mut HeaderMap,
    ) -> Result<Option<Suspicion>, Refusal> {
        let text = lines(first, query.as_deref(), headers);
        let mut scanner = self.scanner();
        scanner.feed(&text);
        let report = scanner.finish();
        self.readable(report.uninspectable).map_err(|objection| objection.refusal("head"))?;
        if self.asks() {
            let mut suspicion = Suspicion::of(first, query.as_deref(), headers);
            suspicion.head(&report, &text, self, headers);
            if suspicion.count == 0 {
                self.pieces(first[2], query.as_deref(), headers)?;
            }
            return Ok(Some(suspicion));
        }
        let findings = report.findings;
        if let Some(found) = findings.first() {
            let in_head = |finding: &Finding| finding.line <= 3 || !finding.through.is_nothing();
            if !self.masks() || findings.iter().any(in_head) {
                let place = place(found, headers);
                return Err(Objection::Secret(found.rule, found.mark).refusal(&place));
            }
            self.mask(query, headers)?;
            // A secret in a header's name, or one over several lines, has no place of its own to be masked in.
            let mut left = self.scanner();
            left.feed(&lines(first, query.as_deref(), headers));
            left.end();
            if let Some(rule) = left.found() {
                return Err(Objection::Secret(rule, left.found_mark()).refusal("head"));
            }
            let missed = self.readable(left.missed_for_want_of_memory());
            missed.map_err(|objection| objection.refusal("head"))?;
        }
        self.pieces(first[2], query.as_deref(), headers).map(|()| None)
    }

    /// Puts the parts of the head together, and each to what stood in its place in the requests before.
    fn pieces(&self, path: &str, query: Option<&str>, headers: &HeaderMap) -> Result<(), Refusal> {
        let refusal = |objection: Objection| objection.refusal("head, together with what was sent before,");
        let pairs = || query.into_iter().flat_map(|query| query.split('&'));
        let value = |pair| split_pair(pair).1.as_bytes();
        let free = || headers.iter().filter(|(name, _)| !ROUTINE.contains(name));
        let crumbs = free().flat_map(|(_, value)| value.as_bytes().split(|byte| *byte == b';'));
        let crumbs = crumbs.map(|crumb| {
            let after = crumb.iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1);
            crumb[after..].trim_ascii()
        });
        let elements = path.split('/').flat_map(|element| element.split("%2F")).map(str::as_bytes);
        let all = elements.chain(pairs().map(value)).chain(crumbs);
        self.destination.together(self, all).map_err(refusal)?;

        let join = |position, piece| self.destination.join(self, position, piece).map_err(refusal);
        join(Position::Path, path.rsplit('/').next().unwrap_or_default().as_bytes())?;
        for pair in pairs() {
            join(Position::Query(split_pair(pair).0.to_owned()), value(pair))?;
        }
        for (name, value) in free() {
            join(Position::Header(name.to_string()), value.as_bytes())?;
        }
        Ok(())
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
                    .map_err(|_| Objection::Secret("header", None).refusal("header"))?;
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
        let mark = scanner.found_mark();
        let spans = scanner.take_spans().ok_or_else(|| Objection::Secret(rule, mark).refusal("head"))?;
        let mut text = text.to_vec();
        for span in spans {
            let index = |position| usize::try_from(position).unwrap_or(usize::MAX).min(text.len());
            let span = index(span.start)..index(span.end);
            text[span].fill(MASK);
        }
        Ok(Some(text))
    }

    /// An objection where something could not be searched, and the route does not let it pass.
    fn readable(&self, uninspectable: Option<scan::Uninspectable>) -> Result<(), Objection> {
        match (uninspectable, self.unreadable) {
            (Some(reason), Unreadable::Refuse) => Err(Objection::Uninspectable(reason)),
            (Some(_), Unreadable::Pass) | (None, _) => Ok(()),
        }
    }

    /// How the body is to be searched, by what the headers say of it.
    pub(crate) fn format(&self, headers: &HeaderMap) -> Result<Format, Refusal> {
        match (format_of(headers), self.unreadable) {
            (Err(_), Unreadable::Pass) => Ok(Format::Plain),
            (format, _) => format,
        }
    }
}

fn format_of(headers: &HeaderMap) -> Result<Format, Refusal> {
    let unreadable = || Objection::Uninspectable(scan::Uninspectable::Encoding).refusal("body");
    let mut encodings = Vec::new();
    for named in named(headers, CONTENT_ENCODING.as_str()) {
        if !named.eq_ignore_ascii_case("identity") {
            encodings.push(Encoding::named(&named).ok_or_else(unreadable)?);
        }
    }
    let is_grpc = headers.get(CONTENT_TYPE).is_some_and(is_grpc);
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

/// Whether a body of this type is messages in frames. Not those of `application/grpc-web-text`, which are in base64.
fn is_grpc(content_type: &HeaderValue) -> bool {
    let kind = content_type.as_bytes().to_ascii_lowercase();
    let kind = kind.split(|byte| matches!(byte, b';' | b'+' | b' ' | b'\t')).next();
    matches!(kind, Some(b"application/grpc" | b"application/grpc-web"))
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

impl From<Cut> for Objection {
    fn from(cut: Cut) -> Objection {
        Objection::Reflected(cut)
    }
}

impl Objection {
    /// As an answer. It names the rule and the place, never what was found.
    pub(crate) fn refusal(self, place: &str) -> Refusal {
        match self {
            Objection::Secret(rule, mark) => Refusal::new(
                Code::SecretDetected,
                format!("the request's {place} holds what looks like a secret (rule `{rule}`): leave it out"),
            )
            .naming(mark.map(|mark| Named { rule, mark, position: place.to_owned() })),
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
            Objection::TooBig => Refusal::new(
                Code::ContentUninspectable,
                "a frame of the WebSocket has more than 4 MiB: it cannot be searched for secrets",
            ),
            Objection::Disordered => Refusal::new(
                Code::ContentUninspectable,
                format!("the frames of the {place} do not follow each other as WebSocket has it (RFC 6455)"),
            ),
            Objection::Reflected(cut) => cut.refusal(),
        }
    }
}

/// What of a request stands before its body, as lines.
fn lines(first: [&str; 3], query: Option<&str>, headers: &HeaderMap) -> Vec<u8> {
    let mut text = Vec::with_capacity(1024);
    let mut line = |parts: &[&[u8]]| {
        parts.iter().for_each(|part| text.extend_from_slice(part));
        text.push(b'\n');
    };
    first.iter().for_each(|part| line(&[part.as_bytes()]));
    line(&[query.unwrap_or_default().as_bytes()]);
    for (name, value) in headers {
        line(&[name.as_str().as_bytes(), b": ", value.as_bytes()]);
    }
    text
}

fn split_pair(pair: &str) -> (&str, &str) {
    pair.split_once('=').unwrap_or(("", pair))
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
            headers.iter().nth(number).map_or_else(
                || "head".to_owned(),
                |(name, _)| match usize::try_from(finding.column) {
                    // The name is what was found, or part of it.
                    Ok(column) if column <= name.as_str().len() => "header names".to_owned(),
                    Ok(_) | Err(_) => format!("header `{name}`"),
                },
            )
        }
    }
}
