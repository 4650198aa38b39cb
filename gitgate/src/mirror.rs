//! A bare mirror that follows its upstream.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use git2::{Oid, Repository};
use jiff::Timestamp;
use repos::{FetchRules, Repo, Stale, Upstream};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;
use tracing::warn;

use crate::door::{self, Keyring, TokenError};
use crate::git::{GateDir, Objects, printable};
use crate::proof::{self, Proof};
use crate::ssh::{self, Fault, FaultKind};
use crate::warm::Warm;

/// How long a refresh may take, waiting for a push included.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the first copy of a repository may take.
const FIRST_TIMEOUT: Duration = Duration::from_secs(900);
const OUTPUT_MAX_BYTES: u64 = 256 << 20;
const WORDS_MAX_BYTES: u64 = 64 << 10;
/// The file that says that every object is reached by a ref.
const WHOLE: &str = "git-gate-whole";
/// Of how many moved refs it is asked whether they moved forward.
const CONTAINED_MAX: usize = 200;
/// The name of an object in a repository of the newer format.
const SHA256_DIGITS: usize = 64;

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
    #[error("it shows more than {} MiB of refs; narrow `fetch.allow`", OUTPUT_MAX_BYTES >> 20)]
    Refs,
    #[error(transparent)]
    Token(#[from] TokenError),
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
    turn: Mutex<Turn>,
    begun: AtomicU64,
    moved: AtomicU64,
    pushes: AtomicU64,
    changed: Arc<Notify>,
    record: std::sync::Mutex<Record>,
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

/// The last refresh, and by being locked the right to change the mirror.
#[derive(Default)]
pub(crate) struct Turn {
    number: u64,
    result: Option<Result<(), RefreshError>>,
}

/// The right to change upstream and mirror; a refresh waits until it is dropped.
pub(crate) type Lock<'m> = tokio::sync::MutexGuard<'m, Turn>;

/// What a refresh works with.
#[derive(Clone, Copy)]
pub(crate) struct Tools<'a> {
    pub(crate) gate: &'a GateDir,
    pub(crate) keyring: &'a Keyring,
    pub(crate) warm: &'a Warm,
}

