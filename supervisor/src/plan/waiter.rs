//! Clients that wait for the answer to a reload.

use std::fmt;
use std::time::Duration;

use super::RELOAD_TIMEOUT;
use crate::daemon::Daemon;
use crate::notify::Report;

/// Names one request for a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// How the reload of one daemon ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The new configuration is in force.
    Applied(Report),
    /// The daemon refused it and serves on with the old one.
    Refused(String),
    /// No answer came in time.
    Unanswered,
    /// The daemon does not run, or ended before it answered.
    Gone,
}

impl Outcome {
    pub(super) fn of(report: Report) -> Self {
        match report.reload_error {
            Some(error) => Self::Refused(error),
            None => Self::Applied(report),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied(report) => write!(f, "reloaded{}", super::notice::Generation(report)),
            Self::Refused(error) => f.write_str(error),
            Self::Unanswered => write!(f, "no answer to the reload within {} s", RELOAD_TIMEOUT.as_secs()),
            Self::Gone => f.write_str("not running"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) ticket: Ticket,
    pub(super) deadline: Duration,
    pub(super) open: Vec<Daemon>,
    pub(super) outcomes: Vec<(Daemon, Outcome)>,
}

impl Waiter {
    pub(super) fn new(ticket: Ticket, deadline: Duration) -> Self {
        Self { ticket, deadline, open: Vec::new(), outcomes: Vec::new() }
    }

    pub(super) fn settle(&mut self, daemon: Daemon, outcome: Outcome) {
        if let Some(at) = self.open.iter().position(|other| *other == daemon) {
            self.open.remove(at);
            self.outcomes.push((daemon, outcome));
        }
    }

    pub(super) fn close(&mut self, outcome: &Outcome) {
        for daemon in std::mem::take(&mut self.open) {
            self.outcomes.push((daemon, outcome.clone()));
        }
    }
}
