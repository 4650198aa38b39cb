//! Attempts side by side, of which the first that succeeds wins.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::time::{Instant, sleep};

/// How many attempts run at the same time: each holds a socket.
pub(crate) const AT_ONCE: usize = 2;
/// An attempt is given this long before the next is made beside it (RFC 8305, 5).
const DELAY: Duration = Duration::from_millis(250);
/// However many there are, an attempt is not made sooner than this after the one before (RFC 8305, 5).
const SHORTEST_TURN: Duration = Duration::from_millis(100);

/// What the first success among `attempts` gives, or the last failure. The next is made when one fails, and else when its turn comes; if
/// as many as may be run then, the oldest is given up: it had twice the time of a turn, and the one after it may still succeed.
pub(super) async fn race<F, T, E>(
    attempts: impl IntoIterator<Item = F, IntoIter: ExactSizeIterator>,
    deadline: Instant,
) -> Result<T, Option<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut left = attempts.into_iter();
    let mut running = VecDeque::with_capacity(AT_ONCE);
    let mut failure = None;
    loop {
        if let Some(next) = left.next() {
            if running.len() == AT_ONCE {
                running.pop_front();
            }
            running.push_back(Box::pin(next));
        }
        if running.is_empty() {
            return Err(failure);
        }
        let pause = (left.len() > 0).then(|| pause(running.len(), left.len(), deadline));
        let turn = async {
            match pause {
                Some(pause) => sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        let ended = async {
            let (outcome, place, _) = select_all(&mut running).await;
            (outcome, place)
        };
        tokio::select! {
            biased;
            (outcome, place) = ended => match outcome {
                Ok(success) => return Ok(success),
                Err(error) => {
                    failure = Some(error);
                    running.remove(place);
                }
            },
            () = turn => {}
        }
    }
}

/// The families by turns, beginning with that of the first address, each in its order.
pub(super) fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (mut one, mut other) = (
        addresses.iter().filter(|a| a.is_ipv4() == first),
        addresses.iter().filter(|a| a.is_ipv4() != first),
    );
    let mut order = Vec::with_capacity(addresses.len());
    loop {
        match (one.next(), other.next()) {
            (None, None) => return order,
            (a, b) => order.extend(a.into_iter().chain(b)),
        }
    }
}

/// How long until the next attempt is made: a fair share of the time that is left, so that each of them has its turn if it is long enough
/// for that. Where nothing has to be given up for it, there is no need to wait for so long.
fn pause(running: usize, left: usize, deadline: Instant) -> Duration {
    let turns = u32::try_from(left).unwrap_or(u32::MAX).saturating_add(1);
    let share = (deadline.saturating_duration_since(Instant::now()) / turns).max(SHORTEST_TURN);
    if running < AT_ONCE { share.min(DELAY) } else { share }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use tokio::time::timeout_at;

    use super::*;

    /// What was begun, and how many at most ran at the same time.
    #[derive(Default)]
    struct Track(Mutex<(Vec<usize>, usize, usize)>);

    struct Running<'t>(&'t Track);

    impl Track {
        fn begin(&self, number: usize) -> Running<'_> {
            let mut track = self.0.lock().unwrap();
            track.0.push(number);
            track.1 += 1;
            track.2 = track.2.max(track.1);
            Running(self)
        }

        fn begun_and_most(&self) -> (Vec<usize>, usize) {
            let track = self.0.lock().unwrap();
            (track.0.clone(), track.2)
        }
    }

    impl Drop for Running<'_> {
        fn drop(&mut self) {
            self.0.0.lock().unwrap().1 -= 1;
        }
    }

    #[tokio::test]
    async fn of_many_silent_ones_each_has_its_turn_and_two_run_at_once() {
        let track = Track::default();
        let deadline = Instant::now() + Duration::from_millis(1500);
        let attempts = (0..8).map(|number| {
            let track = &track;
            async move {
                let _running = track.begin(number);
                std::future::pending::<Result<(), ()>>().await
            }
        });
        assert!(timeout_at(deadline, race(attempts, deadline)).await.is_err());
        assert_eq!(track.begun_and_most(), ((0..8).collect(), AT_ONCE));
    }

    #[tokio::test]
    async fn a_failure_is_followed_at_once_and_the_last_is_told() {
        let deadline = Instant::now() + Duration::from_secs(1000);
        let failing = (0..9).map(|number| async move { Err::<(), _>(number) });
        assert_eq!(race(failing, deadline).await, Err(Some(8)));
        let none = std::iter::empty::<std::future::Ready<Result<(), ()>>>();
        assert_eq!(race(none.collect::<Vec<_>>(), deadline).await, Err(None));
        let mixed = (0..9).map(|number| async move { if number == 4 { Ok(number) } else { Err(()) } });
        assert_eq!(race(mixed, deadline).await, Ok(4));
    }

    #[tokio::test]
    async fn turns_are_fair_shares_of_the_time_and_never_too_short() {
        let within = |running, left, seconds| {
            let until = pause(running, left, Instant::now() + Duration::from_secs(seconds));
            // The clock goes on.
            until.as_millis().next_multiple_of(10)
        };
        for (running, left, seconds, wanted) in [
            (1, 1, 10, 250),
            (1, 3, 10, 250),
            (2, 1, 10, 5000),
            (2, 3, 10, 2500),
            (2, 39, 10, 250),
            (1, 79, 10, 130),
            (2, 1000, 10, 100),
            (2, 1, 0, 100),
        ] {
            assert_eq!(within(running, left, seconds), wanted, "{running} {left} {seconds}");
        }
    }

    #[test]
    fn the_families_take_turns() {
        let parse =
            |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let resolved = parse(&["[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::3]:1", "192.0.2.1:1"]);
        let order = parse(&["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "[2001:db8::3]:1"]);
        assert_eq!(interleaved(&resolved), order);
    }
}
