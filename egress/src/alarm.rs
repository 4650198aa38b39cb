//! Time-outs that are seldom needed, kept in common: a connection says by when it wants to be looked at, and one thread looks at all of
//! them now and then. A timer of the runtime's own would have to be made and taken back for each request, and would have the kernel set one
//! each time that the process waits.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use slab::Slab;

/// How often all are looked at; by so much a time-out may be late.
const STEP: Duration = Duration::from_millis(200);
/// For so many there is room in each part at any time.
const ROOM_KEPT: usize = 64;
/// No time at all.
const NEVER: u64 = u64::MAX;

/// So many locks there are, for tasks that begin at the same time, and for those that begin while all are looked at.
const SHARDS: usize = 16;

static ALARMS: LazyLock<Alarms> = LazyLock::new(Alarms::new);

/// Starts what looks after all alarms; once is enough for the process.
pub(crate) fn start() -> io::Result<()> {
    let mut is_started = ALARMS.is_started.lock().unwrap_or_else(PoisonError::into_inner);
    if !*is_started {
        thread::Builder::new().name("alarms".to_owned()).spawn(|| ALARMS.look_after())?;
        *is_started = true;
    }
    Ok(())
}

/// Wakes every task that has an alarm, to look at what all have in common: new routes, or a stop.
pub(crate) fn ring_all() {
    ALARMS.look(NEVER);
}

/// Returns after `duration`, or a little later.
pub(crate) async fn nap(duration: Duration) {
    let alarm = Alarm::new();
    let until = Instant::now() + duration;
    std::future::poll_fn(|context| {
        alarm.heed(context.waker());
        alarm.poll_until(until)
    })
    .await;
}

/// Wakes one task: at a time, and with all others.
pub(crate) struct Alarm {
    alarms: &'static Alarms,
    bell: Arc<Bell>,
    shard: usize,
    place: usize,
}

impl Alarm {
    /// One that rings for the first time at once.
    pub(crate) fn new() -> Alarm {
        Alarm::among(&ALARMS)
    }

    fn among(alarms: &'static Alarms) -> Alarm {
        let bell = Arc::new(Bell {
            due: AtomicU64::new(NEVER),
            has_rung: AtomicBool::new(true),
            waker: AtomicWaker::new(),
        });
        let shard = alarms.next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let place = alarms.bells(shard).insert(Arc::clone(&bell));
        if alarms.count.fetch_add(1, Ordering::AcqRel) == 0 {
            // With the lock, so that who is about to wait does not miss it.
            drop(alarms.is_started.lock().unwrap_or_else(PoisonError::into_inner));
            alarms.some.notify_one();
        }
        Alarm { alarms, bell, shard, place }
    }

    /// Has `waker` woken from now on; whether it rang since this was last called.
    pub(crate) fn heed(&self, waker: &Waker) -> bool {
        self.bell.waker.register(waker);
        // Most times nothing rang, and a load costs less than a swap.
        self.bell.has_rung.load(Ordering::Acquire) && self.bell.has_rung.swap(false, Ordering::AcqRel)
    }

    /// Wakes the task now.
    pub(crate) fn ring(&self) {
        self.bell.ring();
    }

    /// Ready from `until` on; before that, the task is woken then.
    pub(crate) fn poll_until(&self, until: Instant) -> Poll<()> {
        if until <= Instant::now() {
            return Poll::Ready(());
        }
        // It rings in that millisecond at the earliest, and not before `until`.
        let due = self.alarms.millis(until).saturating_add(1);
        if self.bell.due.load(Ordering::Relaxed) > due {
            self.bell.due.fetch_min(due, Ordering::AcqRel);
        }
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.alarms.bells(self.shard).remove(self.place);
        self.alarms.count.fetch_sub(1, Ordering::AcqRel);
    }
}

struct Bell {
    /// When it rings next, in milliseconds; the earliest of what was asked for since it last rang.
    due: AtomicU64,
    has_rung: AtomicBool,
    waker: AtomicWaker,
}

