//! How often counted routes were used. A use is durable before its request goes out.
//!
//! Uses are reserved on disk in blocks, so that not every request waits for the disk. What was reserved and not used when the
//! process dies is spent; a clean stop gives it back.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use policy::{Exception, Release, Route};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout;

use crate::clock::Clock;

/// How many uses are reserved at once.
const BLOCK: u64 = 16;
/// How long what was reserved may take to be given back at the end.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// A file larger than this is not ours.
const FILE_LIMIT: u64 = 16 * 1024 * 1024;

/// Where uses are counted, under the state directory: beside the journal, where egress alone writes.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("audit/egress/uses.json")
}

/// Why uses cannot be counted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the counted uses in {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{path} does not hold counted uses: {reason}; counted routes would begin anew")]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A route may not be used again, or it cannot be counted.
#[derive(Debug)]
pub(crate) enum NoUse {
    /// All are used up.
    UsedUp,
    /// The count cannot be made durable.
    Write(io::Error),
}

/// The counted uses.
#[derive(Debug)]
pub struct Uses {
    path: PathBuf,
    clock: Clock,
    counts: Mutex<BTreeMap<String, Count>>,
    writing: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    used: u64,
    /// What the file says; never less than `used`.
    reserved: u64,
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// It was at least this late.
    seen: Timestamp,
    uses: BTreeMap<String, u64>,
}

impl Uses {
    /// What was counted so far.
    pub fn open(path: &Path) -> Result<Uses, Error> {
        let stored = read(path)?;
        let seen = stored.as_ref().map(|stored| stored.seen);
        let counts = stored.map(|stored| stored.uses).unwrap_or_default();
        let counts = counts.into_iter().map(|(key, used)| (key, Count { used, reserved: used })).collect();
        Ok(Uses {
            path: path.to_owned(),
            clock: Clock::start(seen),
            counts: Mutex::new(counts),
            writing: Arc::default(),
        })
    }

    /// The clock that does not go behind what was seen before.
    pub(crate) fn clock(&self) -> Clock {
        self.clock
    }

    /// Whether the route may be used no more.
    pub(crate) fn is_spent(&self, route: &Route) -> bool {
        route.max_uses().is_some_and(|most| self.used(&route.use_key()) >= most.get())
    }

    /// Whether the release lets nothing pass any more.
    pub(crate) fn is_release_spent(&self, release: &Release) -> bool {
        self.used(&release_key(release)) >= release.max_uses.get()
    }

    /// Counts a use of the release; when this returns, it is durable.
    pub(crate) async fn take_release(&self, release: &Release) -> Result<(), NoUse> {
        self.take_one(release_key(release), release.max_uses).await
    }

    /// Whether what is excepted is excepted no more.
    pub(crate) fn is_exception_spent(&self, exception: &Exception) -> bool {
        self.used(&exception_key(exception)) >= exception.max_uses.get()
    }

    /// Counts a use of the exception; when this returns, it is durable.
    pub(crate) async fn take_exception(&self, exception: &Exception) -> Result<(), NoUse> {
        self.take_one(exception_key(exception), exception.max_uses).await
    }

    /// How often the route was used.
    pub(crate) fn used(&self, key: &str) -> u64 {
        self.counts().get(key).map_or(0, |count| count.used)
    }

    /// Counts a use of the route; when this returns, it is durable.
    pub(crate) async fn take(&self, route: &Route) -> Result<(), NoUse> {
        let Some(most) = route.max_uses() else { return Ok(()) };
        self.take_one(route.use_key(), most).await
    }

    async fn take_one(&self, key: String, most: NonZeroU64) -> Result<(), NoUse> {
        if let Some(taken) = self.take_reserved(&key, most) {
            return taken;
        }
        let one_at_a_time = Arc::clone(&self.writing).lock_owned().await;
        if let Some(taken) = self.take_reserved(&key, most) {
            return taken;
        }
        let mut wanted = self.reserved();
        let reserved = wanted.entry(key.clone()).or_default();
        *reserved = reserved.saturating_add(BLOCK).min(most.get());
        let reserved = *reserved;
        let _one_at_a_time = self.write(wanted, one_at_a_time).await.map_err(NoUse::Write)?;
        let mut counts = self.counts();
        let count = counts.entry(key).or_default();
        count.reserved = reserved;
        count.used += 1;
        Ok(())
    }

