//! The time by which requests and grants end: a wall clock that is set back extends nothing.

use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// The later of what the wall clock says and of what it said at the start plus the time since then, suspension included.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Timestamp,
    booted: Duration,
}

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Clock {
        Clock { start: Timestamp::now(), booted: since_boot() }
    }

    /// What it says.
    pub(crate) fn now(&self) -> Timestamp {
        later_of(Timestamp::now(), self.start, since_boot().saturating_sub(self.booted))
    }
}

fn later_of(wall: Timestamp, start: Timestamp, elapsed: Duration) -> Timestamp {
    start.checked_add(elapsed).map_or(wall, |counted| counted.max(wall))
}

fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_that_is_set_back_does_not_give_time_back() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let (start, hour) = (at("2026-11-21T10:00:00Z"), Duration::from_secs(3600));
        assert_eq!(later_of(at("2026-11-21T09:00:00Z"), start, hour), at("2026-11-21T11:00:00Z"));
        assert_eq!(later_of(at("2026-11-21T12:00:00Z"), start, hour), at("2026-11-21T12:00:00Z"));
    }
}
