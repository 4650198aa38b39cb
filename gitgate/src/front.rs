//! Connections over git://, and the sessions of both transports.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use repos::{Moment, RepoName, Upstream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::fence::Reach;
use crate::git::Objects;
use crate::hold::Holds;
use crate::journal::{AUDIT_UNAVAILABLE, Ledger, PushOutcome, Pushed, Read, UNRECORDED};
use crate::mirror::{Freshness, RefreshError};
use crate::pktline::{self, PktError};
use crate::receive::{self, Means, Received};
use crate::request::{Asked, Protocol, Request, Service, Shape};
use crate::session::{self, Client, Hangup, Moved, SessionError};
use crate::state::{Served, State};
use crate::v0::{Beginning, Unread};
use crate::v2::{Conversation, Ended, Memory};
use crate::{http, reach, v0};

/// How many connections may be between accept and their request line.
const GREETINGS_MAX: usize = 256;
/// How many sessions run at once.
const SESSIONS_MAX: usize = 64;
/// How many of them may be pushes, each of which may fill memory and disk up to its bounds.
const PUSHES_MAX: usize = 8;
const PIPE_BYTES: usize = 64 << 10;
/// What a client sends that has nothing to push.
const NOTHING_BYTES: u64 = 4;
/// How reads end, for the record.
const SERVED: &str = "served";
const HANGUP: &str = "hangup";
const FAILED: &str = "failed";
const UNREFRESHED: &str = "refresh-failed";
/// How long a client may take for its first byte.
const FIRST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a refused client may take to read why.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// What all connections share.
pub(crate) struct Front {
    pub(crate) state: State,
    pub(crate) ledger: Ledger,
    pub(crate) holds: Holds,
    pub(crate) counts: Counts,
    greetings: Semaphore,
    sessions: Semaphore,
    pushes: Semaphore,
    running: Mutex<JoinSet<()>>,
}

/// What went through since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) reads: AtomicU64,
    pub(crate) reads_refused: AtomicU64,
    pub(crate) bytes_down: AtomicU64,
    pub(crate) pushes: AtomicU64,
    pub(crate) pushes_refused: AtomicU64,
    pub(crate) findings: AtomicU64,
}

impl Front {
    pub(crate) fn new(state: State, ledger: Ledger, holds: Holds) -> Self {
        Self {
            state,
            ledger,
            holds,
            counts: Counts::default(),
            greetings: Semaphore::new(GREETINGS_MAX),
            sessions: Semaphore::new(SESSIONS_MAX),
            pushes: Semaphore::new(PUSHES_MAX),
            running: Mutex::default(),
        }
    }

    /// Takes a connection on.
    pub(crate) fn admit(self: Arc<Self>, stream: TcpStream) {
        let front = self.clone();
        self.spawn(front.serve(stream));
    }

