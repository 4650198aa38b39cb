//! What supervise asks egress and git-gate, over the socket that the supervisor made for the pair: one JSON object a datagram.
//!
//! Supervise asks, the other answers: a daemon takes no word from here that widens what it lets through. A daemon says [`Word::Held`] as soon
//! as it holds something for the operator ([`Hold`]); the word may be lost, so [`Question::Holds`] asks for all that wait. What is held passes
//! by a release of its digest in the daemon's own configuration, which the host alone writes (`policy::Policy::released`,
//! `repos::Repos::released`), for as often as that says; [`Verdict::Approve`] only says that it is time to look. [`Verdict::Reject`] counts
//! as it is.
//!
//! The socket outlives both ends, so an answer may be for a question of a process that is gone: `seq` says for which it is.

use std::fmt;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::escaped;

/// The longest datagram. A refusal that does not fit is answered as unknown.
pub const DATAGRAM_MAX: usize = 16 << 10;
/// The longest `block_id`.
pub const BLOCK_ID_MAX: usize = 64;
/// Begins the reason of a [`Verdict::Reject`] that nobody gave, because nobody is there.
pub const OPERATOR_OFFLINE: &str = "operator_offline";
/// The length of [`Hold::id`].
pub const HOLD_ID_CHARS: usize = 32;
/// The length of the name of something that was found.
pub const FINGERPRINT_CHARS: usize = 32;
/// How many refs, and how many places, a [`Hold`] names; the rest is only counted.
pub const HELD_MAX: usize = 20;

/// What supervise asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// What was refused under this name?
    Refusal {
        /// Comes back with the answer.
        seq: u64,
        /// The name that the agent was told.
        block_id: String,
    },
    /// Where does your journal end?
    Head {
        /// Comes back with the answer.
        seq: u64,
    },
    /// What do you hold for the operator? Asked at the start, and now and then, because a [`Word`] may be lost.
    Holds {
        /// Comes back with the answer.
        seq: u64,
    },
    /// What did you find under this name, and where? Of what was refused for it.
    Finding {
        /// Comes back with the answer.
        seq: u64,
        /// The name that the agent was told, [`FINGERPRINT_CHARS`] hexadecimal digits.
        fingerprint: String,
    },
    /// What the operator decided about something that you hold.
    Decide {
        /// Comes back with the answer.
        seq: u64,
        /// Its [`Hold::id`].
        id: String,
        /// Its [`Hold::digest`]: the decision is for this content and no other.
        digest: String,
        /// The decision.
        verdict: Verdict,
        /// For whom waits, where the operator gave a reason; shown without control characters.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
}

/// What an operator decides about something that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It goes through, if the configuration in force has a release of its digest.
    Approve,
    /// It is refused.
    Reject,
}

/// What the other daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// To [`Question::Refusal`].
    Refusal {
        /// That of the question.
        seq: u64,
        /// What was refused, if it is still known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        refusal: Option<Refusal>,
    },
    /// To [`Question::Head`].
    Head {
        /// That of the question.
        seq: u64,
        /// How many records the journal has.
        records: u64,
        /// The hash of the last one, 64 hexadecimal digits.
        hash: String,
    },
    /// To [`Question::Holds`].
    Holds {
        /// That of the question.
        seq: u64,
        /// The names of all that wait, oldest first; a [`Word::Held`] about each follows.
        ids: Vec<String>,
    },
    /// To [`Question::Finding`].
    Finding {
        /// That of the question.
        seq: u64,
        /// What was found, if it is still known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        finding: Option<Located>,
    },
    /// To [`Question::Decide`].
    Decided {
        /// That of the question.
        seq: u64,
        /// Whether it still waited, with that digest. False: nobody waits any more, and nothing was done.
        waited: bool,
    },
}

/// What a daemon says by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tell", rename_all = "snake_case", deny_unknown_fields)]
pub enum Word {
    /// This waits for the operator.
    Held {
        /// What.
        hold: Hold,
    },
    /// This waits no longer: whoever waited went away, or the time is over. Not said after a [`Question::Decide`].
    Dropped {
        /// Its name.
        id: String,
    },
    /// A grant of this name is spent or past its end.
    Exhausted {
        /// The name that the file gives it.
        grant: String,
    },
}

/// Something that a daemon holds until the operator decides or [`Hold::until`] passes, which refuses it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// A random name, [`HOLD_ID_CHARS`] hexadecimal digits.
    pub id: String,
    /// `sha256:…` of the exact content that waits.
    pub digest: String,
    /// Since when.
    pub at: Timestamp,
    /// Until when.
    pub until: Timestamp,
    /// What it is.
    pub what: Held,
    /// What was found, at most [`HELD_MAX`] places.
    pub findings: Vec<Found>,
    /// How many places were found in all.
    pub found: u64,
}

