//! The running bundle: one loop that waits for something to happen, asks the plan, and does what it says.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::bundle::children::{Running, Stream};
use crate::control::{ClientId, Control};
use crate::daemon::{Daemon, SocketName};
use crate::logs::Logs;
use crate::peers::Peers;
use crate::plan::{Action, Event, Exit, Level, Notice, Plan, StopCause, Ticket};
use crate::secrets::Delivery;
use crate::setup::{Setup, SetupError, refuse_second};
use crate::sys::signals::Signals;
use crate::sys::{self, Ended, sockets};
use crate::walls::Purpose;

mod children;
mod service;

/// How long making the CA may take.
const CA_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the end waits for processes that daemons left behind.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the end waits for a slow reader of our output.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Bytes written at once: a pipe that is ready takes as many without waiting.
const WRITE_TURN: usize = 4096;
/// Lines shown of a daemon that did not become ready.
const TAIL_LINES: usize = 10;
/// Exit code when the CA cannot be made.
const EXIT_CONFIGURATION: u8 = 64;

/// What a descriptor that became ready belongs to.
#[derive(Clone, Copy, Debug)]
enum Token {
    Signals,
    Notify,
    Control,
    Output,
    Client(ClientId),
    Stream,
}

/// The supervisor at work.
#[derive(Debug)]
pub(crate) struct Bundle {
    started: Instant,
    /// The same moment on the clock that daemons tell the time of.
    started_monotonic: Duration,
    setup: Setup,
    plan: Plan,
    logs: Logs,
    signals: Signals,
    control: Control,
    notify: UnixDatagram,
    listening: Vec<(SocketName, OwnedFd, SocketAddr)>,
    peers: Peers,
    secrets: Vec<Delivery>,
    running: Vec<Running>,
    streams: Vec<Stream>,
    tickets: Vec<(Ticket, ClientId)>,
    next_ticket: u64,
    ca_ended: Option<Ended>,
    ignored_pids: BTreeSet<i32>,
    /// Children have ended that were not reaped yet.
    more_ended: bool,
    /// What a daemon left behind when it ended may not all be gone.
    uncleared: bool,
    parent_notify: Option<OsString>,
}

impl Bundle {
    /// Opens every socket. Nothing is started yet.
    pub(crate) fn open(
        mut setup: Setup,
        secrets: Vec<Delivery>,
        signals: Signals,
    ) -> Result<Self, SetupError> {
        let (started, started_monotonic) = (Instant::now(), sys::monotonic());
        let (control_path, notify_path) = (control_path(&setup.paths.run), notify_path(&setup.paths.run));
        let listening = setup.open_sockets()?;
        refuse_second(&control_path)?;
        setup.prepare_run_dir()?;
        for path in [&control_path, &notify_path] {
            remove(path);
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| SetupError::RunDir { path, source }
        };
        let control = sockets::bind_private(&control_path).map_err(failed(&control_path))?;
        let notify = sockets::bind_notify(&notify_path, setup.reach).map_err(failed(&notify_path))?;
        let selected: Vec<Daemon> = setup.members.iter().map(|member| member.daemon).collect();
        let peers = Peers::open(&selected).map_err(SetupError::Peers)?;
        let plan = Plan::new(setup.members.iter().map(|member| (member.daemon, member.role)), seed());
        let mut logs = Logs::new(setup.log);
        for (name, _, address) in &listening {
            logs.say(Level::Info, format!("{name} listens on {address}"));
        }
        for gap in setup.strength.gaps(setup.reach) {
            logs.say(Level::Warn, gap);
        }
        for problem in setup.prepare_state_dirs() {
            logs.say(Level::Warn, problem);
        }
        Ok(Self {
            started,
            started_monotonic,
            plan,
            logs,
            signals,
            control: Control::new(control, setup.reach),
            notify,
            listening,
            peers,
            secrets,
            running: Vec::new(),
            streams: Vec::new(),
            tickets: Vec::new(),
            next_ticket: 0,
            ca_ended: None,
            ignored_pids: BTreeSet::new(),
            more_ended: false,
            uncleared: false,
            parent_notify: std::env::var_os("NOTIFY_SOCKET"),
            setup,
        })
    }

    /// A line in the log before the start.
    pub(crate) fn say(&mut self, level: Level, text: String) {
        self.logs.say(level, text);
    }

    /// Runs until the end; returns the exit code.
    pub(crate) fn run(mut self) -> io::Result<u8> {
        let outcome = self.serve_until_end();
        self.leave();
        outcome
    }

