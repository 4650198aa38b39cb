//! One daemon as the plan sees it.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::{
    ABANDON_AFTER, ALIVE_TIMEOUT, BACKOFF_BASE, BACKOFF_CAP, FAILURE_BUDGET, FAILURE_WINDOW, Role,
    START_TIMEOUT, STOP_STEP, Ticket,
};
use crate::daemon::Daemon;
use crate::notify::Report;

/// How a process ended, or why there was none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It exited with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// The program never ran.
    NotStarted(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(number) => write!(f, "signal {number}"),
            Self::NotStarted(reason) => write!(f, "not started: {reason}"),
        }
    }
}

/// The word that status shows for a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// Its process is about to run, or runs and is not ready yet.
    Starting,
    /// It serves.
    Ready,
    /// It serves and reads its configuration again.
    Reloading,
    /// It ended and waits for its restart.
    Backoff,
    /// It failed for good.
    Failed,
    /// It was stopped, or is being stopped.
    Stopped,
}

impl State {
    /// The word itself.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Reloading => "reloading",
            Self::Backoff => "backoff",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// A daemon as status shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) daemon: Daemon,
    pub(crate) state: State,
    pub(crate) pid: Option<i32>,
    pub(crate) restarts: u32,
    pub(crate) uptime: Option<Duration>,
    pub(crate) last_exit: Option<Exit>,
    pub(crate) report: Report,
}

impl View {
    /// Whether it takes connections.
    pub(crate) fn is_serving(&self) -> bool {
        match self.state {
            State::Ready | State::Reloading => true,
            State::Starting | State::Backoff | State::Failed | State::Stopped => false,
        }
    }
}

/// What follows when a process that is being ended is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Restart,
    Stop,
    Fail,
}

/// SIGKILL for a process that is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kill {
    /// To be sent at that time.
    Due(Duration),
    /// Sent at that time.
    Sent(Duration),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Down,
    Spawning,
    Starting { pid: i32, since: Duration },
    Up { pid: i32, since: Duration },
    Ending { pid: i32, since: Duration, kill: Kill, then: Then },
    Backoff { until: Duration },
    Failed,
}

/// A SIGHUP that was sent and not answered yet.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) sent: Duration,
    pub(super) deadline: Duration,
    /// `RELOADING=1` of a reload that began after the signal was seen, so that the next `READY=1` is the answer.
    pub(super) begun: bool,
    pub(super) tickets: Vec<Ticket>,
}

#[derive(Debug, Default)]
pub(super) struct Reload {
    /// A SIGHUP is to be sent as soon as the daemon is ready and answers no other.
    pub(super) wanted: bool,
    /// Who waits for that one.
    pub(super) tickets: Vec<Ticket>,
    pub(super) flight: Option<Flight>,
}

impl Reload {
    pub(super) fn forget(&mut self, ticket: Ticket) {
        self.tickets.retain(|other| *other != ticket);
        if let Some(flight) = &mut self.flight {
            flight.tickets.retain(|other| *other != ticket);
        }
    }
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) daemon: Daemon,
    pub(super) role: Role,
    pub(super) phase: Phase,
    pub(super) was_ready: bool,
    pub(super) reloading: bool,
    pub(super) reload: Reload,
    pub(super) report: Report,
    pub(super) failures: VecDeque<Duration>,
    pub(super) last_exit: Option<Exit>,
    /// When its process last gave a sign of life, if it gives any.
    pub(super) last_alive: Option<Duration>,
    spawns: u32,
}

impl Member {
    pub(super) fn new(daemon: Daemon, role: Role) -> Self {
        Self {
            daemon,
            role,
            phase: Phase::Down,
            was_ready: false,
            reloading: false,
            reload: Reload::default(),
            report: Report::default(),
            failures: VecDeque::new(),
            last_exit: None,
            last_alive: None,
            spawns: 0,
        }
    }

