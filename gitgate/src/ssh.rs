//! OpenSSH towards upstream: a configuration written by us and no other.
//!
//! Git runs this program under the name `ssh`; it hands over to the real one with the
//! configuration file that stands in the environment. No shell is involved.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use repos::Ssh;

use crate::git::{GateDir, bare_environment};
use crate::{fence, sys};

/// The environment variable with the path of the configuration file.
pub(crate) const CONFIG_VARIABLE: &str = "GIT_GATE_SSH_CONFIG";

/// Settings that do not depend on the repository. A kept session passes on only the variables that it names itself.
const FIXED: &str = "\
IdentitiesOnly yes
IdentityAgent none
GlobalKnownHostsFile none
StrictHostKeyChecking yes
UpdateHostKeys no
VerifyHostKeyDNS no
CheckHostIP no
BatchMode yes
PreferredAuthentications publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
AddKeysToAgent no
ForwardAgent no
ForwardX11 no
ClearAllForwardings yes
PermitLocalCommand no
ProxyCommand none
ControlMaster no
CanonicalizeHostname no
RequestTTY no
SendEnv GIT_PROTOCOL
EscapeChar none
ConnectTimeout 10
ConnectionAttempts 1
ServerAliveInterval 5
ServerAliveCountMax 3
LogLevel ERROR
";

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be opened.
    #[error("cannot read the identity {}", path.display())]
    Read {
        /// The private key file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others may read it, which OpenSSH refuses.
    #[error("the identity {} may be read by others (mode {mode:04o}); OpenSSH refuses it: chmod 600", path.display())]
    Open {
        /// The private key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Whether OpenSSH will be able to use an identity.
pub(crate) fn check_identity(path: &Path) -> Result<(), IdentityError> {
    let read = |source| IdentityError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(read)?;
    let meta = file.metadata().map_err(read)?;
    if !meta.is_file() {
        return Err(read(io::Error::other("not a file")));
    }
    let mode = meta.permissions().mode() & 0o7777;
    if meta.uid() == nix::unistd::Uid::effective().as_raw() && mode & 0o077 != 0 {
        return Err(IdentityError::Open { path: path.to_owned(), mode });
    }
    Ok(())
}

/// The configuration file for one upstream.
///
/// `socket` is that of a session that is kept; where there is none, ssh makes a connection of its own.
pub(crate) fn config(ssh: &Ssh, known_hosts: &Path, socket: Option<&Path>) -> String {
    let dial = ssh.address.map_or_else(|| ssh.host.clone(), |address| address.to_string());
    let mut text = String::from("Host *\n");
    let _ = writeln!(text, "HostName {dial}");
    let _ = writeln!(text, "HostKeyAlias {}", repos::known_hosts_name(ssh));
    let _ = writeln!(text, "HostKeyAlgorithms {}", ssh.host_key.algorithms());
    let _ = writeln!(text, "IdentityFile \"{}\"", ssh.identity.display());
    let _ = writeln!(text, "UserKnownHostsFile \"{}\"", known_hosts.display());
    match socket {
        Some(path) => {
            let _ = writeln!(text, "ControlPath \"{}\"", path.display());
        }
        None => text.push_str("ControlPath none\n"),
    }
    text.push_str(FIXED);
    text
}

/// An ssh with this configuration file. Where OpenSSH would not run for our uid, the wrapper gives it a name first.
/// It is held to the files that it needs.
pub(crate) fn command(gate: &GateDir, ssh: &Ssh, config: &Path) -> io::Result<Command> {
    static NAMED: OnceLock<bool> = OnceLock::new();
    let named = *NAMED.get_or_init(|| sys::is_named_user(nix::unistd::Uid::effective()));
    let mut command = Command::new(if named { PathBuf::from("ssh") } else { gate.ssh_program() });
    bare_environment(&mut command);
    if named {
        command.arg("-F").arg(config);
    } else {
        command.env(CONFIG_VARIABLE, config);
    }
    if let Some(fence) = fence::around_ssh(ssh, gate)? {
        sys::confine(&mut command, fence);
    }
    Ok(command)
}

/// Becomes ssh. Returns only when that fails.
pub fn run(arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let Some(config) = std::env::var_os(CONFIG_VARIABLE) else {
        return fail("the ssh wrapper is started by git, from git-gate");
    };
    let uid = nix::unistd::Uid::effective();
    if let Err(error) = sys::ensure_named_user(uid) {
        return fail(&format!(
            "OpenSSH needs an entry for uid {uid} in /etc/passwd, and a user namespace in its place is not allowed here: {error}"
        ));
    }
    let mut command = Command::new("ssh");
    let protocol = std::env::var_os("GIT_PROTOCOL");
    bare_environment(&mut command);
    if let Some(protocol) = protocol {
        command.env("GIT_PROTOCOL", protocol);
    }
    let error = command.arg("-F").arg(config).args(arguments).exec();
    fail(&format!("cannot run ssh: {error}"))
}

#[allow(clippy::print_stderr)]
fn fail(message: &str) -> ExitCode {
    eprintln!("git-gate: {message}");
    ExitCode::from(255)
}

/// Why upstream did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: FaultKind,
    /// For someone who cannot see upstream.
    pub(crate) words: String,
}

/// Whether upstream said no, or said nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// It answered, or somebody answered in its place.
    Refused,
    /// It is not there.
    Unreachable,
}

