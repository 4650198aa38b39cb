//! A git child between a client and a mirror.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::process::Child;
use tokio::time::timeout;

use crate::sys;

/// How long nothing may move in either direction.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a session may take.
const SESSION_TIMEOUT: Duration = Duration::from_secs(3600);
/// How long processes may take to clean up.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked whether a client takes what a child writes to it.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const BUFFER_BYTES: usize = 64 << 10;
const WORDS_MAX_BYTES: usize = 4096;

/// What to do with the child when the client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hangup {
    /// Nobody wants its answer.
    Kills,
    /// It may be in the middle of something that must be ended in order.
    LeavesTheChild,
}

/// How a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("cannot run git")]
    Spawn(#[source] std::io::Error),
    #[error("the client hung up")]
    Hangup,
    #[error("nothing moved for {} s", IDLE_TIMEOUT.as_secs())]
    Idle,
    #[error("it took longer than {} s", SESSION_TIMEOUT.as_secs())]
    Timeout,
    #[error("git failed: {0}")]
    Git(String),
}

/// How many bytes went through a session, however it ended.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// From the client.
    up: AtomicU64,
    /// To the client.
    down: AtomicU64,
}

impl Moved {
    pub(crate) fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }

    pub(crate) fn down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }
}

/// The two directions of a connection.
pub(crate) struct Client<R, W> {
    pub(crate) reader: R,
    pub(crate) writer: W,
}

/// Runs the command between the client and itself.
pub(crate) async fn run<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    client: Client<R, W>,
    command: Command,
    hangup: Hangup,
    Moved { up: sent, down: received }: &Moved,
) -> Result<(), SessionError> {
    let mut command = tokio::process::Command::from(command);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .process_group(0);
    let mut child = command.spawn().map_err(SessionError::Spawn)?;
    drop(command);
    let group = Group::of(&child);
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(stdout), Some(stderr)) = pipes else {
        return Err(SessionError::Hangup);
    };
    let clock = Clock::new();
    let Client { reader: mut from_client, writer: mut to_client } = client;
    let up = async {
        let ended = copy(&mut from_client, &mut stdin, &clock, sent).await;
        drop(stdin);
        match (ended, hangup) {
            (Copied::ReadFailed, Hangup::Kills) => {}
            _ => std::future::pending().await,
        }
    };
    let down = async {
        let mut stdout = stdout;
        let ended = copy(&mut stdout, &mut to_client, &clock, received).await;
        if let (Copied::WriteFailed, Hangup::LeavesTheChild) = (&ended, hangup) {
            copy(&mut stdout, &mut tokio::io::sink(), &clock, &AtomicU64::new(0)).await;
        }
        ended
    };
    let down = async { tokio::join!(down, words(stderr)) };
    let ended = tokio::select! {
        (ended, words) = down => match (ended, hangup) {
            (Copied::WriteFailed, Hangup::Kills) => Err(SessionError::Hangup),
            _ => Ok(words),
        },
        () = up => Err(SessionError::Hangup),
        () = clock.idle() => Err(SessionError::Idle),
        () = tokio::time::sleep(SESSION_TIMEOUT) => Err(SessionError::Timeout),
    };
    group.outcome(&mut child, ended).await
}

/// Runs the command with this input. What it answers goes to the client's socket itself and not through this process.
pub(crate) async fn run_at(socket: &OwnedFd, input: &[u8], mut command: Command) -> Result<(), SessionError> {
    let stdout = socket.try_clone().map_err(SessionError::Spawn)?;
    // Nothing else would end it with us: it waits for its client only.
    sys::end_with_us(&mut command);
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).kill_on_drop(true).process_group(0);
    let mut child = command.spawn().map_err(SessionError::Spawn)?;
    drop(command);
    let group = Group::of(&child);
    let (Some(mut stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
        return Err(SessionError::Hangup);
    };
    let feed = async move {
        let _ = stdin.write_all(input).await;
    };
    let work = async { tokio::join!(feed, words(stderr)).1 };
    let words = tokio::select! {
        words = work => Ok(words),
        () = stands_still(socket) => Err(SessionError::Idle),
        () = tokio::time::sleep(SESSION_TIMEOUT) => Err(SessionError::Timeout),
    };
    group.outcome(&mut child, words).await
}

