//! What happens next, as a pure function: [`Plan::on`] takes one event and the time, and says what to do.
//!
//! No clock, process, socket or file is touched here. The loop in `bundle.rs` feeds the events in and does what comes out.

use std::time::Duration;

use crate::daemon::Daemon;
use crate::notify::Report;
use crate::plan::jitter::Jitter;
use crate::plan::member::{Flight, Kill, Member, Phase, Then};
use crate::plan::waiter::Waiter;

mod jitter;
mod member;
mod notice;
#[cfg(test)]
mod tests;
mod waiter;

pub(crate) use member::{Exit, State, View};
pub(crate) use notice::{Level, Notice};
pub(crate) use waiter::{Outcome, Ticket};

/// How long a daemon may take from its start to `READY=1`.
pub(crate) const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a daemon may take to answer a reload.
pub(crate) const RELOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a daemon that gives signs of life may be without one. One that never gave any is not watched.
pub(crate) const ALIVE_TIMEOUT: Duration = Duration::from_secs(30);
/// So long after a sign of life was due it is our own absence that is seen: the whole bundle was frozen, or this process did not run.
const ABSENCE: Duration = Duration::from_secs(2);
/// How long a stop may take before SIGKILL.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(8);
/// How long a stop waits for one daemon before it asks the next.
const STOP_STEP: Duration = Duration::from_secs(2);
/// How long after SIGKILL a stop waits for a process that the kernel cannot end.
const ABANDON_AFTER: Duration = Duration::from_millis(1500);
/// First delay before a restart; it doubles with each failure.
const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// Longest delay before a restart.
const BACKOFF_CAP: Duration = Duration::from_secs(5);
/// Failures within this time count together.
const FAILURE_WINDOW: Duration = Duration::from_secs(120);
/// So many failures within the window are followed by a restart; one more is final.
const FAILURE_BUDGET: usize = 5;
/// Exit code for a daemon that failed for good.
const EXIT_FAILED: u8 = 70;
/// Exit code for usage and configuration errors, of the daemons and of the supervisor.
const EXIT_CONFIGURATION: u8 = 64;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Everything is prepared: start the daemons.
    Start,
    /// A process was made for an [`Action::Spawn`].
    Spawned(Daemon, i32),
    /// No process could be made for an [`Action::Spawn`].
    SpawnFailed(Daemon, String),
    /// The daemon's process is gone and was reaped.
    Exited(Daemon, Exit),
    /// The daemon said `READY=1`.
    Ready(Daemon, Report),
    /// The daemon said `RELOADING=1`, and when it began to, if it said that.
    Reloading(Daemon, Option<Duration>),
    /// The daemon said `WATCHDOG=1`.
    Alive(Daemon),
    /// SIGHUP.
    Hangup,
    /// A reload of one daemon, or of all that can, was asked for over the control socket.
    Reload(Ticket, Option<Daemon>),
    /// SIGUSR1: restart what is not healthy.
    Unhealthy,
    /// A restart was asked for over the control socket.
    Restart(Daemon),
    /// A signal or a client asks us to stop.
    Stop(StopCause),
    /// Nothing, but the time may matter.
    Tick,
}

/// Why a stop begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopCause {
    /// A signal of that number.
    Signal(i32),
    /// `supervisor stop`.
    Request,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make the daemon's process.
    Spawn(Daemon),
    /// Send it SIGHUP.
    Hangup(Daemon),
    /// Send it SIGTERM.
    Terminate(Daemon),
    /// Send SIGKILL to its process group.
    Kill(Daemon),
    /// Answer a client that waits for a reload.
    Answer(Ticket, Vec<(Daemon, Outcome)>),
    /// Say it in the log.
    Say(Notice),
    /// Tell whoever started us that the start is over.
    TellReady,
    /// Tell whoever started us that we stop.
    TellStopping,
    /// Leave with this code. Nothing follows.
    Exit(u8),
}

