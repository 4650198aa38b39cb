//! A case: what is sent, and what a sound proxy does with it.

use std::fmt;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

/// The cases that ship with the program, one JSON array for each class.
const FILES: &[(&str, &str)] = &[
    ("addresses.json", include_str!("../cases/addresses.json")),
    ("authority.json", include_str!("../cases/authority.json")),
    ("connect.json", include_str!("../cases/connect.json")),
    ("controls.json", include_str!("../cases/controls.json")),
    ("floods.json", include_str!("../cases/floods.json")),
    ("h2.json", include_str!("../cases/h2.json")),
    ("headers.json", include_str!("../cases/headers.json")),
    ("hello.json", include_str!("../cases/hello.json")),
    ("methods.json", include_str!("../cases/methods.json")),
    ("not-tls.json", include_str!("../cases/not-tls.json")),
    ("paths.json", include_str!("../cases/paths.json")),
    ("smuggling.json", include_str!("../cases/smuggling.json")),
    ("targets.json", include_str!("../cases/targets.json")),
    ("upgrades.json", include_str!("../cases/upgrades.json")),
];

/// One hostile exchange, or a friendly one that must work.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    /// Stable name, unique over all files.
    pub(crate) id: String,
    /// What the bypass is called in the field.
    pub(crate) class: String,
    /// The ways to play it.
    pub(crate) over: Vec<Over>,
    /// A CONNECT head other than the usual one.
    #[serde(default)]
    pub(crate) connect: Option<String>,
    /// The TLS inside the tunnel.
    #[serde(default)]
    pub(crate) tls: Tls,
    /// What is sent.
    pub(crate) play: Script,
    /// What the proxy must do.
    pub(crate) expect: Expect,
    /// How many requests may reach the origin, or must with `served`.
    #[serde(default = "once")]
    pub(crate) most: usize,
    /// Headers that must not reach the origin.
    #[serde(default)]
    pub(crate) absent: Vec<String>,
    /// Where the rule or the bypass is described.
    pub(crate) reference: String,
}

fn once() -> usize {
    1
}

/// How a case gets to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Over {
    /// Bytes on the proxy's port as they stand; further parts only after a `200`.
    Raw,
    /// An HTTP/1.1 request on the proxy's port, in absolute form.
    Plain,
    /// HTTP/1.1 in TLS in a CONNECT tunnel.
    Tunnel,
    /// HTTP/2 in TLS in a CONNECT tunnel.
    H2,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Plain => "plain",
            Self::Tunnel => "connect+h1",
            Self::H2 => "connect+h2",
        })
    }
}

/// What is sent, in one of three notations.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Script {
    /// One request that every transport can carry.
    Request(Request),
    /// Bytes of HTTP/1.1, written part by part.
    Send(Vec<String>),
    /// Frames of HTTP/2.
    Frames(Vec<Step>),
}

/// A request that every transport can carry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    #[serde(default = "get")]
    pub(crate) method: String,
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) headers: Vec<(String, String)>,
    /// Sent with its length.
    #[serde(default)]
    pub(crate) body: Option<String>,
}

fn get() -> String {
    "GET".to_owned()
}

/// A step of an HTTP/2 script.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Step {
    /// HEADERS on a new stream, literal and without compression, END_STREAM set.
    Headers(Vec<(String, String)>),
    /// HEADERS on a new stream without END_STREAM.
    Open(Vec<(String, String)>),
    /// HEADERS on the last stream, with END_STREAM: trailers.
    Trailers(Vec<(String, String)>),
    /// HEADERS on a new stream with this header block as it stands.
    Block(String),
    /// DATA on the last stream, more to come.
    Data(String),
    /// DATA on the last stream, the last of it.
    Last(String),
    /// RST_STREAM with this code on the last stream.
    Reset(u32),
    /// Any frame. The stream is the last one, unless given.
    Frame {
        /// Its type.
        kind: u8,
        /// Its flags.
        flags: u8,
        /// Its stream.
        #[serde(default)]
        stream: Option<u32>,
        /// Its payload.
        payload: String,
    },
    /// Steps so many times.
    Repeat(usize, Vec<Step>),
}

/// The TLS inside a tunnel.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tls {
    /// The server name instead of the origin's.
    pub(crate) sni: Option<String>,
    /// No server name at all.
    pub(crate) no_sni: bool,
    /// Where the bytes of the ClientHello are cut into separate writes.
    pub(crate) split: Vec<usize>,
    /// The ClientHello in records of so many bytes.
    pub(crate) fragment: Option<usize>,
    /// Ask for this protocol instead of the transport's own.
    pub(crate) alpn: Option<String>,
    /// TLS 1.2 at most.
    pub(crate) old: bool,
}

/// What counts as sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Expect {
    /// Nothing reaches the origin, and no answer below 400 comes back.
    Refused,
    /// Refused, or at most `most` requests reach the origin, each of them sound.
    Sound,
    /// Exactly `most` requests reach the origin, each of them sound, and its answer comes back.
    Served,
    /// Whatever happens to this client, the next one is served at once; what reaches the origin is sound.
    Survives,
}

impl Case {
    /// Every case that ships with the program.
    ///
    /// # Errors
    /// When a file is not a JSON array of cases, or a case contradicts itself.
    pub(crate) fn all() -> anyhow::Result<Vec<Self>> {
        let mut cases: Vec<Self> = Vec::new();
        for (file, text) in FILES {
            let read: Vec<Self> = serde_json::from_str(text).with_context(|| (*file).to_owned())?;
            for case in read {
                ensure!(cases.iter().all(|known| known.id != case.id), "{file}: `{}` stands twice", case.id);
                case.check().with_context(|| format!("{file}: {}", case.id))?;
                cases.push(case);
            }
        }
        Ok(cases)
    }

    /// Whether what it sends is a CONNECT, which a proxy may grant without going anywhere.
    pub(crate) fn opens_tunnel(&self) -> bool {
        matches!(&self.play, Script::Send(parts) if parts.first().is_some_and(|part| part.starts_with("CONNECT ")))
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.over.is_empty(), "it is played over nothing");
        ensure!(!self.reference.is_empty() && !self.class.is_empty(), "it has no class or no reference");
        for over in &self.over {
            let fits = match (&self.play, over) {
                (Script::Request(_), Over::Plain | Over::Tunnel | Over::H2) => true,
                (Script::Send(_), Over::Plain | Over::Tunnel | Over::Raw) => true,
                (Script::Frames(_), Over::H2) => true,
                (Script::Request(_), Over::Raw)
                | (Script::Send(_), Over::H2)
                | (Script::Frames(_), Over::Raw | Over::Plain | Over::Tunnel) => false,
            };
            ensure!(fits, "it cannot be played over {over}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_case_parses_and_there_are_three_hundred() {
        let cases = Case::all().unwrap();
        let plays: usize = cases.iter().map(|case| case.over.len()).sum();
        assert!(cases.len() >= 300, "{} cases, {plays} plays", cases.len());
    }

    #[test]
    fn every_transport_has_a_case_that_must_be_served() {
        let cases = Case::all().unwrap();
        for over in [Over::Plain, Over::Tunnel, Over::H2] {
            assert!(
                cases.iter().any(|case| case.expect == Expect::Served && case.over.contains(&over)),
                "{over}"
            );
        }
    }
}
