//! What supervise asks egress and git-gate, over the socket that the supervisor made for the pair: one JSON object a datagram.
//!
//! Supervise asks, the other answers, and never the other way round: the daemon that carries out a decision takes no word about it from
//! here. The socket outlives both ends, so an answer may be for a question of a process that is gone: `seq` says for which it is.

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The longest datagram. A refusal that does not fit is answered as unknown.
pub const DATAGRAM_MAX: usize = 16 << 10;
/// The longest `block_id`.
pub const BLOCK_ID_MAX: usize = 64;

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

impl Answer {
    /// The question that this is for.
    #[must_use]
    pub fn seq(&self) -> u64 {
        match self {
            Answer::Refusal { seq, .. } | Answer::Head { seq, .. } => *seq,
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
    fn what_is_too_long_is_no_message() {
        let long = Question::Refusal { seq: 7, block_id: "x".repeat(DATAGRAM_MAX) };
        assert_eq!(datagram(&long), None);
        assert_eq!(message::<Question>(&serde_json::to_vec(&long).unwrap()), None);
    }
}
