//! The daemon's side of a push: which refs, whose turn, and what came of it.

use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use repos::Upstream;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;
use tracing::debug;

use crate::git::{GateDir, Objects, Reach, printable};
use crate::journal::{AUDIT_UNAVAILABLE, Ledger, PushOutcome, UNRECORDED};
use crate::session::{self, Hangup, Moved, SessionError};
use crate::state::{Served, State};
use crate::wire::{FromHook, HOOK_FD, LINE_MAX_BYTES, ToHook, Update};
use crate::{request::Request, sys};

/// How long a push waits for its turn.
const LOCK_TIMEOUT: Duration = Duration::from_secs(300);
/// How many refs one push may change, so that its record stays readable and is always written.
const REFS_MAX: usize = 1000;
/// How much memory of its own each process of a push may have.
const MEMORY_MAX_BYTES: u64 = 2 << 30;

const BUSY: &str = "another push to this repository takes too long; try again";

/// A push as the record wants it.
pub(crate) struct Push {
    pub(crate) updates: Vec<Update>,
    pub(crate) outcome: PushOutcome,
    pub(crate) session: Result<Moved, SessionError>,
}

/// Receives a push. The mirror was refreshed a moment ago.
pub(crate) async fn receive(
    stream: &mut TcpStream,
    served: &Served,
    state: &State,
    ledger: &Ledger,
    request: &Request,
) -> Push {
    let mut updates = Vec::new();
    let mut outcome = PushOutcome::Abandoned;
    let session = match command(served, &state.gate, request) {
        Ok((command, socket)) => {
            let talk = Talk { served, state, ledger, updates: &mut updates, outcome: &mut outcome };
            let session = session::run(stream, command, Hangup::LeavesTheChild);
            tokio::join!(session, talk.run(socket)).0
        }
        Err(error) => Err(SessionError::Spawn(error)),
    };
    Push { updates, outcome, session }
}

/// `git receive-pack` with one end of a socket for its hook, and the other end.
fn command(
    served: &Served,
    gate: &GateDir,
    request: &Request,
) -> std::io::Result<(Command, tokio::net::UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let path = served.mirror.path();
    let mut command = gate.git(path, Reach::Nowhere, Objects::Own);
    command.arg("-c").arg(format!("receive.maxInputSize={}", served.repo.push.max_pack()));
    command.arg("receive-pack").arg(path);
    command.envs(request.protocol.variable().map(|value| ("GIT_PROTOCOL", value)));
    let number = sys::inherit(&mut command, OwnedFd::from(theirs));
    command.env(HOOK_FD, number.to_string());
    sys::bound_memory(&mut command, MEMORY_MAX_BYTES);
    Ok((command, tokio::net::UnixStream::from_std(ours)?))
}

/// The conversation with the hook.
struct Talk<'a> {
    served: &'a Served,
    state: &'a State,
    ledger: &'a Ledger,
    updates: &'a mut Vec<Update>,
    outcome: &'a mut PushOutcome,
}

impl Talk<'_> {
    /// Answers until the hook and `git receive-pack` are both gone; the lock is held as long.
    async fn run(self, socket: tokio::net::UnixStream) {
        let (reader, mut writer) = socket.into_split();
        let mut reader = BufReader::new(reader);
        let mut lock = None;
        while let Some(message) = hear(&mut reader).await {
            let answer = match message {
                FromHook::Updates { updates } => {
                    let reasons = self.denials(&updates);
                    *self.updates = updates;
                    self.updates.truncate(REFS_MAX);
                    if reasons.is_empty() {
                        Some(ToHook::Inspect)
                    } else {
                        *self.outcome = PushOutcome::Denied;
                        Some(ToHook::Deny { reasons })
                    }
                }
                FromHook::Clean => {
                    lock = timeout(LOCK_TIMEOUT, self.served.mirror.lock()).await.ok();
                    // The rules may have changed while the objects were judged.
                    let reasons = self.denials(self.updates);
                    let refusal = if self.ledger.is_broken() {
                        Some((PushOutcome::Refused(AUDIT_UNAVAILABLE), vec![UNRECORDED.to_owned()]))
                    } else if lock.is_none() {
                        Some((PushOutcome::Refused("busy"), vec![BUSY.to_owned()]))
                    } else if !reasons.is_empty() {
                        Some((PushOutcome::Denied, reasons))
                    } else {
                        None
                    };
                    Some(match refusal {
                        Some((outcome, reasons)) => {
                            *self.outcome = outcome;
                            ToHook::Deny { reasons }
                        }
                        None => self.forward(),
                    })
                }
                FromHook::Found { findings } => {
                    *self.outcome = PushOutcome::Secrets(findings);
                    None
                }
                FromHook::Unjudged { .. } => {
                    *self.outcome = PushOutcome::Unjudged;
                    None
                }
                FromHook::Answered { accepted: true, words } => {
                    *self.outcome = PushOutcome::Forwarded(words);
                    None
                }
                FromHook::Answered { accepted: false, words } => {
                    *self.outcome = PushOutcome::Rejected(words);
                    None
                }
            };
            if let Some(answer) = answer
                && !say(&mut writer, &answer).await
            {
                break;
            }
        }
        drop(lock);
    }

    /// Why the rules in force now refuse these updates; the connection may be older than they are.
    fn denials(&self, updates: &[Update]) -> Vec<String> {
        if updates.len() > REFS_MAX {
            return vec![format!("a push changes at most {REFS_MAX} refs; push in smaller parts")];
        }
        let now = self.state.find(&self.served.repo.name);
        let Some(now) = now.filter(|now| now.repo.upstream == self.served.repo.upstream) else {
            return vec!["the operator changed this repository in the meantime; push again".to_owned()];
        };
        let rules = &now.repo.push;
        let judge = |u: &Update| {
            rules.decide(&u.name, u.change.into()).err().map(|e| format!("{}: {e}", printable(&u.name)))
        };
        updates.iter().filter_map(judge).collect()
    }

    fn forward(&self) -> ToHook {
        let repo = &self.served.repo;
        let (ssh_config, local) = match &repo.upstream {
            Upstream::Ssh(_) => (Some(self.state.gate.ssh_config(&repo.name)), false),
            Upstream::File(_) => (None, true),
        };
        ToHook::Forward {
            url: repo.upstream.url(),
            gate_dir: self.state.gate.path().to_owned(),
            ssh_config,
            local,
        }
    }
}

async fn hear(reader: &mut BufReader<OwnedReadHalf>) -> Option<FromHook> {
    let mut line = Vec::new();
    reader.take(LINE_MAX_BYTES).read_until(b'\n', &mut line).await.ok()?;
    if line.is_empty() {
        return None;
    }
    serde_json::from_slice(&line).inspect_err(|error| debug!(%error, "the hook said something unknown")).ok()
}

async fn say(writer: &mut OwnedWriteHalf, message: &ToHook) -> bool {
    let Ok(mut line) = serde_json::to_vec(message) else {
        return false;
    };
    line.push(b'\n');
    writer.write_all(&line).await.is_ok()
}