/// The kinds of things that are held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Held {
    /// A push, at git-gate.
    Push {
        /// The repository's name.
        repo: String,
        /// Upstream's URL, without an account's secret.
        upstream: String,
        /// The refs that it changes, at most [`HELD_MAX`].
        refs: Vec<HeldRef>,
        /// How many refs it changes in all.
        changes: u64,
        /// How many objects it brings.
        objects: u64,
    },
    /// A request, at egress: canonical, without query, headers and body.
    Request {
        /// `https` or `http`.
        scheme: String,
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// The method.
        method: String,
        /// The path.
        path: String,
        /// How many bytes the body has.
        body: u64,
    },
}

/// A ref that a held push changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldRef {
    /// The whole name.
    pub name: String,
    /// The object that it names now; all zeros where it is new.
    pub old: String,
    /// The object that it would name; all zeros where it is deleted.
    pub new: String,
}

/// A place where something was found. Never what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// The rule.
    pub rule: String,
    /// A path in a commit, or a position in a request: `body`, `header:NAME`, `(commit message)`.
    pub position: String,
    /// The commit, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The line, from 1; 0 where there are no lines.
    #[serde(default)]
    pub line: u32,
    /// The surroundings with the value masked, where the daemon can give them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub excerpt: String,
}

/// Something that was refused for what was found in it, as the daemon that refused it recorded it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Located {
    /// The name of what was found.
    pub fingerprint: String,
    /// Where it was to go.
    pub target: Target,
    /// What was found.
    pub found: Found,
}

/// Where something was to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// This host.
    Host(String),
    /// This repository of git-gate.
    Repo(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Host(host) => f.write_str(&escaped(host)),
            Target::Repo(repo) => write!(f, "the repository {}", escaped(repo)),
        }
    }
}

impl Found {
    /// Where it stood, in words.
    #[must_use]
    pub fn place(&self) -> String {
        let Found { position, commit, line, .. } = self;
        let line = if *line > 0 { format!(", line {line}") } else { String::new() };
        let commit =
            commit.as_ref().map_or_else(String::new, |commit| format!(", commit {}", escaped(commit)));
        format!("{}{line}{commit}", escaped(position))
    }
}

/// One request that egress refused, as egress judged it: canonical, without query, headers and body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// Its name.
    pub block_id: String,
    /// The stable code.
    pub code: String,
    /// When.
    pub at: Timestamp,
    /// `https` or `http`.
    pub scheme: String,
    /// The host; empty when the request named none.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The method, or `CONNECT` where it ended there.
    pub method: String,
    /// The path.
    pub path: String,
}

impl Refusal {
    /// What egress' journal has of a request that it refused, in the form of the journal.
    #[must_use]
    pub fn recorded(at: Timestamp, request: &impl Serialize) -> Option<Refusal> {
        #[derive(Deserialize)]
        struct Recorded {
            #[serde(default)]
            block_id: Option<String>,
            #[serde(default)]
            code: Option<String>,
            scheme: String,
            host: String,
            port: u16,
            method: String,
            path: String,
        }
        let value = serde_json::to_value(request).ok()?;
        let Recorded { block_id, code, scheme, host, port, method, path } =
            serde_json::from_value(value).ok()?;
        let (block_id, code) = (block_id.unwrap_or_default(), code.unwrap_or_default());
        Some(Refusal { block_id, code, at, scheme, host, port, method, path })
    }
}

impl Answer {
    /// The question that this is for.
    #[must_use]
    pub fn seq(&self) -> u64 {
        match self {
            Answer::Refusal { seq, .. }
            | Answer::Head { seq, .. }
            | Answer::Holds { seq, .. }
            | Answer::Finding { seq, .. }
            | Answer::Decided { seq, .. } => *seq,
        }
    }
}

/// The datagram of a message; nothing when it would be too long.
#[must_use]
pub fn datagram(message: &impl Serialize) -> Option<Vec<u8>> {
    serde_json::to_vec(message).ok().filter(|bytes| bytes.len() <= DATAGRAM_MAX)
}

