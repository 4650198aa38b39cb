//! The processes: made, listened to, signalled, reaped. One place waits for children.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Bundle, chain, exit, notify_path};
use crate::daemon::Daemon;
use crate::logs::Lines;
use crate::notify::{self, Message};
use crate::plan::{Event, Level};
use crate::setup::{Strength, environment, search_path};
use crate::sys::fence::{Execs, Fence};
use crate::sys::spawn::{Child, Command, spawn};
use crate::sys::{self, Ended, landlock, sockets};
use crate::walls::{self, Purpose, Surroundings};

/// Bytes read from one daemon before the others have their turn.
const READ_TURN: usize = 64 * 1024;
/// Readiness messages read before everything else has its turn.
const NOTIFY_TURN: usize = 64;

/// Ended children reaped before everything else has its turn.
const REAP_TURN: usize = 1024;
/// How long what a daemon left behind is looked for before everything else has its turn.
const CLEAR_UP_TURN: Duration = Duration::from_millis(100);
/// How often nothing must be found: the list of children is not read in one moment.
const EMPTY_LOOKS: u32 = 3;

/// Senders of readiness messages that are named in the log as ignored.
const IGNORED_MAX: usize = 32;

/// A live process of ours.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) daemon: Daemon,
    pub(super) purpose: Purpose,
    pub(super) pid: i32,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) first_line: u64,
    /// What it is confined by, in words.
    pub(super) walls: Vec<String>,
}

/// The output of a process of ours.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) daemon: Daemon,
    pub(super) file: std::fs::File,
    pub(super) lines: Lines,
}

