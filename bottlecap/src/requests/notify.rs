//! Telling a person elsewhere that something waits: beside the printing, one after the other, each for a bounded time. What is told can be
//! lost; what is answered is not looked at, so nobody can decide by it.

mod webhook;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proposal::wire::View;
use tracing::warn;

use crate::fault::{Attempted, Fault, chain};
use webhook::Webhook;

/// How somebody is told.
#[derive(Debug, Clone, Default)]
pub struct Notify {
    /// The terminal's bell.
    pub bell: bool,
    /// The desktop, by `notify-send`.
    pub desktop: bool,
    /// A program in words, without a shell: it gets the request as JSON on its standard input.
    pub command: Option<String>,
    /// Where the request is posted, and the file that holds the secret it is signed with.
    pub webhook: Option<(String, PathBuf)>,
}

/// How long one of them may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How many requests may wait to be told of; beyond it they are only printed.
const WAITING_MAX: usize = 32;

/// One way of telling.
enum Way {
    Desktop,
    Program(Vec<String>),
    Webhook(Webhook),
}

/// Tells of requests while others are printed; what is left is told when it is dropped.
pub(super) struct Messenger {
    queue: Option<SyncSender<View>>,
    thread: Option<JoinHandle<()>>,
}

impl Messenger {
    pub(super) fn start(notify: &Notify) -> Result<Messenger, Fault> {
        let mut ways = Vec::new();
        if notify.desktop {
            ways.push(Way::Desktop);
        }
        if let Some(command) = &notify.command {
            let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
            if words.is_empty() {
                return Err(Fault::refused("the command to notify with is empty"));
            }
            ways.push(Way::Program(words));
        }
        if let Some((url, secret)) = &notify.webhook {
            ways.push(Way::Webhook(Webhook::new(url, secret)?));
        }
        if ways.is_empty() {
            return Ok(Messenger { queue: None, thread: None });
        }
        let (queue, requests) = sync_channel(WAITING_MAX);
        let thread = std::thread::spawn(move || tell_all(&ways, &requests));
        Ok(Messenger { queue: Some(queue), thread: Some(thread) })
    }

    /// Never waits.
    pub(super) fn tell(&self, view: View) {
        if let Some(queue) = &self.queue
            && let Err(TrySendError::Full(view) | TrySendError::Disconnected(view)) = queue.try_send(view)
        {
            warn!(id = %view.id, "too many requests at once: nobody is told of this one");
        }
    }
}

impl Drop for Messenger {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // It can only have told too little.
            let _ = thread.join();
        }
    }
}

fn tell_all(ways: &[Way], requests: &Receiver<View>) {
    for view in requests {
        for way in ways {
            if let Err(fault) = way.tell(&view) {
                warn!(id = %view.id, "nobody could be told of a request: {}", chain(&fault));
            }
        }
    }
}

impl Way {
    fn tell(&self, view: &View) -> Result<(), Fault> {
        match self {
            Way::Desktop => {
                let summary = format!("bottlecap: an agent asks for {}", view.proposal);
                run(&["notify-send".to_owned(), "--".to_owned(), summary], "")
            }
            Way::Program(words) => run(words, &body(view)?),
            Way::Webhook(webhook) => webhook.post(&body(view)?, jiff::Timestamp::now()),
        }
    }
}

fn body(view: &View) -> Result<String, Fault> {
    serde_json::to_string(view).failing(|| "cannot write JSON".to_owned())
}

/// Runs a program and waits for it, for so long. What it prints is dropped, so that it cannot be taken for what we say.
fn run(words: &[String], input: &str) -> Result<(), Fault> {
    let Some((program, arguments)) = words.split_first() else { return Ok(()) };
    let told = || format!("cannot run {program}");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .refusing(told)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read is told all the same: a request is shorter than a pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    if !ended(&mut child).failing(told)? {
        let _ = child.kill();
        let _ = child.wait();
        return Err(Fault::failed(format!("{program} took longer than {} s", TIMEOUT.as_secs())));
    }
    Ok(())
}

/// Waits until the child has ended, for so long; whether it has.
fn ended(child: &mut Child) -> std::io::Result<bool> {
    let pid = i32::try_from(child.id()).map_err(std::io::Error::other)?;
    let pidfd = crate::sys::process::watch(nix::unistd::Pid::from_raw(pid))?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&pidfd), PollFlags::POLLIN)], timeout)?;
    }
}
