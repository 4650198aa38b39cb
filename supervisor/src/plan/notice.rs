//! What the plan says in the log.

use std::fmt;
use std::time::Duration;

use super::{ALIVE_TIMEOUT, Exit, Outcome, Role, START_TIMEOUT, STOP_GRACE, StopCause};
use crate::daemon::Daemon;
use crate::notify::Report;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// The state changed.
    Info,
    /// Something is refused or degraded.
    Warn,
    /// Someone must act.
    Error,
}

impl Level {
    /// The word for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// One fact about the life of the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    Started { daemon: Daemon, pid: i32 },
    Ready { daemon: Daemon, report: Report },
    AllReady { after: Duration, without: Vec<Daemon> },
    NotReady { daemon: Daemon },
    Hangs { daemon: Daemon },
    Ended { daemon: Daemon, exit: Exit, asked: bool },
    Retry { daemon: Daemon, delay: Duration },
    GaveUp { daemon: Daemon, role: Role },
    HeldReload { daemon: Daemon },
    Reloaded { daemon: Daemon, outcome: Outcome },
    Stopping { cause: StopCause },
    Killing { daemon: Daemon },
    Abandoned,
}

impl Notice {
    /// How much it matters.
    pub(crate) fn level(&self) -> Level {
        match self {
            Self::Started { .. }
            | Self::Ready { .. }
            | Self::AllReady { .. }
            | Self::HeldReload { .. }
            | Self::Stopping { .. }
            | Self::Ended { asked: true, .. }
            | Self::Reloaded { outcome: Outcome::Applied(_), .. } => Level::Info,
            Self::NotReady { .. }
            | Self::Hangs { .. }
            | Self::Ended { asked: false, .. }
            | Self::Retry { .. }
            | Self::Killing { .. }
            | Self::Reloaded { outcome: Outcome::Refused(_) | Outcome::Unanswered | Outcome::Gone, .. } => {
                Level::Warn
            }
            Self::GaveUp { .. } | Self::Abandoned => Level::Error,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { daemon, pid } => write!(f, "{daemon} started, pid {pid}"),
            Self::Ready { daemon, report } => write!(f, "{daemon} is ready{}", Generation(report)),
            Self::AllReady { after, without } if without.is_empty() => {
                write!(f, "all daemons are ready after {} ms", after.as_millis())
            }
            Self::AllReady { after: _, without } => {
                let names: Vec<&str> = without.iter().map(|daemon| daemon.name()).collect();
                write!(f, "all daemons but {} are ready", names.join(" and "))
            }
            Self::NotReady { daemon } => {
                write!(f, "{daemon} was not ready within {} s", START_TIMEOUT.as_secs())
            }
            Self::Hangs { daemon } => {
                write!(f, "{daemon} gave no sign of life for {} s, killing it", ALIVE_TIMEOUT.as_secs())
            }
            Self::Ended { daemon, exit, asked: _ } => write!(f, "{daemon} ended: {exit}"),
            Self::Retry { daemon, delay } => {
                write!(f, "{daemon} will be restarted in {} ms", delay.as_millis())
            }
            Self::GaveUp { daemon, role: Role::Essential } => {
                write!(f, "{daemon} failed for good, the bundle stops")
            }
            // It may be too many failures, or the first refusal of its configuration.
            Self::GaveUp { daemon, role: Role::Optional } => {
                write!(f, "{daemon} failed for good and stays down")
            }
            Self::HeldReload { daemon } => write!(f, "{daemon} is not ready: the reload waits"),
            Self::Reloaded { daemon, outcome: outcome @ Outcome::Applied(_) } => {
                write!(f, "{daemon} {outcome}")
            }
            Self::Reloaded { daemon, outcome } => {
                write!(f, "{daemon} keeps its old configuration: {outcome}")
            }
            Self::Stopping { cause: StopCause::Signal(number) } => write!(f, "stopping (signal {number})"),
            Self::Stopping { cause: StopCause::Request } => f.write_str("stopping (asked to)"),
            Self::Killing { daemon } => {
                write!(f, "{daemon} did not stop within {} s, killing it", STOP_GRACE.as_secs())
            }
            Self::Abandoned => f.write_str("a daemon cannot be killed, leaving it behind"),
        }
    }
}

/// `, generation 3, sha256:…` of a report that has them.
pub(super) struct Generation<'a>(pub(super) &'a Report);

impl fmt::Display for Generation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(generation) = self.0.generation {
            write!(f, ", generation {generation}")?;
        }
        if let Some(digest) = &self.0.digest {
            write!(f, ", {digest}")?;
        }
        Ok(())
    }
}