/// Waits until the client has taken nothing for too long.
async fn stands_still(socket: &OwnedFd) {
    let (mut taken, mut since) = (None, Instant::now());
    while since.elapsed() < IDLE_TIMEOUT {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = sys::taken_bytes(socket).ok();
        if now != taken {
            (taken, since) = (now, Instant::now());
        }
    }
}

/// The process group of a child: killed when the session is dropped before the child ended.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    /// Asks the processes to end, so that git removes what it has begun to write; what is still there after a while is
    /// killed.
    async fn end(self, child: &mut Child) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGTERM);
            let _ = timeout(END_TIMEOUT, child.wait()).await;
        }
    }

    /// What the session came to: what the child says at its end counts only where nothing went wrong before.
    async fn outcome(
        mut self,
        child: &mut Child,
        words: Result<String, SessionError>,
    ) -> Result<(), SessionError> {
        let words = match words {
            Ok(words) => words,
            Err(error) => {
                self.end(child).await;
                return Err(error);
            }
        };
        let status = timeout(IDLE_TIMEOUT, child.wait()).await.map_err(|_| SessionError::Idle)?;
        self.0 = None;
        match status {
            Ok(status) if status.success() => Ok(()),
            // Nobody reads what it writes.
            Ok(status) if status.signal() == Some(Signal::SIGPIPE as i32) => Err(SessionError::Hangup),
            Ok(_) => Err(SessionError::Git(words)),
            Err(error) => Err(SessionError::Spawn(error)),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// When something last moved.
struct Clock {
    start: Instant,
    moved_ms: AtomicU64,
}

impl Clock {
    fn new() -> Self {
        Self { start: Instant::now(), moved_ms: 0.into() }
    }

    fn moved(&self) {
        self.moved_ms.store(self.now(), Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn idle(&self) {
        loop {
            let still =
                Duration::from_millis(self.now().saturating_sub(self.moved_ms.load(Ordering::Relaxed)));
            match IDLE_TIMEOUT.checked_sub(still) {
                Some(rest) if !rest.is_zero() => tokio::time::sleep(rest).await,
                _ => return,
            }
        }
    }
}

enum Copied {
    End,
    ReadFailed,
    WriteFailed,
}

/// Copies to the end and counts what went through.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    clock: &Clock,
    count: &AtomicU64,
) -> Copied {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(0) => return Copied::End,
            Ok(n) => n,
            Err(_) => return Copied::ReadFailed,
        };
        clock.moved();
        if to.write_all(&buffer[..n]).await.is_err() {
            return Copied::WriteFailed;
        }
        count.fetch_add(n as u64, Ordering::Relaxed);
        clock.moved();
    }
}

/// The start of what a child says; the rest is read and dropped.
async fn words(mut stream: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        let room = WORDS_MAX_BYTES - kept.len();
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
    crate::git::printable(&String::from_utf8_lossy(&kept)).trim().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_went_through_counts_however_the_session_ends() {
        for (end, fails) in [("true", false), ("false", true)] {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("cat >/dev/null; printf '12345'; {end}")]);
            let (moved, mut out) = (Moved::default(), Vec::new());
            let client = Client { reader: &b"123"[..], writer: &mut out };
            let ended = run(client, command, Hangup::Kills, &moved).await;
            assert_eq!((ended.is_err(), moved.up(), moved.down()), (fails, 3, 5), "{end}");
        }
    }

    #[tokio::test]
    async fn processes_that_are_given_up_may_clean_up_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", "trap 'touch cleaned; exit' TERM; echo; read x"]).current_dir(dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().expect("sh runs");
        let mut stdout = child.stdout.take().expect("a pipe");
        stdout.read_u8().await.expect("the trap is set");
        Group::of(&child).end(&mut child).await;
        assert!(dir.path().join("cleaned").exists());
    }
}
