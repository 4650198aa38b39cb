//! What is told of a request that a person is asked about: where the secrets stand, and what stands around them, masked.

use http::{HeaderMap, HeaderName, HeaderValue};
use proposal::peer::{Found, HELD_MAX};
use scan::{Finding, Report, Scanner};
use sha2::{Digest, Sha256};

use super::{Format, Inspection, MASK, place};
use crate::except::Named;
use crate::refusal::Refusal;
use crate::tls::hex;

/// What stands before and behind a secret and is shown.
const AROUND: usize = 40;

/// The head of a request, and what was found in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Suspicion {
    pub(crate) findings: Vec<Found>,
    pub(crate) count: u64,
    /// Whether it may stand in the method, the host or the path, which then are not shown.
    pub(crate) in_target: bool,
    /// The first finding that has a name.
    pub(crate) named: Option<Named>,
    hash: Sha256,
}

impl Suspicion {
    /// Of the head that goes out, without the credential that is ours.
    pub(super) fn of(first: [&str; 3], query: Option<&str>, headers: &HeaderMap<HeaderValue>) -> Suspicion {
        let mut suspicion = Suspicion::default();
        first.iter().for_each(|part| suspicion.digest(part.as_bytes()));
        suspicion.digest(&[u8::from(query.is_some())]);
        suspicion.digest(query.unwrap_or_default().as_bytes());
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        for name in names {
            for value in headers.get_all(name) {
                suspicion.digest(name.as_bytes());
                suspicion.digest(value.as_bytes());
            }
        }
        suspicion.digest(b"");
        suspicion
    }

    /// Of what the agent had put where its own credentials stand: there the secret may be put, and upstream would get another request.
    pub(crate) fn beside(&mut self, asked: &HeaderMap, leaving: &HeaderMap, query: Option<&str>) {
        let is_other = |name: &&HeaderName| !asked.get_all(*name).iter().eq(leaving.get_all(*name));
        let mut names: Vec<&HeaderName> = asked.keys().filter(is_other).collect();
        names.sort_unstable_by_key(|name| name.as_str());
        for name in names {
            for value in asked.get_all(name) {
                self.digest(name.as_str().as_bytes());
                self.digest(value.as_bytes());
            }
        }
        self.digest(b"");
        self.digest(query.unwrap_or_default().as_bytes());
    }

    pub(super) fn head(
        &mut self,
        report: &Report,
        text: &[u8],
        inspection: &Inspection,
        headers: &HeaderMap,
    ) {
        let masked = Inspection::mask_all(inspection.scanner(), text);
        for finding in &report.findings {
            self.in_target |= finding.line <= 3 || !finding.through.is_nothing();
            self.add(finding, place(finding, headers), 0, masked.as_deref());
        }
    }

    /// Searches the body as a whole.
    pub(crate) fn body(
        &mut self,
        body: &[u8],
        inspection: &Inspection,
        format: Format,
    ) -> Result<(), Refusal> {
        let mut findings: Vec<Finding> = Vec::new();
        for (number, mut scanner) in inspection.readings(format).into_iter().enumerate() {
            scanner.feed(body);
            scanner.end();
            inspection.foreign(&scanner).map_err(|objection| objection.refusal("body"))?;
            let missed = inspection.readable(scanner.missed_for_want_of_memory());
            missed.map_err(|objection| objection.refusal("body"))?;
            let report = scanner.finish();
            if number == 0 {
                inspection.readable(report.uninspectable).map_err(|objection| objection.refusal("body"))?;
            }
            // What is the same secret, or found by undoing the same, is told once.
            let same = |new: &Finding, old: &Finding| {
                old.rule == new.rule
                    && (old.through == new.through || old.mark.is_some() && old.mark == new.mark)
            };
            let fresh = |new: &Finding| number == 0 || !findings.iter().any(|old| same(new, old));
            let fresh: Vec<Finding> = report.findings.into_iter().filter(fresh).collect();
            findings.extend(fresh);
        }
        let masked = if format == Format::Plain {
            Inspection::mask_all(inspection.body_scanner(), body)
        } else {
            None
        };
        for finding in &findings {
            self.add(finding, "body".to_owned(), finding.line, masked.as_deref());
        }
        self.digest(body);
        Ok(())
    }

    /// The digest of everything that was looked at, on its way to that scheme and port.
    pub(crate) fn finish(&self, scheme: &str, port: u16) -> String {
        let mut whole = self.clone();
        whole.digest(scheme.as_bytes());
        whole.digest(&port.to_be_bytes());
        format!("sha256:{}", hex(&whole.hash.finalize()))
    }

    fn digest(&mut self, part: &[u8]) {
        self.hash.update((part.len() as u64).to_be_bytes());
        self.hash.update(part);
    }

