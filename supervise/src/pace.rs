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

/// So many rejections in a row are taken without a pause.
const REJECTIONS: u32 = 3;
/// The first pause; each further rejection doubles it.
const PAUSE: SignedDuration = SignedDuration::from_mins(1);
const PAUSE_MAX: SignedDuration = SignedDuration::from_mins(15);

/// How long an agent that was told no `times` times in a row, `last` for the last time, has still to wait.
pub(crate) fn cool_down(times: u32, last: Timestamp, now: Timestamp) -> Option<Duration> {
    let over = times.checked_sub(REJECTIONS)?;
    let pause = PAUSE.checked_mul(1 << over.min(8)).unwrap_or(PAUSE_MAX).min(PAUSE_MAX);
    let left = pause - now.duration_since(last).max(SignedDuration::ZERO);
    (left > SignedDuration::ZERO).then(|| left.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_three_rejections_in_a_row_each_further_one_doubles_the_pause() {
        let last = Timestamp::UNIX_EPOCH;
        let after = |times, minutes| cool_down(times, last, last + SignedDuration::from_mins(minutes));
        let mins = |minutes: u64| Some(Duration::from_secs(minutes * 60));
        assert_eq!([0, 1, 2].map(|times| after(times, 0)), [None; 3]);
        assert_eq!([3, 4, 5, 6].map(|times| after(times, 0)), [mins(1), mins(2), mins(4), mins(8)]);
        assert_eq!([7, 40, u32::MAX].map(|times| after(times, 0)), [mins(15); 3]);
        assert_eq!((after(4, 1), after(4, 2)), (mins(1), None));
    }

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
