//! The terminal: who has it, and who gets it back.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::time::Instant;

use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{LocalFlags, OutputFlags, SetArg, tcgetattr, tcsetattr};

use crate::common::{Init, PATIENCE, PLAIN};

/// The far end of a terminal, and the leader of the session on it.
struct Screen {
    master: File,
    leader: Child,
    seen: String,
}

impl Screen {
    /// Starts the command as the leader of a session with a terminal of its own.
    #[allow(unsafe_code)]
    fn start(mut command: Command) -> Self {
        // Closed at exec from the start: a child of another test must not keep the terminal open.
        let own = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(own).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let near = open(ptsname_r(&master).unwrap().as_str(), own, Mode::empty()).unwrap();
        let mut settings = tcgetattr(&near).unwrap();
        settings.output_flags.remove(OutputFlags::OPOST);
        settings.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&near, SetArg::TCSANOW, &settings).unwrap();
        let end = |fd: &OwnedFd| fd.try_clone().unwrap();
        let slave = near.as_raw_fd();
        command.stdin(end(&near)).stdout(end(&near)).stderr(end(&near));
        // SAFETY: two system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                if libc::setsid() < 0 || libc::ioctl(slave, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let leader = command.spawn().unwrap();
        drop(command);
        Self { master: OwnedFd::from(master).into(), leader, seen: String::new() }
    }

    fn write(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Reads on until the text is there; what came before it is forgotten.
    fn wait(&mut self, text: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now())).unwrap();
            let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&self.master), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, left), Ok(1), "no `{text}` in {:?}", self.seen);
            let mut buffer = [0; 4096];
            // A terminal that nobody has open any more reads as an error.
            let count = self.master.read(&mut buffer).unwrap_or(0);
            assert!(count > 0, "no `{text}` in {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }

    fn end(mut self) -> i32 {
        // A terminal that nobody has open any more reads as an error.
        let _ = self.master.read_to_end(&mut Vec::new());
        self.leader.wait().unwrap().code().unwrap()
    }
}

#[test]
fn a_command_reads_and_writes_the_terminal() {
    for init in [Init::Ours, Init::Tini, Init::Dumb] {
        let mut screen = Screen::start(init.over(PLAIN, ["tac"]));
        screen.write("1\n2\n3\n\u{4}\u{4}");
        screen.wait("3\n2\n1\n");
        assert_eq!(screen.end(), 0, "{init:?}");
    }
}

#[test]
fn a_shell_has_job_control() {
    for init in [Init::Ours, Init::Tini, Init::Dumb] {
        let mut screen = Screen::start(init.over(PLAIN, ["bash", "--norc", "--noprofile", "-i"]));
        screen.write("echo \"flags [[$-]]\"; perl -e '$|=1; print qq(up\\n); sleep 1000'\n");
        screen.wait("flags [[");
        screen.wait("m");
        screen.wait("up\n");
        screen.write("\u{1a}");
        screen.wait("Stopped");
        // The first one is answered with a warning about the stopped job.
        screen.write("exit 5\nexit 5\n");
        assert_eq!(screen.end(), 5, "{init:?}");
    }
}

/// Tells each signal that it gets, and whether it is in the foreground.
const FOREGROUND: &str = "use POSIX; $| = 1;
    $SIG{$_} = sub { print \"got $_[0]\\n\" } for qw(HUP INT CONT TERM);
    print tcgetpgrp(0) == getpgrp ? \"foreground\\n\" : \"background\\n\"; sleep 1000 while 1";

#[test]
fn a_key_reaches_the_command_once_and_nothing_comes_unasked() {
    let mut command = Init::Ours.over(["-v"], ["perl", "-e", FOREGROUND]);
    command.env("PERL_SIGNALS", "unsafe");
    let mut screen = Screen::start(command);
    screen.wait("foreground\n");
    screen.write("\u{3}");
    screen.wait("got INT\n");
    // Sent to us after it: whatever the terminal had sent to us would have been sent on before this.
    crate::common::send(i32::try_from(screen.leader.id()).unwrap(), libc::SIGTERM);
    let before = {
        screen.wait("got TERM\n");
        screen.seen.clone()
    };
    assert!(!before.contains("HUP") && !before.contains("CONT"), "{before}");
    drop(screen.master);
    let _ = screen.leader.kill();
    let _ = screen.leader.wait();
}

#[test]
fn a_shell_gets_its_prompt_back_when_the_command_is_stopped_and_the_command_its_terminal() {
    let ours = Init::Ours.words().join(" ");
    let mut shell = Command::new("bash");
    shell.args(["--norc", "--noprofile", "-i"]).env_clear().env("PATH", "/usr/bin:/bin").env("PS1", "");
    let mut screen = Screen::start(shell);
    screen.write(&format!("{ours} -- cat; echo over=$?\n"));
    screen.write("one\n");
    screen.wait("one\n");
    screen.write("\u{1a}");
    screen.wait("Stopped");
    screen.write("echo prompt; fg\n");
    screen.wait("prompt\n");
    screen.write("two\n");
    screen.wait("two\n");
    screen.write("\u{4}");
    screen.write("echo back; exit 0\n");
    screen.wait("back\n");
    assert_eq!(screen.end(), 0);
}

#[test]
fn started_in_the_background_it_leaves_the_terminal_alone() {
    let ours = Init::Ours.words().join(" ");
    let mut shell = Command::new("bash");
    shell.args(["--norc", "--noprofile", "-i"]).env_clear().env("PATH", "/usr/bin:/bin").env("PS1", "");
    let mut screen = Screen::start(shell);
    let script = FOREGROUND.replace('\n', " ");
    screen.write(&format!("{ours} -- perl -e '{script}' & wait -n 2>/dev/null & echo started\n"));
    screen.wait("background\n");
    screen.write("echo still here; kill -9 %1; exit 0\n");
    screen.wait("still here\n");
    screen.write("exit 0\n");
    assert_eq!(screen.end(), 0);
}
