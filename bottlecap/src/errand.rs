//! A program that is run to its end, with bounded patience.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::fault::{Attempted, Fault};
use crate::sys::process::{self, Setup};

/// What a program said.
#[derive(Debug)]
pub struct Said {
    /// Its standard output, trimmed.
    pub output: String,
    /// Its standard error, trimmed.
    pub errors: String,
    /// Whether it succeeded.
    pub good: bool,
}

impl Said {
    /// Standard output, or the failure in the client's own words.
    pub fn or_failed(self, attempt: &str) -> Result<String, Fault> {
        if self.good {
            return Ok(self.output);
        }
        let last: Vec<&str> = self.errors.lines().rev().take(6).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        Err(Fault::failed(format!("{attempt} failed: {}", proposal::escaped(&last.join("; ")))))
    }
}

/// Runs `command` with `input` to its end, or until `patience` is over: then it is killed, with what it started. It does not
/// outlive this process.
pub fn finish(command: Command, input: Vec<u8>, patience: Duration) -> Result<Said, Fault> {
    finish_hearing(command, input, patience, |_| false)
}

/// The same with each line of its standard error shown to `take` as it comes. What that takes is not among the errors.
pub fn finish_hearing(
    mut command: Command,
    input: Vec<u8>,
    patience: Duration,
    take: impl FnMut(&str) -> bool + Send + 'static,
) -> Result<Said, Fault> {
    let name = command.get_program().to_string_lossy().into_owned();
    let told = || format!("cannot run {name}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let setup = Setup { descriptors: Vec::new(), on_parent_death: Signal::SIGKILL, close_others: true };
    process::prepare(&mut command, setup, || Ok(()));
    let mut child = command.spawn().refusing(told)?;
    let pid = Pid::from_raw(child.id() as i32);
    let ended = process::watch(pid).failing(told)?;
    let mut pipe = child.stdin.take();
    let writer = thread::spawn(move || {
        // A client that does not want its input says why by its exit code.
        let _ = pipe.take().map(|mut pipe| pipe.write_all(&input));
    });
    let (output, errors) = (gather(child.stdout.take()), hear(child.stderr.take(), take));
    let deadline = Instant::now() + patience;
    let in_time = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(ended.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            polled => break polled.failing(told)? > 0,
        }
    };
    if !in_time {
        // Its group has its number, which nobody else gets before it is waited for.
        let _ = killpg(pid, Signal::SIGKILL);
    }
    let status = child.wait().failing(told)?;
    // None of them panics.
    let _ = writer.join();
    let text = |thread: JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().unwrap_or_default()).trim().to_owned()
    };
    let said = Said { output: text(output), errors: text(errors), good: status.success() };
    if in_time {
        Ok(said)
    } else {
        Err(Fault::failed(format!("{name} did not end within {} s: {}", patience.as_secs(), said.errors)))
    }
}

fn gather(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read counts.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        bytes
    })
}

/// Gathers the lines that are not taken. Whoever writes over its own line ends it with a carriage return.
fn hear(
    pipe: Option<impl Read + Send + 'static>,
    mut take: impl FnMut(&str) -> bool + Send + 'static,
) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut kept, mut line, mut piece) = (Vec::new(), Vec::new(), [0; 4096]);
        let mut end = |line: &mut Vec<u8>| {
            if !line.is_empty() && !take(&String::from_utf8_lossy(line)) {
                kept.extend_from_slice(line);
                kept.push(b'\n');
            }
            line.clear();
        };
        let Some(mut pipe) = pipe else { return Vec::new() };
        loop {
            match pipe.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What could be read counts.
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    for byte in &piece[..length] {
                        match byte {
                            b'\n' | b'\r' => end(&mut line),
                            byte => line.push(*byte),
                        }
                    }
                }
            }
        }
        end(&mut line);
        kept
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_taken_is_heard_when_it_comes_and_is_no_error() {
        let (heard, lines) = std::sync::mpsc::channel();
        let mut shell = Command::new("sh");
        shell.args(["-c", "printf '1%%\\r2%%\\rfatal: no\\n3%%' >&2; exit 1"]);
        let take = move |line: &str| line.ends_with('%') && heard.send(line.to_owned()).is_ok();
        let said = finish_hearing(shell, Vec::new(), Duration::from_secs(60), take).expect("it ends");
        assert_eq!((said.errors.as_str(), said.good), ("fatal: no", false));
        assert_eq!(lines.iter().collect::<Vec<_>>(), ["1%", "2%", "3%"]);
    }

    #[test]
    fn a_program_that_does_not_end_is_not_waited_for() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let fault = finish(command, Vec::new(), Duration::from_millis(50)).expect_err("ended");
        assert!(fault.to_string().contains("did not end"), "{fault}");
    }

    #[test]
    fn what_it_started_ends_with_it() {
        let mut command = Command::new("sh");
        // The pipes stay open as long as the one that was started has them.
        command.args(["-c", "sleep 600 & wait"]);
        let started = Instant::now();
        let fault = finish(command, Vec::new(), Duration::from_millis(200)).expect_err("ended");
        assert!(fault.to_string().contains("did not end"), "{fault}");
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
