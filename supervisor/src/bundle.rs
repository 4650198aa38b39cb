//! The running bundle: one loop that waits for something to happen, asks the plan, and does what it says.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::control::{
    BundleState, ClientId, Control, DaemonGeneration, DaemonStatus, Failure, Healthy, LogLine, LogLines,
    Reloaded, Request, Restarting, Status, Stopping,
};
use crate::daemon::Daemon;
use crate::logs::{Lines, Logs, Source};
use crate::notify::{self, Message};
use crate::plan::{Action, Event, Exit, Level, Notice, Outcome, Plan, StopCause, Ticket};
use crate::secrets::Delivery;
use crate::setup::{Setup, SetupError, environment, refuse_second};
use crate::sys::signals::Signals;
use crate::sys::spawn::{Child, Command, spawn};
use crate::sys::{self, Ended, sockets};

/// How long making the CA may take.
const CA_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the end waits for processes that daemons left behind.
const SWEEP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the end waits for a slow reader of our output.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);
/// Bytes read from one daemon before the others have their turn.
const READ_TURN: usize = 64 * 1024;
/// Bytes written at once: a pipe that is ready takes as many without waiting.
const WRITE_TURN: usize = 4096;
/// Lines shown of a daemon that did not become ready.
const TAIL_LINES: usize = 10;
/// Lines in the answer to `logs` without follow.
const KEPT_LINES: usize = 5000;
/// Exit code when the CA cannot be made.
const EXIT_CONFIGURATION: u8 = 64;

/// A live process of ours.
#[derive(Debug)]
struct Running {
    daemon: Daemon,
    purpose: Purpose,
    pid: i32,
    pidfd: Option<OwnedFd>,
    first_line: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// It is the daemon.
    Serve,
    /// It makes the CA and ends.
    MakeCa,
}

/// The output of a process of ours.
#[derive(Debug)]
struct Stream {
    daemon: Daemon,
    file: std::fs::File,
    lines: Lines,
}

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
    setup: Setup,
    plan: Plan,
    logs: Logs,
    signals: Signals,
    control: Control,
    notify: UnixDatagram,
    listening: Vec<(Daemon, OwnedFd, SocketAddr)>,
    secrets: Vec<Delivery>,
    running: Vec<Running>,
    streams: Vec<Stream>,
    tickets: Vec<(Ticket, ClientId)>,
    next_ticket: u64,
    ca_ended: Option<Ended>,
    parent_notify: Option<OsString>,
}

