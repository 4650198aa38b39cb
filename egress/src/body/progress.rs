//! How far a request's body has come, and what kept it from its end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::limits::Held;

/// How far a request's body has come.
#[derive(Debug)]
pub(crate) struct Progress {
    start: Instant,
    bytes: AtomicU64,
    last_millis: AtomicU64,
    pub(super) too_large: AtomicBool,
    pub(super) broke_off: AtomicBool,
    pub(super) ended: AtomicBool,
    held: OnceLock<Held>,
}

impl Progress {
    pub(crate) fn new() -> Arc<Progress> {
        Arc::new(Progress {
            start: Instant::now(),
            bytes: AtomicU64::new(0),
            last_millis: AtomicU64::new(0),
            too_large: AtomicBool::new(false),
            broke_off: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            held: OnceLock::new(),
        })
    }

    /// Keeps the request's place among those that its route takes at once, until the body and the answer are both over: an upload goes on
    /// when its answer has come early.
    pub(crate) fn hold(&self, held: Option<Held>) {
        if let Some(held) = held {
            let _ = self.held.set(held);
        }
    }

    /// Whether the body was cut because it is larger than it may be.
    pub(crate) fn is_too_large(&self) -> bool {
        self.too_large.load(Ordering::Relaxed)
    }

    /// Whether the client did not send the body as it said.
    pub(crate) fn is_broken_off(&self) -> bool {
        self.broke_off.load(Ordering::Relaxed)
    }

    /// Whether the body was cut because it took too long, or was no longer allowed.
    pub(super) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Notes that `bytes` went through now.
    pub(crate) fn note(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(millis, Ordering::Relaxed);
    }

    /// From when on nothing will have moved for `idle`, if nothing does.
    pub(crate) fn stalls_at(&self, idle: Duration) -> Instant {
        self.start + Duration::from_millis(self.last_millis.load(Ordering::Relaxed)) + idle
    }

    /// Whether nothing has moved for `idle`.
    pub(crate) fn is_stalled(&self, idle: Duration) -> bool {
        self.stalls_at(idle) <= Instant::now()
    }

    /// Returns when nothing has moved for `idle`.
    pub(crate) async fn stalled(&self, idle: Duration) {
        while !self.is_stalled(idle) {
            sleep_until(self.stalls_at(idle)).await;
        }
    }
}