    fn serve_until_end(&mut self) -> io::Result<u8> {
        let mut events = VecDeque::new();
        if self.setup.ca_init
            && self.plan.has(Daemon::Egress)
            && let Err(code) = self.make_ca(&mut events)?
        {
            return Ok(code);
        }
        events.push_front(Event::Start);
        loop {
            if let Some(code) = self.decide(&mut events) {
                return Ok(code);
            }
            let deadline = self.plan.deadline(self.now());
            self.wait(deadline, &mut events)?;
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Hands all events to the plan and does what it says; the exit code when it says that.
    fn decide(&mut self, events: &mut VecDeque<Event>) -> Option<u8> {
        while let Some(event) = events.pop_front() {
            let mut started = Vec::new();
            for action in self.plan.on(self.now(), event) {
                match action {
                    Action::Spawn(daemon) => started.push(self.start(daemon)),
                    Action::Hangup(daemon) => self.signal(daemon, libc::SIGHUP),
                    Action::Terminate(daemon) => self.signal(daemon, libc::SIGTERM),
                    Action::Kill(daemon) => {
                        self.running
                            .iter()
                            .filter(|child| child.daemon == daemon)
                            .for_each(|child| sys::kill_group(child.pid));
                    }
                    Action::Answer(ticket, outcomes) => self.answer(ticket, outcomes),
                    Action::Say(notice) => self.report(&notice),
                    Action::TellReady => self.tell("READY=1\n"),
                    Action::TellStopping => self.tell("STOPPING=1\n"),
                    Action::Exit(code) => return Some(code),
                }
            }
            started.into_iter().rev().for_each(|event| events.push_front(event));
        }
        None
    }

    fn start(&mut self, daemon: Daemon) -> Event {
        let arguments = daemon.arguments(&self.setup.paths, self.setup.log);
        match self.spawn(daemon, Purpose::Serve, &arguments) {
            Ok(pid) => Event::Spawned(daemon, pid),
            Err(reason) => Event::SpawnFailed(daemon, reason),
        }
    }

    /// Runs `egress ca init`; what else happens meanwhile is kept for later, a stop excepted.
    fn make_ca(&mut self, kept: &mut VecDeque<Event>) -> io::Result<Result<(), u8>> {
        let ca = self.setup.paths.ca().into_os_string();
        let arguments = ["ca".into(), "init".into(), "--if-absent".into(), "--ca-dir".into(), ca];
        let pid = match self.spawn(Daemon::Egress, Purpose::MakeCa, &arguments) {
            Ok(pid) => pid,
            Err(reason) => {
                self.logs.say(Level::Error, format!("cannot make the CA: {reason}"));
                return Ok(Err(EXIT_CONFIGURATION));
            }
        };
        let deadline = self.now() + CA_TIMEOUT;
        let mut give_up = None;
        loop {
            match self.ca_ended.take() {
                Some(_) if give_up.is_some() => return Ok(Err(give_up.unwrap_or(EXIT_CONFIGURATION))),
                Some(Ended::Exited(0)) => return Ok(Ok(())),
                Some(ended) => {
                    self.logs.say(
                        Level::Error,
                        format!("cannot make the CA: egress ca init ended: {}", exit(ended)),
                    );
                    return Ok(Err(EXIT_CONFIGURATION));
                }
                None => {}
            }
            let mut events = VecDeque::new();
            self.wait(give_up.is_none().then_some(deadline), &mut events)?;
            for event in events {
                match event {
                    Event::Stop(StopCause::Signal(number)) => {
                        give_up = Some(128 + u8::try_from(number).unwrap_or(0));
                    }
                    Event::Stop(StopCause::Request) => give_up = Some(0),
                    Event::Tick => {}
                    other => kept.push_back(other),
                }
            }
            if give_up.is_none() && self.now() >= deadline {
                self.logs.say(
                    Level::Error,
                    format!("cannot make the CA: no end after {} s", CA_TIMEOUT.as_secs()),
                );
                give_up = Some(EXIT_CONFIGURATION);
            }
            if give_up.is_some() && self.ca_ended.is_none() {
                sys::kill_group(pid);
            }
        }
    }

    /// Waits until something happens or the deadline is there, and collects the events.
    fn wait(&mut self, deadline: Option<Duration>, events: &mut VecDeque<Event>) -> io::Result<()> {
        self.control.feed(&self.logs);
        self.control.flush();
        // A request may have waited behind another that is answered now, or until its client took what was there.
        while self.serve_clients(events) {
            self.control.flush();
        }
        let timeout = match deadline {
            _ if self.more_ended || !events.is_empty() => PollTimeout::ZERO,
            None => PollTimeout::NONE,
            Some(due) => {
                // A whole millisecond more, so that the deadline has passed when the time-out ends.
                let left = due.saturating_sub(self.now()) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        let ready = self.poll(timeout)?;
        let mut hung = Vec::new();
        for (token, flags) in ready {
            match token {
                Token::Control => self.control.accept(),
                Token::Output => self.write_output(),
                Token::Client(id) => {
                    self.control.read(id);
                    if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                        hung.push(id);
                    }
                }
                Token::Signals | Token::Notify | Token::Stream => {}
            }
        }
        self.read_streams();
        let caught = self.signals.take();
        if caught.hangup {
            events.push_back(Event::Hangup);
        }
        if caught.unhealthy {
            events.push_back(Event::Unhealthy);
        }
        events.extend(caught.stop.map(|number| Event::Stop(StopCause::Signal(number))));
        // What a daemon said before it ended counts; so this comes before the reaping.
        self.read_notifications(events)?;
        self.reap(events)?;
        self.serve_clients(events);
        hung.into_iter().for_each(|id| self.control.close(id));
        events.push_back(Event::Tick);
        Ok(())
    }

    fn poll(&self, timeout: PollTimeout) -> io::Result<Vec<(Token, PollFlags)>> {
        let stderr = io::stderr();
        let mut tokens = vec![Token::Signals, Token::Notify, Token::Control];
        let mut fds = vec![
            PollFd::new(self.signals.fd(), PollFlags::POLLIN),
            PollFd::new(self.notify.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.control.fd(), PollFlags::POLLIN),
        ];
        if !self.logs.queued().is_empty() {
            tokens.push(Token::Output);
            fds.push(PollFd::new(stderr.as_fd(), PollFlags::POLLOUT));
        }
        for (id, fd, read, write) in self.control.clients() {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::POLLIN, read);
            wanted.set(PollFlags::POLLOUT, write);
            tokens.push(Token::Client(id));
            fds.push(PollFd::new(fd, wanted));
        }
        for stream in &self.streams {
            tokens.push(Token::Stream);
            fds.push(PollFd::new(stream.file.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let flags = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok(tokens.into_iter().zip(flags).filter(|(_, flags)| !flags.is_empty()).collect())
    }

    /// Writes one piece of the log, as much as a ready pipe takes without waiting.
    fn write_output(&mut self) {
        let queued = self.logs.queued();
        let piece = &queued[..queued.len().min(WRITE_TURN)];
        match io::stderr().write(piece) {
            Ok(count) => self.logs.written(count),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // Nobody reads any more: the log goes on in the rings.
            Err(_) => {
                let lost = queued.len();
                self.logs.written(lost);
            }
        }
    }

    fn report(&mut self, notice: &Notice) {
        self.logs.say(notice.level(), notice.to_string());
        if let Notice::NotReady { daemon } = notice {
            let first =
                self.running.iter().find(|child| child.daemon == *daemon).map_or(0, |child| child.first_line);
            let tail = self.logs.tail(*daemon, first, TAIL_LINES);
            if tail.is_empty() {
                self.logs.say(Level::Warn, format!("{daemon} said nothing since its start"));
            }
            for line in tail {
                self.logs.say(Level::Warn, format!("{daemon} said last: {line}"));
            }
        }
    }

    fn tell(&mut self, text: &str) {
        let Some(target) = &self.parent_notify else { return };
        if let Err(error) = sockets::notify(target, text) {
            self.logs.say(Level::Warn, format!("cannot write to NOTIFY_SOCKET: {error}"));
        }
    }

    /// Ends what daemons left behind, writes out the log, and takes the sockets away.
    fn leave(&mut self) {
        let until = self.now() + SWEEP_TIMEOUT;
        if std::process::id() == 1 {
            // At once, so that nothing can fork away from one step to the next.
            sys::kill_everything_else();
        }
        loop {
            let left = sys::children();
            if left.is_empty() || self.now() >= until {
                break;
            }
            left.into_iter().for_each(sys::kill_child);
            // Fresh each time: events that are there already would turn the wait into a spin.
            if self.wait(Some(until), &mut VecDeque::new()).is_err() {
                break;
            }
        }
        self.read_streams();
        self.control.feed(&self.logs);
        self.control.flush();
        self.flush_output();
        remove(&control_path(&self.setup.paths.run));
        remove(&notify_path(&self.setup.paths.run));
    }

    fn flush_output(&mut self) {
        let until = Instant::now() + FLUSH_TIMEOUT;
        while !self.logs.queued().is_empty() {
            let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now()))
                .unwrap_or(PollTimeout::ZERO);
            let stderr = io::stderr();
            let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut fds, left) {
                Ok(0) => return,
                Ok(_) => self.write_output(),
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

/// A number that differs between supervisors.
fn seed() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// The socket that clients use.
pub(crate) fn control_path(run: &Path) -> PathBuf {
    run.join("supervisor.sock")
}

fn notify_path(run: &Path) -> PathBuf {
    run.join("notify.sock")
}

/// Removes a socket that may or may not be there; binding tells when it could not be removed.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

fn exit(ended: Ended) -> Exit {
    match ended {
        Ended::Exited(code) => Exit::Code(code),
        Ended::Killed(number) => Exit::Signal(number),
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
