//! What the gate serves and how fresh it is, for operators.

use std::fmt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use crate::daemon::InForce;
use crate::front::Front;
use crate::mirror::Record;

/// The state of the whole gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) generation: u64,
    pub(crate) digest: String,
    pub(crate) reload_error: Option<String>,
    pub(crate) sessions: u64,
    pub(crate) upstream_sessions: u64,
    pub(crate) reads: u64,
    pub(crate) reads_refused: u64,
    pub(crate) bytes_down: u64,
    pub(crate) pushes: u64,
    pub(crate) pushes_refused: u64,
    pub(crate) findings: u64,
    pub(crate) repos: Vec<RepoStatus>,
}

/// The state of one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RepoStatus {
    pub(crate) name: String,
    pub(crate) upstream: String,
    pub(crate) refreshed_at: Option<String>,
    pub(crate) upstream_ms: Option<u64>,
    pub(crate) refreshes: u64,
    pub(crate) failures: u64,
    pub(crate) error: Option<String>,
    pub(crate) mirror_bytes: u64,
}

/// Takes stock; the sizes are read from disk.
pub(crate) async fn of(front: &Front, force: InForce) -> Status {
    let mut repos = Vec::new();
    for served in front.state.all() {
        let path = served.mirror.path().to_owned();
        let size = tokio::task::spawn_blocking(move || size(&path)).await.unwrap_or(0);
        let Record { seen, error, refreshes, failures, .. } = served.mirror.record().clone();
        repos.push(RepoStatus {
            name: served.repo.name.to_string(),
            upstream: served.repo.upstream.url(),
            refreshed_at: seen.map(|(_, at, _)| format!("{at:.0}")),
            upstream_ms: seen.map(|(.., took)| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            refreshes,
            failures,
            error,
            mirror_bytes: size,
        });
    }
    let InForce { generation, digest, error } = force;
    let counts = &front.counts;
    Status {
        generation,
        digest,
        reload_error: error,
        sessions: front.sessions() as u64,
        upstream_sessions: front.state.warm.count() as u64,
        reads: counts.reads.load(Relaxed),
        reads_refused: counts.reads_refused.load(Relaxed),
        bytes_down: counts.bytes_down.load(Relaxed),
        pushes: counts.pushes.load(Relaxed),
        pushes_refused: counts.pushes_refused.load(Relaxed),
        findings: counts.findings.load(Relaxed),
        repos,
    }
}

/// How much the files below a path hold.
fn size(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "generation {}  {}", self.generation, self.digest)?;
        if let Some(error) = &self.reload_error {
            writeln!(f, "last reload refused: {error}")?;
        }
        writeln!(
            f,
            "sessions {}  upstream sessions {}  reads {} ({} refused)  pushes {} ({} refused)",
            self.sessions,
            self.upstream_sessions,
            self.reads,
            self.reads_refused,
            self.pushes,
            self.pushes_refused
        )?;
        for repo in &self.repos {
            let at = repo.refreshed_at.as_deref().unwrap_or("never");
            let took = repo.upstream_ms.map(|ms| format!(" in {ms} ms")).unwrap_or_default();
            let mib = repo.mirror_bytes as f64 / f64::from(1 << 20);
            writeln!(f, "{}  refreshed {at}{took}  {mib:.1} MiB  {}", repo.name, repo.upstream)?;
            if let Some(error) = &repo.error {
                writeln!(f, "  last refresh failed: {error}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_reads_what_is_fresh_and_what_is_not() {
        let repo = RepoStatus {
            name: "web".into(),
            upstream: "ssh://git@h/web".into(),
            refreshed_at: Some("2026-11-21T12:00:00Z".into()),
            upstream_ms: Some(12),
            refreshes: 3,
            failures: 1,
            error: Some("it cannot be reached".into()),
            mirror_bytes: 3 << 20,
        };
        let status = Status {
            generation: 2,
            digest: "sha256:ab".into(),
            reload_error: None,
            sessions: 1,
            upstream_sessions: 1,
            reads: 5,
            reads_refused: 1,
            bytes_down: 9,
            pushes: 2,
            pushes_refused: 0,
            findings: 0,
            repos: vec![repo],
        };
        insta::assert_snapshot!(status, @r"
        generation 2  sha256:ab
        sessions 1  upstream sessions 1  reads 5 (1 refused)  pushes 2 (0 refused)
        web  refreshed 2026-11-21T12:00:00Z in 12 ms  3.0 MiB  ssh://git@h/web
          last refresh failed: it cannot be reached
        ");
    }
}