    fn add(&mut self, finding: &Finding, position: String, line: u32, masked: Option<&[u8]>) {
        self.count += 1;
        if let (None, Some(mark)) = (&self.named, finding.mark) {
            self.named = Some(Named { rule: finding.rule, mark, position: position.clone() });
        }
        if self.findings.len() < HELD_MAX {
            let excerpt =
                masked.filter(|_| finding.through.is_nothing()).map(|text| around(text, finding.offset));
            let excerpt = excerpt.unwrap_or_default();
            self.findings.push(Found {
                rule: finding.rule.to_owned(),
                position,
                commit: None,
                line,
                excerpt,
            });
        }
    }
}

impl Inspection {
    /// The text with all secrets masked; nothing when one is hidden in something, so that it cannot be told where it stands.
    fn mask_all(mut scanner: Scanner<'_>, text: &[u8]) -> Option<Vec<u8>> {
        scanner.feed(text);
        scanner.end();
        let spans = scanner.take_spans()?;
        let mut text = text.to_vec();
        for span in spans {
            let index = |position| usize::try_from(position).unwrap_or(usize::MAX).min(text.len());
            let span = index(span.start)..index(span.end);
            text[span].fill(MASK);
        }
        Some(text)
    }
}

/// What stands around a place, on one line.
fn around(text: &[u8], offset: usize) -> String {
    let start = offset.saturating_sub(AROUND).min(text.len());
    let end = offset.saturating_add(AROUND).min(text.len());
    let shown = String::from_utf8_lossy(&text[start..end]).into_owned();
    shown.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use policy::{Detector, Dlp, OnMatch, Unreadable};

    use super::*;
    use crate::credential::Lookout;

    /// Made at run time, so that no scanner trips over this file.
    fn key() -> String {
        format!("glpat{}q8Zr2LkT0vWcN5mYx1Jd", "-")
    }

    fn inspection() -> Inspection {
        let outbound = vec![Detector::TokenPatterns];
        let dlp = Dlp {
            outbound,
            inbound: Vec::new(),
            on_match: OnMatch::Supervise,
            unreadable: Unreadable::Refuse,
        };
        Inspection::of(&dlp, &Lookout::default(), Arc::default(), &scan::Budget::UNBOUNDED).unwrap()
    }

    fn suspicion(headers: &[(&'static str, &str)], body: &str) -> Suspicion {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        let first = ["POST", "api.example.com", "/v1"];
        let mut suspicion = inspection().head(first, &mut Some("a=1".to_owned()), &mut map).unwrap().unwrap();
        suspicion.body(body.as_bytes(), &inspection(), Format::Plain).unwrap();
        suspicion
    }

    #[test]
    fn what_is_told_has_the_place_and_never_the_value() {
        let told = suspicion(&[("x-note", &key())], &format!("first\nkey = {} # ours\n", key()));
        let lines: Vec<String> = told
            .findings
            .iter()
            .map(|found| format!("{} {} {} [{}]", found.rule, found.position, found.line, found.excerpt))
            .collect();
        assert_eq!(told.count, 2);
        assert!(lines[0].contains("header `x-note`") && lines[1].contains("body 2"), "{lines:?}");
        assert!(lines[1].contains("key = ****"), "{lines:?}");
        assert!(!lines.concat().contains(&key()[8..]), "{lines:?}");
        assert!(!told.in_target);
    }

    #[test]
    fn of_what_is_compressed_each_secret_is_told_once_and_those_in_the_clear_too() {
        use std::io::Write as _;
        let in_content = key().replace("Jd", "Je");
        let mut encoder =
            flate2::GzBuilder::new().filename(key()).write(Vec::new(), flate2::Compression::default());
        encoder.write_all(format!("key = {in_content}\n").as_bytes()).unwrap();
        let body = encoder.finish().unwrap();
        let marks = scan::Marks::new(Arc::new(scan::MarkKey::new([7; scan::MARK_KEY_BYTES])), Vec::new());
        let inspection = inspection().marked(Arc::new(marks));
        let mut suspicion = Suspicion::default();
        suspicion.body(&body, &inspection, Format::Encoded(scan::Encoding::Gzip)).unwrap();
        assert_eq!(suspicion.count, 2, "{:?}", suspicion.findings);
        assert!(inspection.whole(&body, Format::Encoded(scan::Encoding::Gzip)).is_err());
    }

    #[test]
    fn the_digest_is_of_every_byte_that_goes_out_and_not_of_the_order_of_headers() {
        let key = key();
        let finish = |suspicion: Suspicion| suspicion.finish("https", 443);
        let asked = suspicion(&[("x-a", "1"), ("x-b", "2")], &key);
        assert_ne!(asked.finish("https", 443), asked.finish("https", 8443));
        assert_ne!(asked.finish("https", 443), asked.finish("http", 443));
        let first = finish(asked);
        assert_eq!(first, finish(suspicion(&[("x-b", "2"), ("x-a", "1")], &key)));
        let other = [
            suspicion(&[("x-a", "1"), ("x-b", "3")], &key),
            suspicion(&[("x-a", "1")], &key),
            suspicion(&[("x-a", "1"), ("x-b", "2")], &format!("{key} ")),
            suspicion(&[("x-a", "1"), ("x-b", "2"), ("x-b", "2")], &key),
        ];
        assert!(other.into_iter().all(|other| finish(other) != first));
    }
}