    /// Gives back what was reserved and not used, unless the disk takes too long: a stop does not wait for it.
    pub(crate) async fn settle(&self) -> io::Result<()> {
        timeout(SETTLE_TIMEOUT, self.give_back())
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn give_back(&self) -> io::Result<()> {
        let one_at_a_time = Arc::clone(&self.writing).lock_owned().await;
        let (used, excess) = {
            let mut counts = self.counts();
            let excess = counts.values().any(|count| count.reserved > count.used);
            counts.values_mut().for_each(|count| count.reserved = count.used);
            (counts.iter().map(|(key, count)| (key.clone(), count.used)).collect(), excess)
        };
        if excess { self.write(used, one_at_a_time).await.map(drop) } else { Ok(()) }
    }

    /// `None` when a block has to be reserved first.
    fn take_reserved(&self, key: &str, most: NonZeroU64) -> Option<Result<(), NoUse>> {
        let mut counts = self.counts();
        let count = counts.get_mut(key)?;
        if count.used >= most.get() {
            return Some(Err(NoUse::UsedUp));
        }
        if count.used >= count.reserved {
            return None;
        }
        count.used += 1;
        Some(Ok(()))
    }

    fn reserved(&self) -> BTreeMap<String, u64> {
        self.counts().iter().map(|(key, count)| (key.clone(), count.reserved)).collect()
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever waits for it may go away: the turn is kept until the file is in its place.
    async fn write(
        &self,
        uses: BTreeMap<String, u64>,
        turn: OwnedMutexGuard<()>,
    ) -> io::Result<OwnedMutexGuard<()>> {
        let (path, stored) = (self.path.clone(), Stored { seen: self.clock.now(), uses });
        let writing = tokio::task::spawn_blocking(move || replace(&path, &stored).map(|()| turn));
        writing.await.map_err(io::Error::other)?
    }
}

fn release_key(release: &Release) -> String {
    format!("grant {}", release.grant)
}

fn exception_key(exception: &Exception) -> String {
    format!("grant {}", exception.grant)
}

fn read(path: &Path) -> Result<Option<Stored>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(found) if found.len() > FILE_LIMIT => {
            return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        Ok(_) => {}
    }
    let text = fs::read(path).map_err(failed)?;
    let form = |error: serde_json::Error| Error::Form { path: path.to_owned(), reason: error.to_string() };
    serde_json::from_slice(&text).map(Some).map_err(form)
}

/// Durable when it returns: the file and its name.
fn replace(path: &Path, stored: &Stored) -> io::Result<()> {
    let mut text = serde_json::to_vec(stored)?;
    text.push(b'\n');
    let new = path.with_extension("json.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use policy::Policy;

    use super::*;

    fn policy(max_uses: u64) -> Policy {
        let text = format!("routes:\n  - {{host: a.example.com, max_uses: {max_uses}, grant: g}}\n");
        Policy::parse("routes.yaml", &text).unwrap()
    }

    async fn taken(uses: &Uses, policy: &Policy, wanted: usize) -> usize {
        let mut taken = 0;
        for _ in 0..wanted {
            taken += usize::from(uses.take(&policy.routes()[0]).await.is_ok());
        }
        taken
    }

    #[tokio::test]
    async fn what_is_used_up_stays_so_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("uses.json");
        let policy = policy(20);
        let uses = Uses::open(&path).unwrap();
        assert_eq!(taken(&uses, &policy, 18).await, 18);
        uses.settle().await.unwrap();
        let uses = Uses::open(&path).unwrap();
        assert_eq!(taken(&uses, &policy, 10).await, 2);
        assert!(uses.is_spent(&policy.routes()[0]));
        assert_eq!(taken(&Uses::open(&path).unwrap(), &policy, 1).await, 0);
    }

    #[tokio::test]
    async fn what_was_reserved_when_the_process_died_is_spent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("uses.json");
        let policy = policy(20);
        let uses = Uses::open(&path).unwrap();
        assert_eq!(taken(&uses, &policy, 1).await, 1);
        drop(uses);
        assert_eq!(taken(&Uses::open(&path).unwrap(), &policy, 20).await, 4);
    }

    #[tokio::test]
    async fn of_many_at_once_no_more_pass_than_there_are() {
        let directory = tempfile::tempdir().unwrap();
        let uses = std::sync::Arc::new(Uses::open(&directory.path().join("uses.json")).unwrap());
        let policy = std::sync::Arc::new(policy(37));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (uses, policy) = (std::sync::Arc::clone(&uses), std::sync::Arc::clone(&policy));
            tasks.spawn(async move { uses.take(&policy.routes()[0]).await.is_ok() });
        }
        assert_eq!(tasks.join_all().await.into_iter().filter(|taken| *taken).count(), 37);
    }

    #[tokio::test]
    async fn a_write_that_no_one_waits_for_any_more_ends_before_the_next_begins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("uses.json");
        let uses = Uses::open(&path).unwrap();
        let policy = policy(20);
        // Opening a pipe waits for its reader: the write is under way for as long as we want.
        let pipe = path.with_extension("json.new");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut taking = Box::pin(uses.take(&policy.routes()[0]));
        assert!(futures_util::poll!(&mut taking).is_pending());
        drop(taking);
        assert!(uses.writing.try_lock().is_err());
        drop(tokio::task::spawn_blocking(move || File::open(pipe)).await.unwrap().unwrap());
        let _turn = uses.writing.lock().await;
    }

    #[tokio::test]
    async fn a_stop_does_not_wait_for_a_disk_that_hangs() {
        let directory = tempfile::tempdir().unwrap();
        let uses = Uses::open(&directory.path().join("uses.json")).unwrap();
        let _hanging = Arc::clone(&uses.writing).lock_owned().await;
        let settled = timeout(5 * SETTLE_TIMEOUT, uses.settle()).await.expect("it ends by itself");
        assert_eq!(settled.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_use_that_cannot_be_made_durable_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let uses = Uses::open(&directory.path().join("gone/uses.json")).unwrap();
        assert!(matches!(uses.take(&policy(1).routes()[0]).await, Err(NoUse::Write(_))));
    }

    #[test]
    fn a_file_that_is_not_ours_is_not_taken_for_no_uses() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("uses.json");
        fs::write(&path, "{\"seen\":").unwrap();
        assert!(matches!(Uses::open(&path), Err(Error::Form { .. })));
    }
}