/// What the final failure of a daemon means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The bundle stops and exits with 70.
    Essential,
    /// It stays down, visibly.
    Optional,
}

/// Where the whole bundle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Running,
    Stopping { grace_until: Duration, code: u8 },
    Over,
}

/// The state of the bundle and the rules that change it.
#[derive(Debug)]
pub(crate) struct Plan {
    stage: Stage,
    members: Vec<Member>,
    waiters: Vec<Waiter>,
    jitter: Jitter,
}

impl Plan {
    /// A plan for these daemons, in start order. Nothing runs yet. `seed` makes the waits before restarts differ between bundles.
    pub(crate) fn new(daemons: impl IntoIterator<Item = (Daemon, Role)>, seed: u64) -> Self {
        Self {
            stage: Stage::Starting,
            jitter: Jitter(seed),
            members: daemons.into_iter().map(|(daemon, role)| Member::new(daemon, role)).collect(),
            waiters: Vec::new(),
        }
    }

    /// Takes one event at `now` (time since the start of the supervisor) and says what to do, in order.
    pub(crate) fn on(&mut self, now: Duration, event: Event) -> Vec<Action> {
        let mut out = Vec::new();
        if self.stage == Stage::Over {
            return out;
        }
        match event {
            Event::Start => (0..self.members.len()).for_each(|index| self.spawn(index, &mut out)),
            Event::Spawned(daemon, pid) => self.spawned(now, daemon, pid, &mut out),
            Event::SpawnFailed(daemon, reason) => self.spawn_failed(now, daemon, reason, &mut out),
            Event::Exited(daemon, exit) => self.exited(now, daemon, exit, &mut out),
            Event::Ready(daemon, report) => self.ready(now, daemon, report, &mut out),
            Event::Reloading(daemon, began) => self.reloading(daemon, began),
            Event::Alive(daemon) => self.alive(now, daemon),
            Event::Hangup => self.hangup(now, None, None, &mut out),
            Event::Reload(ticket, only) => self.reload(now, ticket, only, &mut out),
            Event::Unhealthy => self.restart_unhealthy(now, &mut out),
            Event::Restart(daemon) => {
                if let Some(index) = self.index(daemon) {
                    self.restart(now, index, &mut out);
                }
            }
            Event::Stop(cause) => self.stop(now, cause, &mut out),
            Event::Tick => {}
        }
        self.tick(now, &mut out);
        out
    }

    /// The time after `now` at which [`Event::Tick`] is due, if any.
    pub(crate) fn deadline(&self, now: Duration) -> Option<Duration> {
        let mut times: Vec<Duration> = Vec::new();
        match self.stage {
            Stage::Over => {}
            Stage::Starting | Stage::Running => {
                times.extend(self.members.iter().filter_map(Member::deadline));
                times.extend(self.waiters.iter().map(|waiter| waiter.deadline));
            }
            Stage::Stopping { grace_until, .. } => {
                times.push(grace_until);
                times.extend(self.members.iter().flat_map(Member::stop_deadlines));
            }
        }
        times.into_iter().filter(|time| *time > now).min()
    }

    /// What each daemon is doing, in start order.
    pub(crate) fn views(&self, now: Duration) -> Vec<View> {
        self.members.iter().map(|member| member.view(now)).collect()
    }

    /// Whether the daemon is one of ours.
    pub(crate) fn has(&self, daemon: Daemon) -> bool {
        self.index(daemon).is_some()
    }

    /// Whether every daemon serves.
    pub(crate) fn is_healthy(&self) -> bool {
        !self.is_stopping() && self.members.iter().all(|member| matches!(member.phase, Phase::Up { .. }))
    }

    /// Whether a stop has begun.
    pub(crate) fn is_stopping(&self) -> bool {
        matches!(self.stage, Stage::Stopping { .. } | Stage::Over)
    }

    /// Whether all daemons have been ready at the same time once, but for those that may fail and did.
    pub(crate) fn has_started(&self) -> bool {
        self.stage == Stage::Running
    }

