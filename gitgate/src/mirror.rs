//! A bare mirror that follows its upstream.
//!
//! First upstream is asked what it shows ([`Mirror::list`]), then the mirror is brought there
//! ([`Mirror::follow`]). What shows refs can do with the first, so that it is answered soon even while a large
//! upstream is copied; what reads objects needs both.

mod listed;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use git2::{Oid, Repository};
use jiff::Timestamp;
use repos::{Repo, Stale};
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

use crate::door::{Keyring, TokenError};
use crate::fault::{Fault, FaultKind};
use crate::git::GateDir;
use crate::listing::{NAME_MAX_BYTES, REFS_MAX};
use crate::refresh::{Brought, Refresh};
use crate::warm::Warm;
pub(crate) use listed::Listed;
use listed::Scope;

/// How long upstream may take to show what it has, and how long the mirror may take to follow.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the first copy of a repository may take.
const FIRST_TIMEOUT: Duration = Duration::from_secs(900);
/// How many may wait for the mirror to follow.
const WORK_MAX: usize = 128;
/// How often upstream may take back what it had shown.
const ROUNDS_MAX: usize = 10;
/// The file that says that every object is reached by a ref.
const WHOLE: &str = "git-gate-whole";

/// Why a mirror does not show what upstream has now. The text is meant for the client.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum RefreshError {
    #[error("{}", .0.words)]
    Upstream(Fault),
    #[error("it took longer than {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the mirror cannot be used: {0}")]
    Mirror(String),
    #[error("its objects are named by SHA-256, which this gate cannot judge yet")]
    ObjectFormat,
    #[error("it shows more than {REFS_MAX} refs, or too much of them; narrow `fetch.allow`")]
    Refs,
    #[error("it has a ref with a name of more than {NAME_MAX_BYTES} bytes; narrow `fetch.allow`")]
    RefName,
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl RefreshError {
    /// What the client can do.
    pub(crate) fn advice(&self) -> &'static str {
        match self {
            _ if self.is_silence() => "try again when upstream answers",
            Self::Mirror(_) | Self::Timeout(_) => "try again in a moment",
            Self::Upstream(_) | Self::ObjectFormat | Self::Refs | Self::RefName | Self::Token(_) => {
                "this needs the operator"
            }
        }
    }

    /// Whether upstream said nothing, so that older data may do where the rules allow it.
    fn is_silence(&self) -> bool {
        match self {
            Self::Upstream(fault) => fault.kind == FaultKind::Unreachable,
            Self::Timeout(_) => true,
            Self::Mirror(_) | Self::ObjectFormat | Self::Refs | Self::RefName | Self::Token(_) => false,
        }
    }
}

/// What the mirror shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// What upstream has.
    Fresh,
    /// What upstream had; it does not answer now.
    Stale {
        /// How long ago.
        age: Duration,
        /// Why not now.
        reason: String,
    },
}

/// One mirror and the turn-taking around it.
pub(crate) struct Mirror {
    path: PathBuf,
    making: Mutex<()>,
    asking: Mutex<Asked>,
    turn: Mutex<()>,
    begun: AtomicU64,
    moved: AtomicU64,
    pushed: AtomicU64,
    pushes: AtomicU64,
    pressed: AtomicBool,
    changed: Arc<Notify>,
    record: std::sync::Mutex<Record>,
    known: std::sync::Mutex<Known>,
    /// What the copying of objects is at, for those who wait.
    progress: watch::Sender<String>,
    work: std::sync::Mutex<JoinSet<()>>,
}

/// The last question to upstream.
#[derive(Default)]
struct Asked {
    number: u64,
    result: Option<(Scope, Result<Arc<Listed>, RefreshError>)>,
}

/// What is known of upstream and the mirror.
#[derive(Default)]
struct Known {
    /// What was shown last.
    last: Option<Arc<Listed>>,
    /// What the mirror was last brought to, and the mirror's number after it.
    synced: Option<(Arc<Listed>, u64)>,
}

/// A push that is being judged.
pub(crate) struct Pushing<'m>(&'m Mirror);

impl Drop for Pushing<'_> {
    fn drop(&mut self) {
        self.0.pushes.fetch_sub(1, SeqCst);
    }
}

