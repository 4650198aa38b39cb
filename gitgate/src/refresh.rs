//! The work of a refresh: what upstream shows, and what the mirror has to do to show it too.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use git2::{ObjectType, Oid, Repository};
use repos::{FetchRules, Repo, Ssh, Upstream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::fault::{Fault, FaultKind};
use crate::fence::{self, Reach};
use crate::git::{Objects, printable};
use crate::lister::{self, NoListing};
use crate::listing::{Gathering, Head, Listing, NOWHERE, Unlisted};
use crate::mirror::{Mirror, RefreshError, Tools};
use crate::ssh::{Ask, Remote};
use crate::warm::Fresh;
use crate::{courier, door, sys};

/// How long a command at upstream may take to end after the git that it spoke to.
const END_TIMEOUT: Duration = Duration::from_secs(5);
const OUTPUT_MAX_BYTES: u64 = 256 << 20;
const WORDS_MAX_BYTES: usize = 64 << 10;
/// Of how many moved refs it is asked whether they moved forward.
const CONTAINED_MAX: usize = 200;
/// Of how many refs git may say what became of them.
const TALKATIVE_MAX: usize = 10_000;
/// How much of what git says about its progress is passed on.
const PROGRESS_MAX_CHARS: usize = 120;
/// The name of an object in a repository of the newer format.
const SHA256_DIGITS: usize = 64;

/// What is to be copied.
#[derive(Debug, Clone, Copy)]
enum Wanted<'w> {
    /// All that may be read: so many refs.
    Refs(usize),
    /// These, whether or not a ref leads to them.
    Objects(&'w [Oid]),
}

/// What a copy came to.
#[derive(Debug)]
pub(crate) enum Brought {
    /// The mirror shows what was asked for.
    AsAsked,
    /// It shows this, which upstream had when it was copied.
    Since(Listing),
    /// It shows this, of which upstream had some only when it was asked.
    Between(Listing),
    /// Neither: upstream took back what it had shown.
    Again,
}

/// What was taken over as it was shown.
enum Taken {
    Nothing,
    Some,
    /// Upstream does not have it any more.
    Gone,
}

pub(crate) struct Refresh<'a> {
    pub(crate) mirror: &'a Mirror,
    pub(crate) repo: &'a Repo,
    pub(crate) tools: &'a Tools,
}