impl Bundle {
    /// Opens every socket. Nothing is started yet.
    pub(crate) fn open(
        mut setup: Setup,
        secrets: Vec<Delivery>,
        signals: Signals,
    ) -> Result<Self, SetupError> {
        let started = Instant::now();
        let listening = setup.open_sockets()?;
        setup.prepare_run_dir()?;
        let (control_path, notify_path) = (control_path(&setup.paths.run), notify_path(&setup.paths.run));
        refuse_second(&control_path)?;
        for path in [&control_path, &notify_path] {
            remove(path);
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| SetupError::RunDir { path, source }
        };
        let control = sockets::bind_private(&control_path).map_err(failed(&control_path))?;
        let notify = sockets::bind_notify(&notify_path, setup.reach).map_err(failed(&notify_path))?;
        let plan = Plan::new(setup.members.iter().map(|member| (member.daemon, member.role)));
        let mut logs = Logs::new(setup.log);
        for (daemon, _, address) in &listening {
            logs.say(Level::Info, format!("{daemon} listens on {address}"));
        }
        for problem in setup.prepare_state_dirs() {
            logs.say(Level::Warn, problem);
        }
        Ok(Self {
            started,
            plan,
            logs,
            signals,
            control: Control::new(control),
            notify,
            listening,
            secrets,
            running: Vec::new(),
            streams: Vec::new(),
            tickets: Vec::new(),
            next_ticket: 0,
            ca_ended: None,
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
        let mut events = VecDeque::new();
        if self.setup.ca_init
            && self.plan.has(Daemon::Egress)
            && let Err(code) = self.make_ca(&mut events)?
        {
            self.leave();
            return Ok(code);
        }
        events.push_front(Event::Start);
        let code = loop {
            if let Some(code) = self.decide(&mut events) {
                break code;
            }
            let deadline = self.plan.deadline(self.now());
            self.wait(deadline, &mut events)?;
        };
        self.leave();
        Ok(code)
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Hands all events to the plan and does what it says; the exit code when it says that.
    fn decide(&mut self, events: &mut VecDeque<Event>) -> Option<u8> {
        while let Some(event) = events.pop_front() {
            for action in self.plan.on(self.now(), event) {
                match action {
                    Action::Spawn(daemon) => events.push_front(self.start(daemon)),
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

    /// Makes a process and takes note of it before any child is reaped.
    fn spawn(&mut self, daemon: Daemon, purpose: Purpose, arguments: &[OsString]) -> Result<i32, String> {
        let memory = match purpose {
            Purpose::Serve => {
                self.secret_memory(daemon).map_err(|error| format!("cannot hand over secrets: {error}"))?
            }
            Purpose::MakeCa => Vec::new(),
        };
        let mut descriptors: Vec<(String, BorrowedFd<'_>)> = Vec::new();
        if purpose == Purpose::Serve {
            let own = self.listening.iter().filter(|(name, ..)| *name == daemon);
            descriptors.extend(own.map(|(name, socket, _)| (name.name().to_owned(), socket.as_fd())));
            descriptors.extend(memory.iter().map(|(name, fd)| (name.clone(), fd.as_fd())));
        }
        let child = spawn(&Command {
            program: &self.setup.paths.program(daemon),
            name: daemon.name(),
            arguments,
            environment: &environment(daemon, &notify_path(&self.setup.paths.run)),
            descriptors: &descriptors,
            uid: self
                .setup
                .members
                .iter()
                .find(|member| member.daemon == daemon)
                .and_then(|member| member.uid),
        })
        .map_err(|error| chain(&error))?;
        let Child { pid, stdout, stderr } = child;
        for fd in [stdout, stderr] {
            self.streams.push(Stream { daemon, file: fd.into(), lines: Lines::default() });
        }
        let first_line = self.logs.next();
        self.running.push(Running { daemon, purpose, pid, pidfd: sys::pidfd(pid).ok(), first_line });
        Ok(pid)
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
        let timeout = match deadline {
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
        while let Some((id, request)) = self.control.next_request() {
            match request {
                Ok(request) => self.serve(id, request, events),
                Err(failure) => self.control.reply::<Stopping>(id, Err(failure)),
            }
        }
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

    fn read_streams(&mut self) {
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

    fn read_notifications(&mut self, events: &mut VecDeque<Event>) -> io::Result<()> {
        let mut buffer = vec![0; sockets::DATAGRAM_LIMIT];
        while let Some((length, pid)) = sockets::receive(&self.notify, &mut buffer)? {
            let sender =
                self.running.iter().find(|child| child.pid == pid && child.purpose == Purpose::Serve);
            let Some(sender) = sender else {
                let text =
                    format!("ignored a readiness message of pid {pid}, which is not the process of a daemon");
                self.logs.say(Level::Warn, text);
                continue;
            };
            events.extend(notify::parse(&buffer[..length]).map(|message| match message {
                Message::Ready(report) => Event::Ready(sender.daemon, report),
                Message::Reloading => Event::Reloading(sender.daemon),
            }));
        }
        Ok(())
    }

    /// The one place that waits for children: ours become events, orphans are only reaped.
    fn reap(&mut self, events: &mut VecDeque<Event>) -> io::Result<()> {
        while let Some(pid) = sys::peek_ended_child()? {
            let Some(at) = self.running.iter().position(|child| child.pid == pid) else {
                sys::reap(pid)?;
                continue;
            };
            // While the leader is a zombie, the number of its group cannot belong to anyone else.
            sys::kill_group(pid);
            let ended = sys::reap(pid)?;
            self.read_streams();
            let child = self.running.remove(at);
            match child.purpose {
                Purpose::Serve => events.push_back(Event::Exited(child.daemon, exit(ended))),
                Purpose::MakeCa => self.ca_ended = Some(ended),
            }
        }
        Ok(())
    }

    fn signal(&mut self, daemon: Daemon, number: i32) {
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

    fn serve(&mut self, id: ClientId, request: Request, events: &mut VecDeque<Event>) {
        match request {
            Request::Status {} => {
                let status = self.status();
                self.control.reply(id, Ok(status));
            }
            Request::Health {} => {
                let health = self.health();
                self.control.reply(id, health);
            }
            Request::Reload {} => {
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                self.tickets.push((ticket, id));
                events.push_back(Event::Reload(ticket));
            }
            Request::Restart { name } => {
                let outcome = self.restartable(&name);
                if let Ok(daemon) = &outcome {
                    events.push_back(Event::Restart(*daemon));
                }
                self.control.reply(id, outcome.map(|_| Restarting { name }));
            }
            Request::Stop {} => {
                self.control.reply(id, Ok(Stopping {}));
                events.push_back(Event::Stop(StopCause::Request));
            }
            Request::Logs { name, follow } => match name.as_deref().map(|name| (name, Source::parse(name))) {
                Some((name, None)) => {
                    let text = format!(
                        "unknown source `{name}`, expected one of egress, git-gate, supervise, supervisor"
                    );
                    self.control.reply::<LogLines>(id, Err(Failure::new("unknown-daemon", text)));
                }
                Some((_, source @ Some(_))) if follow => self.control.follow(id, source),
                None if follow => self.control.follow(id, None),
                None => self.reply_with_logs(id, None),
                Some((_, source @ Some(_))) => self.reply_with_logs(id, source),
            },
        }
    }

    fn reply_with_logs(&mut self, id: ClientId, source: Option<Source>) {
        let lines = self.logs.since(0, source, KEPT_LINES).into_iter().map(LogLine::from).collect();
        self.control.reply(id, Ok(LogLines { lines }));
    }

    fn status(&self) -> Status {
        let state = match (self.plan.is_stopping(), self.plan.has_started()) {
            (true, _) => BundleState::Stopping,
            (false, true) => BundleState::Running,
            (false, false) => BundleState::Starting,
        };
        Status { state, daemons: self.plan.views(self.now()).into_iter().map(DaemonStatus::from).collect() }
    }

    fn health(&self) -> Result<Healthy, Failure> {
        if self.plan.is_healthy() {
            return Ok(Healthy { healthy: true });
        }
        let views = self.plan.views(self.now());
        let states: Vec<String> = views
            .iter()
            .filter(|view| !view.is_serving())
            .map(|view| format!("{} is {}", view.daemon, view.state.as_str()))
            .collect();
        let message = if states.is_empty() { "the bundle stops".to_owned() } else { states.join(", ") };
        Err(Failure::new("unhealthy", message))
    }

    fn restartable(&self, name: &str) -> Result<Daemon, Failure> {
        let daemon =
            Daemon::parse(name).map_err(|error| Failure::new("unknown-daemon", error.to_string()))?;
        if !self.plan.has(daemon) {
            return Err(Failure::new("unknown-daemon", format!("{daemon} is not selected in this bundle")));
        }
        if self.plan.is_stopping() {
            return Err(Failure::new("stopping", "the bundle stops"));
        }
        Ok(daemon)
    }

    fn answer(&mut self, ticket: Ticket, outcomes: Vec<(Daemon, Outcome)>) {
        for (_, id) in self.tickets.extract_if(.., |(other, _)| *other == ticket) {
            self.control.reply(id, reload_result(&outcomes));
        }
    }

    /// Ends what daemons left behind, writes out the log, and takes the sockets away.
    fn leave(&mut self) {
        let mut unwanted = VecDeque::new();
        let until = self.now() + SWEEP_TIMEOUT;
        loop {
            let left = sys::children();
            if left.is_empty() || self.now() >= until {
                break;
            }
            left.into_iter().for_each(sys::kill_child);
            if self.wait(Some(until), &mut unwanted).is_err() {
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

fn reload_result(outcomes: &[(Daemon, Outcome)]) -> Result<Reloaded, Failure> {
    let mut daemons = Vec::new();
    for (daemon, outcome) in outcomes {
        let code = match outcome {
            Outcome::Applied(report) => {
                daemons.push(DaemonGeneration {
                    name: daemon.name().to_owned(),
                    generation: report.generation,
                    digest: report.digest.clone(),
                });
                continue;
            }
            Outcome::Refused(_) => "reload-failed",
            Outcome::Unanswered => "reload-timeout",
            Outcome::Gone => "not-running",
        };
        return Err(Failure::new(code, format!("{daemon}: {outcome}")));
    }
    Ok(Reloaded { daemons })
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
