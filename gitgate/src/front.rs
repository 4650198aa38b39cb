//! Connections: from the request line to the end of the session.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use repos::Upstream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::git::{Objects, Reach};
use crate::journal::{AUDIT_UNAVAILABLE, Ledger, PushOutcome, UNRECORDED};
use crate::pktline::{self, PktError};
use crate::receive::{self, Push};
use crate::request::{Request, Service};
use crate::session::{self, Hangup, SessionError};
use crate::state::{Served, State};

/// How many connections may be between accept and their request line.
const GREETINGS_MAX: usize = 256;
/// How many sessions run at once.
const SESSIONS_MAX: usize = 64;
/// How many of them may be pushes, each of which may fill memory and disk up to its bounds.
const PUSHES_MAX: usize = 8;
/// What a client sends that has nothing to push.
const NOTHING_BYTES: u64 = 4;
/// How long a refused client may take to read why.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// What all connections share.
pub(crate) struct Front {
    pub(crate) state: State,
    pub(crate) ledger: Ledger,
    greetings: Semaphore,
    sessions: Semaphore,
    pushes: Semaphore,
    running: Mutex<JoinSet<()>>,
}

impl Front {
    pub(crate) fn new(state: State, ledger: Ledger) -> Self {
        Self {
            state,
            ledger,
            greetings: Semaphore::new(GREETINGS_MAX),
            sessions: Semaphore::new(SESSIONS_MAX),
            pushes: Semaphore::new(PUSHES_MAX),
            running: Mutex::default(),
        }
    }

    /// Takes a connection on.
    pub(crate) fn admit(self: Arc<Self>, stream: TcpStream) {
        let front = self.clone();
        self.running().spawn(front.serve(stream));
    }

    /// Waits until no connection is left.
    pub(crate) async fn sessions_ended(&self) {
        let mut running = std::mem::take(&mut *self.running());
        while running.join_next().await.is_some() {}
    }