impl Refresh<'_> {
    /// What upstream shows. What came through a kept session counts only if a login meanwhile shows that upstream is
    /// there and who it is; that login is kept in its place.
    pub(crate) async fn list(&self) -> Result<Listing, RefreshError> {
        let Upstream::Ssh(ssh) = &self.repo.upstream else {
            return self.list_by_git().await;
        };
        let (warm, rules) = (&self.tools.warm, &self.repo.fetch);
        let fresh = if let Some(session) = warm.share(ssh) {
            let (listed, fresh) = tokio::join!(lister::ask(&session, ssh, rules), Fresh::open(ssh));
            if fresh.is_err() {
                warm.end(ssh);
            }
            let fresh = fresh.map_err(RefreshError::Upstream)?;
            // Whatever else went wrong may be the old session's doing.
            if let Ok(listing) = listed {
                warm.keep(ssh, fresh);
                return Ok(listing);
            }
            fresh
        } else {
            Fresh::open(ssh).await.map_err(RefreshError::Upstream)?
        };
        let listing = lister::ask(&fresh.session, ssh, rules).await?;
        warm.keep(ssh, fresh);
        Ok(listing)
    }

    async fn list_by_git(&self) -> Result<Listing, RefreshError> {
        self.make().await?;
        let mut command = self.git()?;
        command.args(["ls-remote", "--symref", "--"]).arg(door::url(&self.repo.upstream));
        let output = run(command, b"", None).await?;
        if output.len() as u64 >= OUTPUT_MAX_BYTES {
            return Err(RefreshError::Refs);
        }
        let mut gathering = Gathering::new(&self.repo.fetch);
        let gathered = output.lines().try_for_each(|line| {
            if line.split('\t').next().is_some_and(|oid| oid.len() == SHA256_DIGITS) {
                return Err(RefreshError::ObjectFormat);
            }
            gathering.line(line).map_err(unlisted)
        });
        gathered.and_then(|()| gathering.end().map_err(unlisted))
    }

    /// Makes the mirror show this, or what upstream had when it was copied.
    pub(crate) async fn bring(&self, listing: Arc<Listing>) -> Result<Brought, RefreshError> {
        self.make().await?;
        let (path, wanted) = (self.mirror.path().to_owned(), listing.clone());
        let lacks = on_thread(move || compare(&path, &wanted)).await?;
        let leftovers = self.mirror.record().leftovers;
        let removed = !lacks.gone.is_empty();
        let mut brought: fn(Listing) -> Brought = Brought::Since;
        let missing = lacks.missing;
        if removed || missing {
            self.mirror.moving();
            // Until it is known better: a fetch that is cut short leaves objects too.
            self.mirror.torn();
        }
        if removed {
            self.remove(&lacks.gone).await?;
        }
        if missing {
            match self.fetch(Wanted::Refs(listing.len())).await {
                // Between showing its refs to git and being asked for them it moved on.
                Err(RefreshError::Upstream(fault)) if fault.took_back() => {
                    self.mirror.tidy();
                    return Ok(Brought::Again);
                }
                fetched => fetched?,
            }
            match self.take_as_shown(&listing, &lacks.replaced).await? {
                Taken::Nothing => {}
                Taken::Some => brought = Brought::Between,
                Taken::Gone => {
                    self.mirror.tidy();
                    return Ok(Brought::Again);
                }
            }
        }
        let (path, rules) = (self.mirror.path().to_owned(), self.repo.fetch.clone());
        let (shown, contained) = on_thread(move || {
            set_head(&path, &listing)?;
            let now = if missing { compare(&path, &listing)? } else { Lacks::default() };
            let mut replaced = lacks.replaced;
            replaced.extend(now.moved_since(&listing, &replaced));
            let shown = match now {
                Lacks { missing: false, gone, .. } if gone.is_empty() => Ok(Brought::AsAsked),
                _ => gather(&path, &rules, &listing)?.map(brought),
            };
            Ok((shown, contained(&path, &replaced)?))
        })
        .await?;
        if !leftovers && !removed && contained {
            self.mirror.whole();
        }
        if removed || missing {
            self.mirror.tidy();
        }
        shown.map_err(unlisted)
    }

    /// Takes over as it was shown what no copy brought: it may be gone since, or another machine of upstream's answered, which is
    /// behind. So what the mirror shows is never older than what was asked for.
    async fn take_as_shown(
        &self,
        listing: &Arc<Listing>,
        before: &[(String, Oid)],
    ) -> Result<Taken, RefreshError> {
        let (path, wanted, before) = (self.mirror.path().to_owned(), listing.clone(), before.to_owned());
        let left = on_thread(move || left(&path, &wanted, &before)).await?;
        if left.is_empty() {
            return Ok(Taken::Nothing);
        }
        let lacking = self.lacking(left.iter().map(|(_, oid)| *oid).collect()).await?;
        if !lacking.is_empty() {
            match self.fetch(Wanted::Objects(&lacking)).await {
                Err(RefreshError::Upstream(Fault { kind: FaultKind::Refused, .. })) => {
                    return Ok(Taken::Gone);
                }
                fetched => fetched?,
            }
        }
        let lines = left.iter().map(|(name, oid)| format!("update {name}\0{oid}\0\0"));
        self.update(&lines.collect::<String>()).await.map(|()| Taken::Some)
    }

    /// Which of these objects the mirror does not have.
    pub(crate) async fn lacking(&self, objects: Vec<Oid>) -> Result<Vec<Oid>, RefreshError> {
        let path = self.mirror.path().to_owned();
        on_thread(move || {
            let repo = Repository::open_bare(&path)?;
            let odb = repo.odb()?;
            Ok(objects.into_iter().filter(|oid| !odb.exists(*oid)).collect())
        })
        .await
    }

    /// Gets objects that upstream showed a moment ago.
    pub(crate) async fn complete(&self, objects: &[Oid]) -> Result<(), RefreshError> {
        self.mirror.moving();
        self.mirror.torn();
        self.fetch(Wanted::Objects(objects)).await?;
        self.mirror.tidy();
        Ok(())
    }

    async fn make(&self) -> Result<(), RefreshError> {
        self.mirror.exist().await.map_err(|error| RefreshError::Mirror(error.to_string()))
    }

    /// Removes refs, all in one go.
    async fn remove(&self, names: &[String]) -> Result<(), RefreshError> {
        let lines = names.iter().map(|name| format!("delete {name}\0\0"));
        self.update(&lines.collect::<String>()).await
    }

    async fn update(&self, lines: &str) -> Result<(), RefreshError> {
        let mut command = self.tools.gate.git(self.mirror.path(), Objects::Own);
        command.args(["update-ref", "-z", "--stdin"]);
        self.confine(&mut command, Reach::Mirror)?;
        run(command, lines.as_bytes(), None)
            .await
            .map(drop)
            .map_err(|error| RefreshError::Mirror(error.to_string()))
    }

    async fn fetch(&self, wanted: Wanted<'_>) -> Result<(), RefreshError> {
        match &self.repo.upstream {
            Upstream::Ssh(ssh) => self.fetch_over_ssh(wanted, ssh).await,
            Upstream::Https(_) | Upstream::File(_) => {
                run(self.fetching(wanted)?, b"", Some(self.mirror.progress())).await.map(drop)
            }
        }
    }

    fn fetching(&self, wanted: Wanted<'_>) -> Result<Command, RefreshError> {
        let mut command = self.git()?;
        // Without it git says a line for each ref.
        let quiet = matches!(wanted, Wanted::Refs(TALKATIVE_MAX..)).then_some("--quiet");
        command.arg("fetch").args(quiet).args([
            "--progress",
            "--atomic",
            "--force",
            "--no-tags",
            "--no-write-fetch-head",
        ]);
        command.args(["--no-auto-maintenance", "--no-recurse-submodules", "--refmap=", "--"]);
        command.arg(door::url(&self.repo.upstream));
        match wanted {
            Wanted::Refs(_) => command.args(self.repo.fetch.allow.iter().map(|p| format!("+{p}:{p}"))),
            Wanted::Objects(objects) => command.args(objects.iter().map(Oid::to_string)),
        };
        Ok(command)
    }

    /// Fetches through a session that nobody else goes through meanwhile: who reads slowly holds up all that goes through
    /// it. What a kept one does not do, a new one is asked for: upstream may take one command for each and no more.
    async fn fetch_over_ssh(&self, wanted: Wanted<'_>, ssh: &Ssh) -> Result<(), RefreshError> {
        if let Some(taken) = self.tools.warm.take(ssh)
            && let Ok(remote) = taken.session.run("git-upload-pack", ssh, Ask::V2).await
        {
            match self.fetch_through(taken, remote, wanted, ssh).await {
                Err(RefreshError::Upstream(Fault { kind: FaultKind::Unreachable, .. })) => {}
                fetched => return fetched,
            }
        }
        let fresh = Fresh::open(ssh).await.map_err(RefreshError::Upstream)?;
        let remote = fresh.session.run("git-upload-pack", ssh, Ask::V2).await;
        self.fetch_through(fresh, remote.map_err(RefreshError::Upstream)?, wanted, ssh).await
    }

    /// Joins a git that fetches to what runs at upstream.
    async fn fetch_through(
        &self,
        session: Fresh,
        remote: Remote,
        wanted: Wanted<'_>,
        ssh: &Ssh,
    ) -> Result<(), RefreshError> {
        let Tools { gate, warm, .. } = self.tools;
        let mut command = self.fetching(wanted)?;
        let socket = courier::hire(&mut command, gate);
        let socket = socket.map_err(|error| RefreshError::Mirror(error.to_string()))?;
        let mut carrying = JoinSet::new();
        carrying.spawn(courier::carry(socket, remote));
        let fetched = run(command, b"", Some(self.mirror.progress())).await;
        if let Err(RefreshError::Upstream(fault)) = fetched {
            let over = timeout(END_TIMEOUT, carrying.join_next()).await;
            let Ok(Some(Ok(over))) = over else { return Err(RefreshError::Upstream(fault)) };
            // Git says no more than that it heard nothing.
            let lost = over.fault_or(fault).await;
            return Err(RefreshError::Upstream(lost));
        }
        if fetched.is_ok() && !warm.has(ssh) {
            warm.keep(ssh, session);
        }
        fetched.map(drop)
    }

    fn git(&self) -> Result<Command, RefreshError> {
        let Tools { gate, keyring, .. } = self.tools;
        let door = keyring.door(self.repo)?;
        let command = gate.git_through(self.mirror.path(), Objects::Own, door.as_ref());
        let mut command = command.map_err(|error| RefreshError::Mirror(error.to_string()))?;
        self.confine(&mut command, Reach::Upstream)?;
        Ok(command)
    }

    fn confine(&self, command: &mut Command, reach: Reach) -> Result<(), RefreshError> {
        let Tools { gate, keyring, .. } = self.tools;
        let fence = fence::around(self.repo, self.mirror.path(), reach, gate, keyring);
        if let Some(fence) = fence.map_err(|error| RefreshError::Mirror(format!("its fence: {error}")))? {
            sys::confine(command, fence);
        }
        Ok(())
    }
}

