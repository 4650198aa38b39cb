//! Processes that stay, and the lines they print.

use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;

/// What a stopped process may take: the supervisor's own grace of 8 s and a little.
const STOP_GRACE: Duration = Duration::from_secs(12);

#[derive(Debug, Default)]
struct Page {
    lines: Vec<String>,
    ended: bool,
}

/// Lines as they arrive from a pipe, kept for whoever waits for one.
#[derive(Debug, Clone, Default)]
pub struct Lines(Arc<(Mutex<Page>, Condvar)>);

impl Lines {
    /// Reads the pipe to its end on a thread of its own.
    pub fn read(pipe: impl Read + Send + 'static) -> (Self, JoinHandle<()>) {
        let lines = Self::default();
        let shared = lines.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n') {
                let Ok(line) = line else { break };
                shared.change(|page| page.lines.push(String::from_utf8_lossy(&line).into_owned()));
            }
            shared.change(|page| page.ended = true);
        });
        (lines, reader)
    }

    fn change(&self, change: impl FnOnce(&mut Page)) {
        change(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.1.notify_all();
    }

    /// Everything up to now.
    pub fn text(&self) -> String {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).lines.join("\n")
    }

    /// How many lines there are; a later [`Lines::wait_after`] starts there.
    pub fn mark(&self) -> usize {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).lines.len()
    }

    /// The first line that satisfies the condition, waiting for it.
    pub fn wait(&self, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.wait_after(0, wanted)
    }

    /// As [`Lines::wait`], among the lines from number `from` on.
    pub fn wait_after(&self, from: usize, wanted: impl Fn(&str) -> bool) -> Result<String> {
        self.wait_within(PATIENCE, from, wanted)
    }

    /// As [`Lines::wait_after`], for what takes longer than everything else.
    pub fn wait_within(
        &self,
        patience: Duration,
        from: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let deadline = Instant::now() + patience;
        let mut page = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = from;
        loop {
            while seen < page.lines.len() {
                if wanted(&page.lines[seen]) {
                    return Ok(page.lines[seen].clone());
                }
                seen += 1;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            anyhow::ensure!(
                !page.ended,
                "the process ended without the line waited for:\n{}",
                page.lines.join("\n")
            );
            anyhow::ensure!(!left.is_zero(), "the line waited for did not come:\n{}", page.lines.join("\n"));
            page = self.0.1.wait_timeout(page, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A process that this test started, killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    readers: Vec<JoinHandle<()>>,
    /// What it prints on standard output.
    pub stdout: Lines,
    /// What it prints on standard error.
    pub stderr: Lines,
}

impl Process {
    /// Starts the command with both outputs captured and nothing to read.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let (stdout, first) =
            Lines::read(child.stdout.take().expect("standard output was asked to be a pipe"));
        let (stderr, second) =
            Lines::read(child.stderr.take().expect("standard error was asked to be a pipe"));
        Ok(Self { child, readers: vec![first, second], stdout, stderr })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id fits pid_t")
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("cannot send {signal}"))
    }

    /// Waits for its end: the exit code, or 128 + the signal that ended it. Its outputs are read to their end too, which
    /// also says that no descendant still holds them.
    pub fn wait(&mut self) -> Result<i32> {
        let status = wait_at_most(&mut self.child, PATIENCE)?;
        for reader in self.readers.drain(..) {
            drop(reader.join());
        }
        Ok(status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // TERM, so that a supervisor takes its daemons along.
            drop(self.signal(Signal::SIGTERM));
            drop(wait_at_most(&mut self.child, STOP_GRACE));
        }
    }
}

/// Waits for the child, and kills it when the time is over.
pub(crate) fn wait_at_most(child: &mut Child, bound: Duration) -> std::io::Result<ExitStatus> {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id fits pid_t"));
    let (ended, watch) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        // The number is still the child's: it is reaped by the wait below, which ends this watch.
        if watch.recv_timeout(bound) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let status = child.wait();
    drop(ended);
    drop(watchdog.join());
    status
}