/// The message of a datagram; nothing when it is none.
#[must_use]
pub fn message<T: DeserializeOwned>(datagram: &[u8]) -> Option<T> {
    if datagram.len() > DATAGRAM_MAX {
        return None;
    }
    serde_json::from_slice(datagram).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_question_and_its_answer_have_one_form() {
        let question = Question::Refusal { seq: 7, block_id: "5f1d".to_owned() };
        let text = String::from_utf8(datagram(&question).unwrap()).unwrap();
        insta::assert_snapshot!(text, @r#"{"ask":"refusal","seq":7,"block_id":"5f1d"}"#);
        assert_eq!(message(text.as_bytes()), Some(question));
        let refusal = Refusal {
            block_id: "5f1d".to_owned(),
            code: "host-not-allowed".to_owned(),
            at: Timestamp::UNIX_EPOCH,
            scheme: "https".to_owned(),
            host: "api.example.com".to_owned(),
            port: 443,
            method: "GET".to_owned(),
            path: "/v1".to_owned(),
        };
        let answer = Answer::Refusal { seq: 7, refusal: Some(refusal) };
        let text = String::from_utf8(datagram(&answer).unwrap()).unwrap();
        insta::assert_snapshot!(text, @r#"{"answer":"refusal","seq":7,"refusal":{"block_id":"5f1d","code":"host-not-allowed","at":"1970-01-01T00:00:00Z","scheme":"https","host":"api.example.com","port":443,"method":"GET","path":"/v1"}}"#);
        assert_eq!(message::<Answer>(text.as_bytes()).unwrap().seq(), 7);
    }

    #[test]
    fn what_is_held_and_its_decision_have_one_form() {
        let word = Word::Held {
            hold: Hold {
                id: "0a".repeat(16),
                digest: "sha256:ab".to_owned(),
                at: Timestamp::UNIX_EPOCH,
                until: Timestamp::UNIX_EPOCH,
                what: Held::Push {
                    repo: "web".to_owned(),
                    upstream: "ssh://git@git.example.test/web.git".to_owned(),
                    refs: vec![HeldRef {
                        name: "refs/heads/a".to_owned(),
                        old: "0".repeat(4),
                        new: "1".repeat(4),
                    }],
                    changes: 1,
                    objects: 3,
                },
                findings: vec![Found {
                    rule: "private-key".to_owned(),
                    position: "key.pem".to_owned(),
                    commit: None,
                    line: 1,
                    excerpt: String::new(),
                }],
                found: 1,
            },
        };
        let text = String::from_utf8(datagram(&word).unwrap()).unwrap();
        insta::assert_snapshot!(text, @r#"{"tell":"held","hold":{"id":"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a","digest":"sha256:ab","at":"1970-01-01T00:00:00Z","until":"1970-01-01T00:00:00Z","what":{"kind":"push","repo":"web","upstream":"ssh://git@git.example.test/web.git","refs":[{"name":"refs/heads/a","old":"0000","new":"1111"}],"changes":1,"objects":3},"findings":[{"rule":"private-key","position":"key.pem","line":1}],"found":1}}"#);
        assert_eq!(message(text.as_bytes()), Some(word));
        // A word is no answer, and an answer no word.
        assert_eq!(message::<Answer>(text.as_bytes()), None);
        let decide = Question::Decide {
            seq: 3,
            id: "0a".to_owned(),
            digest: "sha256:ab".to_owned(),
            verdict: Verdict::Approve,
            reason: String::new(),
        };
        let text = String::from_utf8(datagram(&decide).unwrap()).unwrap();
        insta::assert_snapshot!(text, @r#"{"ask":"decide","seq":3,"id":"0a","digest":"sha256:ab","verdict":"approve"}"#);
        assert_eq!(message(text.as_bytes()), Some(decide));
        let text = r#"{"answer":"decided","seq":3,"waited":true}"#;
        assert_eq!(message(text.as_bytes()), Some(Answer::Decided { seq: 3, waited: true }));
    }

    #[test]
    fn a_finding_has_one_form_and_no_value() {
        let found = Found {
            rule: "gitlab-pat".to_owned(),
            position: "body".to_owned(),
            commit: None,
            line: 3,
            excerpt: String::new(),
        };
        let located = Located {
            fingerprint: "0a".repeat(16),
            target: Target::Host("api.example.com".to_owned()),
            found,
        };
        let answer = Answer::Finding { seq: 3, finding: Some(located) };
        let text = String::from_utf8(datagram(&answer).unwrap()).unwrap();
        insta::assert_snapshot!(text, @r#"{"answer":"finding","seq":3,"finding":{"fingerprint":"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a","target":{"host":"api.example.com"},"found":{"rule":"gitlab-pat","position":"body","line":3}}}"#);
        assert_eq!(message(text.as_bytes()), Some(answer));
        let question = Question::Finding { seq: 3, fingerprint: "0a".repeat(16) };
        let text = String::from_utf8(datagram(&question).unwrap()).unwrap();
        insta::assert_snapshot!(text, @r#"{"ask":"finding","seq":3,"fingerprint":"0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"}"#);
    }

    #[test]
    fn what_is_too_long_is_no_message() {
        let long = Question::Refusal { seq: 7, block_id: "x".repeat(DATAGRAM_MAX) };
        assert_eq!(datagram(&long), None);
        assert_eq!(message::<Question>(&serde_json::to_vec(&long).unwrap()), None);
    }
}