impl Bell {
    /// Who is woken asks again for what is due later.
    fn ring(&self) {
        self.due.store(NEVER, Ordering::Release);
        self.has_rung.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// All that may ring.
struct Alarms {
    start: Instant,
    bells: [Mutex<Slab<Arc<Bell>>>; SHARDS],
    /// Where the next one goes.
    next: AtomicUsize,
    count: AtomicUsize,
    is_started: Mutex<bool>,
    /// There is one again.
    some: Condvar,
}

impl Alarms {
    fn new() -> Alarms {
        Alarms {
            start: Instant::now(),
            bells: Default::default(),
            next: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            is_started: Mutex::default(),
            some: Condvar::new(),
        }
    }

    fn bells(&self, shard: usize) -> MutexGuard<'_, Slab<Arc<Bell>>> {
        self.bells[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look_after(&self) -> ! {
        loop {
            let waiting = self.is_started.lock().unwrap_or_else(PoisonError::into_inner);
            let none = |_: &mut bool| self.count.load(Ordering::Acquire) == 0;
            let waiting = self.some.wait_while(waiting, none).unwrap_or_else(PoisonError::into_inner);
            drop(self.some.wait_timeout(waiting, STEP));
            self.look(self.millis(Instant::now()));
        }
    }

    /// From when there were alarms.
    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_millis()).unwrap_or(NEVER)
    }

    /// Rings what is due.
    fn look(&self, now: u64) {
        for shard in 0..SHARDS {
            let mut bells = self.bells(shard);
            // What is vacant is walked over too.
            if bells.capacity() > ROOM_KEPT && bells.len() < bells.capacity() / 4 {
                bells.shrink_to_fit();
            }
            bells
                .iter()
                .filter(|(_, bell)| bell.due.load(Ordering::Acquire) <= now)
                .for_each(|(_, bell)| bell.ring());
        }
    }
}

/// How hyper tells the time of one connection whose task heeds an alarm.
#[derive(Clone)]
pub(crate) struct Timer(pub(crate) Arc<Alarm>);

impl hyper::rt::Timer for Timer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, until: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep { alarm: Arc::clone(&self.0), until })
    }
}

struct Sleep {
    alarm: Arc<Alarm>,
    until: Instant,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        self.alarm.poll_until(self.until)
    }
}

impl hyper::rt::Sleep for Sleep {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::tests::Wakes;

    const HOUR: Duration = Duration::from_secs(3600);

    /// That no other test rings.
    fn own() -> &'static Alarms {
        Box::leak(Box::new(Alarms::new()))
    }

    #[test]
    fn it_rings_when_it_is_due_and_then_no_more() {
        let wakes = Arc::new(Wakes::default());
        let alarms = own();
        let (alarm, waker) = (Alarm::among(alarms), Waker::from(Arc::clone(&wakes)));
        assert!(alarm.heed(&waker), "the first time is now");
        let until = Instant::now() + HOUR;
        assert!(alarm.poll_until(until + HOUR).is_pending());
        assert!(alarm.poll_until(until).is_pending());
        alarms.look(alarms.millis(until));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        alarms.look(alarms.millis(until) + 1);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(alarm.heed(&waker));
        assert!(!alarm.heed(&waker));
        alarms.look(alarms.millis(until) + 1);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "nothing was asked for since");
    }

    #[test]
    fn the_earliest_counts() {
        let alarms = own();
        let alarm = Alarm::among(alarms);
        let until = Instant::now() + HOUR;
        for at in [until + HOUR, until, until + 2 * HOUR] {
            assert!(alarm.poll_until(at).is_pending());
        }
        assert_eq!(alarm.bell.due.load(Ordering::Relaxed), alarms.millis(until) + 1);
        assert!(alarm.poll_until(Instant::now()).is_ready());
    }

    #[test]
    fn what_many_left_behind_is_not_walked_over_for_good() {
        let alarms = own();
        let many: Vec<Alarm> = (0..SHARDS * 4 * ROOM_KEPT).map(|_| Alarm::among(alarms)).collect();
        assert!(alarms.bells(0).capacity() > ROOM_KEPT);
        drop(many);
        alarms.look(0);
        assert!(alarms.bells(0).capacity() <= ROOM_KEPT);
    }

    #[tokio::test]
    async fn a_nap_ends() {
        start().expect("a thread can be started");
        let before = Instant::now();
        nap(Duration::from_millis(1)).await;
        assert!(before.elapsed() >= Duration::from_millis(1));
    }
}
