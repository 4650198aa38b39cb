//! Kept ssh sessions: one for each upstream and identity, which git's own ssh goes through.
//!
//! A session is an ordinary OpenSSH master in a directory that only this uid can enter. Where there
//! is none, or it died, ssh makes a connection of its own: the session saves time and decides
//! nothing, because each use of it is accompanied by a proof that upstream is still there and who it
//! was. Its socket is named after everything that makes the connection what it is, the pinned
//! host key included, so that no other setting can ever go through it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use repos::Ssh;
use sha2::{Digest as _, Sha256};
use tokio::process::Child;
use tracing::{debug, info};

use crate::git::GateDir;
use crate::{ssh, sys};

/// How long a session is kept that nobody uses.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// How long to wait before a session that ended is made anew.
const PAUSE: Duration = Duration::from_secs(10);
/// How long no session is kept where upstream answers but gives no proof of it.
const UNPROVEN_PAUSE: Duration = Duration::from_secs(600);
/// OpenSSH adds seventeen characters while it makes the socket; an address has 107.
const SOCKET_MAX_BYTES: usize = 90;
const NAME_BYTES: usize = 8;

/// The sessions.
pub(crate) struct Warm {
    dir: PathBuf,
    sessions: Mutex<BTreeMap<PathBuf, Session>>,
    /// Upstreams of which there is no proof, and since when.
    unproven: Mutex<BTreeMap<PathBuf, Instant>>,
}

struct Session {
    socket: PathBuf,
    master: Child,
    identity: Stamp,
    used: Instant,
    began: Instant,
}

/// What shows that a file was replaced or rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Warm {
    /// With an empty directory: what an earlier gate left is removed.
    pub(crate) fn new(gate: &GateDir) -> Self {
        let dir = gate.sockets();
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
        Self { dir, sessions: Mutex::default(), unproven: Mutex::default() }
    }

    /// The socket of an upstream's session, if a session can have one.
    pub(crate) fn socket(&self, ssh: &Ssh) -> Option<PathBuf> {
        let Ssh { user, host, port, identity, host_key, address, path: _ } = ssh;
        let mut hash = Sha256::new();
        for part in
            [user.clone(), host.clone(), port.to_string(), host_key.to_string(), format!("{address:?}")]
        {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hash.update(identity.as_os_str().as_encoded_bytes());
        let mut name = String::new();
        for byte in hash.finalize().iter().take(NAME_BYTES) {
            let _ = write!(name, "{byte:02x}");
        }
        let socket = self.dir.join(name);
        (socket.as_os_str().len() <= SOCKET_MAX_BYTES).then_some(socket)
    }

    /// Whether a session can be gone through. One whose identity changed is ended instead.
    pub(crate) fn check(&self, ssh: &Ssh) -> bool {
        let Some(socket) = self.socket(ssh) else { return false };
        let mut sessions = self.sessions();
        let Some(session) = sessions.get_mut(&socket) else { return false };
        let now = Instant::now();
        if Stamp::of(&ssh.identity) == Some(session.identity) && session.lives() {
            session.used = now;
            return true;
        }
        sessions.remove(&socket);
        false
    }

    /// Makes a session where there is none. Upstream answered a moment ago.
    pub(crate) fn keep(&self, gate: &GateDir, ssh: &Ssh, config: &Path) {
        let Some(socket) = self.socket(ssh) else { return };
        if self.unproven().get(&socket).is_some_and(|since| since.elapsed() < UNPROVEN_PAUSE) {
            return;
        }
        let mut sessions = self.sessions();
        if let Some(session) = sessions.get_mut(&socket)
            && (session.lives() || session.began.elapsed() < PAUSE)
        {
            return;
        }
        sessions.remove(&socket);
        let Some(identity) = Stamp::of(&ssh.identity) else { return };
        match master(gate, ssh, config) {
            Ok(master) => {
                info!(host = %ssh.host, "a session to upstream is kept");
                let now = Instant::now();
                sessions.insert(socket.clone(), Session { socket, master, identity, used: now, began: now });
            }
            Err(error) => debug!(host = %ssh.host, %error, "no session to upstream is kept"),
        }
    }

    /// Takes note that upstream answers and gives no proof of it beside a session: none is of use.
    pub(crate) fn shun(&self, ssh: &Ssh) {
        if let Some(socket) = self.socket(ssh) {
            self.unproven().insert(socket, Instant::now());
        }
    }

    /// Ends a session that does not work, or of which it is not proven that it still leads to upstream.
    pub(crate) fn end(&self, ssh: &Ssh) {
        if let Some(socket) = self.socket(ssh) {
            self.sessions().remove(&socket);
        }
    }

    /// Ends the sessions of upstreams that are not among these.
    pub(crate) fn retain<'a>(&self, upstreams: impl Iterator<Item = &'a Ssh>) {
        let wanted: BTreeSet<PathBuf> = upstreams.filter_map(|ssh| self.socket(ssh)).collect();
        self.sessions().retain(|socket, _| wanted.contains(socket));
        self.unproven().retain(|socket, _| wanted.contains(socket));
    }

    /// Ends what nobody uses, and takes note of what ended by itself.
    pub(crate) fn sweep(&self) {
        self.sessions().retain(|_, session| session.used.elapsed() < IDLE_MAX && session.lives());
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.sessions().values_mut().filter_map(|session| session.lives().then_some(())).count()
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unproven(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Instant>> {
        self.unproven.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn lives(&mut self) -> bool {
        let lives = matches!(self.master.try_wait(), Ok(None));
        if !lives {
            // A client that finds a dead socket complains on its standard error.
            let _ = fs::remove_file(&self.socket);
        }
        lives
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
        let _ = self.master.start_kill();
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self { inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }
}

/// An OpenSSH that logs in, listens on the socket, and runs nothing.
fn master(gate: &GateDir, ssh: &Ssh, config: &Path) -> std::io::Result<Child> {
    let mut command = ssh::command(gate, ssh, config)?;
    command.args(["-o", "ControlMaster=yes", "-o", "ControlPersist=no", "-N", "-T", "-p"]);
    command.arg(ssh.port.to_string()).arg("--").arg(format!("{}@{}", ssh.user, ssh.host));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    sys::end_with_us(&mut command);
    tokio::process::Command::from(command).kill_on_drop(true).spawn()
}