impl Bundle {
    /// Makes a process and takes note of it before any child is reaped.
    pub(super) fn spawn(
        &mut self,
        daemon: Daemon,
        purpose: Purpose,
        arguments: &[OsString],
    ) -> Result<i32, String> {
        let memory = match purpose {
            Purpose::Serve => {
                self.secret_memory(daemon).map_err(|error| format!("cannot hand over secrets: {error}"))?
            }
            Purpose::MakeCa => Vec::new(),
        };
        let mut descriptors: Vec<(String, BorrowedFd<'_>)> = Vec::new();
        if purpose == Purpose::Serve {
            let own = self.listening.iter().filter(|(name, ..)| name.daemon == daemon);
            descriptors.extend(own.map(|(name, socket, _)| (name.to_string(), socket.as_fd())));
            descriptors.extend(memory.iter().map(|(name, fd)| (name.clone(), fd.as_fd())));
            descriptors.extend(self.peers.of(daemon));
        }
        let uid =
            self.setup.members.iter().find(|member| member.daemon == daemon).and_then(|member| member.uid);
        let fence = self
            .fence(daemon, purpose, uid)
            .map_err(|error| format!("cannot prepare its walls: {}", chain(&error)))?;
        let mut walls = standing(&fence, uid, self.setup.strength);
        let child = spawn(&mut Command {
            program: &self.setup.paths.program(daemon),
            name: daemon.name(),
            arguments,
            environment: &environment(
                daemon,
                &self.setup.paths,
                self.setup.reach,
                &notify_path(&self.setup.paths.run),
            ),
            descriptors: &descriptors,
            uid,
            fence,
        })
        .map_err(|error| chain(&error))?;
        let Child { pid, stdout, stderr, executes_once } = child;
        walls.extend(executes_once.then(|| "one exec".to_owned()));
        for fd in [stdout, stderr] {
            self.streams.push(Stream { daemon, file: fd.into(), lines: Lines::default() });
        }
        let first_line = self.logs.next();
        self.running.push(Running { daemon, purpose, pid, pidfd: sys::pidfd(pid).ok(), first_line, walls });
        Ok(pid)
    }

    /// The walls of a new process of this daemon, as far as this kernel has them.
    fn fence(&self, daemon: Daemon, purpose: Purpose, uid: Option<u32>) -> io::Result<Fence> {
        let setup = &self.setup;
        let search = search_path();
        let own = setup.readable.iter().filter(|readable| readable.daemon == daemon);
        let around = Surroundings {
            paths: &setup.paths,
            search: &search,
            upstream_ca: daemon.authorities_variable().and_then(std::env::var_os).map(PathBuf::from),
            readable: own.map(|readable| readable.path.clone()).collect(),
        };
        let domain = match setup.strength.landlock {
            Some(_) => landlock::ruleset(&walls::files(daemon, purpose, &around), uid)?,
            None => None,
        };
        let calls = if setup.strength.filters {
            Some(walls::calls::filter(daemon).map_err(io::Error::other)?)
        } else {
            None
        };
        let execs = match daemon {
            Daemon::Egress | Daemon::Supervise => Execs::Once,
            Daemon::GitGate => Execs::Many,
        };
        Ok(Fence { domain, calls, execs })
    }

    /// Fresh memory files of the secrets of this daemon.
    fn secret_memory(&self, daemon: Daemon) -> io::Result<Vec<(String, OwnedFd)>> {
        let own = self.secrets.iter().filter(|delivery| delivery.daemon == daemon);
        own.map(|delivery| {
            let name = format!("secret.{}", delivery.name);
            let memory = sys::sealed_memory(&name, delivery.value.expose())?;
            Ok((name, memory))
        })
        .collect()
    }

    pub(super) fn read_streams(&mut self) {
        let logs = &mut self.logs;
        self.streams.retain_mut(|stream| {
            let mut buffer = [0; 8192];
            let mut left = READ_TURN;
            while left > 0 {
                match stream.file.read(&mut buffer) {
                    Ok(0) => {
                        if let Some(line) = stream.lines.finish() {
                            logs.forward(stream.daemon, line);
                        }
                        return false;
                    }
                    Ok(count) => {
                        stream.lines.push(&buffer[..count], |line| logs.forward(stream.daemon, line));
                        left = left.saturating_sub(count);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return false,
                }
            }
            true
        });
    }

    pub(super) fn read_notifications(&mut self, events: &mut VecDeque<Event>) -> io::Result<()> {
        let mut buffer = vec![0; sockets::DATAGRAM_LIMIT];
        for _ in 0..NOTIFY_TURN {
            let Some((length, pid)) = sockets::receive(&self.notify, &mut buffer)? else { break };
            let sender =
                self.running.iter().find(|child| child.pid == pid && child.purpose == Purpose::Serve);
            let Some(sender) = sender else {
                // Once for each sender, and of so many: they must not be able to fill the log.
                if self.ignored_pids.len() < IGNORED_MAX && self.ignored_pids.insert(pid) {
                    let text = format!(
                        "ignored a readiness message of pid {pid}, which is not the process of a daemon"
                    );
                    self.logs.say(Level::Warn, text);
                }
                continue;
            };
            events.extend(notify::parse(&buffer[..length]).map(|message| match message {
                Message::Ready(report) => Event::Ready(sender.daemon, report),
                Message::Alive => Event::Alive(sender.daemon),
                Message::Reloading(began) => {
                    let since_start =
                        |time: u64| Duration::from_micros(time).saturating_sub(self.started_monotonic);
                    Event::Reloading(sender.daemon, began.map(since_start))
                }
            }));
        }
        Ok(())
    }

    /// The one place that waits for children: ours become events, orphans are only reaped. As many as one turn has room for, so that
    /// nobody keeps us here by ending.
    pub(super) fn reap(&mut self, events: &mut VecDeque<Event>) -> io::Result<()> {
        let mut left_behind = self.uncleared;
        self.more_ended = true;
        for _ in 0..REAP_TURN {
            let Some(pid) = sys::peek_ended_child()? else {
                self.more_ended = false;
                break;
            };
            let Some(at) = self.running.iter().position(|child| child.pid == pid) else {
                // One that we killed may have left processes behind in its turn.
                left_behind |= sys::reap(pid)? == Ended::Killed(libc::SIGKILL);
                continue;
            };
            // While the leader is a zombie, the number of its group cannot belong to anyone else.
            sys::kill_group(pid);
            let ended = sys::reap(pid)?;
            self.read_streams();
            let child = self.running.remove(at);
            left_behind = true;
            match child.purpose {
                Purpose::Serve => events.push_back(Event::Exited(child.daemon, exit(ended))),
                Purpose::MakeCa => self.ca_ended = Some(ended),
            }
        }
        if left_behind {
            self.clear_up();
        }
        Ok(())
    }

    /// What a daemon left behind outside its group holds its sockets and secrets: it ends with it. What forks and ends is gone from
    /// under one signal, so we look again until there is nothing, and in the next turn if that takes long.
    fn clear_up(&mut self) {
        let until = Instant::now() + CLEAR_UP_TURN;
        let mut empty = 0;
        while empty < EMPTY_LOOKS && Instant::now() < until {
            let orphans = self.orphans();
            empty = if orphans.is_empty() { empty + 1 } else { 0 };
            for pid in orphans {
                sys::kill_child(pid);
                sys::reap_if_ended(pid);
            }
        }
        self.uncleared = empty < EMPTY_LOOKS;
    }

    /// Children that nobody here made.
    fn orphans(&self) -> Vec<i32> {
        let mut found = sys::children();
        found.retain(|pid| {
            !sys::machine::is_keeper(*pid) && self.running.iter().all(|child| child.pid != *pid)
        });
        found
    }

    pub(super) fn signal(&mut self, daemon: Daemon, number: i32) {
        let child = self.running.iter().find(|child| child.daemon == daemon);
        let Some(child) = child else { return };
        let sent = match &child.pidfd {
            Some(pidfd) => sys::signal(pidfd.as_fd(), number),
            None => nix::sys::signal::Signal::try_from(number)
                .and_then(|signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.pid), signal))
                .map_err(io::Error::from),
        };
        // A process that is gone is on its way to be reaped.
        if let Err(error) = sent
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            self.logs.say(Level::Error, format!("cannot send signal {number} to {daemon}: {error}"));
        }
    }
}

/// The walls in words, as `status` shows them.
fn standing(fence: &Fence, uid: Option<u32>, strength: Strength) -> Vec<String> {
    let mut walls = Vec::new();
    walls.extend(uid.map(|uid| format!("uid {uid}")));
    if let (Some(_), Some(abi)) = (&fence.domain, strength.landlock) {
        walls.push(format!("landlock {abi}"));
    }
    walls.extend(fence.calls.as_ref().map(|_| "seccomp".to_owned()));
    walls
}
