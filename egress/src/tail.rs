//! `egress tail` and `egress explain`: the other end of the operator's socket.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use audit::Decision;
use proposal::is_invisible;
use proposal::wire::{Failure, Reply};
use serde::de::DeserializeOwned;

use crate::control::{Request, SOCKET, Tail};
use crate::explain::Explanation;
use crate::observe::Seen;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("cannot reach egress at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("egress did not answer")]
    Talk(#[source] io::Error),
    /// What came is no reply.
    #[error("the answer of egress is not understood")]
    Reply(#[source] serde_json::Error),
    /// Egress said no.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// What came cannot be printed.
    #[error("cannot print")]
    Print(#[source] io::Error),
}

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people; what could move a terminal is escaped.
    Text,
    /// One JSON object a line.
    Json,
}

struct Conversation(BufReader<UnixStream>);

impl Conversation {
    fn open(run_dir: &Path, request: &Request) -> Result<Conversation, Error> {
        let path = run_dir.join(SOCKET);
        let mut stream = UnixStream::connect(&path).map_err(|source| Error::Connect { path, source })?;
        stream.set_write_timeout(Some(TIMEOUT)).map_err(Error::Talk)?;
        let mut line = serde_json::to_vec(request).map_err(Error::Reply)?;
        line.push(b'\n');
        stream.write_all(&line).map_err(Error::Talk)?;
        Ok(Conversation(BufReader::new(stream)))
    }

    /// `None` at the end of the conversation.
    fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let mut line = String::new();
        if self.0.read_line(&mut line).map_err(Error::Talk)? == 0 {
            return Ok(None);
        }
        let reply: Reply = serde_json::from_str(&line).map_err(Error::Reply)?;
        Ok(Some(reply.into_result()?))
    }
}

/// Prints the latest refusals, and then every request as it ends, until egress does.
pub fn tail(run_dir: &Path, form: Form, follow: bool, out: &mut impl Write) -> Result<(), Error> {
    let mut conversation = Conversation::open(run_dir, &Request::Tail { follow })?;
    while let Some(Tail { requests, missed }) = conversation.next::<Tail>()? {
        for seen in &requests {
            let line = match form {
                Form::Text => line(seen),
                Form::Json => harmless_json(&serde_json::to_string(seen).map_err(Error::Reply)?),
            };
            writeln!(out, "{line}").map_err(Error::Print)?;
        }
        if missed > 0 {
            writeln!(out, "# {missed} requests were missed").map_err(Error::Print)?;
        }
        out.flush().map_err(Error::Print)?;
        if !follow {
            break;
        }
    }
    Ok(())
}

/// What the running egress would say to a request.
pub fn explain(run_dir: &Path, method: &str, url: &str, headers: &[String]) -> Result<Explanation, Error> {
    let request =
        Request::Explain { method: method.to_owned(), url: url.to_owned(), headers: headers.to_vec() };
    let mut conversation = Conversation::open(run_dir, &request)?;
    conversation.0.get_ref().set_read_timeout(Some(TIMEOUT)).map_err(Error::Talk)?;
    conversation.next()?.ok_or(Error::Talk(io::ErrorKind::UnexpectedEof.into()))
}

/// One request in one line.
fn line(seen: &Seen) -> String {
    let request = &seen.request;
    let decision = match request.decision {
        Decision::Allow => "allow",
        Decision::Deny => "deny",
    };
    let status = request.status.map_or("-".to_owned(), |status| status.to_string());
    let by = request.code.as_deref().or(request.route.as_deref()).unwrap_or("-");
    let host = if request.host.contains(':') { format!("[{}]", request.host) } else { request.host.clone() };
    let id = request.block_id.as_ref().map(|id| format!(" block_id={id}")).unwrap_or_default();
    harmless(&format!(
        "{} {decision:5} {status} {} {}://{host}:{}{} {by} up={} down={} {}ms{id}",
        seen.at,
        request.method,
        request.scheme,
        request.port,
        request.path,
        request.bytes_up,
        request.bytes_down,
        request.millis,
    ))
}

/// The text without anything that a terminal acts on, or that makes it look like another text.
#[must_use]
pub fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || is_invisible(character) {
            harmless.extend(character.escape_unicode());
        } else {
            harmless.push(character);
        }
    }
    harmless
}

/// The same, for JSON, which it stays.
#[must_use]
pub fn harmless_json(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || is_invisible(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                harmless.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            harmless.push(character);
        }
    }
    harmless
}

/// The same, for a text of several lines.
#[must_use]
pub fn harmless_lines(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| line.strip_suffix('\n').map_or_else(|| harmless(line), |line| harmless(line) + "\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::observe::tests::event;

    #[test]
    fn a_request_is_one_line_that_moves_no_terminal() {
        let mut request = event(Some("host-not-allowed"));
        request.method = "G\u{1b}[2JT".to_owned();
        request.path = "/a\r\nallow\u{202e}".to_owned();
        let seen = Seen { at: jiff::Timestamp::UNIX_EPOCH, request };
        assert_eq!(
            line(&seen),
            "1970-01-01T00:00:00Z deny  200 G\\u{1b}[2JT https://api.example.com:443/a\\u{d}\\u{a}allow\\u{202e} \
             host-not-allowed up=1 down=2 7ms block_id=id-host-not-allowed"
        );
    }

    #[test]
    fn what_is_not_seen_is_written_out_in_text_and_in_json() {
        let path = "/a\u{61c}b\u{ad}c\u{3164}d\u{e0041}e\u{85}f\u{202e}g\u{7f}\"é漢";
        assert_eq!(harmless(path), "/a\\u{61c}b\\u{ad}c\\u{3164}d\\u{e0041}e\\u{85}f\\u{202e}g\\u{7f}\"é漢");
        let json = harmless_json(&serde_json::to_string(path).unwrap());
        assert_eq!(json, r#""/a\u061cb\u00adc\u3164d\udb40\udc41e\u0085f\u202eg\u007f\"é漢""#);
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), path);
    }
}
