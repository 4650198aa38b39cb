//! The daemon's side of a push: which refs, whose turn, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use proposal::peer::OPERATOR_OFFLINE;
use repos::{Moment, Upstream};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf,
};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, info};

use crate::fault::Fault;
use crate::fence::Reach;
use crate::git::{Objects, printable};
use crate::hold::{HOLD_TIMEOUT, Holds, Unheld};
use crate::journal::{AUDIT_UNAVAILABLE, Ledger, PushOutcome, Pushed, UNRECORDED};
use crate::mirror::PushLock;
use crate::request::{Asked, Shape};
use crate::send::{Answer, Road};
use crate::session::{self, Client, Hangup, Moved, SessionError};
use crate::state::{Served, State};
use crate::verdict::{self, Reasons};
use crate::warm::Fresh;
use crate::wire::{
    Bounds, Change, Excepted, FromHook, HOOK_FD, LINE_MAX_BYTES, Marking, Place, ToHook, Update, Way,
};
use crate::{door, report, sys};

mod forward;

/// How many refs one push may change, so that its record stays readable and is always written.
const REFS_MAX: usize = 1000;
/// How long before a push is forwarded upstream may have shown that it is there.
const LOGIN_MAX: Duration = Duration::from_secs(5);
/// How much memory of its own each process of a push may have.
const MEMORY_MAX_BYTES: u64 = 2 << 30;
/// How much processor time: a small pack of differences can stand for any number of large objects.
const PROCESSOR_MAX: Duration = Duration::from_secs(1800);

/// How long a client may take to read the end of the answer.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(60);
const PIPE_BYTES: usize = 64 << 10;

/// How often a client that waits for the operator hears a word.
const WORD_EVERY: Duration = Duration::from_secs(5);
const SECONDS_IN_MINUTE: u64 = 60;

const GONE: &str = "Nobody waits for it any more";
const ANOTHER: &str = "another ref of this push was refused";
const BUSY: &str = "another push to this repository takes too long; try again";

/// A push and how its session went.
pub(crate) struct Received {
    pub(crate) pushed: Pushed,
    pub(crate) session: Result<(), SessionError>,
}

/// What pushes are received with.
#[derive(Clone, Copy)]
pub(crate) struct Means<'f> {
    pub(crate) state: &'f State,
    pub(crate) ledger: &'f Ledger,
    pub(crate) holds: &'f Holds,
}

/// Receives a push that came at that moment. The mirror was refreshed since, or a moment before.
pub(crate) async fn receive(
    client: Client<impl AsyncRead + Unpin, impl AsyncWrite + Unpin>,
    served: &Served,
    Means { state, ledger, holds }: Means<'_>,
    asked: Asked,
    came: Instant,
) -> Received {
    let mut pushed = Pushed::default();
    let moved = Moved::default();
    let _pushing = served.mirror.push_begins();
    let session = match command(served, state, asked) {
        Ok((command, socket)) => {
            let (told, reasons) = watch::channel(None);
            let (left, gone) = watch::channel(false);
            let login = Mutex::new(None);
            let talk = Talk {
                served,
                state,
                ledger,
                holds,
                pushed: &mut pushed,
                login: &login,
                came,
                options: Vec::new(),
                road: None,
                looks: 0,
                release: None,
                excepted: Vec::new(),
                told,
                gone,
            };
            let Client { reader, writer } = client;
            // The gate logs in to upstream while the objects come in.
            let reader = AtFirst { reader, begin: Some(|| *lock(&login) = log_in(served)) };
            let (answers, answer) = tokio::io::duplex(PIPE_BYTES);
            let (over, ended) = oneshot::channel::<()>();
            let work = async {
                let session =
                    session::run(Client { reader, writer: answers }, command, Hangup::LeavesTheChild, &moved);
                let session = tokio::join!(session, talk.run(socket)).0;
                drop(over);
                session
            };
            let pass = async {
                let late = async {
                    let _ = ended.await;
                    tokio::time::sleep(FAREWELL_TIMEOUT).await;
                };
                let advertised = asked.shape == Shape::Conversation;
                tokio::select! {
                    _ = verdict::pass(answer, writer, reasons, advertised) => {}
                    () = late => {}
                }
                let _ = left.send(true);
            };
            tokio::join!(work, pass).0
        }
        Err(error) => Err(SessionError::Spawn(error)),
    };
    pushed.bytes_up = moved.up();
    Received { pushed, session }
}

