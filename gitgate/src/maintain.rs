//! The upkeep of mirrors, outside of any request.
//!
//! A mirror is packed anew, with a bitmap, when that pays, and when it may hold objects that no ref
//! reaches: what upstream has purged goes away here too. The new pack is made while requests are
//! served; what it replaces is removed under the mirror's lock, and only if nothing moved meanwhile.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::git::{GateDir, Objects};
use crate::state::Served;
use crate::{fence, sys};

/// How long to wait after a change for the next one.
const QUIET: Duration = Duration::from_secs(2);
/// How often at most a mirror is packed anew because of leftovers.
const LEFTOVERS_PAUSE: Duration = Duration::from_secs(600);
/// How long to wait when something moved meanwhile.
const RETRY: Duration = Duration::from_secs(20);
const PACKS_MAX: usize = 10;
const LOOSE_MAX: usize = 2000;
const UPKEEP_TIMEOUT: Duration = Duration::from_secs(1800);
const OBJECT_DIR_NAME: usize = 2;

#[derive(Debug, thiserror::Error)]
enum UpkeepError {
    #[error("cannot run git {0}")]
    Run(&'static str, #[source] io::Error),
    #[error("git {0} failed")]
    Failed(&'static str),
    #[error("git {0} takes too long")]
    Timeout(&'static str),
    #[error("cannot tidy {}", path.display())]
    Files {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Looks after all mirrors, for ever.
pub(crate) async fn tend(
    state: impl Fn() -> Vec<Arc<Served>> + Send,
    gate: GateDir,
    changed: Arc<tokio::sync::Notify>,
) {
    let mut waiting: std::collections::BTreeMap<PathBuf, Instant> = std::collections::BTreeMap::new();
    loop {
        let _ = timeout(RETRY, changed.notified()).await;
        tokio::time::sleep(QUIET).await;
        for served in state() {
            let path = served.mirror.path();
            let pressed = served.mirror.is_pressed();
            let waits = !pressed && waiting.get(path).is_some_and(|until| Instant::now() < *until);
            if waits || !is_due(&served) {
                continue;
            }
            let pause = match renew(&served, &gate).await {
                Ok(Renewed::Whole) => LEFTOVERS_PAUSE,
                Ok(Renewed::Moved) => RETRY,
                Err(error) => {
                    let cause =
                        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                    warn!(repo = %served.repo.name, %error, cause, "the mirror could not be packed");
                    LEFTOVERS_PAUSE
                }
            };
            waiting.insert(path.to_owned(), Instant::now() + pause);
        }
    }
}

/// Whether packing pays.
fn is_due(served: &Served) -> bool {
    let stock = Stock::of(served.mirror.path());
    let anything = stock.packs.len() + stock.loose > 0;
    anything
        && (served.mirror.record().leftovers
            || stock.bitmaps == 0
            || stock.packs.len() > PACKS_MAX
            || stock.loose > LOOSE_MAX)
}

enum Renewed {
    Whole,
    /// Something moved meanwhile: the new pack stays, and so does what it would have replaced.
    Moved,
}

async fn renew(served: &Served, gate: &GateDir) -> Result<Renewed, UpkeepError> {
    let mirror = &served.mirror;
    let path = mirror.path();
    let began = Instant::now();
    // Under the lock nothing is under way: what moves from here on changes the number.
    let (before, old) = {
        let _lock = mirror.lock().await;
        run(git(gate, path, "pack-refs", &["--all"])?, "pack-refs").await?;
        (mirror.moved(), Stock::of(path))
    };
    let base = path.join("objects/pack/pack");
    let mut pack =
        git(gate, path, "pack-objects", &["--all", "--quiet", "--non-empty", "--delta-base-offset"])?;
    pack.arg("--write-bitmap-index").arg(base);
    let name = run(pack, "pack-objects").await?;
    run(git(gate, path, "commit-graph", &["write", "--reachable", "--no-progress"])?, "commit-graph").await?;
    let lock = mirror.lock().await;
    if mirror.moved() != before || mirror.pushes() > 0 {
        debug!(repo = %served.repo.name, "the mirror moved while it was packed");
        return Ok(Renewed::Moved);
    }
    let kept = format!("pack-{}", name.trim());
    let path = path.to_owned();
    let tidied = tokio::task::spawn_blocking(move || old.remove_but(&path, &kept)).await;
    tidied.unwrap_or(Err(UpkeepError::Failed("tidying")))?;
    mirror.whole();
    drop(lock);
    info!(repo = %served.repo.name, millis = began.elapsed().as_millis() as u64, "mirror packed");
    Ok(Renewed::Whole)
}

/// What a mirror consists of.
struct Stock {
    packs: Vec<String>,
    bitmaps: usize,
    loose: usize,
}

impl Stock {
    fn of(path: &Path) -> Self {
        let mut stock = Self { packs: Vec::new(), bitmaps: 0, loose: 0 };
        for name in names(&path.join("objects/pack")) {
            if let Some(pack) = name.strip_suffix(".pack") {
                stock.packs.push(pack.to_owned());
            }
            stock.bitmaps += usize::from(name.ends_with(".bitmap"));
        }
        for dir in loose_dirs(path) {
            stock.loose += names(&dir).len();
        }
        stock
    }

    /// Removes these packs but one, and all loose objects: that one has everything that a ref reaches.
    fn remove_but(&self, path: &Path, kept: &str) -> Result<(), UpkeepError> {
        let packs = path.join("objects/pack");
        if !packs.join(format!("{kept}.idx")).is_file() {
            return Err(UpkeepError::Failed("pack-objects"));
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| UpkeepError::Files { path, source }
        };
        for name in names(&packs) {
            let stem = name.split('.').next().unwrap_or_default();
            if stem != kept && self.packs.iter().any(|pack| pack == stem) {
                let file = packs.join(&name);
                fs::remove_file(&file).map_err(failed(&file))?;
            }
        }
        for dir in loose_dirs(path) {
            for name in names(&dir) {
                let file = dir.join(name);
                fs::remove_file(&file).map_err(failed(&file))?;
            }
        }
        Ok(())
    }
}

fn loose_dirs(path: &Path) -> impl Iterator<Item = PathBuf> {
    let objects = path.join("objects");
    let hex = |name: &String| name.len() == OBJECT_DIR_NAME && name.bytes().all(|b| b.is_ascii_hexdigit());
    names(&objects).into_iter().filter(hex).map(move |name| objects.join(name))
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// A git that is held to the mirror, where the kernel can.
fn git(
    gate: &GateDir,
    path: &Path,
    command: &'static str,
    arguments: &[&str],
) -> Result<Command, UpkeepError> {
    let mut git = gate.git(path, Objects::Own);
    git.args(["-c", "pack.threads=1", command]).args(arguments);
    let fence = fence::around_mirror(path).map_err(|source| UpkeepError::Run(command, source))?;
    if let Some(fence) = fence {
        sys::confine(&mut git, fence);
    }
    Ok(git)
}

async fn run(command: Command, what: &'static str) -> Result<String, UpkeepError> {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = timeout(UPKEEP_TIMEOUT, command.output()).await.map_err(|_| UpkeepError::Timeout(what))?;
    let output = output.map_err(|source| UpkeepError::Run(what, source))?;
    if !output.status.success() {
        return Err(UpkeepError::Failed(what));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
