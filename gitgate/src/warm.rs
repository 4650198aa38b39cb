//! Kept ssh sessions: one for each upstream and identity.
//!
//! A session saves time and decides nothing: each use of it is accompanied by a login of its own, which
//! shows that upstream is there, who it was, and lets the identity in; that login is the session that is
//! kept from then on. A session belongs to everything that makes the connection what it is, the pinned
//! host key included, so that no other setting can ever go through it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use repos::Ssh;

use crate::ssh::Session;

/// How long a session is kept that nobody uses.
const IDLE_MAX: Duration = Duration::from_secs(600);

/// The sessions.
#[derive(Default)]
pub(crate) struct Warm {
    sessions: Mutex<BTreeMap<Connection, Kept>>,
}

/// What makes a connection what it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Connection {
    user: String,
    host: String,
    port: u16,
    address: Option<IpAddr>,
    host_key: String,
    identity: PathBuf,
}

impl Connection {
    fn of(ssh: &Ssh) -> Self {
        let Ssh { user, host, port, identity, host_key, address, path: _ } = ssh.clone();
        Self { user, host, port, address, host_key: host_key.to_string(), identity }
    }
}

struct Kept {
    session: Arc<Session>,
    identity: Stamp,
    began: Instant,
    used: Instant,
}

/// What shows that a file was replaced or rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// A session, and when and as whom it began.
pub(crate) struct Fresh {
    pub(crate) session: Arc<Session>,
    identity: Option<Stamp>,
    began: Instant,
}

impl Fresh {
    /// Logs in.
    pub(crate) async fn open(ssh: &Ssh) -> Result<Self, crate::fault::Fault> {
        // A key that is replaced meanwhile makes the session one that is not kept.
        let (identity, began) = (Stamp::of(&ssh.identity), Instant::now());
        Ok(Self { session: Arc::new(Session::open(ssh).await?), identity, began })
    }
}

impl Warm {
    /// The session of an upstream, if there is one. One whose identity changed is ended instead.
    pub(crate) fn share(&self, ssh: &Ssh) -> Option<Arc<Session>> {
        let mut sessions = self.sessions();
        let connection = Connection::of(ssh);
        let kept = sessions.get_mut(&connection)?;
        if Stamp::of(&ssh.identity) == Some(kept.identity) && kept.session.lives() {
            kept.used = Instant::now();
            return Some(kept.session.clone());
        }
        sessions.remove(&connection);
        None
    }

    /// The same for who alone goes through it from then on; not one that somebody goes through now.
    pub(crate) fn take(&self, ssh: &Ssh) -> Option<Fresh> {
        self.take_where(ssh, |_| true)
    }

    /// The same, if it began no earlier than this.
    pub(crate) fn take_since(&self, ssh: &Ssh, since: Instant) -> Option<Fresh> {
        self.take_where(ssh, |kept| kept.began >= since)
    }

    fn take_where(&self, ssh: &Ssh, fits: impl Fn(&Kept) -> bool) -> Option<Fresh> {
        let mut sessions = self.sessions();
        let connection = Connection::of(ssh);
        let kept = sessions.get(&connection)?;
        if Arc::strong_count(&kept.session) > 1 || !fits(kept) {
            return None;
        }
        let Kept { session, identity, began, used: _ } = sessions.remove(&connection)?;
        let same = Stamp::of(&ssh.identity) == Some(identity) && session.lives();
        same.then_some(Fresh { session, identity: Some(identity), began })
    }

    /// Keeps a session in the place of the one that there was.
    pub(crate) fn keep(&self, ssh: &Ssh, Fresh { session, identity, began }: Fresh) {
        let now = Stamp::of(&ssh.identity);
        let Some(identity) = identity.filter(|then| Some(*then) == now) else { return };
        let kept = Kept { session, identity, began, used: Instant::now() };
        self.sessions().insert(Connection::of(ssh), kept);
    }

    /// Whether there is one.
    pub(crate) fn has(&self, ssh: &Ssh) -> bool {
        self.sessions().contains_key(&Connection::of(ssh))
    }

    /// Ends a session of which it is not shown that it still leads to upstream.
    pub(crate) fn end(&self, ssh: &Ssh) {
        self.sessions().remove(&Connection::of(ssh));
    }

    /// Ends the sessions of upstreams that are not among these.
    pub(crate) fn retain<'a>(&self, upstreams: impl Iterator<Item = &'a Ssh>) {
        let wanted: BTreeSet<Connection> = upstreams.map(Connection::of).collect();
        self.sessions().retain(|connection, _| wanted.contains(connection));
    }

    /// Ends what nobody uses or has another identity by now, and forgets what ended by itself.
    pub(crate) fn sweep(&self) {
        self.sessions().retain(|connection, kept| {
            kept.used.elapsed() < IDLE_MAX
                && kept.session.lives()
                && Stamp::of(&connection.identity) == Some(kept.identity)
        });
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.sessions().values().filter(|kept| kept.session.lives()).count()
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<Connection, Kept>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self { inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }
}
