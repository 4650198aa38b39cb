//! The inits under test, and commands that tell what happens to them.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longer than anything here takes on a busy machine; a test that waits so long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Prints its pid, then the number of each signal that it gets.
pub(crate) const TELL_SIGNALS: &str = "use POSIX; $| = 1;
    for my $n (1..31, 34..64) { next if $n == 9 || $n == 17 || $n == 19;
        my $tell = POSIX::SigAction->new(sub { syswrite STDOUT, \"got $_[0]\\n\" }, POSIX::SigSet->new, 0);
        sigaction($n, $tell) }
    syswrite STDOUT, \"ready $$\\n\"; sleep 1000 while 1";

/// An init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Init {
    /// The one under test.
    Ours,
    /// Debian's tini.
    Tini,
    /// Debian's dumb-init.
    Dumb,
}

impl Init {
    /// The program, and what it wants before its options.
    pub(crate) fn words(self) -> Vec<&'static str> {
        match self {
            Self::Ours => vec![env!("CARGO_BIN_EXE_supervisor"), "run"],
            Self::Tini => vec![installed("/usr/bin/tini")],
            Self::Dumb => vec![installed("/usr/bin/dumb-init")],
        }
    }

    /// Its command line with these options over this command.
    pub(crate) fn over<O: AsRef<OsStr>, A: AsRef<OsStr>>(
        self,
        options: impl IntoIterator<Item = O>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new(self.words()[0]);
        command.args(&self.words()[1..]).args(options).arg("--").args(arguments);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .env("PERL_SIGNALS", "unsafe")
            .stdin(Stdio::null());
        with_plain_signals(&mut command);
        command
    }
}

/// Takes back what whoever runs the tests ignores for good, as nohup and shells do for what runs in the background.
#[allow(unsafe_code)]
pub(crate) fn with_plain_signals(command: &mut Command) {
    // SAFETY: system calls alone between fork and exec.
    unsafe {
        command.pre_exec(|| {
            for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                libc::signal(number, libc::SIG_DFL);
            }
            Ok(())
        });
    }
}

/// A control that is not there would be a test that tests nothing.
fn installed(path: &'static str) -> &'static str {
    assert!(Path::new(path).exists(), "{path} is missing: bash scripts/need.sh inits");
    path
}

/// No option.
pub(crate) const PLAIN: [&str; 0] = [];

/// The exit code, or 128 + the signal that ended the init itself.
pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal)).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// An init that runs, and the lines of its command. Dropped, it and the command's group are killed.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: Receiver<String>,
    command: Option<i32>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        Self { child, lines, command: None }
    }

    /// Starts the command that tells its signals; returns when it is ready to.
    pub(crate) fn telling(init: Init, options: &[&str]) -> Self {
        let mut running = Self::start(&mut init.over(options, ["perl", "-e", TELL_SIGNALS]));
        let ready = running.line();
        running.command = Some(ready.strip_prefix("ready ").unwrap().parse().unwrap());
        running
    }

    /// The next line of the command.
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line of the command")
    }

    /// Whatever else the command has said by its end.
    pub(crate) fn rest(&self) -> Vec<String> {
        let mut rest = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            rest.push(line);
        }
        rest
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// The pid of the command that tells its signals.
    pub(crate) fn command(&self) -> i32 {
        self.command.unwrap()
    }

    pub(crate) fn send(&self, number: i32) {
        send(self.pid(), number);
    }

    /// The exit code of the init.
    pub(crate) fn code(&mut self) -> i32 {
        let until = Instant::now() + PATIENCE;
        let pidfd = Handle::open(self.pid());
        assert!(pidfd.ended_before(until), "the init does not end");
        let status = self.child.wait().unwrap();
        status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(command) = self.command {
            // Not every init gives it a group of its own.
            for target in [command, -command] {
                let _ = kill(Pid::from_raw(target), Signal::SIGKILL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a pipe as they come.
pub(crate) fn lines_of(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    receiver
}

#[allow(unsafe_code)]
pub(crate) fn send(pid: i32, number: i32) {
    // SAFETY: no memory is passed. Real-time signals have no name in nix.
    assert_eq!(unsafe { nix::libc::kill(pid, number) }, 0, "signal {number}");
}

/// A process that need not be our child.
pub(crate) struct Handle(std::os::fd::OwnedFd);

impl Handle {
    #[allow(unsafe_code)]
    pub(crate) fn open(pid: i32) -> Self {
        // SAFETY: no memory is passed.
        let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
        assert!(fd >= 0, "no process {pid}");
        // SAFETY: a fresh descriptor.
        Self(unsafe { std::os::fd::FromRawFd::from_raw_fd(i32::try_from(fd).unwrap()) })
    }

    pub(crate) fn ended_before(&self, until: Instant) -> bool {
        use std::os::fd::AsFd as _;

        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap();
        poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], left) == Ok(1)
    }

    pub(crate) fn wait(&self) {
        assert!(self.ended_before(Instant::now() + PATIENCE), "the process does not end");
    }
}

/// The letter of a process's state in /proc, `-` when it is gone.
pub(crate) fn state(pid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('-')
}

/// Waits until the process has one of these states.
pub(crate) fn await_state(pid: i32, wanted: &str) {
    let until = Instant::now() + PATIENCE;
    // The kernel tells a stranger of no stop: this one has to look.
    while !wanted.contains(state(pid)) {
        assert!(Instant::now() < until, "pid {pid} stays {}, not {wanted}", state(pid));
        std::thread::yield_now();
    }
}
