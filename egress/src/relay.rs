//! Polls again what its own task made ready, without the way through the scheduler, which wakes another thread for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use tokio::task::coop::has_budget_remaining;

/// How often in a row something is polled before others have their turn.
const ROUNDS: usize = 8;

/// Stands between what is polled and its task.
pub(crate) struct Relay {
    state: Arc<State>,
    waker: Waker,
}

impl Relay {
    pub(crate) fn new() -> Relay {
        let state = Arc::new(State::default());
        Relay { waker: Waker::from(Arc::clone(&state)), state }
    }

    /// Polls, and again for as long as something became ready meanwhile.
    pub(crate) fn poll<T>(
        &self,
        context: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.state.outer.register(context.waker());
        let mut inner = Context::from_waker(&self.waker);
        for _ in 0..ROUNDS {
            self.state.begin();
            let polled = poll(&mut inner);
            let is_over = self.state.end();
            if polled.is_ready() || is_over {
                return polled;
            }
            if !has_budget_remaining() {
                break;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// What became ready so far is looked at by what is polled next, in the same round. Where a task's turn is over, what is polled may have
    /// put itself off: that stays to be looked at.
    pub(crate) fn goes_on(&self) {
        if has_budget_remaining() {
            // What was noted is seen, with what came before it.
            self.state.phase.swap(POLLING, Ordering::AcqRel);
        }
    }

    /// No task polls any more.
    pub(crate) fn rest(&self) {
        drop(self.state.outer.take());
    }
}

/// Wakes the task, except while that task polls: what becomes ready then is seen in the next round.
#[derive(Default)]
struct State {
    phase: AtomicU8,
    outer: AtomicWaker,
}

const RESTING: u8 = 0;
const POLLING: u8 = 1;
const AGAIN: u8 = 2;

impl State {
    fn begin(&self) {
        self.phase.store(POLLING, Ordering::Release);
    }

    /// Whether nothing became ready since [`State::begin`].
    fn end(&self) -> bool {
        self.phase.swap(RESTING, Ordering::AcqRel) == POLLING
    }
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let noted = |phase| (phase != RESTING).then_some(AGAIN);
        if self.phase.fetch_update(Ordering::AcqRel, Ordering::Acquire, noted).is_err() {
            self.outer.wake();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    pub(crate) struct Wakes(pub(crate) AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often a task is polled and woken that makes itself ready so often.
    fn rounds(mut ready: usize) -> (usize, usize) {
        let wakes = Arc::new(Wakes::default());
        let mut polls = 0;
        let polled =
            Relay::new().poll(&mut Context::from_waker(&Waker::from(Arc::clone(&wakes))), |context| {
                polls += 1;
                if ready > 0 {
                    ready -= 1;
                    context.waker().wake_by_ref();
                }
                Poll::<()>::Pending
            });
        assert!(polled.is_pending());
        (polls, wakes.0.load(Ordering::Relaxed))
    }

    #[test]
    fn what_a_task_makes_ready_itself_does_not_wake_it() {
        assert_eq!(rounds(0), (1, 0));
        assert_eq!(rounds(1), (2, 0));
    }

    #[test]
    fn others_have_their_turn() {
        assert_eq!(rounds(usize::MAX), (ROUNDS, 1));
    }

    #[test]
    fn what_becomes_ready_later_wakes_it() {
        let wakes = Arc::new(Wakes::default());
        let relay = Relay::new();
        let mut kept = None;
        let _ = relay.poll(&mut Context::from_waker(&Waker::from(Arc::clone(&wakes))), |context| {
            kept = Some(context.waker().clone());
            Poll::<()>::Pending
        });
        kept.unwrap().wake();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    }
}
