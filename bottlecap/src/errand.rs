//! A program that is run to its end, with bounded patience.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::fault::{Attempted, Fault};
use crate::sys::process::{self, Setup};

/// What a program said is read for so long after its end, should something that it started keep its output open.
const AFTER_THE_END: Duration = Duration::from_secs(1);
/// How much is read at once.
const PIECE_BYTES: usize = 16 << 10;

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

/// Runs `command` with `input` to its end, or until `patience` is over: then it is killed, with its group. It does not outlive this
/// process.
pub fn finish(command: Command, input: Vec<u8>, patience: Duration) -> Result<Said, Fault> {
    finish_hearing(command, input, patience, |_| false)
}

/// The same with each line of its standard error shown to `take` as it comes. What that takes is not among the errors.
pub fn finish_hearing(
    mut command: Command,
    input: Vec<u8>,
    patience: Duration,
    take: impl FnMut(&str) -> bool,
) -> Result<Said, Fault> {
    let name = command.get_program().to_string_lossy().into_owned();
    let told = || format!("cannot run {name}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let setup = Setup { descriptors: Vec::new(), on_parent_death: Signal::SIGKILL, close_others: true };
    process::prepare(&mut command, setup, || Ok(()));
    let mut child = command.spawn().refusing(told)?;
    let pid = Pid::from_raw(child.id() as i32);
    let mut talk = Talk {
        ended: Some(process::watch(pid).failing(told)?),
        stdin: child.stdin.take(),
        input,
        written: 0,
        stdout: child.stdout.take(),
        output: Vec::new(),
        stderr: child.stderr.take(),
        errors: Lines { kept: Vec::new(), line: Vec::new(), take },
    };
    let in_time = talk.finish(Instant::now() + patience).failing(told)?;
    if !in_time {
        // Its group has its number, which nobody else gets before it is waited for.
        let _ = killpg(pid, Signal::SIGKILL);
    }
    let status = child.wait().failing(told)?;
    talk.errors.end();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let said = Said { output: text(&talk.output), errors: text(&talk.errors.kept), good: status.success() };
    if in_time {
        Ok(said)
    } else {
        Err(Fault::failed(format!("{name} did not end within {} s: {}", patience.as_secs(), said.errors)))
    }
}

/// What goes between this process and a program.
struct Talk<T> {
    /// Readable once the program has ended.
    ended: Option<OwnedFd>,
    stdin: Option<ChildStdin>,
    input: Vec<u8>,
    written: usize,
    stdout: Option<ChildStdout>,
    output: Vec<u8>,
    stderr: Option<ChildStderr>,
    errors: Lines<T>,
}

impl<T: FnMut(&str) -> bool> Talk<T> {
    /// Until the program has ended, and what it said is read; whether it ended before `deadline`.
    fn finish(&mut self, mut deadline: Instant) -> io::Result<bool> {
        let ends = [
            self.stdin.as_ref().map(AsFd::as_fd),
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
        ];
        for end in ends.into_iter().flatten() {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        while self.ended.is_some() || self.stdout.is_some() || self.stderr.is_some() {
            let Some(has_ended) = self.wait(deadline)? else { return Ok(self.ended.is_none()) };
            if has_ended {
                self.ended = None;
                deadline = deadline.min(Instant::now() + AFTER_THE_END);
            }
            self.write();
            read(&mut self.stdout, |bytes| self.output.extend_from_slice(bytes));
            read(&mut self.stderr, |bytes| self.errors.hear(bytes));
        }
        Ok(true)
    }

    /// Waits until something happens, and says whether the program has ended; nothing when `deadline` is over.
    fn wait(&self, deadline: Instant) -> io::Result<Option<bool>> {
        fn on<F: AsFd>(end: Option<&F>, what: PollFlags) -> Option<PollFd<'_>> {
            end.map(|end| PollFd::new(end.as_fd(), what))
        }
        let ends = [
            on(self.ended.as_ref(), PollFlags::POLLIN),
            on(self.stdin.as_ref(), PollFlags::POLLOUT),
            on(self.stdout.as_ref(), PollFlags::POLLIN),
            on(self.stderr.as_ref(), PollFlags::POLLIN),
        ];
        let mut ends: Vec<PollFd<'_>> = ends.into_iter().flatten().collect();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Who always has something to say is not waited for either.
            if left.is_zero() {
                return Ok(None);
            }
            match poll(&mut ends, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(0) => return Ok(None),
                Ok(_) => return Ok(Some(self.ended.is_some() && ends[0].any() == Some(true))),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes what of the input can be written without waiting, and closes it behind the last of it.
    fn write(&mut self) {
        let rest = &self.input[self.written..];
        let Some(stdin) = self.stdin.as_mut().filter(|_| !rest.is_empty()) else {
            self.stdin = None;
            return;
        };
        match stdin.write(rest) {
            Ok(written) => self.written += written,
            Err(error) if may_go_on(&error) => {}
            // A client that does not want its input says why by its exit code.
            Err(_) => self.stdin = None,
        }
    }
}

/// Passes on what can be read at once without waiting; at the end there is no pipe any more.
fn read(pipe: &mut Option<impl Read>, take: impl FnOnce(&[u8])) {
    let mut piece = [0; PIECE_BYTES];
    match pipe.as_mut().map(|pipe| pipe.read(&mut piece)) {
        None => {}
        Some(Ok(length @ 1..)) => take(&piece[..length]),
        Some(Err(error)) if may_go_on(&error) => {}
        // What could be read counts.
        Some(Ok(0) | Err(_)) => *pipe = None,
    }
}

fn may_go_on(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

/// Gathers the lines that `take` does not. Whoever writes over its own line ends it with a carriage return.
struct Lines<T> {
    kept: Vec<u8>,
    line: Vec<u8>,
    take: T,
}

impl<T: FnMut(&str) -> bool> Lines<T> {
    fn hear(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => self.end(),
                byte => self.line.push(*byte),
            }
        }
    }

    fn end(&mut self) {
        if !self.line.is_empty() && !(self.take)(&String::from_utf8_lossy(&self.line)) {
            self.kept.extend_from_slice(&self.line);
            self.kept.push(b'\n');
        }
        self.line.clear();
    }
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
    fn what_goes_in_comes_out_however_much_it_is() {
        let input: Vec<u8> = (0..1 << 20).map(|at: u32| b'a' + (at % 23) as u8).collect();
        let said = finish(Command::new("cat"), input.clone(), Duration::from_secs(60)).expect("it ends");
        assert!(said.good && said.output.as_bytes() == input);
        let said = finish(Command::new("true"), input, Duration::from_secs(60)).expect("it ends");
        assert!(said.good && said.output.is_empty(), "who does not read has its own reasons");
    }

    #[test]
    fn who_keeps_the_output_open_is_not_waited_for() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo said; setsid --fork sleep 30"]);
        let started = Instant::now();
        let said = finish(command, Vec::new(), Duration::from_secs(60)).expect("it ended");
        assert_eq!((said.output.as_str(), said.good), ("said", true));
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn who_talks_without_end_is_ended() {
        for script in ["exec yes", "exec yes >&2"] {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let fault = finish(command, Vec::new(), Duration::from_millis(200)).expect_err("ended");
            assert!(fault.to_string().contains("did not end"));
        }
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
