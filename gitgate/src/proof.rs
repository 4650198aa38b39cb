//! The proof that upstream is there now, and still who it was, while a kept session is gone through.
//!
//! A session outlives what it began with: the listener may be gone, the host key may be another one,
//! the identity may no longer be let in. So each use of a session is accompanied by a login of its
//! own, which does nothing: it asks for a subsystem that nobody has.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use repos::Ssh;
use tokio::time::timeout;

use crate::git::GateDir;
use crate::ssh;

/// How long upstream may take to answer.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);
/// What ssh says first, and only once the host proved its key and let the identity in: words of the
/// other side that come before that never stand at the beginning.
const LOGGED_IN: &[u8] = b"subsystem request failed";
const NO_SUBSYSTEM: &str = "git-gate-proof";

/// What a login beside a session showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Upstream is there, with the pinned key, and lets the identity in.
    Given,
    /// That cannot be said.
    Missing,
}

/// Logs in to an upstream past its session.
pub(crate) async fn ask(gate: &GateDir, ssh: &Ssh, config: &Path) -> Proof {
    let Ok(mut command) = ssh::command(gate, ssh, config) else { return Proof::Missing };
    command.args(["-o", "ControlPath=none", "-o", "ConnectTimeout=5", "-T", "-s", "-p"]);
    command.arg(ssh.port.to_string()).arg("--").arg(format!("{}@{}", ssh.user, ssh.host)).arg(NO_SUBSYSTEM);
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    match timeout(PROOF_TIMEOUT, command.output()).await {
        Ok(Ok(output)) if !output.status.success() => read(&output.stderr),
        Ok(Ok(_) | Err(_)) | Err(_) => Proof::Missing,
    }
}

fn read(words: &[u8]) -> Proof {
    if words.starts_with(LOGGED_IN) { Proof::Given } else { Proof::Missing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_login_is_a_proof() {
        assert_eq!(read(b"subsystem request failed on channel 0\n"), Proof::Given);
        assert_eq!(read(b"Host key verification failed.\n"), Proof::Missing);
        // Before it proved its key, the other side can have ssh print lines, but not the first.
        let forged =
            b"Received disconnect from 192.0.2.1 port 22:2: x\nsubsystem request failed on channel 0\n";
        assert_eq!(read(forged), Proof::Missing);
    }
}
