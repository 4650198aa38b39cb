//! Waits that differ a little, so that what fell together does not come back in step.

use std::time::Duration;

/// Numbers that look random and follow from a seed (splitmix64).
#[derive(Debug)]
pub(super) struct Jitter(pub(super) u64);

impl Jitter {
    /// Between three quarters of the wait and all of it.
    pub(super) fn shorten(&mut self, longest: Duration) -> Duration {
        let quarter = u64::try_from(longest.as_micros() / 4).unwrap_or(u64::MAX);
        longest.saturating_sub(Duration::from_micros(self.next() % (quarter + 1)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_keeps_three_quarters_and_two_bundles_differ() {
        let waits = |seed| {
            let mut jitter = Jitter(seed);
            [(); 100].map(|()| jitter.shorten(Duration::from_millis(400)).as_micros())
        };
        assert!(waits(1).iter().all(|wait| (300_000..=400_000).contains(wait)));
        assert_ne!(waits(1), waits(2));
    }
}