    fn index(&self, daemon: Daemon) -> Option<usize> {
        self.members.iter().position(|member| member.daemon == daemon)
    }

    fn spawn(&mut self, index: usize, out: &mut Vec<Action>) {
        let member = &mut self.members[index];
        member.begin_spawn();
        out.push(Action::Spawn(member.daemon));
    }

    fn spawned(&mut self, now: Duration, daemon: Daemon, pid: i32, out: &mut Vec<Action>) {
        let Some(index) = self.index(daemon) else { return };
        let member = &mut self.members[index];
        if member.phase == Phase::Spawning {
            member.phase = Phase::Starting { pid, since: now };
            out.push(Action::Say(Notice::Started { daemon, pid }));
        }
    }

    fn spawn_failed(&mut self, now: Duration, daemon: Daemon, reason: String, out: &mut Vec<Action>) {
        let Some(index) = self.index(daemon) else { return };
        if self.members[index].phase == Phase::Spawning {
            self.ended(now, index, Exit::NotStarted(reason), out);
        }
    }

    fn exited(&mut self, now: Duration, daemon: Daemon, exit: Exit, out: &mut Vec<Action>) {
        let Some(index) = self.index(daemon) else { return };
        if self.members[index].pid().is_some() {
            self.ended(now, index, exit, out);
        }
    }

    /// The daemon has no process any more: restart it, wait, give up, or go on with the stop.
    fn ended(&mut self, now: Duration, index: usize, exit: Exit, out: &mut Vec<Action>) {
        let stopping = self.is_stopping();
        let member = &mut self.members[index];
        let daemon = member.daemon;
        let before = std::mem::replace(&mut member.phase, Phase::Down);
        let asked = matches!(before, Phase::Ending { then: Then::Restart | Then::Stop, .. });
        out.push(Action::Say(Notice::Ended { daemon, exit: exit.clone(), asked: asked || stopping }));
        let refused_configuration = !member.was_ready && exit == Exit::Code(i32::from(EXIT_CONFIGURATION));
        member.last_exit = Some(exit);
        if let Some(flight) = member.reload.flight.take() {
            self.settle(daemon, flight.tickets, &Outcome::Gone, out);
        }
        if stopping {
            return;
        }
        if matches!(before, Phase::Ending { then: Then::Restart, .. }) {
            return self.spawn(index, out);
        }
        if refused_configuration {
            return self.give_up(now, index, EXIT_CONFIGURATION, out);
        }
        match self.members[index].count_failure(now) {
            Some(longest) => {
                let delay = self.jitter.shorten(longest);
                let member = &mut self.members[index];
                member.phase = Phase::Backoff { until: now + delay };
                out.push(Action::Say(Notice::Retry { daemon, delay }));
            }
            None => self.give_up(now, index, EXIT_FAILED, out),
        }
    }

    fn give_up(&mut self, now: Duration, index: usize, code: u8, out: &mut Vec<Action>) {
        let member = &mut self.members[index];
        let (daemon, role) = (member.daemon, member.role);
        member.phase = Phase::Failed;
        member.reload.wanted = false;
        let tickets = std::mem::take(&mut member.reload.tickets);
        out.push(Action::Say(Notice::GaveUp { daemon, role }));
        self.settle(daemon, tickets, &Outcome::Gone, out);
        match role {
            Role::Essential => self.begin_stop(now, code, out),
            Role::Optional => self.end_starting(now, out),
        }
    }

