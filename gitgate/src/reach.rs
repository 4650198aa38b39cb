//! Whether objects that a reader names are reached by a ref, where the mirror may hold others.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use git2::Oid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;

use crate::fence::Reach;
use crate::git::Objects;
use crate::state::{Served, State};

/// How long looking up may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(120);

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

/// Strikes out what some ref reaches.
async fn strike(served: &Served, state: &State, asked: &mut BTreeSet<String>) -> std::io::Result<()> {
    let mut command = state.gate.git(served.mirror.path(), Objects::Own);
    command.args(["rev-list", "--objects", "--no-object-names", "--all"]);
    state.confine(&mut command, served, Reach::Mirror)?;
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().ok_or_else(|| std::io::Error::other("git has no output"))?;
    let mut lines = BufReader::new(stdout).lines();
    while let Some(line) = lines.next_line().await? {
        if asked.remove(line.trim()) && asked.is_empty() {
            return Ok(());
        }
    }
    if child.wait().await?.success() { Ok(()) } else { Err(std::io::Error::other("git failed")) }
}
