//! What a push takes from the mirror instead of bringing it.
//!
//! A mirror keeps for a while what upstream removed. Nobody reads it there; but git takes a push whole when what is missing
//! from it lies in the mirror, so a push that only names such objects would send them to upstream again.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use git2::Oid;

use crate::git::GateDir;
use crate::mirror;
use crate::reach::{self, LOOKUP_TIMEOUT};

/// How long a refresh that removes nothing may take to say so.
const SETTLES: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const OBJECT_DIR_NAME: usize = 2;

/// Why what a push takes from the mirror cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreached {
    #[error(
        "upstream no longer has object {0}, which this push rests on or brings back; push again in a minute"
    )]
    Gone(String),
    #[error("upstream removed something meanwhile; push again")]
    Unseen,
    #[error("it takes too long to look up what upstream still has; push again later")]
    Time,
    #[error("cannot look up what upstream still has")]
    Run(#[from] io::Error),
    #[error("git cannot list what upstream still has")]
    Git,
}

/// Refuses what no ref reaches of the objects that were not brought. The mirror's refs were read before.
pub(crate) fn refuse(
    gate: &GateDir,
    mirror: &Path,
    quarantine: &Path,
    taken: &BTreeSet<Oid>,
) -> Result<(), Unreached> {
    let began = Instant::now();
    loop {
        if mirror::is_whole(mirror) {
            return Ok(());
        }
        // Of objects that were unpacked one by one it is not known which others they were made from.
        if !has_loose(quarantine)? {
            break;
        }
        // A mirror that only moves forward is whole again at once.
        if began.elapsed() > SETTLES {
            return Err(Unreached::Unseen);
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
    let mut asked: BTreeSet<String> = taken.iter().map(Oid::to_string).collect();
    let deadline = Instant::now() + LOOKUP_TIMEOUT;
    // What a push rests on is nearly always in the newest trees.
    for newest in [true, false] {
        strike(gate, mirror, newest, &mut asked, deadline)?;
    }
    asked.pop_first().map_or(Ok(()), |oid| Err(Unreached::Gone(oid)))
}

/// Strikes out what some ref reaches.
fn strike(
    gate: &GateDir,
    mirror: &Path,
    newest: bool,
    asked: &mut BTreeSet<String>,
    deadline: Instant,
) -> Result<(), Unreached> {
    if asked.is_empty() {
        return Ok(());
    }
    let mut command = reach::listing(gate, mirror);
    command.args(newest.then_some("--no-walk"));
    let mut child = Listing(command.spawn()?);
    let stdout = child.0.stdout.take().ok_or(Unreached::Git)?;
    for line in BufReader::new(stdout).lines() {
        if asked.remove(line?.trim()) && asked.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Unreached::Time);
        }
    }
    if child.0.wait()?.success() { Ok(()) } else { Err(Unreached::Git) }
}

/// A git that is not needed to its end.
struct Listing(Child);

impl Drop for Listing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn has_loose(quarantine: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(quarantine)? {
        let name = entry?.file_name();
        let name = name.as_encoded_bytes();
        if name.len() == OBJECT_DIR_NAME && name.iter().all(u8::is_ascii_hexdigit) {
            return Ok(true);
        }
    }
    Ok(false)
}