/// What is known of the refreshes so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    /// When upstream was last seen, and how long that took.
    pub(crate) seen: Option<(Instant, Timestamp, Duration)>,
    /// Why the last refresh failed, if it did.
    pub(crate) error: Option<String>,
    pub(crate) refreshes: u64,
    pub(crate) failures: u64,
    /// Whether objects may be there that no ref reaches.
    pub(crate) leftovers: bool,
}

/// The right to change the mirror; nothing else changes it until this is dropped.
pub(crate) type Lock<'m> = tokio::sync::MutexGuard<'m, ()>;

/// The right to change upstream and mirror by a push.
pub(crate) struct PushLock<'m> {
    mirror: &'m Mirror,
    _lock: Lock<'m>,
}

impl PushLock<'_> {
    /// Takes note that upstream and mirror are about to change.
    pub(crate) fn moving(&self) {
        self.mirror.pushed.fetch_add(1, SeqCst);
        self.mirror.moving();
    }
}

impl Drop for PushLock<'_> {
    fn drop(&mut self) {
        // What upstream showed meanwhile may be from before or from after.
        self.mirror.pushed.fetch_add(1, SeqCst);
    }
}

/// What a refresh works with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) gate: GateDir,
    pub(crate) keyring: Keyring,
    pub(crate) warm: Arc<Warm>,
}

impl Mirror {
    /// `changed` is told when there is something to tidy.
    pub(crate) fn new(repo_dir: &Path, repo: &Repo, changed: Arc<Notify>) -> Self {
        let path = repo_dir.join(format!("{}.git", repo.name));
        clear(&path);
        // An earlier gate may have left objects that no ref reaches.
        let record = Record { leftovers: !is_whole(&path), ..Record::default() };
        Self {
            path,
            making: Mutex::default(),
            asking: Mutex::default(),
            turn: Mutex::default(),
            begun: 0.into(),
            moved: 0.into(),
            pushed: 0.into(),
            pushes: 0.into(),
            pressed: false.into(),
            changed,
            record: record.into(),
            known: std::sync::Mutex::default(),
            progress: watch::Sender::new(String::new()),
            work: std::sync::Mutex::default(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Sees to it that there is a mirror, if only an empty one.
    pub(crate) async fn exist(&self) -> std::io::Result<()> {
        if self.path.join("HEAD").exists() {
            return Ok(());
        }
        let _making = self.making.lock().await;
        if self.path.join("HEAD").exists() {
            return Ok(());
        }
        let path = self.path.clone();
        let made = tokio::task::spawn_blocking(move || make(&path)).await;
        made.map_err(std::io::Error::other)?
            .map_err(|error| std::io::Error::other(error.message().to_owned()))
    }

    /// Waits until nothing changes the mirror, and keeps it so.
    pub(crate) async fn lock(&self) -> Lock<'_> {
        self.turn.lock().await
    }

    /// The same for a push that is to be forwarded.
    pub(crate) async fn lock_for_push(&self) -> PushLock<'_> {
        PushLock { mirror: self, _lock: self.turn.lock().await }
    }

    /// A number that is another one after each change of the mirror.
    pub(crate) fn moved(&self) -> u64 {
        self.moved.load(SeqCst)
    }

    /// How many pushes are being judged.
    pub(crate) fn pushes(&self) -> u64 {
        self.pushes.load(SeqCst)
    }

    /// Counts a push as long as the guard lives.
    pub(crate) fn push_begins(&self) -> Pushing<'_> {
        self.pushes.fetch_add(1, SeqCst);
        Pushing(self)
    }

    /// Has the upkeep not wait with what is due.
    pub(crate) fn press(&self) {
        self.pressed.store(true, SeqCst);
        self.tidy();
    }

    /// Whether somebody asked for that since this was looked at last.
    pub(crate) fn is_pressed(&self) -> bool {
        self.pressed.swap(false, SeqCst)
    }

    /// Takes note that every object is reached by a ref.
    pub(crate) fn whole(&self) {
        self.record().leftovers = false;
        let _ = std::fs::write(self.path.join(WHOLE), "");
    }

    /// Takes note that objects may be left that no ref reaches.
    pub(crate) fn torn(&self) {
        let _ = std::fs::remove_file(self.path.join(WHOLE));
        self.record().leftovers = true;
    }