    /// Runs something that the end of the daemon waits for.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.running().spawn(work);
    }

    /// A place among the connections that have not asked for anything yet.
    pub(crate) fn greeting(&self) -> Option<SemaphorePermit<'_>> {
        self.greetings.try_acquire().ok()
    }

    /// How many sessions run.
    pub(crate) fn sessions(&self) -> usize {
        SESSIONS_MAX - self.sessions.available_permits()
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
        if speaks_http(&stream).await {
            return http::serve(self, stream).await;
        }
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
        let Some(_permit) = self.greeting() else {
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
        match self.served(&request.path) {
            Ok(served) => Ok((request, served)),
            Err(message) => Err(Some(message)),
        }
    }

    /// The repository that a path names, or what to tell the client.
    pub(crate) fn served(&self, path: &str) -> Result<Arc<Served>, String> {
        crate::request::name(path).and_then(|name: RepoName| self.state.find(&name)).ok_or_else(|| {
            let shown = path.escape_debug();
            // Git replaces the beginning of an address, wherever that ends.
            let longer = |name: &RepoName| path.strip_prefix('/').is_some_and(|p| p.starts_with(&format!("{name}.git")));
            match self.state.all().iter().map(|served| &served.repo.name).find(|name| longer(name)) {
                Some(name) => format!(
                    "git-gate: no repository `{shown}` here: its address begins like that of `{name}`, but it is another one; \
                     the operator names repositories in repos.yaml"
                ),
                None => format!(
                    "git-gate: no repository `{shown}` here; the operator names repositories in repos.yaml, and they are served as /NAME.git"
                ),
            }
        })
    }

    async fn session(&self, stream: &mut TcpStream, request: &Request, served: &Served) {
        let asked = Asked { protocol: request.protocol, shape: Shape::Conversation };
        let since = match (request.service, request.protocol) {
            (Service::UploadPack, Protocol::V2) => Since::Later,
            (Service::UploadPack | Service::ReceivePack, _) => Since::Now,
        };
        match self.admission(request.service, served, since).await {
            Ok(mut admitted) => {
                admitted.socket = stream.as_fd().try_clone_to_owned().ok();
                let (reader, writer) = stream.split();
                self.converse(Client { reader, writer }, request.service, asked, served, &admitted).await;
            }
            Err(message) => refuse(stream, &message).await,
        }
    }

    /// Runs git between a client and a mirror, and records what came of it.
    pub(crate) async fn converse(
        &self,
        client: Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
        service: Service,
        asked: Asked,
        served: &Served,
        admitted: &Admitted<'_>,
    ) {
        match service {
            Service::UploadPack => self.upload(client, asked, served, admitted).await,
            Service::ReceivePack => self.receive(client, asked, served, admitted).await,
        }
    }

    /// Whether a session may begin; its mirror is fresh then. What to tell the client if not, which is on the record.
    pub(crate) async fn admission(
        &self,
        service: Service,
        served: &Served,
        since: Since,
    ) -> Result<Admitted<'_>, String> {
        let started = Instant::now();
        let Refusal { word, message } = match self.places(service, served, since).await {
            Ok((places, freshness)) => {
                return Ok(Admitted { places, freshness, shown: Memory::default(), socket: None, started });
            }
            Err(refusal) => refusal,
        };
        let repo = served.repo.name.as_str();
        warn!(repo, %service, outcome = word, "request refused");
        match service {
            Service::UploadPack => {
                let took = started.elapsed();
                self.counts.reads_refused.fetch_add(1, Ordering::Relaxed);
                self.ledger.fetch(Read { repo, outcome: word, stale: None, bytes_down: 0, took }).await;
            }
            Service::ReceivePack => {
                self.counts.pushes_refused.fetch_add(1, Ordering::Relaxed);
                let pushed = Pushed { outcome: PushOutcome::Refused(word), ..Pushed::default() };
                self.ledger.push(repo, &pushed, started.elapsed()).await;
            }
        }
        Err(format!("git-gate: {repo}: {message}"))
    }

    async fn places(
        &self,
        service: Service,
        served: &Served,
        since: Since,
    ) -> Result<(Places<'_>, Freshness), Refusal> {
        if self.ledger.is_broken() {
            return Err(Refusal { word: AUDIT_UNAVAILABLE, message: UNRECORDED.to_owned() });
        }
        let pushes = service == Service::ReceivePack;
        if pushes && !served.repo.push.possible() {
            let message =
                "nothing may be pushed to this repository; the operator sets `push` in repos.yaml".to_owned();
            return Err(Refusal { word: "denied", message });
        }
        self.granted(service, served)?;
        let session = self.sessions.try_acquire().map_err(|_| Refusal::busy(SESSIONS_MAX, "sessions"))?;
        let push = if pushes {
            Some(self.pushes.try_acquire().map_err(|_| Refusal::busy(PUSHES_MAX, "pushes"))?)
        } else {
            None
        };
        let places = Places { _session: session, _push: push };
        match since {
            Since::Later => return Ok((places, Freshness::Fresh)),
            Since::Within(age) if served.mirror.seen_within(age) => return Ok((places, Freshness::Fresh)),
            Since::Within(_) | Since::Now => {}
        }
        let (mirror, tools) = (&served.mirror, self.state.tools());
        let refreshed = if pushes {
            mirror.refresh(&served.repo, &tools).await.map(|()| Freshness::Fresh)
        } else {
            mirror.refresh_or_stale(&served.repo, &tools).await
        };
        let message = |error| unrefreshed(&served.repo.upstream, &error);
        let freshness = refreshed.map_err(|error| Refusal { word: UNREFRESHED, message: message(error) })?;
        Ok((places, freshness))
    }

    /// Whether the permission to read or to push still holds.
    fn granted(&self, service: Service, served: &Served) -> Result<(), Refusal> {
        let used = self.ledger.used();
        let moment = Moment { now: Timestamp::now(), used: &used };
        let held = served.repo.grant.holds(&moment).and_then(|()| match service {
            Service::UploadPack => Ok(()),
            Service::ReceivePack => served.repo.push.holds(&moment),
        });
        held.map_err(|end| Refusal { word: "expired", message: end.to_string() })
    }

    async fn upload(
        &self,
        client: Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
        asked: Asked,
        served: &Served,
        admitted: &Admitted<'_>,
    ) {
        let repo = served.repo.name.as_str();
        let (outcome, bytes_down) = match asked.protocol {
            Protocol::V0 | Protocol::V1 => self.upload_by_git(client, asked, served).await,
            Protocol::V2 => self.upload_by_command(client, asked, served, admitted).await,
        };
        // Over HTTP the first answer of a conversation is not yet a read.
        if asked.shape == Shape::Advertisement && outcome == SERVED {
            return;
        }
        let counter = if outcome == UNREFRESHED { &self.counts.reads_refused } else { &self.counts.reads };
        counter.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes_down.fetch_add(bytes_down, Ordering::Relaxed);
        let stale = match &admitted.freshness {
            Freshness::Fresh => admitted.shown.stale(),
            Freshness::Stale { age, .. } => Some(*age),
        };
        self.ledger.fetch(Read { repo, outcome, stale, bytes_down, took: admitted.started.elapsed() }).await;
    }

    /// Versions in which one git holds the whole conversation.
    async fn upload_by_git(
        &self,
        client: Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
        asked: Asked,
        served: &Served,
    ) -> (&'static str, u64) {
        let repo = served.repo.name.as_str();
        let path = served.mirror.path();
        let mut command = self.state.gate.git(path, Objects::Own);
        // What a filter leaves out could not be had later: here only what is shown can be asked for.
        command.args(["-c", "uploadpack.allowFilter=false", "upload-pack", "--strict"]);
        command.args(asked.shape.arguments()).arg(path);
        command.envs(asked.protocol.variable().map(|value| ("GIT_PROTOCOL", value)));
        if let Err(error) = self.state.confine(&mut command, served, Reach::Mirror) {
            warn!(repo, %error, "read failed");
            return (FAILED, 0);
        }
        let Client { reader, mut writer } = client;
        let (to_git, from_client) = tokio::io::duplex(PIPE_BYTES);
        let git = Client { reader: from_client, writer: &mut writer };
        let moved = Moved::default();
        let ran = tokio::select! {
            ran = session::run(git, command, Hangup::Kills, &moved) => ran,
            ended = self.pass_on(reader, to_git, served) => match ended {
                Ended::Refused(word, message) => {
                    warn!(repo, outcome = word, "read refused");
                    farewell(&mut writer, repo, &message).await;
                    return (word, 0);
                }
                Ended::Hangup => Err(SessionError::Hangup),
                Ended::Git(error) => Err(error),
            },
        };
        match ran {
            Ok(()) => {
                info!(repo, bytes = moved.down(), "read served");
                (SERVED, moved.down())
            }
            Err(SessionError::Hangup) => (HANGUP, moved.down()),
            Err(error) => {
                warn!(repo, %error, "read failed");
                (FAILED, moved.down())
            }
        }
    }

    /// Hands to git what a reader says, once it is known that its beginning leads to nothing that no ref reaches. It returns only
    /// where it does not hand on.
    async fn pass_on(
        &self,
        mut reader: impl AsyncRead + Unpin,
        mut git: impl AsyncWrite + Unpin,
        served: &Served,
    ) -> Ended {
        let beginning = match self.beginning(&mut reader, served).await {
            Ok(beginning) => beginning,
            Err(ended) => return ended,
        };
        // Where git wants no more, its own end is what counts.
        let mut wanted = git.write_all(&beginning).await.is_ok();
        let mut buffer = vec![0; PIPE_BYTES];
        while wanted {
            let Ok(length) = reader.read(&mut buffer).await else { return Ended::Hangup };
            wanted = length > 0 && git.write_all(&buffer[..length]).await.is_ok();
        }
        drop(git);
        std::future::pending().await
    }

    async fn beginning(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        served: &Served,
    ) -> Result<Vec<u8>, Ended> {
        let Beginning { bytes, arguments } = v0::read(reader).await.map_err(|reason| match reason {
            Unread::Hangup => Ended::Hangup,
            Unread::Malformed(words) => Ended::Refused("refused", words.to_owned()),
        })?;
        if arguments.whole_history {
            let looked = reach::look(served, &self.state, arguments.sources(), std::iter::empty()).await;
            looked.map_err(|words| Ended::Refused("refused", words))?;
        }
        Ok(bytes)
    }

    /// The version whose commands are looked at one by one.
    async fn upload_by_command(
        &self,
        client: Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
        asked: Asked,
        served: &Served,
        admitted: &Admitted<'_>,
    ) -> (&'static str, u64) {
        let repo = served.repo.name.as_str();
        let Client { reader, mut writer } = client;
        let (state, shown) = (&self.state, admitted.shown.clone());
        let socket = admitted.socket.as_ref();
        let mut conversation = Conversation { served, state, shape: asked.shape, shown, socket, down: 0 };
        let ended = conversation.serve(Client { reader, writer: &mut writer }).await;
        let down = conversation.down;
        match ended {
            Ok(()) => {
                info!(repo, bytes = down, "read served");
                (SERVED, down)
            }
            Err(Ended::Hangup) => (HANGUP, down),
            Err(Ended::Refused(word, message)) => {
                warn!(repo, outcome = word, "read refused");
                farewell(&mut writer, repo, &message).await;
                (word, down)
            }
            Err(Ended::Git(error)) => {
                warn!(repo, %error, "read failed");
                if let SessionError::Git(words) = &error {
                    farewell(&mut writer, repo, why(words, served.mirror.path())).await;
                }
                (FAILED, down)
            }
        }
    }

    async fn receive(
        &self,
        client: Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
        asked: Asked,
        served: &Served,
        admitted: &Admitted<'_>,
    ) {
        let repo = served.repo.name.as_str();
        let means = Means { state: &self.state, ledger: &self.ledger, holds: &self.holds };
        let Received { mut pushed, session } =
            receive::receive(client, served, means, asked, admitted.started).await;
        match &session {
            Ok(()) if pushed.outcome == PushOutcome::Abandoned => {
                if pushed.updates.is_empty() && pushed.bytes_up <= NOTHING_BYTES {
                    return debug!(repo, "nothing to push");
                }
                pushed.outcome = PushOutcome::Failed;
            }
            Ok(()) => {}
            Err(error) => {
                warn!(repo, %error, "push session failed");
                if pushed.outcome == PushOutcome::Abandoned && matches!(error, SessionError::Git(_)) {
                    pushed.outcome = PushOutcome::Failed;
                }
            }
        }
        let counter = match &pushed.outcome {
            PushOutcome::Forwarded(_) => &self.counts.pushes,
            _ => &self.counts.pushes_refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let PushOutcome::Secrets(places) = &pushed.outcome {
            self.counts.findings.fetch_add(places.len() as u64, Ordering::Relaxed);
        }
        info!(repo, refs = pushed.updates.len(), outcome = pushed.outcome.word(), "push ended");
        self.ledger.push(repo, &pushed, admitted.started.elapsed()).await;
        self.exhausted(&pushed.grants);
    }

    /// Tells supervise which of these grants are used up now.
    fn exhausted(&self, grants: &[String]) {
        let used = self.ledger.used().clone();
        let moment = Moment { now: Timestamp::now(), used: &used };
        for grant in grants {
            if self.state.is_used_up(grant, &moment) {
                self.holds.exhausted(grant);
            }
        }
    }
}