    /// The connections under way, without those that ended.
    fn running(&self) -> MutexGuard<'_, JoinSet<()>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while running.try_join_next().is_some() {}
        running
    }

    /// Serves one connection to its end.
    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        match self.greet(&mut stream).await {
            Ok((request, served)) => self.session(&mut stream, &request, &served).await,
            Err(Some(message)) => {
                debug!(%message, "request refused");
                refuse(&mut stream, &message).await;
            }
            Err(None) => {}
        }
    }

    /// Reads the request line; what to tell the client where there is nothing to serve.
    async fn greet(&self, stream: &mut TcpStream) -> Result<(Request, Arc<Served>), Option<String>> {
        let Ok(_permit) = self.greetings.try_acquire() else {
            return Err(Some("git-gate: too many connections at once; try again in a moment".to_owned()));
        };
        let line = match pktline::read(stream).await {
            Ok(line) => line,
            Err(PktError::Io(_)) => return Err(None),
            Err(error @ (PktError::Timeout | PktError::Frame)) => {
                return Err(Some(format!("git-gate: {error}")));
            }
        };
        let request = Request::parse(&line).map_err(|error| Some(format!("git-gate: {error}")))?;
        match request.name().and_then(|name| self.state.find(&name)) {
            Some(served) => Ok((request, served)),
            None => Err(Some(format!(
                "git-gate: no repository `{}` here; the operator names repositories in repos.yaml, and they are served as /NAME.git",
                request.path.escape_debug()
            ))),
        }
    }

    async fn session(&self, stream: &mut TcpStream, request: &Request, served: &Served) {
        let started = Instant::now();
        let places = match self.admission(request.service, served).await {
            Ok(places) => places,
            Err(Refusal { word, message }) => {
                let repo = served.repo.name.as_str();
                warn!(repo, service = %request.service, outcome = word, "request refused");
                match request.service {
                    Service::UploadPack => self.ledger.fetch(repo, word, 0, started.elapsed()).await,
                    Service::ReceivePack => {
                        self.ledger.push(repo, &[], &PushOutcome::Refused(word), started.elapsed()).await;
                    }
                }
                return refuse(stream, &format!("git-gate: {repo}: {message}")).await;
            }
        };
        match request.service {
            Service::UploadPack => self.upload(stream, request, served, started).await,
            Service::ReceivePack => self.receive(stream, request, served, started).await,
        }
        drop(places);
    }

    /// Whether a session may begin; its mirror is fresh then.
    async fn admission(&self, service: Service, served: &Served) -> Result<Places<'_>, Refusal> {
        if self.ledger.is_broken() {
            return Err(Refusal { word: AUDIT_UNAVAILABLE, message: UNRECORDED.to_owned() });
        }
        let pushes = service == Service::ReceivePack;
        if pushes && !served.repo.push.possible() {
            let message =
                "nothing may be pushed to this repository; the operator sets `push` in repos.yaml".to_owned();
            return Err(Refusal { word: "denied", message });
        }
        let session = self.sessions.try_acquire().map_err(|_| Refusal::busy(SESSIONS_MAX, "sessions"))?;
        let push = if pushes {
            Some(self.pushes.try_acquire().map_err(|_| Refusal::busy(PUSHES_MAX, "pushes"))?)
        } else {
            None
        };
        served.mirror.refresh(&served.repo, &self.state.gate).await.map_err(|error| Refusal {
            word: "refresh-failed",
            message: format!(
                "cannot refresh from {}: {error}. Old data is not served; try again when upstream answers",
                shown(&served.repo.upstream)
            ),
        })?;
        Ok(Places { _session: session, _push: push })
    }

    async fn upload(&self, stream: &mut TcpStream, request: &Request, served: &Served, started: Instant) {
        let repo = served.repo.name.as_str();
        let path = served.mirror.path();
        let mut command = self.state.gate.git(path, Reach::Nowhere, Objects::Own);
        command.args(["upload-pack", "--strict"]).arg(path);
        command.envs(request.protocol.variable().map(|value| ("GIT_PROTOCOL", value)));
        let (outcome, bytes) = match session::run(stream, command, Hangup::Kills).await {
            Ok(moved) => {
                info!(repo, bytes = moved.down, "read served");
                ("served", moved.down)
            }
            Err(SessionError::Hangup) => ("hangup", 0),
            Err(error) => {
                warn!(repo, %error, "read failed");
                ("failed", 0)
            }
        };
        self.ledger.fetch(repo, outcome, bytes, started.elapsed()).await;
    }

    async fn receive(&self, stream: &mut TcpStream, request: &Request, served: &Served, started: Instant) {
        let repo = served.repo.name.as_str();
        let Push { updates, mut outcome, session } =
            receive::receive(stream, served, &self.state, &self.ledger, request).await;
        match &session {
            Ok(moved) if outcome == PushOutcome::Abandoned => {
                if updates.is_empty() && moved.up <= NOTHING_BYTES {
                    return debug!(repo, "nothing to push");
                }
                outcome = PushOutcome::Failed;
            }
            Ok(_) => {}
            Err(error) => {
                warn!(repo, %error, "push session failed");
                if outcome == PushOutcome::Abandoned && matches!(error, SessionError::Git(_)) {
                    outcome = PushOutcome::Failed;
                }
            }
        }
        info!(repo, refs = updates.len(), outcome = outcome.word(), "push ended");
        self.ledger.push(repo, &updates, &outcome, started.elapsed()).await;
    }
}

/// A session's places among those that run, given back at its end.
struct Places<'f> {
    _session: SemaphorePermit<'f>,
    _push: Option<SemaphorePermit<'f>>,
}

/// Why a session may not begin.
struct Refusal {
    /// For the record.
    word: &'static str,
    /// For the client.
    message: String,
}

impl Refusal {
    fn busy(limit: usize, what: &str) -> Self {
        Self { word: "busy", message: format!("{limit} {what} run already; try again in a moment") }
    }
}

/// Upstream as a client may know it: where it is, not how we enter.
fn shown(upstream: &Upstream) -> String {
    match upstream {
        Upstream::Ssh(ssh) => ssh.url(),
        Upstream::File(_) => "its local upstream".to_owned(),
    }
}

/// Tells the client why, in the one form that git shows, and lets it read that before the end.
async fn refuse(stream: &mut TcpStream, message: &str) {
    let farewell = async {
        stream.write_all(&pktline::error(message)).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    let _ = timeout(FAREWELL_TIMEOUT, farewell).await;
}