impl From<NoListing> for RefreshError {
    fn from(reason: NoListing) -> Self {
        match reason {
            NoListing::Upstream(fault) => Self::Upstream(fault),
            NoListing::Refs => Self::Refs,
            NoListing::RefName => Self::RefName,
            NoListing::ObjectFormat => Self::ObjectFormat,
        }
    }
}

/// Whether a mirror has exactly these refs.
pub(crate) async fn is_at(path: &Path, listing: Listing) -> Result<bool, RefreshError> {
    let path = path.to_owned();
    let lacks = on_thread(move || compare(&path, &listing)).await?;
    Ok(!lacks.missing && lacks.gone.is_empty())
}

fn unlisted(reason: Unlisted) -> RefreshError {
    match reason {
        Unlisted::Much => RefreshError::Refs,
        Unlisted::Name => RefreshError::RefName,
        Unlisted::Malformed => RefreshError::Mirror("git shows refs that are none".to_owned()),
    }
}

/// In what a mirror differs from what upstream shows.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lacks {
    /// Refs point elsewhere upstream, or are new there.
    missing: bool,
    /// Refs that upstream no longer has.
    gone: Vec<String>,
    /// Refs that point elsewhere upstream, and where they point here.
    replaced: Vec<(String, Oid)>,
}

/// What a mirror does not have although it was shown: refs that are not there, or still where they were before, and where they
/// were shown.
fn left(path: &Path, wanted: &Listing, before: &[(String, Oid)]) -> Result<Vec<(String, Oid)>, git2::Error> {
    let now = compare(path, wanted)?;
    if !now.missing {
        return Ok(Vec::new());
    }
    let repo = Repository::open_bare(path)?;
    let mut there = BTreeSet::new();
    for name in repo.references()?.names() {
        there.insert(name?.to_owned());
    }
    let still: BTreeSet<&(String, Oid)> = before.iter().collect();
    let still: BTreeSet<&str> =
        now.replaced.iter().filter(|one| still.contains(one)).map(|(name, _)| name.as_str()).collect();
    let left = wanted.iter().filter(|shown| !there.contains(shown.name) || still.contains(shown.name));
    Ok(left.map(|shown| (shown.name.to_owned(), shown.oid)).collect())
}