impl Mirror {
    /// `changed` is told when there is something to tidy.
    pub(crate) fn new(repo_dir: &Path, repo: &Repo, changed: Arc<Notify>) -> Self {
        let path = repo_dir.join(format!("{}.git", repo.name));
        clear(&path);
        // An earlier gate may have left objects that no ref reaches.
        let record = Record { leftovers: !path.join(WHOLE).exists(), ..Record::default() };
        let (turn, record) = (Mutex::default(), record.into());
        Self { path, turn, begun: 0.into(), moved: 0.into(), pushes: 0.into(), changed, record }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until no refresh and no push is under way, and keeps it so.
    pub(crate) async fn lock(&self) -> Lock<'_> {
        self.turn.lock().await
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

    /// Takes note that every object is reached by a ref.
    pub(crate) fn whole(&self) {
        self.record().leftovers = false;
        let _ = std::fs::write(self.path.join(WHOLE), "");
    }

    /// Takes note that objects may be left that no ref reaches.
    fn torn(&self) {
        let _ = std::fs::remove_file(self.path.join(WHOLE));
        self.record().leftovers = true;
    }

    /// Takes note that the mirror was changed, or is about to be.
    pub(crate) fn moving(&self) {
        self.moved.fetch_add(1, SeqCst);
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen so far is no longer what is mirrored.
    pub(crate) fn forget(&self) {
        self.moving();
        *self.record() = Record::default();
        self.torn();
    }

    /// Whether upstream was seen within this time.
    pub(crate) fn seen_within(&self, age: Duration) -> bool {
        self.record().seen.is_some_and(|(seen, ..)| seen.elapsed() <= age)
    }

    /// Makes the mirror show what upstream has, or had a moment ago where the rules of the repository allow that.
    pub(crate) async fn refresh_or_stale(
        &self,
        repo: &Repo,
        tools: Tools<'_>,
    ) -> Result<Freshness, RefreshError> {
        let error = match self.refresh(repo, tools).await {
            Ok(()) => return Ok(Freshness::Fresh),
            Err(error) => error,
        };
        let silent = match &error {
            RefreshError::Upstream(fault) => fault.kind == FaultKind::Unreachable,
            RefreshError::Timeout(_) => true,
            RefreshError::Mirror(_)
            | RefreshError::ObjectFormat
            | RefreshError::Refs
            | RefreshError::Token(_) => false,
        };
        let seen = self.record().seen.map(|(seen, ..)| seen.elapsed());
        match (repo.fetch.stale, seen) {
            (Stale::Allow(most), Some(age)) if silent && age <= most => {
                Ok(Freshness::Stale { age, reason: error.to_string() })
            }
            _ => Err(error),
        }
    }

    /// Makes the mirror show what upstream has, seen at a moment after this call.
    ///
    /// Callers that wait at the same time share one refresh, if it began after they came.
    pub(crate) async fn refresh(&self, repo: &Repo, tools: Tools<'_>) -> Result<(), RefreshError> {
        let bound = if is_empty(&self.path) { FIRST_TIMEOUT } else { REFRESH_TIMEOUT };
        let seen = self.begun.load(SeqCst);
        let mut turn = timeout(bound, self.turn.lock()).await.map_err(|_| RefreshError::Timeout(bound))?;
        if let (true, Some(result)) = (turn.number > seen, turn.result.clone()) {
            return result;
        }
        turn.number = self.begun.fetch_add(1, SeqCst) + 1;
        // Whoever comes after a refresh that was cut short must not see an older result.
        turn.result = None;
        let work = Refresh { mirror: self, repo, tools };
        let began = (Instant::now(), Timestamp::now());
        let result = match timeout(bound, work.run()).await {
            Ok(result) => result,
            Err(_) => Err(RefreshError::Timeout(bound)),
        };
        self.note(began, &result);
        turn.result = Some(result.clone());
        result
    }

    fn note(&self, (began, at): (Instant, Timestamp), result: &Result<(), RefreshError>) {
        let mut record = self.record();
        record.refreshes += 1;
        match result {
            Ok(()) => {
                record.seen = Some((began, at, began.elapsed()));
                record.error = None;
            }
            Err(error) => {
                record.failures += 1;
                record.error = Some(error.to_string());
            }
        }
    }
}

struct Refresh<'a> {
    mirror: &'a Mirror,
    repo: &'a Repo,
    tools: Tools<'a>,
}

/// What upstream shows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Listing {
    head: Option<String>,
    refs: BTreeMap<String, String>,
}

