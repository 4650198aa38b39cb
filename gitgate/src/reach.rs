//! Whether objects that a reader names are reached by a ref, where the mirror may hold others.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use git2::Oid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;

use crate::fence::Reach;
use crate::git::{GateDir, Objects};
use crate::state::{Served, State};

/// How long looking up may take.
pub(crate) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(120);

/// Refuses, in words for the client, what no ref reaches. `shown` are objects of which that is known already.
pub(crate) async fn look(
    served: &Served,
    state: &State,
    mut asked: BTreeSet<Oid>,
    shown: impl Iterator<Item = Oid>,
) -> Result<(), String> {
    if !served.mirror.record().leftovers {
        return Ok(());
    }
    for oid in shown {
        asked.remove(&oid);
    }
    let mut rest: BTreeSet<String> = asked.iter().map(Oid::to_string).collect();
    if rest.is_empty() {
        return Ok(());
    }
    let looked = timeout(LOOKUP_TIMEOUT, strike(served, state, &mut rest)).await;
    match (looked, rest.first()) {
        (Ok(Ok(())), None) => Ok(()),
        (Ok(Ok(())), Some(want)) => Err(format!("upload-pack: not our ref {want}")),
        (Ok(Err(_)) | Err(_), _) => Err("the objects asked for cannot be looked up; try again".to_owned()),
    }
}

/// Lists what the refs of a mirror reach, a name on each line.
pub(crate) fn listing(gate: &GateDir, mirror: &Path) -> Command {
    let mut command = gate.git(mirror, Objects::Own);
    command.args(["rev-list", "--objects", "--no-object-names", "--all"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Strikes out what some ref reaches.
async fn strike(served: &Served, state: &State, asked: &mut BTreeSet<String>) -> std::io::Result<()> {
    let mut command = listing(&state.gate, served.mirror.path());
    state.confine(&mut command, served, Reach::Mirror)?;
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn()?;
    let stdout = child.stdout.take().ok_or_else(|| std::io::Error::other("git has no output"))?;
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        if asked.remove(line.trim()) && asked.is_empty() {
            return Ok(());
        }
    }
    if child.wait().await?.success() { Ok(()) } else { Err(std::io::Error::other("git failed")) }
}