impl Lacks {
    /// The refs that are not where they were shown, without those that are known, and where they were shown.
    fn moved_since(&self, shown: &Listing, known: &[(String, Oid)]) -> Vec<(String, Oid)> {
        let known: BTreeSet<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
        let moved = self.replaced.iter().filter(|(name, _)| !known.contains(name.as_str()));
        moved.filter_map(|(name, _)| Some((name.clone(), shown.find(name)?.oid))).collect()
    }
}

/// What a mirror shows. HEAD, which no copy brings, leads where it did a moment ago.
fn gather(
    path: &Path,
    rules: &FetchRules,
    before: &Listing,
) -> Result<Result<Listing, Unlisted>, git2::Error> {
    let repo = Repository::open_bare(path)?;
    let mut gathering = Gathering::new(rules);
    for reference in repo.references()? {
        let reference = reference?;
        let (Ok(name), Some(oid)) = (reference.name(), reference.target()) else {
            continue;
        };
        let peeled = match before.find(name).filter(|shown| shown.oid == oid) {
            Some(shown) => shown.peeled,
            None => peeled(&repo, oid)?,
        };
        if let Err(reason) = gathering.add(name, oid, peeled) {
            return Ok(Err(reason));
        }
    }
    let mut gathered = gathering.end();
    if let Ok(listing) = &mut gathered {
        listing.head = before.head.clone();
    }
    Ok(gathered)
}