    fn ready(&mut self, now: Duration, daemon: Daemon, report: Report, out: &mut Vec<Action>) {
        let Some(index) = self.index(daemon) else { return };
        let member = &mut self.members[index];
        match member.phase {
            Phase::Starting { pid, .. } => {
                member.phase = Phase::Up { pid, since: now };
                member.was_ready = true;
                out.push(Action::Say(Notice::Ready { daemon, report: report.clone() }));
                member.report = report;
            }
            Phase::Up { .. } => {
                member.reloading = false;
                member.report = report.clone();
                let answered = member.reload.flight.take_if(|flight| flight.begun);
                if let Some(flight) = answered {
                    let outcome = Outcome::of(report);
                    out.push(Action::Say(Notice::Reloaded { daemon, outcome: outcome.clone() }));
                    self.settle(daemon, flight.tickets, &outcome, out);
                }
            }
            Phase::Down | Phase::Spawning | Phase::Ending { .. } | Phase::Backoff { .. } | Phase::Failed => {
                return;
            }
        }
        self.end_starting(now, out);
        self.deliver(now, index, out);
    }

    /// The start is over when every daemon serves, but for those that may fail and did.
    fn end_starting(&mut self, now: Duration, out: &mut Vec<Action>) {
        let (up, rest): (Vec<_>, Vec<_>) =
            self.members.iter().partition(|member| matches!(member.phase, Phase::Up { .. }));
        let without: Vec<Daemon> = rest.iter().map(|member| member.daemon).collect();
        if self.stage == Stage::Starting
            && !up.is_empty()
            && rest.iter().all(|member| member.role == Role::Optional && member.phase == Phase::Failed)
        {
            self.stage = Stage::Running;
            out.push(Action::Say(Notice::AllReady { after: now, without }));
            out.push(Action::TellReady);
        }
    }

    /// A reload that began before we asked is the answer to someone else's signal: it may have read what was there before.
    fn reloading(&mut self, daemon: Daemon, began: Option<Duration>) {
        let Some(index) = self.index(daemon) else { return };
        let member = &mut self.members[index];
        if matches!(member.phase, Phase::Up { .. }) {
            member.reloading = true;
            if let Some(flight) = &mut member.reload.flight {
                flight.begun |= began.is_none_or(|began| began >= flight.sent);
            }
        }
    }

    fn alive(&mut self, now: Duration, daemon: Daemon) {
        if let Some(index) = self.index(daemon) {
            self.members[index].last_alive = Some(now);
        }
    }