impl Refresh<'_> {
    async fn run(&self) -> Result<(), RefreshError> {
        let path = self.mirror.path.clone();
        on_thread(move || make(&path)).await?;
        let listing = Arc::new(self.seen().await?);
        let (path, wanted) = (self.mirror.path.clone(), listing.clone());
        let followed = on_thread(move || follow(&path, &wanted)).await?;
        let leftovers = self.mirror.record().leftovers;
        if followed.removed || followed.missing {
            self.mirror.moving();
            // Until it is known better: a fetch that is cut short leaves objects too.
            self.mirror.torn();
        }
        if followed.missing {
            self.fetch().await?;
        }
        if !leftovers && !followed.removed {
            let (path, replaced) = (self.mirror.path.clone(), followed.replaced);
            if on_thread(move || contained(&path, &replaced)).await? {
                self.mirror.whole();
            }
        }
        if followed.removed || followed.missing {
            self.mirror.changed.notify_one();
        }
        let path = self.mirror.path.clone();
        on_thread(move || set_head(&path, &listing)).await
    }

    /// What upstream shows. What came through a kept session counts only if upstream proved meanwhile that it is
    /// there and who it is; otherwise the session is given up, and upstream is asked once more without it.
    async fn seen(&self) -> Result<Listing, RefreshError> {
        let Upstream::Ssh(ssh) = &self.repo.upstream else {
            return self.list().await;
        };
        let Tools { gate, warm, .. } = self.tools;
        let config = gate.ssh_config(&self.repo.name);
        let mut proof = Proof::Given;
        if warm.check(ssh) {
            let (listed, shown) = tokio::join!(self.list(), proof::ask(gate, ssh, &config));
            match (listed, shown) {
                (Err(RefreshError::Upstream(_)), _) | (_, Proof::Missing) => warm.end(ssh),
                (listed, Proof::Given) => return listed,
            }
            proof = shown;
        }
        let listed = self.list().await;
        if listed.is_ok() {
            match proof {
                Proof::Given => warm.keep(gate, ssh, &config),
                Proof::Missing => warm.shun(ssh),
            }
        }
        listed
    }

    async fn list(&self) -> Result<Listing, RefreshError> {
        let mut command = self.git()?;
        command.args(["ls-remote", "--symref", "--"]).arg(door::url(&self.repo.upstream));
        let output = run(command).await?;
        if output.len() as u64 >= OUTPUT_MAX_BYTES {
            return Err(RefreshError::Refs);
        }
        let listing = Listing::parse(&output, &self.repo.fetch);
        if listing.refs.values().any(|name| name.len() == SHA256_DIGITS) {
            return Err(RefreshError::ObjectFormat);
        }
        Ok(listing)
    }

    async fn fetch(&self) -> Result<(), RefreshError> {
        let mut command = self.git()?;
        command.args(["fetch", "--quiet", "--atomic", "--force", "--no-tags", "--no-write-fetch-head"]);
        command.args(["--no-auto-maintenance", "--no-recurse-submodules", "--refmap=", "--"]);
        command.arg(door::url(&self.repo.upstream));
        command.args(self.repo.fetch.allow.iter().map(|p| format!("+{p}:{p}")));
        run(command).await.map(drop)
    }

    fn git(&self) -> Result<Command, RefreshError> {
        let door = self.tools.keyring.door(self.tools.gate, self.repo)?;
        let command = self.tools.gate.git_through(&self.mirror.path, Objects::Own, &door);
        command.map_err(|error| RefreshError::Mirror(error.to_string()))
    }
}

impl Listing {
    /// Reads the output of `git ls-remote --symref`, as far as the rules allow it to be mirrored.
    fn parse(output: &str, rules: &FetchRules) -> Self {
        let allowed = |name: &str| rules.allow.iter().any(|p| p.matches(name));
        let mut listing = Self::default();
        for line in output.lines() {
            let Some((value, name)) = line.split_once('\t') else {
                continue;
            };
            match value.strip_prefix("ref: ") {
                Some(target) if name == "HEAD" && allowed(target) => listing.head = Some(target.to_owned()),
                None if allowed(name) && !name.ends_with("^{}") => {
                    listing.refs.insert(name.to_owned(), value.to_owned());
                }
                _ => {}
            }
        }
        listing
    }
}

/// Whether the mirror has nothing yet, so that the next refresh copies everything.
fn is_empty(path: &Path) -> bool {
    let references = |repo: Repository| Ok(repo.references()?.next().is_none());
    Repository::open_bare(path).and_then(references).unwrap_or(true)
}

/// What a mirror lacks and lost.
#[derive(Debug, PartialEq, Eq)]
struct Followed {
    /// Refs point elsewhere upstream, or are new there.
    missing: bool,
    /// Refs were removed.
    removed: bool,
    /// Refs that point elsewhere upstream, and where they point here.
    replaced: Vec<(String, Oid)>,
}

/// Removes what pushes and refreshes left that were cut short by the end of an earlier gate.
fn clear(path: &Path) {
    for (dir, marks) in [("objects", &["tmp_objdir-", "incoming-"][..]), ("objects/pack", &["tmp_"])] {
        for entry in std::fs::read_dir(path.join(dir)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if marks.iter().any(|mark| name.as_encoded_bytes().starts_with(mark.as_bytes())) {
                let path = entry.path();
                let removed = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
                if let Err(error) = removed {
                    warn!(path = %path.display(), %error, "cannot remove what was left unfinished");
                }
            }
        }
    }
}

/// Makes an empty mirror if there is none. It appears whole or not at all.
fn make(path: &Path) -> Result<(), git2::Error> {
    if path.exists() {
        return Ok(());
    }
    let new = path.with_extension("git.new");
    let _ = std::fs::remove_dir_all(&new);
    let mut options = git2::RepositoryInitOptions::new();
    options.bare(true).external_template(false).initial_head("main");
    Repository::init_opts(&new, &options)?;
    std::fs::rename(&new, path)
        .map_err(|error| git2::Error::from_str(&format!("cannot make {}: {error}", path.display())))
}

