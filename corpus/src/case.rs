//! A case: what is sent, and what a sound proxy does with it.

use serde::Deserialize;

/// The cases that ship with the program, one JSON array per class.
const FILES: [(&str, &str); 2] = [
    ("target.json", include_str!("../cases/target.json")),
    ("tunnel.json", include_str!("../cases/tunnel.json")),
];

/// One hostile exchange.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// Stable name, unique over all files.
    pub(crate) id: String,
    /// What the bypass is called in the field.
    pub(crate) class: String,
    /// Written first, as is. `{origin}` stands for the authority of the runner's own origin, `{host}` for its host alone.
    pub(crate) head: String,
    /// Written one by one after the proxy answered `200` to `head`, which is then a CONNECT.
    #[serde(default)]
    pub(crate) tunnel: Option<Vec<String>>,
    /// What the proxy must do.
    pub(crate) expect: Expect,
    /// Where the rule or the bypass is described.
    pub(crate) reference: String,
}

/// What counts as sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Expect {
    /// An HTTP status of 400 or more, or the connection closed without an answer; the origin is not contacted.
    Refused,
    /// The tunnel may open locally, but nothing that the origin sent comes back, and the origin is not contacted.
    NothingForwarded,
    /// Refused, or forwarded with one unambiguous framing of its own (RFC 9112 section 6.1 lets a proxy do either).
    Reframed,
}

impl Case {
    /// Every case that ships with the program.
    ///
    /// # Errors
    /// When a file is not a JSON array of cases, or an id stands twice.
    pub(crate) fn all() -> anyhow::Result<Vec<Self>> {
        let mut cases: Vec<Self> = Vec::new();
        for (file, text) in FILES {
            let read: Vec<Self> =
                serde_json::from_str(text).map_err(|error| anyhow::anyhow!("{file}: {error}"))?;
            for case in read {
                anyhow::ensure!(
                    cases.iter().all(|known| known.id != case.id),
                    "{file}: the id `{}` stands twice",
                    case.id
                );
                cases.push(case);
            }
        }
        Ok(cases)
    }

    /// The case with the runner's origin put in place of its placeholders.
    pub(crate) fn aimed_at(&self, authority: &str) -> Self {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let fill = |text: &String| text.replace("{origin}", authority).replace("{host}", host);
        Self {
            head: fill(&self.head),
            tunnel: self.tunnel.as_ref().map(|parts| parts.iter().map(fill).collect()),
            ..self.clone()
        }
    }
}

/// The bytes of a case's text: each character below U+0100 is one byte (ISO 8859-1), so that JSON can carry any octet.
pub(crate) fn octets(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_case_parses_and_says_where_it_comes_from() {
        let cases = Case::all().unwrap();
        assert!(cases.len() >= 30, "{} cases", cases.len());
        for case in &cases {
            assert!(!case.reference.is_empty() && !case.class.is_empty(), "{}", case.id);
            assert_eq!(case.expect == Expect::NothingForwarded, case.tunnel.is_some(), "{}", case.id);
        }
    }

    #[test]
    fn octets_above_ascii_are_single_bytes() {
        assert_eq!(octets("\u{16}\u{3}\u{ff}a"), [0x16, 3, 0xff, b'a']);
    }
}
