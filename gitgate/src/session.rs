//! A git child between a client and a mirror.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Child;
use tokio::time::timeout;

/// How long nothing may move in either direction.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a session may take.
const SESSION_TIMEOUT: Duration = Duration::from_secs(3600);
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

/// Runs the command between the client and itself; the bytes that the client got.
pub(crate) async fn run(
    stream: &mut TcpStream,
    command: Command,
    hangup: Hangup,
) -> Result<u64, SessionError> {
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
    let (mut from_client, mut to_client) = stream.split();
    let up = async {
        let (ended, _) = copy(&mut from_client, &mut stdin, &clock).await;
        drop(stdin);
        match (ended, hangup) {
            (Copied::ReadFailed, Hangup::Kills) => {}
            _ => std::future::pending().await,
        }
    };
    let down = async {
        let mut stdout = stdout;
        let (ended, bytes) = copy(&mut stdout, &mut to_client, &clock).await;
        if let (Copied::WriteFailed, Hangup::LeavesTheChild) = (&ended, hangup) {
            copy(&mut stdout, &mut tokio::io::sink(), &clock).await;
        }
        (ended, bytes)
    };
    let down = async { tokio::join!(down, words(stderr)) };
    let ((ended, bytes), words) = tokio::select! {
        ended = down => ended,
        () = up => return Err(SessionError::Hangup),
        () = clock.idle() => return Err(SessionError::Idle),
        () = tokio::time::sleep(SESSION_TIMEOUT) => return Err(SessionError::Timeout),
    };
    if let Copied::WriteFailed = ended
        && hangup == Hangup::Kills
    {
        return Err(SessionError::Hangup);
    }
    let status = timeout(IDLE_TIMEOUT, child.wait()).await.map_err(|_| SessionError::Idle)?;
    group.ended();
    match status {
        Ok(status) if status.success() => Ok(bytes),
        Ok(_) => Err(SessionError::Git(words)),
        Err(error) => Err(SessionError::Spawn(error)),
    }
}

/// The process group of a child: killed when the session is dropped before the child ended.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    fn ended(mut self) {
        self.0 = None;
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

/// Copies to the end; how it ended and how many bytes went through.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    clock: &Clock,
) -> (Copied, u64) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut bytes = 0;
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(0) => return (Copied::End, bytes),
            Ok(n) => n,
            Err(_) => return (Copied::ReadFailed, bytes),
        };
        clock.moved();
        if to.write_all(&buffer[..n]).await.is_err() {
            return (Copied::WriteFailed, bytes);
        }
        bytes += n as u64;
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