/// `git receive-pack` with one end of a socket for its hook, and the other end.
fn command(
    served: &Served,
    state: &State,
    asked: Asked,
) -> std::io::Result<(Command, tokio::net::UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let path = served.mirror.path();
    let mut command = state.gate.git(path, Objects::Own);
    let rules = &served.repo.push;
    command.arg("-c").arg(format!("receive.maxInputSize={}", rules.max_pack()));
    command.arg("-c").arg(format!("receive.advertisePushOptions={}", rules.push_options()));
    if served.mirror.record().leftovers {
        // So that what was made from an object of the mirror is seen to be: git puts that object beside it.
        command.args(["-c", "receive.unpackLimit=1"]);
    }
    command.arg("receive-pack").args(asked.shape.arguments()).arg(path);
    command.envs(asked.protocol.variable().map(|value| ("GIT_PROTOCOL", value)));
    let number = sys::inherit(&mut command, OwnedFd::from(theirs));
    command.env(HOOK_FD, number.to_string());
    sys::bound_memory(&mut command, MEMORY_MAX_BYTES);
    sys::bound_processor(&mut command, PROCESSOR_MAX);
    state.confine(&mut command, served, Reach::Hook)?;
    Ok((command, tokio::net::UnixStream::from_std(ours)?))
}

/// The conversation with the hook.
struct Talk<'a, 's> {
    served: &'s Served,
    state: &'a State,
    ledger: &'a Ledger,
    holds: &'a Holds,
    pushed: &'a mut Pushed,
    /// It is begun while the objects come in.
    login: &'a Mutex<Option<EarlyLogin>>,
    /// When the push came.
    came: Instant,
    /// Where the report of the push waits for why refs were refused.
    told: watch::Sender<Option<Reasons>>,
    options: Vec<String>,
    /// Upstream, which waits for the push.
    road: Option<Waiting>,
    /// How often upstream had something else than what the objects were judged by.
    looks: u32,
    /// The digest of a push that passes although secrets were found in it.
    release: Option<String>,
    /// What was found and is excepted.
    excepted: Vec<Excepted>,
    /// Whether nobody reads the answer any more.
    gone: watch::Receiver<bool>,
}

/// An upstream that waits for a push, with the login that shows who it is.
struct Waiting {
    road: Road,
    login: Fresh,
    /// What the road goes through, where that is not the login.
    _through: Option<Fresh>,
}

/// A login that was begun, and when.
type EarlyLogin = (Instant, JoinHandle<Result<Fresh, Fault>>);

/// Begins to log in to upstream, where the daemon itself sends.
fn log_in(served: &Served) -> Option<EarlyLogin> {
    let Upstream::Ssh(ssh) = &served.repo.upstream else { return None };
    let ssh = ssh.clone();
    Some((Instant::now(), tokio::spawn(async move { Fresh::open(&ssh).await })))
}

fn lock(login: &Mutex<Option<EarlyLogin>>) -> MutexGuard<'_, Option<EarlyLogin>> {
    login.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A reader that begins something when the first command of a push comes.
struct AtFirst<R, F> {
    reader: R,
    begin: Option<F>,
}

impl<R: AsyncRead + Unpin, F: FnOnce() + Unpin> AsyncRead for AtFirst<R, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.reader).poll_read(cx, buffer);
        let read = &buffer.filled()[before..];
        // Four zeros say that there is nothing to push.
        if !read.is_empty()
            && !read.starts_with(b"0000")
            && let Some(begin) = self.begin.take()
        {
            begin();
        }
        polled
    }
}

/// Why a push may not go on.
#[derive(Default)]
struct No {
    lines: Vec<String>,
    refs: BTreeMap<String, String>,
}

