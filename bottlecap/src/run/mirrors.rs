//! The first copies of a bottle's repositories, before its command runs: they can take minutes, and here is somebody to see how far
//! they are.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use proposal::escaped;
use proposal::wire::Reply;
use repos::Repos;
use serde::Deserialize;
use serde_json::json;

use crate::progress::Progress;
use crate::requests::client;

/// How long an upstream may say nothing. The copy goes on behind the command then.
const SILENCE_MS: u16 = 5_000;
const LINE_MAX: usize = 64 << 10;

/// How the wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// There is nothing more to wait for.
    Done,
    /// By this signal: the command is not to run any more.
    Ended(Signal),
}

/// What git-gate says of a copy.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Copying {
    At(String),
    Done,
}

/// What becomes of the wait for one copy.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Copied,
    /// It cannot be made now, and why; the agent's own git is told again.
    Not(String),
    Ended(Signal),
}

/// Has git-gate make each copy that is not there yet, one after the other.
pub(super) fn wait(run_dir: &Path, repos: &Repos, signals: &SignalFd) -> Waited {
    let socket = run_dir.join("git-gate.sock");
    for name in repos.iter().map(|repo| repo.name.to_string()) {
        match copy(&socket, &name, signals).unwrap_or_else(|error| Outcome::Not(error.to_string())) {
            Outcome::Copied => {}
            Outcome::Not(why) => tracing::warn!("there is no copy of {name} yet: {why}"),
            Outcome::Ended(signal) => return Waited::Ended(signal),
        }
    }
    Waited::Done
}

fn copy(socket: &Path, name: &str, signals: &SignalFd) -> io::Result<Outcome> {
    let mut stream = client::connect(socket)?;
    let mut line = serde_json::to_vec(&json!({ "op": "copy", "repo": name }))?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let (mut heard, mut progress) = (Heard::default(), None);
    loop {
        let mut watched =
            [PollFd::new(stream.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::from(SILENCE_MS)) {
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(0) => return Ok(Outcome::Not("its upstream is silent".to_owned())),
            Ok(_) => {}
        }
        let [said, signalled] = watched.map(|entry| entry.any().unwrap_or(false));
        if signalled
            && let Some(received) = signals.read_signal()?
            && let Ok(signal) = Signal::try_from(received.ssi_signo.cast_signed())
            && signal != Signal::SIGWINCH
        {
            return Ok(Outcome::Ended(signal));
        }
        if !said {
            continue;
        }
        if !heard.read(&mut stream)? {
            return Ok(Outcome::Not("git-gate has hung up".to_owned()));
        }
        while let Some(reply) = heard.next()? {
            match reply.into_result::<Copying>() {
                Ok(Copying::Done) => return Ok(Outcome::Copied),
                Ok(Copying::At(words)) => {
                    let began = || Progress::start(format!("copying {name}"));
                    progress.get_or_insert_with(began).git(&words);
                }
                Err(failure) => return Ok(Outcome::Not(escaped(&failure.message))),
            }
        }
    }
}

/// Bytes that came, until they are lines.
#[derive(Debug, Default)]
struct Heard(Vec<u8>);

impl Heard {
    /// Whether there was anything before the end.
    fn read(&mut self, stream: &mut UnixStream) -> io::Result<bool> {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece)?;
        self.0.extend_from_slice(&piece[..length]);
        if self.0.len() > LINE_MAX { Err(ErrorKind::InvalidData.into()) } else { Ok(length > 0) }
    }

    fn next(&mut self) -> io::Result<Option<Reply>> {
        let Some(end) = self.0.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line: Vec<u8> = self.0.drain(..=end).collect();
        Ok(Some(serde_json::from_slice(&line)?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use nix::sys::signal::SigSet;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    /// What becomes of it when the gate answers with these lines and hangs up.
    fn answered(lines: &'static str) -> Outcome {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("git-gate.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let gate = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            BufReader::new(stream.try_clone().unwrap()).read_line(&mut asked).unwrap();
            stream.write_all(lines.as_bytes()).unwrap();
            asked
        });
        let outcome = copy(&socket, "web", &SignalFd::new(&SigSet::empty()).unwrap()).unwrap();
        assert_eq!(gate.join().unwrap(), "{\"op\":\"copy\",\"repo\":\"web\"}\n");
        outcome
    }

    #[test]
    fn a_copy_is_awaited_until_it_is_there_or_cannot_be() {
        let said = "{\"ok\":true,\"result\":{\"at\":\"Receiving objects: 45% (9/20)\"}}\n{\"ok\":true,\"result\":\"done\"}\n";
        assert_eq!(answered(said), Outcome::Copied);
        let said = "{\"ok\":false,\"error\":{\"code\":\"upstream\",\"message\":\"it is \\u001b[2J down\"}}\n";
        assert_eq!(answered(said), Outcome::Not("it is \\u{1b}[2J down".to_owned()));
        assert_eq!(answered(""), Outcome::Not("git-gate has hung up".to_owned()));
    }
}