/// From when on a refresh counts for a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Since {
    /// From its arrival.
    Now,
    /// It continues a conversation: one that is no older than this will do.
    Within(Duration),
    /// Each command sees to it.
    Later,
}

/// The right to a session.
pub(crate) struct Admitted<'f> {
    places: Places<'f>,
    pub(crate) freshness: Freshness,
    /// What the client was shown in this conversation.
    pub(crate) shown: Memory,
    /// The client's socket, where nothing else is spoken on it.
    socket: Option<OwnedFd>,
    started: Instant,
}

impl Admitted<'_> {
    /// Gives the places back, now.
    pub(crate) fn end(self) {
        drop(self.places);
    }
}

/// Whether a client begins with an HTTP method and not with the length of a pkt-line.
async fn speaks_http(stream: &TcpStream) -> bool {
    let mut first = [0];
    let peeked = timeout(FIRST_TIMEOUT, stream.peek(&mut first)).await;
    // The letters of a length in hexadecimal could stand first only in a line longer than is taken.
    matches!(peeked, Ok(Ok(1))) && first[0].is_ascii_uppercase()
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

/// Why there is no fresh data, for the client.
pub(crate) fn unrefreshed(upstream: &Upstream, error: &RefreshError) -> String {
    format!("cannot refresh from {}: {error}. Old data is not served; {}", shown(upstream), error.advice())
}

/// Upstream as a client may know it: where it is, not how we enter.
pub(crate) fn shown(upstream: &Upstream) -> String {
    match upstream {
        Upstream::Ssh(_) | Upstream::Https(_) => upstream.url(),
        Upstream::File(_) => "its local upstream".to_owned(),
    }
}

/// Why a git that serves a mirror ended, as far as the client may know it.
fn why<'w>(words: &'w str, mirror: &Path) -> &'w str {
    let may_be_told = |line: &&str| !line.contains(&*mirror.to_string_lossy());
    let fatal = words.split("; ").find(|line| line.starts_with("fatal: ")).filter(may_be_told);
    fatal.unwrap_or("git cannot answer this")
}

/// Tells a reader why, in the place where git looks for it.
async fn farewell(writer: &mut (impl AsyncWrite + Unpin), repo: &str, message: &str) {
    let told = pktline::error(&format!("git-gate: {repo}: {message}"));
    let farewell = async {
        writer.write_all(&told).await?;
        writer.shutdown().await
    };
    let _ = timeout(FAREWELL_TIMEOUT, farewell).await;
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