/// What a tag leads to in the end.
fn peeled(repo: &Repository, oid: Oid) -> Result<Option<Oid>, git2::Error> {
    match repo.odb()?.read_header(oid)? {
        (_, ObjectType::Tag) => Ok(Some(repo.find_object(oid, None)?.peel(ObjectType::Any)?.id())),
        _ => Ok(None),
    }
}

fn compare(path: &Path, wanted: &Listing) -> Result<Lacks, git2::Error> {
    let repo = Repository::open_bare(path)?;
    let mut same = 0;
    let (mut gone, mut replaced) = (Vec::new(), Vec::new());
    for reference in repo.references()? {
        let reference = reference?;
        let Ok(name) = reference.name() else {
            continue;
        };
        match (wanted.find(name), reference.target()) {
            (Some(shown), Some(oid)) if oid == shown.oid => same += 1,
            (Some(_), Some(oid)) => replaced.push((name.to_owned(), oid)),
            (Some(_), None) => {}
            (None, _) => gone.push(name.to_owned()),
        }
    }
    Ok(Lacks { missing: same != wanted.len(), gone, replaced })
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
        Head::Branch(head) => repo.set_head(head),
        Head::Commit(oid) if wanted.shows(*oid) && repo.odb()?.exists(*oid) => repo.set_head_detached(*oid),
        // A commit that no ref shows would be kept, and handed out, for as long as HEAD led there.
        Head::Commit(_) | Head::Hidden => {
            repo.reference_symbolic("HEAD", NOWHERE, true, "git-gate").map(drop)
        }
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
async fn run(
    command: Command,
    input: &[u8],
    progress: Option<&watch::Sender<String>>,
) -> Result<String, RefreshError> {
    let spoiled = |error: std::io::Error| RefreshError::Mirror(format!("git: {error}"));
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(spoiled)?;
    drop(command);
    let (Some(mut stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(RefreshError::Mirror("git has no output".to_owned()));
    };
    let mut output = Vec::new();
    let mut stdout = stdout.take(OUTPUT_MAX_BYTES);
    let feed = async move {
        let _ = stdin.write_all(input).await;
    };
    let ((), read, words) = tokio::join!(feed, stdout.read_to_end(&mut output), words(stderr, progress));
    read.map_err(spoiled)?;
    let status: ExitStatus = child.wait().await.map_err(spoiled)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&output).into_owned());
    }
    Err(RefreshError::Upstream(Fault::of(&words)))
}

/// What a child says, without what it says of its progress, which is shown to those who wait.
async fn words(mut stream: impl AsyncRead + Unpin, progress: Option<&watch::Sender<String>>) -> String {
    let (mut kept, mut line) = (String::new(), Vec::new());
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        for byte in &buffer[..n] {
            match byte {
                b'\n' | b'\r' => {
                    take(&mut kept, &line, progress);
                    line.clear();
                }
                byte if line.len() < WORDS_MAX_BYTES => line.push(*byte),
                _ => {}
            }
        }
    }
    take(&mut kept, &line, progress);
    kept
}

fn take(kept: &mut String, line: &[u8], progress: Option<&watch::Sender<String>>) {
    let line = printable(&String::from_utf8_lossy(line));
    if let Some(progress) = progress
        && line.contains("% (")
    {
        let line: String = line.chars().take(PROGRESS_MAX_CHARS).collect();
        progress.send_replace(line.trim_start_matches("remote: ").trim().to_owned());
    } else if !line.is_empty() && kept.len() < WORDS_MAX_BYTES {
        kept.push_str(&line);
        kept.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_git_says_of_its_progress_is_shown_and_the_rest_is_kept() {
        let said =
            b"remote: Counting objects:  50% (1/2)\rReceiving objects: 100% (2/2), done.\nfatal: gone\n";
        let shown = watch::Sender::new(String::new());
        assert_eq!(words(&said[..], Some(&shown)).await, "fatal: gone\n");
        assert_eq!(*shown.borrow(), "Receiving objects: 100% (2/2), done.");
    }
}