    /// Everything that the old process said is void.
    pub(super) fn begin_spawn(&mut self) {
        self.phase = Phase::Spawning;
        self.reloading = false;
        self.last_alive = None;
        self.report = Report::default();
        self.spawns = self.spawns.saturating_add(1);
    }

    pub(super) fn can_reload(&self) -> bool {
        self.daemon.reloads() && self.phase != Phase::Failed
    }

    /// Counts a failure: the longest delay before the next start, or none when the budget is spent.
    pub(super) fn count_failure(&mut self, now: Duration) -> Option<Duration> {
        self.failures.retain(|at| *at + FAILURE_WINDOW > now);
        self.failures.push_back(now);
        let count = self.failures.len();
        let doublings = u32::try_from(count.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
        (count <= FAILURE_BUDGET).then(|| (BACKOFF_BASE * 2_u32.pow(doublings)).min(BACKOFF_CAP))
    }

    /// When its next sign of life is overdue.
    pub(super) fn alive_until(&self) -> Option<Duration> {
        self.last_alive.map(|last| last + ALIVE_TIMEOUT)
    }

    pub(super) fn pid(&self) -> Option<i32> {
        match self.phase {
            Phase::Starting { pid, .. } | Phase::Up { pid, .. } | Phase::Ending { pid, .. } => Some(pid),
            Phase::Down | Phase::Spawning | Phase::Backoff { .. } | Phase::Failed => None,
        }
    }

    /// Whether it has a process, or is about to.
    pub(super) fn is_live(&self) -> bool {
        self.phase == Phase::Spawning || self.pid().is_some()
    }

    /// Whether its process outlived SIGKILL by more than a moment.
    pub(super) fn is_beyond_killing(&self, now: Duration) -> bool {
        matches!(self.phase, Phase::Ending { kill: Kill::Sent(at), .. } if at + ABANDON_AFTER <= now)
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Starting { since, .. } => Some(since + START_TIMEOUT),
            Phase::Up { .. } => {
                let answer = self.reload.flight.as_ref().map(|flight| flight.deadline);
                answer.into_iter().chain(self.alive_until()).min()
            }
            Phase::Ending { kill: Kill::Due(at), .. } => Some(at),
            Phase::Ending { kill: Kill::Sent(_), .. } => None,
            Phase::Backoff { until } => Some(until),
            Phase::Down | Phase::Spawning | Phase::Failed => None,
        }
    }

    /// The times that matter while the bundle stops.
    pub(super) fn stop_deadlines(&self) -> Vec<Duration> {
        match self.phase {
            Phase::Ending { since, kill: Kill::Due(at), .. } => vec![at, since + STOP_STEP],
            Phase::Ending { since, kill: Kill::Sent(at), .. } => vec![at + ABANDON_AFTER, since + STOP_STEP],
            Phase::Down
            | Phase::Spawning
            | Phase::Starting { .. }
            | Phase::Up { .. }
            | Phase::Backoff { .. }
            | Phase::Failed => Vec::new(),
        }
    }

    pub(super) fn view(&self, now: Duration) -> View {
        let (state, since) = match self.phase {
            Phase::Down => (State::Stopped, None),
            Phase::Spawning => (State::Starting, None),
            Phase::Starting { since, .. } => (State::Starting, Some(since)),
            Phase::Up { since, .. } if self.reloading || self.reload.flight.is_some() => {
                (State::Reloading, Some(since))
            }
            Phase::Up { since, .. } => (State::Ready, Some(since)),
            Phase::Ending { then: Then::Restart, .. } => (State::Starting, None),
            Phase::Ending { then: Then::Stop, .. } => (State::Stopped, None),
            Phase::Ending { then: Then::Fail, .. } | Phase::Backoff { .. } => (State::Backoff, None),
            Phase::Failed => (State::Failed, None),
        };
        View {
            daemon: self.daemon,
            state,
            pid: self.pid(),
            restarts: self.spawns.saturating_sub(1),
            uptime: since.map(|since| now.saturating_sub(since)),
            last_exit: self.last_exit.clone(),
            report: self.report.clone(),
        }
    }
}