    /// Wants a reload of every daemon that can; delivers it to those that are ready, holds it for the others.
    fn hangup(&mut self, now: Duration, ticket: Option<Ticket>, only: Option<Daemon>, out: &mut Vec<Action>) {
        if self.is_stopping() {
            return;
        }
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            if !member.can_reload() || only.is_some_and(|only| only != member.daemon) {
                continue;
            }
            member.reload.wanted = true;
            member.reload.tickets.extend(ticket);
            if !matches!(member.phase, Phase::Up { .. }) {
                out.push(Action::Say(Notice::HeldReload { daemon: member.daemon }));
            }
            self.deliver(now, index, out);
        }
    }

    fn reload(&mut self, now: Duration, ticket: Ticket, only: Option<Daemon>, out: &mut Vec<Action>) {
        let mut waiter = Waiter::new(ticket, now + RELOAD_TIMEOUT);
        let wanted =
            |member: &&Member| member.daemon.reloads() && only.is_none_or(|only| only == member.daemon);
        for member in self.members.iter().filter(wanted) {
            if member.can_reload() && !self.is_stopping() {
                waiter.open.push(member.daemon);
            } else {
                waiter.outcomes.push((member.daemon, Outcome::Gone));
            }
        }
        if waiter.open.is_empty() {
            out.push(Action::Answer(ticket, waiter.outcomes));
            return;
        }
        self.waiters.push(waiter);
        self.hangup(now, Some(ticket), only, out);
    }

    /// Sends a wanted reload, if the daemon is ready and not in the middle of another.
    fn deliver(&mut self, now: Duration, index: usize, out: &mut Vec<Action>) {
        let member = &mut self.members[index];
        let ready = matches!(member.phase, Phase::Up { .. }) && member.reload.flight.is_none();
        if ready && std::mem::take(&mut member.reload.wanted) {
            member.reload.flight = Some(Flight {
                sent: now,
                deadline: now + RELOAD_TIMEOUT,
                begun: false,
                tickets: std::mem::take(&mut member.reload.tickets),
            });
            out.push(Action::Hangup(member.daemon));
        }
    }

    fn settle(&mut self, daemon: Daemon, tickets: Vec<Ticket>, outcome: &Outcome, out: &mut Vec<Action>) {
        for waiter in self.waiters.iter_mut().filter(|waiter| tickets.contains(&waiter.ticket)) {
            waiter.settle(daemon, outcome.clone());
        }
        for waiter in self.waiters.extract_if(.., |waiter| waiter.open.is_empty()) {
            out.push(Action::Answer(waiter.ticket, waiter.outcomes));
        }
    }

    fn restart_unhealthy(&mut self, now: Duration, out: &mut Vec<Action>) {
        for index in 0..self.members.len() {
            match self.members[index].phase {
                Phase::Starting { .. } | Phase::Backoff { .. } | Phase::Failed => {
                    self.restart(now, index, out)
                }
                Phase::Down | Phase::Spawning | Phase::Up { .. } | Phase::Ending { .. } => {}
            }
        }
    }

    /// Restarts one daemon in place. Requests during a restart coalesce; none is honoured once a stop began.
    fn restart(&mut self, now: Duration, index: usize, out: &mut Vec<Action>) {
        if self.is_stopping() {
            return;
        }
        let member = &mut self.members[index];
        match member.phase {
            Phase::Starting { pid, .. } | Phase::Up { pid, .. } => {
                member.phase =
                    Phase::Ending { pid, since: now, kill: Kill::Due(now + STOP_GRACE), then: Then::Restart };
                out.push(Action::Terminate(member.daemon));
            }
            Phase::Ending { ref mut then, .. } => *then = Then::Restart,
            Phase::Backoff { .. } | Phase::Failed => {
                member.failures.clear();
                self.spawn(index, out);
            }
            Phase::Down | Phase::Spawning => {}
        }
    }

    fn stop(&mut self, now: Duration, cause: StopCause, out: &mut Vec<Action>) {
        if self.is_stopping() {
            return;
        }
        let code = match (self.stage, cause) {
            (Stage::Starting, StopCause::Signal(number)) => 128 + u8::try_from(number).unwrap_or(0),
            (Stage::Starting | Stage::Running | Stage::Stopping { .. } | Stage::Over, _) => 0,
        };
        out.push(Action::Say(Notice::Stopping { cause }));
        self.begin_stop(now, code, out);
    }

    fn begin_stop(&mut self, now: Duration, code: u8, out: &mut Vec<Action>) {
        if self.is_stopping() {
            return;
        }
        let grace_until = now + STOP_GRACE;
        self.stage = Stage::Stopping { grace_until, code };
        out.push(Action::TellStopping);
        for member in &mut self.members {
            member.reload = member::Reload::default();
            match &mut member.phase {
                Phase::Backoff { .. } => member.phase = Phase::Down,
                Phase::Ending { then, .. } => *then = Then::Stop,
                Phase::Down | Phase::Spawning | Phase::Starting { .. } | Phase::Up { .. } | Phase::Failed => {
                }
            }
        }
        for mut waiter in self.waiters.drain(..) {
            waiter.close(&Outcome::Gone);
            out.push(Action::Answer(waiter.ticket, waiter.outcomes));
        }
    }

    fn tick(&mut self, now: Duration, out: &mut Vec<Action>) {
        self.kill_overdue(now, out);
        match self.stage {
            Stage::Starting | Stage::Running => {
                self.wake_members(now, out);
                self.expire_waiters(now, out);
                // A member that was given up for good may have begun the stop.
                if let Stage::Stopping { grace_until, code } = self.stage {
                    self.step_stop(now, grace_until, code, out);
                }
            }
            Stage::Stopping { grace_until, code } => self.step_stop(now, grace_until, code, out),
            Stage::Over => {}
        }
    }

    fn kill_overdue(&mut self, now: Duration, out: &mut Vec<Action>) {
        for member in &mut self.members {
            if let Phase::Ending { kill, .. } = &mut member.phase
                && matches!(kill, Kill::Due(at) if *at <= now)
            {
                *kill = Kill::Sent(now);
                out.push(Action::Say(Notice::Killing { daemon: member.daemon }));
                out.push(Action::Kill(member.daemon));
            }
        }
    }

    fn wake_members(&mut self, now: Duration, out: &mut Vec<Action>) {
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            let daemon = member.daemon;
            match member.phase {
                Phase::Backoff { until } if until <= now => self.spawn(index, out),
                Phase::Starting { pid, since } if since + START_TIMEOUT <= now => {
                    member.phase = Phase::Ending { pid, since: now, kill: Kill::Sent(now), then: Then::Fail };
                    out.push(Action::Say(Notice::NotReady { daemon }));
                    out.push(Action::Kill(daemon));
                }
                Phase::Up { .. } if member.alive_until().is_some_and(|until| until + ABSENCE <= now) => {
                    member.last_alive = Some(now);
                }
                Phase::Up { pid, .. } if member.alive_until().is_some_and(|until| until <= now) => {
                    member.phase = Phase::Ending { pid, since: now, kill: Kill::Sent(now), then: Then::Fail };
                    out.push(Action::Say(Notice::Hangs { daemon }));
                    out.push(Action::Kill(daemon));
                }
                Phase::Up { .. } => {
                    if let Some(flight) = member.reload.flight.take_if(|flight| flight.deadline <= now) {
                        let outcome = Outcome::Unanswered;
                        member.reloading = false;
                        member.report.reload_error = Some(outcome.to_string());
                        out.push(Action::Say(Notice::Reloaded { daemon, outcome: outcome.clone() }));
                        self.settle(daemon, flight.tickets, &outcome, out);
                        self.deliver(now, index, out);
                    }
                }
                Phase::Down
                | Phase::Spawning
                | Phase::Starting { .. }
                | Phase::Ending { .. }
                | Phase::Backoff { .. }
                | Phase::Failed => {}
            }
        }
    }

    fn expire_waiters(&mut self, now: Duration, out: &mut Vec<Action>) {
        for mut waiter in self.waiters.extract_if(.., |waiter| waiter.deadline <= now) {
            for member in &mut self.members {
                member.reload.forget(waiter.ticket);
            }
            waiter.close(&Outcome::Unanswered);
            out.push(Action::Answer(waiter.ticket, waiter.outcomes));
        }
    }

    /// Goes on with the stop: the last daemon first, the next when it is gone or has had its time; SIGKILL at the end.
    fn step_stop(&mut self, now: Duration, grace_until: Duration, code: u8, out: &mut Vec<Action>) {
        for member in self.members.iter_mut().rev() {
            let daemon = member.daemon;
            match member.phase {
                Phase::Starting { pid, .. } | Phase::Up { pid, .. } => {
                    let late = now >= grace_until;
                    let kill = if late { Kill::Sent(now) } else { Kill::Due(grace_until) };
                    member.phase = Phase::Ending { pid, since: now, kill, then: Then::Stop };
                    if late {
                        out.push(Action::Kill(daemon));
                    } else {
                        out.push(Action::Terminate(daemon));
                        break;
                    }
                }
                Phase::Ending { since, .. } if now < since + STOP_STEP => break,
                Phase::Spawning => break,
                Phase::Down | Phase::Ending { .. } | Phase::Backoff { .. } | Phase::Failed => {}
            }
        }
        let mut live = self.members.iter().filter(|member| member.is_live()).peekable();
        if live.peek().is_some() {
            if !live.all(|member| member.is_beyond_killing(now)) {
                return;
            }
            out.push(Action::Say(Notice::Abandoned));
        }
        self.stage = Stage::Over;
        out.push(Action::Exit(code));
    }
}