/// What the words of a failed ssh or git mean.
pub(crate) fn explain(words: &str) -> Fault {
    let has = |part: &str| words.contains(part);
    let (kind, meaning) = if has("REMOTE HOST IDENTIFICATION HAS CHANGED")
        || has("Host key verification failed")
    {
        (
            FaultKind::Refused,
            "its host key is not the pinned one; if the change is genuine, the operator sets the new `host_key` in repos.yaml",
        )
    } else if has("no matching host key type") {
        (
            FaultKind::Refused,
            "it has no host key of the pinned type; if that is genuine, the operator sets the new `host_key` in repos.yaml",
        )
    } else if has("Permission denied (") {
        (FaultKind::Refused, "it does not accept the gate's identity")
    } else if has("Authentication failed for")
        || has("could not read Username")
        || has("could not read Password")
    {
        (FaultKind::Refused, "it does not accept the gate's token")
    } else if has("SSL certificate problem")
        || has("server certificate verification failed")
        || has("SSL: no alternative certificate")
    {
        (FaultKind::Refused, "its certificate is not one that the gate trusts")
    } else if has("unable to update url base from redirection") || has("The requested URL returned error: 30")
    {
        (
            FaultKind::Refused,
            "it redirects elsewhere; the operator names the address where it lives in repos.yaml",
        )
    } else if has("Could not resolve host") {
        (FaultKind::Unreachable, "its name cannot be resolved")
    } else if has("Connection refused")
        || has("Failed to connect")
        || has("timed out")
        || has("Operation too slow")
        || has("not responding")
        || has("No route to host")
        || has("Network is unreachable")
        || has("Connection closed by")
        || has("Connection reset by")
    {
        (FaultKind::Unreachable, "it cannot be reached")
    } else {
        return Fault { kind: FaultKind::Refused, words: last_lines(words) };
    };
    Fault { kind, words: format!("{meaning} ({})", last_line(words)) }
}

fn last_lines(words: &str) -> String {
    let lines: Vec<&str> = words.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines[lines.len().saturating_sub(4)..].join("; ")
}

/// The first line that says something definite.
fn last_line(words: &str) -> &str {
    let noise =
        |l: &&str| !l.is_empty() && !l.starts_with('@') && !l.starts_with("fatal: Could not read from");
    let telling = [
        "Host key verification failed",
        "matching host key",
        "Permission denied",
        "ssh: ",
        "Connection",
        "fatal: ",
    ];
    let lines = || words.lines().map(str::trim).filter(noise);
    lines().find(|l| telling.iter().any(|t| l.contains(t))).or_else(|| lines().next()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_host_key_is_told_in_words() {
        let words = "@@@@@@\n@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.\nfatal: Could not read from remote repository.\n";
        insta::assert_snapshot!(explain(words).words, @"its host key is not the pinned one; if the change is genuine, the operator sets the new `host_key` in repos.yaml (Host key verification failed.)");
        insta::assert_snapshot!(explain("ssh: connect to host h port 1: Connection refused\nfatal: Could not read from remote repository.").words, @"it cannot be reached (ssh: connect to host h port 1: Connection refused)");
        insta::assert_snapshot!(explain("fatal: '/x' does not appear to be a git repository\n").words, @"fatal: '/x' does not appear to be a git repository");
    }

    #[test]
    fn an_ssh_of_ours_reads_its_own_configuration_and_no_file_beside_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let gate = GateDir::new(dir.path().join("gate"));
        std::fs::create_dir_all(gate.sockets()).expect("a directory");
        let text = "repos:\n  - {name: a, upstream: 'ssh://git@h/p', identity: /nowhere, host_key: 'ssh-ed25519 \
                    AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'}\n";
        let repos = repos::Repos::parse("repos.yaml", text, repos::Allow::SshUpstream).expect("a good file");
        let Some(repos::Upstream::Ssh(upstream)) = repos.iter().next().map(|repo| &repo.upstream) else {
            panic!("an upstream behind ssh")
        };
        let (inside, outside) = (gate.path().join("config"), dir.path().join("config"));
        let reads = |config: &Path| {
            std::fs::write(config, "User fenced\n").expect("written");
            let mut command = command(&gate, upstream, config).expect("a command");
            let output = command.args(["-G", "h"]).output().expect("ssh runs");
            String::from_utf8_lossy(&output.stdout).contains("user fenced")
        };
        assert!(reads(&inside));
        assert!(!reads(&outside), "it was read from outside of the fence");
    }
}