impl From<String> for No {
    fn from(line: String) -> Self {
        Self { lines: vec![line], refs: BTreeMap::new() }
    }
}

impl<'s> Talk<'_, 's> {
    /// Answers until the hook and `git receive-pack` are both gone; the lock is held as long.
    async fn run(mut self, socket: tokio::net::UnixStream) {
        let (reader, mut writer) = socket.into_split();
        let mut reader = BufReader::new(reader);
        let mut lock = None;
        while let Some(message) = hear(&mut reader).await {
            let answer = match message {
                FromHook::Updates { updates, options } => {
                    self.options = options;
                    Some(self.updates(updates).await)
                }
                FromHook::Held { findings, objects, digest, excepted } => {
                    self.pushed.objects = objects;
                    self.excepted = excepted;
                    self.holds.note(&self.served.repo, &findings);
                    match self.await_release(&mut reader, &mut writer, &findings, &digest).await {
                        Ok(()) => {
                            self.pushed.released = findings;
                            self.release = Some(digest);
                            let (answer, turn) = self.forward(Duration::ZERO).await;
                            lock = turn;
                            Some(answer)
                        }
                        Err(reason) => {
                            self.tell(BTreeMap::new(), report::brief(&findings));
                            self.pushed.outcome = PushOutcome::Secrets(findings);
                            Some(ToHook::Deny { reasons: vec![reason] })
                        }
                    }
                }
                FromHook::Clean { objects, excepted } => {
                    self.pushed.objects = objects;
                    self.excepted = excepted;
                    let (answer, turn) = self.forward(LOGIN_MAX).await;
                    lock = turn;
                    Some(answer)
                }
                FromHook::Found { findings } => {
                    self.holds.note(&self.served.repo, &findings);
                    self.tell(BTreeMap::new(), report::brief(&findings));
                    self.pushed.outcome = PushOutcome::Secrets(findings);
                    None
                }
                FromHook::Objected { reasons } => {
                    self.tell(BTreeMap::new(), reasons.into_iter().next().unwrap_or_default());
                    self.pushed.outcome = PushOutcome::Denied;
                    None
                }
                FromHook::Unjudged { reason } => {
                    if self.served.mirror.record().leftovers {
                        self.served.mirror.press();
                    }
                    self.tell(BTreeMap::new(), reason);
                    self.pushed.outcome = PushOutcome::Unjudged;
                    None
                }
                FromHook::Sending => Some(self.send(&mut reader, &mut writer).await),
                FromHook::Answered { end, words, refs } => {
                    self.ended(Answer { end, words, refs });
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

    async fn go(&mut self, lock: Option<&PushLock<'_>>) -> ToHook {
        match self.turn(lock.is_some()).await {
            Ok(forward) => {
                if let Some(lock) = lock {
                    lock.moving();
                }
                forward
            }
            Err((outcome, no)) => {
                self.pushed.outcome = outcome;
                self.deny(no)
            }
        }
    }

    /// Waits until the configuration has a release of this push; the reason where it does not come to that.
    async fn await_release(
        &self,
        reader: &mut BufReader<OwnedReadHalf>,
        writer: &mut OwnedWriteHalf,
        findings: &[Place],
        digest: &str,
    ) -> Result<(), String> {
        if self.is_released(digest) {
            return Ok(());
        }
        let repo = &self.served.repo;
        let held = self.holds.hold(repo, &self.pushed.updates, self.pushed.objects, digest, findings);
        let waiting = held.map_err(|reason| match reason {
            Unheld::Nobody => "There is no operator to ask here (supervise does not run)".to_owned(),
            Unheld::Full => "Too many pushes wait for the operator already; try again later".to_owned(),
        })?;
        info!(repo = repo.name.as_str(), digest, "push held for the operator");
        let began = Instant::now();
        let mut words = report::held(findings, HOLD_TIMEOUT.as_secs() / SECONDS_IN_MINUTE);
        let mut gone = self.gone.clone();
        loop {
            let news = waiting.news();
            if self.is_released(digest) {
                return Ok(());
            }
            if let Some(reason) = waiting.rejected() {
                if reason.starts_with(OPERATOR_OFFLINE) {
                    return Err(reason);
                }
                let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
                return Err(format!("The operator refused it{because}"));
            }
            if began.elapsed() >= HOLD_TIMEOUT {
                return Err(
                    "Nobody let it pass in time; ask the operator, then push the same again".to_owned()
                );
            }
            if !say(writer, &ToHook::Wait { words: std::mem::take(&mut words) }).await {
                return Err(GONE.to_owned());
            }
            tokio::select! {
                _ = timeout(WORD_EVERY, news) => {}
                // The hook says nothing while it waits: its end is the only thing to read.
                _ = reader.fill_buf() => return Err(GONE.to_owned()),
                _ = gone.wait_for(|gone| *gone) => return Err(GONE.to_owned()),
            }
            words = format!("git-gate: waiting for the operator ({} s)\n", began.elapsed().as_secs());
        }
    }

    fn is_released(&self, digest: &str) -> bool {
        let used = self.ledger.used();
        self.state.released(digest, &Moment { now: Timestamp::now(), used: &used }).is_some()
    }

    async fn updates(&mut self, updates: Vec<Update>) -> ToHook {
        let judged = self.judge(&updates);
        self.pushed.updates = updates;
        self.pushed.updates.truncate(REFS_MAX);
        // The session may be old. What upstream removed since does not count as known; behind ssh that is looked at when upstream is
        // asked to receive.
        if judged.is_ok()
            && !matches!(self.served.repo.upstream, Upstream::Ssh(_))
            && let Err(no) = self.refreshed(Duration::ZERO).await
        {
            return no;
        }
        match judged {
            Ok(Permit { bounds, .. }) => self.inspect(bounds),
            Err(no) => {
                self.pushed.outcome = PushOutcome::Denied;
                self.deny(no)
            }
        }
    }

    pub(super) fn inspect(&self, bounds: Bounds) -> ToHook {
        let gate_dir = self.state.gate.path().to_owned();
        ToHook::Inspect { bounds, marking: self.marking(), unread: self.unread(), gate_dir }
    }

    /// The first ref that this push would make, but that could not be fetched if it were there.
    fn unread(&self) -> Option<String> {
        let is_read = |name: &str| self.served.repo.fetch.allow.iter().any(|pattern| pattern.matches(name));
        let mut made = self.pushed.updates.iter().filter(|update| update.change == Change::Create);
        made.find(|update| !is_read(&update.name)).map(|update| update.name.clone())
    }

    /// What the hook names findings with, and what is excepted now.
    fn marking(&self) -> Marking {
        let used = self.ledger.used();
        let moment = Moment { now: Timestamp::now(), used: &used };
        let excepted = self.state.exceptions(&self.served.repo.name, &moment).into_iter();
        let excepted = excepted.map(|one| Excepted { rule: one.rule, fingerprint: one.fingerprint });
        Marking { key: *self.holds.marking().open(), excepted: excepted.collect() }
    }

    /// The grants of what is excepted in this push; nothing when one of them holds no more.
    fn excepting(&self) -> Option<Vec<String>> {
        let used = self.ledger.used();
        let moment = Moment { now: Timestamp::now(), used: &used };
        let holding = self.state.exceptions(&self.served.repo.name, &moment);
        let grant = |met: &Excepted| {
            let is_it = |one: &&repos::Exception| one.rule == met.rule && one.fingerprint == met.fingerprint;
            holding.iter().find(is_it).map(|one| one.grant.counted().map(str::to_owned))
        };
        let grants: Option<Vec<Option<String>>> = self.excepted.iter().map(grant).collect();
        Some(grants?.into_iter().flatten().collect())
    }

    fn deny(&self, No { lines, refs }: No) -> ToHook {
        let others =
            if refs.is_empty() { lines.first().cloned().unwrap_or_default() } else { ANOTHER.to_owned() };
        self.tell(refs, others);
        ToHook::Deny { reasons: lines }
    }

    fn tell(&self, refs: BTreeMap<String, String>, others: String) {
        let _ = self.told.send(Some(Reasons { refs, others }));
    }

    /// Forwards, now that the objects are clean. The rules may have changed while they were judged.
    async fn turn(&mut self, locked: bool) -> Result<ToHook, (PushOutcome, No)> {
        let unrecorded = || (PushOutcome::Refused(AUDIT_UNAVAILABLE), No::from(UNRECORDED.to_owned()));
        if self.ledger.is_broken() {
            return Err(unrecorded());
        }
        if !locked {
            return Err((PushOutcome::Refused("busy"), BUSY.to_owned().into()));
        }
        let mut permit = self.judge(&self.pushed.updates).map_err(|no| (PushOutcome::Denied, no))?;
        if let Some(digest) = &self.release {
            // Another push may have used it up since.
            let used = self.ledger.used();
            let release = self.state.released(digest, &Moment { now: Timestamp::now(), used: &used });
            let over = || (PushOutcome::Denied, "what let this push pass is used up".to_owned().into());
            permit.grants.extend(release.ok_or_else(over)?.grant.counted().map(str::to_owned));
        }
        let over = || (PushOutcome::Denied, "what let this push pass is used up".to_owned().into());
        permit.grants.extend(self.excepting().ok_or_else(over)?);
        permit.grants.sort_unstable();
        permit.grants.dedup();
        let repo = &self.served.repo;
        let door = self.state.keyring.door(repo);
        let door = door.map_err(|error| (PushOutcome::Failed, error.to_string().into()))?;
        let way = door.map_or(Way::Pack, |door| Way::Git { url: door::url(&repo.upstream), door });
        // The record comes first: what is not on it does not happen.
        if !self.ledger.push_begins(repo.name.as_str(), &self.pushed.updates, &permit.grants).await {
            return Err(unrecorded());
        }
        self.pushed.grants = permit.grants;
        Ok(ToHook::Forward { gate_dir: self.state.gate.path().to_owned(), way })
    }

    /// Asks the rules in force now; the connection may be older than they are.
    fn judge(&self, updates: &[Update]) -> Result<Permit, No> {
        if updates.len() > REFS_MAX {
            return Err(format!("a push changes at most {REFS_MAX} refs; push in smaller parts").into());
        }
        let now = self.state.find(&self.served.repo.name);
        let same = |now: &Served| {
            Arc::ptr_eq(&now.mirror, &self.served.mirror)
                && now.repo.upstream == self.served.repo.upstream
                && now.repo.fetch.allow == self.served.repo.fetch.allow
        };
        let Some(now) = now.filter(|now| same(now)) else {
            return Err("the operator changed this repository in the meantime; push again".to_owned().into());
        };
        let used = self.ledger.used();
        let moment = Moment { now: Timestamp::now(), used: &used };
        if let Err(end) = now.repo.grant.holds(&moment) {
            return Err(end.to_string().into());
        }
        let mut grants = BTreeSet::new();
        let mut no = No::default();
        let mut names = BTreeSet::new();
        for update in updates {
            if !names.insert(&update.name) {
                no.lines.push(format!("{}: it is named twice in this push", printable(&update.name)));
                no.refs.insert(update.name.clone(), "it is named twice in this push".to_owned());
            }
            match now.repo.push.decide(&update.name, update.change.into(), &moment) {
                Ok(counted) => grants.extend(counted.into_iter().map(str::to_owned)),
                Err(denial) => {
                    no.lines.push(format!("{}: {denial}", printable(&update.name)));
                    no.refs.insert(update.name.clone(), denial.to_string());
                }
            }
        }
        if !no.lines.is_empty() {
            return Err(no);
        }
        Ok(Permit { bounds: Bounds::from(&now.repo.push), grants: grants.into_iter().collect() })
    }
}

/// What the rules make of a set of refs that may be pushed.
struct Permit {
    bounds: Bounds,
    /// The grants that are used up by it.
    grants: Vec<String>,
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