    /// Takes note that the mirror was changed, or is about to be.
    pub(crate) fn moving(&self) {
        self.moved.fetch_add(1, SeqCst);
    }

    /// Tells the upkeep.
    pub(crate) fn tidy(&self) {
        self.changed.notify_one();
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen so far is no longer what is mirrored.
    pub(crate) fn forget(&self) {
        self.pushed.fetch_add(1, SeqCst);
        self.moving();
        *self.record() = Record::default();
        *self.known() = Known::default();
        self.torn();
    }

    /// Whether it has anything of upstream yet.
    pub(crate) async fn has_copy(&self) -> bool {
        let path = self.path.clone();
        !tokio::task::spawn_blocking(move || is_empty(&path)).await.unwrap_or(true)
    }

    /// What the copying of objects is at; empty when nothing is copied.
    pub(crate) fn progress(&self) -> &watch::Sender<String> {
        &self.progress
    }

    /// Whether upstream was seen within this time, and the mirror shows that.
    pub(crate) fn seen_within(&self, age: Duration) -> bool {
        let known = self.known();
        known.synced.as_ref().is_some_and(|(listed, _)| listed.began.elapsed() <= age)
    }

    /// What upstream shows, asked at a moment after this call.
    ///
    /// Callers that wait at the same time share one answer, if its question came after they did.
    pub(crate) async fn list(&self, repo: &Repo, tools: &Tools) -> Result<Arc<Listed>, RefreshError> {
        let bound = REFRESH_TIMEOUT;
        let seen = self.begun.load(SeqCst);
        let mut asked = timeout(bound, self.asking.lock()).await.map_err(|_| RefreshError::Timeout(bound))?;
        let scope = Scope::of(repo);
        if let (true, Some((of, result))) = (asked.number > seen, &asked.result)
            && *of == scope
        {
            return result.clone();
        }
        asked.number = self.begun.fetch_add(1, SeqCst) + 1;
        // Whoever comes after a question that was cut short must not see an older answer.
        asked.result = None;
        let pushed = self.pushed.load(SeqCst);
        let (began, at) = (Instant::now(), Timestamp::now());
        let work = Refresh { mirror: self, repo, tools };
        let listing = timeout(bound, work.list()).await.unwrap_or(Err(RefreshError::Timeout(bound)));
        self.note(began, at, listing.as_ref().err());
        let number = asked.number;
        let asked_for = scope.clone();
        let result = listing.map(|listing| {
            let mut known = self.known();
            // What is as before is kept once.
            let before = known.last.as_ref().map(|last| &last.listing).filter(|last| ***last == listing);
            let listing = before.cloned().unwrap_or_else(|| Arc::new(listing));
            let ended = Instant::now();
            known
                .last
                .insert(Arc::new(Listed {
                    number,
                    began,
                    ended,
                    pushed,
                    scope: asked_for,
                    listing,
                    gathered: false,
                }))
                .clone()
        });
        asked.result = Some((scope, result.clone()));
        result
    }

    fn note(&self, began: Instant, at: Timestamp, error: Option<&RefreshError>) {
        let mut record = self.record();
        record.refreshes += 1;
        match error {
            None => {
                record.seen = Some((began, at, began.elapsed()));
                record.error = None;
            }
            Some(error) => {
                record.failures += 1;
                record.error = Some(error.to_string());
            }
        }
    }

    /// What upstream shows, or showed a moment ago where the rules of the repository allow that.
    pub(crate) async fn list_or_stale(
        &self,
        repo: &Repo,
        tools: &Tools,
    ) -> Result<(Arc<Listed>, Freshness), RefreshError> {
        let error = match self.list(repo, tools).await {
            Ok(listed) => return Ok((listed, Freshness::Fresh)),
            Err(error) => error,
        };
        let (scope, pushed) = (Scope::of(repo), self.pushed.load(SeqCst));
        let last = self.known().last.clone().filter(|last| last.scope == scope && last.pushed == pushed);
        match (repo.fetch.stale, last) {
            (Stale::Allow(most), Some(last)) if error.is_silence() && last.began.elapsed() <= most => {
                let age = last.began.elapsed();
                Ok((last, Freshness::Stale { age, reason: error.to_string() }))
            }
            _ => Err(error),
        }
    }

    /// Makes the mirror show what upstream has, seen at a moment after this call.
    pub(crate) async fn refresh(self: &Arc<Self>, repo: &Repo, tools: &Tools) -> Result<(), RefreshError> {
        let listed = self.list(repo, tools).await?;
        self.follow(listed, repo, tools).await.map(drop)
    }

    /// The same, or what upstream had a moment ago where the rules of the repository allow that.
    pub(crate) async fn refresh_or_stale(
        self: &Arc<Self>,
        repo: &Repo,
        tools: &Tools,
    ) -> Result<Freshness, RefreshError> {
        let (listed, freshness) = self.list_or_stale(repo, tools).await?;
        self.follow(listed, repo, tools).await.map(|_| freshness)
    }

    /// Whether the mirror shows this already, or something newer.
    pub(crate) fn shows(&self, wanted: &Listed) -> bool {
        let known = self.known();
        known.synced.as_ref().is_some_and(|(listed, moved)| *moved == self.moved() && listed.serves(wanted))
    }

    /// Whether the mirror shows something newer.
    fn is_past(&self, wanted: &Listed) -> bool {
        let known = self.known();
        let shown = known.synced.as_ref().filter(|(_, moved)| *moved == self.moved());
        shown.is_some_and(|(listed, _)| listed.number >= wanted.number)
    }

    /// Brings the mirror to what upstream showed, or shows by then: to what is returned. It goes on when the caller does
    /// not wait for it.
    pub(crate) async fn follow(
        self: &Arc<Self>,
        listed: Arc<Listed>,
        repo: &Repo,
        tools: &Tools,
    ) -> Result<Arc<Listed>, RefreshError> {
        if self.shows(&listed) && self.path.join("HEAD").exists() {
            return Ok(self.confirm(listed));
        }
        let (told, result) = tokio::sync::oneshot::channel();
        let (mirror, repo, tools) = (self.clone(), repo.clone(), tools.clone());
        let work = async move {
            let _ = told.send(mirror.bring(listed, &repo, &tools).await);
        };
        {
            let mut running = self.work.lock().unwrap_or_else(PoisonError::into_inner);
            while running.try_join_next().is_some() {}
            if running.len() >= WORK_MAX {
                return Err(RefreshError::Mirror("too many wait for it already; try again".to_owned()));
            }
            running.spawn(work);
        }
        result.await.unwrap_or_else(|_| Err(RefreshError::Mirror("the work on it was cut short".to_owned())))
    }

    /// Sees to it that the mirror has these objects, which upstream showed a moment ago: no ref may lead to them any more.
    pub(crate) async fn complete(
        &self,
        objects: Vec<Oid>,
        repo: &Repo,
        tools: &Tools,
    ) -> Result<(), RefreshError> {
        let (bound, work) = (REFRESH_TIMEOUT, Refresh { mirror: self, repo, tools });
        let lacking = work.lacking(objects).await?;
        if lacking.is_empty() {
            return Ok(());
        }
        let _turn = timeout(bound, self.turn.lock()).await.map_err(|_| RefreshError::Timeout(bound))?;
        let before = self.moved();
        timeout(bound, work.complete(&lacking)).await.unwrap_or(Err(RefreshError::Timeout(bound)))?;
        // No ref changed by that: what the mirror showed it shows still.
        if let Some((_, moved)) = &mut self.known().synced
            && *moved == before
            && self.moved() == before + 1
        {
            *moved += 1;
        }
        Ok(())
    }

    /// Takes note that what the mirror shows was seen upstream again. The newest that it is known to show.
    fn confirm(&self, seen: Arc<Listed>) -> Arc<Listed> {
        let now = self.moved();
        let mut known = self.known();
        match &mut known.synced {
            Some((listed, moved)) if *moved == now && listed.scope == seen.scope => {
                if listed.number < seen.number && listed.listing == seen.listing {
                    *listed = seen;
                }
                listed.clone()
            }
            Some(_) | None => seen,
        }
    }

    async fn bring(
        &self,
        listed: Arc<Listed>,
        repo: &Repo,
        tools: &Tools,
    ) -> Result<Arc<Listed>, RefreshError> {
        let bound = if self.has_copy().await { REFRESH_TIMEOUT } else { FIRST_TIMEOUT };
        let _turn = timeout(bound, self.turn.lock()).await.map_err(|_| RefreshError::Timeout(bound))?;
        if self.shows(&listed) && self.path.join("HEAD").exists() {
            return Ok(self.confirm(listed));
        }
        // What upstream showed before or while a push changed it is not where the mirror belongs.
        // Nor is what it showed before the mirror was brought further than that.
        let mut listed = if self.pushed.load(SeqCst) == listed.pushed && !self.is_past(&listed) {
            listed
        } else {
            self.list(repo, tools).await?
        };
        let work = Refresh { mirror: self, repo, tools };
        let bring = async {
            for _ in 0..ROUNDS_MAX {
                // What is copied from now on is newer than whatever was asked until now.
                let begun = self.begun.load(SeqCst);
                let (number, listing) = match work.bring(listed.listing.clone()).await? {
                    Brought::AsAsked => return Ok(listed),
                    Brought::Since(listing) => (begun, Arc::new(listing)),
                    Brought::Between(listing) => (listed.number, Arc::new(listing)),
                    Brought::Again => {
                        listed = self.list(repo, tools).await?;
                        continue;
                    }
                };
                let Listed { began, pushed, scope, .. } = &*listed;
                let (began, ended, pushed, scope) = (*began, Instant::now(), *pushed, scope.clone());
                let gathered = true;
                return Ok(Arc::new(Listed { number, began, ended, pushed, scope, listing, gathered }));
            }
            Err(RefreshError::Mirror(format!("upstream took back {ROUNDS_MAX} times what it had shown")))
        };
        let brought = timeout(bound, bring).await;
        self.progress.send_replace(String::new());
        let listed = brought.unwrap_or(Err(RefreshError::Timeout(bound)))?;
        self.known().synced = Some((listed.clone(), self.moved()));
        Ok(listed)
    }
}

/// Whether every object of a mirror is reached by a ref. Refs that were read before count: they go only after this is no longer so.
pub(crate) fn is_whole(path: &Path) -> bool {
    path.join(WHOLE).exists()
}

/// Whether the mirror has nothing yet, so that the next refresh copies everything.
fn is_empty(path: &Path) -> bool {
    let references = |repo: Repository| Ok(repo.references()?.next().is_none());
    Repository::open_bare(path).and_then(references).unwrap_or(true)
}

/// Makes an empty mirror if there is none. It appears whole or not at all.
fn make(path: &Path) -> Result<(), git2::Error> {
    let new = path.with_extension("git.new");
    let _ = std::fs::remove_dir_all(&new);
    let mut options = git2::RepositoryInitOptions::new();
    options.bare(true).external_template(false).initial_head("main");
    Repository::init_opts(&new, &options)?;
    std::fs::rename(&new, path)
        .map_err(|error| git2::Error::from_str(&format!("cannot make {}: {error}", path.display())))
}

/// Removes what pushes and refreshes left that were cut short by the end of an earlier gate, or by that of the machine.
fn clear(path: &Path) {
    clear_locks(path);
    for (dir, marks) in [("objects", &["tmp_objdir-", "incoming-"][..]), ("objects/pack", &["tmp_"])] {
        for entry in std::fs::read_dir(path.join(dir)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if marks.iter().any(|mark| name.as_encoded_bytes().starts_with(mark.as_bytes())) {
                let path = entry.path();
                let removed = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
                tell_of(&path, removed);
            }
        }
    }
}

/// Removes the locks of a git that was killed: nothing would be written any more where they are. No ref has such a name.
fn clear_locks(directory: &Path) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            // Among the objects there are locks only beside what is written of all of them.
            if directory.file_name().is_none_or(|above| above != "objects")
                || name == "info"
                || name == "pack"
            {
                clear_locks(&path);
            }
        } else if path.extension().is_some_and(|kind| kind == "lock") {
            tell_of(&path, std::fs::remove_file(&path));
        }
    }
}

fn tell_of(path: &Path, removed: std::io::Result<()>) {
    if let Err(error) = removed {
        warn!(path = %path.display(), %error, "cannot remove what was left unfinished");
    }
}
