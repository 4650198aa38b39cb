//! A bare mirror that follows its upstream.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use git2::Repository;
use repos::{FetchRules, Repo, Upstream};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;
use tracing::warn;

use crate::git::{GateDir, Objects, Reach, printable};
use crate::ssh;

/// How long a refresh may take, waiting for a push included.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the first copy of a repository may take.
const FIRST_TIMEOUT: Duration = Duration::from_secs(900);
const OUTPUT_MAX_BYTES: u64 = 64 << 20;

/// Why a mirror does not show what upstream has now. The text is meant for the client.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum RefreshError {
    #[error("{0}")]
    Upstream(String),
    #[error("it took longer than {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the mirror cannot be used: {0}")]
    Mirror(String),
}

/// One mirror and the turn-taking around it.
pub(crate) struct Mirror {
    path: PathBuf,
    turn: Mutex<Turn>,
    begun: std::sync::atomic::AtomicU64,
}

/// The last refresh, and by being locked the right to change the mirror.
#[derive(Default)]
pub(crate) struct Turn {
    number: u64,
    result: Option<Result<(), RefreshError>>,
}

/// The right to change upstream and mirror; a refresh waits until it is dropped.
pub(crate) type Lock<'m> = MutexGuard<'m, Turn>;

impl Mirror {
    pub(crate) fn new(repo_dir: &Path, repo: &Repo) -> Self {
        let path = repo_dir.join(format!("{}.git", repo.name));
        clear(&path);
        Self { path, turn: Mutex::default(), begun: 0.into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until no refresh and no push is under way, and keeps it so.
    pub(crate) async fn lock(&self) -> Lock<'_> {
        self.turn.lock().await
    }

    /// Makes the mirror show what upstream has, seen at a moment after this call.
    ///
    /// Callers that wait at the same time share one refresh, if it began after they came.
    pub(crate) async fn refresh(&self, repo: &Repo, gate: &GateDir) -> Result<(), RefreshError> {
        use std::sync::atomic::Ordering::SeqCst;
        let bound = if is_empty(&self.path) { FIRST_TIMEOUT } else { REFRESH_TIMEOUT };
        let seen = self.begun.load(SeqCst);
        let mut turn = timeout(bound, self.turn.lock()).await.map_err(|_| RefreshError::Timeout(bound))?;
        if let (true, Some(result)) = (turn.number > seen, turn.result.clone()) {
            return result;
        }
        turn.number = self.begun.fetch_add(1, SeqCst) + 1;
        // Whoever comes after a refresh that was cut short must not see an older result.
        turn.result = None;
        let work = Refresh { path: &self.path, repo, gate };
        let result = match timeout(bound, work.run()).await {
            Ok(result) => result,
            Err(_) => Err(RefreshError::Timeout(bound)),
        };
        turn.result = Some(result.clone());
        result
    }
}

struct Refresh<'a> {
    path: &'a Path,
    repo: &'a Repo,
    gate: &'a GateDir,
}

/// What upstream shows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Listing {
    head: Option<String>,
    refs: BTreeMap<String, String>,
}

impl Refresh<'_> {
    async fn run(&self) -> Result<(), RefreshError> {
        let path = self.path.to_owned();
        on_thread(move || make(&path)).await?;
        let listing = Arc::new(self.list().await?);
        let (path, wanted) = (self.path.to_owned(), listing.clone());
        if on_thread(move || follow(&path, &wanted)).await? == Missing::Objects {
            self.fetch().await?;
        }
        let (path, wanted) = (self.path.to_owned(), listing);
        on_thread(move || set_head(&path, &wanted)).await
    }

    async fn list(&self) -> Result<Listing, RefreshError> {
        let mut command = self.git();
        command.args(["ls-remote", "--symref", "--"]).arg(self.repo.upstream.url());
        let output = run(command).await?;
        Ok(Listing::parse(&output, &self.repo.fetch))
    }

    async fn fetch(&self) -> Result<(), RefreshError> {
        let mut command = self.git();
        command.args(["fetch", "--quiet", "--atomic", "--force", "--no-tags", "--no-write-fetch-head"]);
        command.args(["--no-auto-maintenance", "--no-recurse-submodules", "--refmap=", "--"]);
        command.arg(self.repo.upstream.url());
        command.args(self.repo.fetch.allow.iter().map(|p| format!("+{p}:{p}")));
        run(command).await.map(drop)
    }

    fn git(&self) -> Command {
        let config = self.gate.ssh_config(&self.repo.name);
        let reach = match &self.repo.upstream {
            Upstream::Ssh(_) => Reach::Ssh(&config),
            Upstream::File(_) => Reach::Local,
        };
        self.gate.git(self.path, reach, Objects::Own)
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

#[derive(Debug, PartialEq, Eq)]
enum Missing {
    Nothing,
    Objects,
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

/// Removes the refs that upstream no longer has; says whether any has to be fetched.
fn follow(path: &Path, wanted: &Listing) -> Result<Missing, git2::Error> {
    let repo = Repository::open_bare(path)?;
    let mut have = BTreeMap::new();
    for reference in repo.references()? {
        let mut reference = reference?;
        let Some(name) = reference.name().ok().map(str::to_owned) else {
            continue;
        };
        if wanted.refs.contains_key(&name) {
            have.insert(name, reference.target().map(|oid| oid.to_string()).unwrap_or_default());
        } else {
            reference.delete()?;
        }
    }
    Ok(if have == wanted.refs { Missing::Nothing } else { Missing::Objects })
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
    let (mut stdout, mut stderr) = (stdout.take(OUTPUT_MAX_BYTES), stderr.take(OUTPUT_MAX_BYTES));
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
        FetchRules { allow: patterns.iter().filter_map(|p| repos::RefPattern::parse(p).ok()).collect() }
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
