//! How fast an agent may ask.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Requests in a row before the agent has to slow down.
const BURST: u32 = 3;
/// One more after each of these: six a minute.
const REFILL: SignedDuration = SignedDuration::from_secs(10);

/// A token bucket. Time is an argument.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace {
    /// When the bucket will be full again.
    full_at: Option<Timestamp>,
}

impl Pace {
    /// Takes one token, or says how long to wait for it.
    pub(crate) fn take(&mut self, now: Timestamp) -> Result<(), Duration> {
        let full = REFILL * i32::try_from(BURST).unwrap_or(i32::MAX);
        // A clock that was set back must not lock the agent out for longer than an empty bucket takes.
        let missing = self
            .full_at
            .map_or(SignedDuration::ZERO, |at| at.duration_since(now))
            .clamp(SignedDuration::ZERO, full);
        let after = missing + REFILL;
        if after > full {
            return Err((after - full).unsigned_abs());
        }
        self.full_at = now.checked_add(after).ok();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_at_once_then_one_each_ten_seconds() {
        let mut pace = Pace::default();
        let start = Timestamp::UNIX_EPOCH;
        let at = |seconds| start + SignedDuration::from_secs(seconds);
        assert_eq!([0, 0, 0].map(|t| pace.take(at(t))), [Ok(()), Ok(()), Ok(())]);
        assert_eq!(pace.take(at(0)), Err(Duration::from_secs(10)));
        assert_eq!(pace.take(at(4)), Err(Duration::from_secs(6)));
        assert_eq!(pace.take(at(10)), Ok(()));
        assert_eq!(pace.take(at(10)), Err(Duration::from_secs(10)));
        assert_eq!([100, 100, 100].map(|t| pace.take(at(t))), [Ok(()), Ok(()), Ok(())]);
    }

    #[test]
    fn a_clock_set_back_does_not_lock_the_agent_out() {
        let mut pace = Pace::default();
        let later = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1);
        assert_eq!(pace.take(later), Ok(()));
        assert_eq!(pace.take(Timestamp::UNIX_EPOCH), Err(Duration::from_secs(10)));
    }
}