/// Removes the refs that upstream no longer has.
fn follow(path: &Path, wanted: &Listing) -> Result<Followed, git2::Error> {
    let repo = Repository::open_bare(path)?;
    let mut same = 0;
    let (mut gone, mut replaced) = (Vec::new(), Vec::new());
    for reference in repo.references()? {
        let reference = reference?;
        let Some(name) = reference.name().ok().map(str::to_owned) else {
            continue;
        };
        match (wanted.refs.get(&name), reference.target()) {
            (Some(value), Some(oid)) if oid.to_string() == *value => same += 1,
            (Some(_), Some(oid)) => replaced.push((name, oid)),
            (Some(_), None) => {}
            (None, _) => gone.push(name),
        }
    }
    for name in &gone {
        repo.find_reference(name)?.delete()?;
    }
    Ok(Followed { missing: same != wanted.refs.len(), removed: !gone.is_empty(), replaced })
}

/// Whether each of these refs still contains what it pointed to. Of very many it is not asked.
fn contained(path: &Path, replaced: &[(String, Oid)]) -> Result<bool, git2::Error> {
    if replaced.len() > CONTAINED_MAX {
        return Ok(false);
    }
    let repo = Repository::open_bare(path)?;
    Ok(replaced.iter().all(|(name, old)| {
        let new = repo.refname_to_id(name);
        new.is_ok_and(|new| new == *old || repo.graph_descendant_of(new, *old).unwrap_or(false))
    }))
}

fn set_head(path: &Path, wanted: &Listing) -> Result<(), git2::Error> {
    let repo = Repository::open_bare(path)?;
    match &wanted.head {
        Some(head) => repo.set_head(head),
        None => Ok(()),
    }
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, git2::Error> + Send + 'static,
) -> Result<T, RefreshError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(RefreshError::Mirror(error.message().to_owned())),
        Err(_) => Err(RefreshError::Mirror("the work on it was cut short".to_owned())),
    }
}

/// Runs a command to its end; its output, or its words when it failed.
async fn run(command: Command) -> Result<String, RefreshError> {
    let spoiled = |error: std::io::Error| RefreshError::Mirror(format!("git: {error}"));
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(spoiled)?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(RefreshError::Mirror("git has no output".to_owned()));
    };
    let (mut output, mut words) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (stdout.take(OUTPUT_MAX_BYTES), stderr.take(WORDS_MAX_BYTES));
    let read = async { tokio::join!(stdout.read_to_end(&mut output), stderr.read_to_end(&mut words)) };
    let (read_output, read_words) = read.await;
    read_output.and(read_words).map_err(spoiled)?;
    let status: ExitStatus = child.wait().await.map_err(spoiled)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&output).into_owned());
    }
    Err(RefreshError::Upstream(ssh::explain(&printable(&String::from_utf8_lossy(&words)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "ref: refs/heads/main\tHEAD\n1111\tHEAD\n1111\trefs/heads/main\n2222\trefs/pull/1/head\n3333\trefs/tags/v1\n4444\trefs/tags/v1^{}\n";

    fn rules(patterns: &[&str]) -> FetchRules {
        FetchRules {
            allow: patterns.iter().filter_map(|p| repos::RefPattern::parse(p).ok()).collect(),
            stale: Stale::Refuse,
        }
    }

    #[test]
    fn a_listing_holds_what_may_be_mirrored() {
        let listing = Listing::parse(LISTING, &rules(&["refs/heads/*", "refs/tags/*"]));
        let refs = [("refs/heads/main", "1111"), ("refs/tags/v1", "3333")];
        let refs = refs.map(|(name, oid)| (name.to_owned(), oid.to_owned()));
        assert_eq!(listing, Listing { head: Some("refs/heads/main".into()), refs: refs.into() });
    }

    #[test]
    fn a_head_that_may_not_be_read_is_not_followed() {
        assert_eq!(Listing::parse(LISTING, &rules(&["refs/tags/*"])).head, None);
    }
}
