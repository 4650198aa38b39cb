//! How much a route does right now, held against its bounds. What is taken is given back when it is dropped.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use policy::{Host, RouteLimits};

use crate::refusal::{Code, Refusal};

const MINUTE: Duration = Duration::from_secs(60);
/// What a client is told to wait where it cannot be known when there is room again.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// The counts of one route; they outlive a reload that leaves the route's upstream as it is.
#[derive(Debug)]
pub(crate) struct Gauge {
    bucket: Mutex<Bucket>,
    requests: AtomicU32,
    connections: AtomicU32,
    /// 0 for no bound.
    connections_max: AtomicU32,
    /// The bounds of the hosts for which they were raised.
    raised: Mutex<HashMap<Host, NonZeroU32>>,
}

/// What is left of a minute's worth of requests.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// How much of it is spent, as time: a request costs its part of a minute, and time passing pays it back.
    spent: Duration,
    at: Instant,
}

/// The counts of one route, to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// Requests in flight.
    pub(crate) requests: u32,
    /// Connections to upstream.
    pub(crate) connections: u32,
}

/// One request in flight, or one connection to upstream.
#[derive(Debug)]
pub(crate) struct Held {
    gauge: Arc<Gauge>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Request,
    Connection,
}

/// The route has all the connections that it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the route has as many connections as it may have")]
pub struct TooManyConnections;

impl Bucket {
    /// Takes one of `per_minute`; or says how long until there is one.
    fn take(&mut self, per_minute: NonZeroU32, now: Instant) -> Result<(), Duration> {
        let cost = MINUTE / per_minute.get();
        let spent = self.spent.saturating_sub(now.saturating_duration_since(self.at));
        (self.spent, self.at) = (spent, now);
        if spent + cost > MINUTE {
            return Err(spent + cost - MINUTE);
        }
        self.spent += cost;
        Ok(())
    }
}

impl Gauge {
    pub(crate) fn new() -> Arc<Gauge> {
        Arc::new(Gauge {
            bucket: Mutex::new(Bucket { spent: Duration::ZERO, at: Instant::now() }),
            requests: AtomicU32::new(0),
            connections: AtomicU32::new(0),
            connections_max: AtomicU32::new(0),
            raised: Mutex::default(),
        })
    }

    /// Puts the route's bound of connections in force, for the next one.
    pub(crate) fn bound(&self, limits: &RouteLimits) {
        self.connections_max.store(limits.connections.map_or(0, NonZeroU32::get), Ordering::Relaxed);
    }

    /// Puts the bound of connections to `host` in force, where that may be another than the route's.
    pub(crate) fn bound_for(&self, host: &Host, limits: &RouteLimits) {
        let Some(most) = limits.connections else { return };
        let mut raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner);
        if most.get() == self.connections_max.load(Ordering::Relaxed) {
            raised.remove(host);
        } else {
            raised.insert(host.clone(), most);
        }
    }

    /// Counts a request, or refuses it.
    pub(crate) fn request(self: &Arc<Self>, limits: &RouteLimits, now: Instant) -> Result<Held, Refusal> {
        let most = limits.concurrency.map_or(u32::MAX, NonZeroU32::get);
        let Some(held) = self.hold(&self.requests, most, Kind::Request) else {
            let hint = format!("this route answers at most {most} requests at once: wait for one to end");
            return Err(Refusal::new(Code::ConcurrencyLimit, hint).retry_after(RETRY));
        };
        if let Some(per_minute) = limits.requests_per_minute {
            let taken = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(per_minute, now);
            if let Err(wait) = taken {
                let hint = format!("this route allows {per_minute} requests a minute: wait");
                return Err(Refusal::new(Code::RateLimit, hint).retry_after(wait));
            }
        }
        Ok(held)
    }

    /// Counts a connection to `host`, or refuses it.
    pub(crate) fn connection(self: &Arc<Self>, host: &Host) -> Result<Held, TooManyConnections> {
        let raised = self.raised.lock().unwrap_or_else(PoisonError::into_inner).get(host).copied();
        let most = match self.connections_max.load(Ordering::Relaxed) {
            0 => u32::MAX,
            most => raised.map_or(most, NonZeroU32::get),
        };
        self.hold(&self.connections, most, Kind::Connection).ok_or(TooManyConnections)
    }

    pub(crate) fn read(&self) -> Reading {
        Reading {
            requests: self.requests.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
        }
    }

    fn hold(self: &Arc<Self>, count: &AtomicU32, most: u32, kind: Kind) -> Option<Held> {
        let one_more = |count: u32| (count < most).then(|| count + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Held { gauge: Arc::clone(self), kind })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let count = match self.kind {
            Kind::Request => &self.gauge.requests,
            Kind::Connection => &self.gauge.connections,
        };
        count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl From<TooManyConnections> for Refusal {
    fn from(error: TooManyConnections) -> Refusal {
        Refusal::new(Code::ConnectionLimit, error.to_string()).retry_after(RETRY)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn limits(per_minute: Option<u32>, concurrency: Option<u32>) -> RouteLimits {
        RouteLimits {
            requests_per_minute: per_minute.map(|number| number.try_into().unwrap()),
            concurrency: concurrency.map(|number| number.try_into().unwrap()),
            ..RouteLimits::default()
        }
    }

    #[test]
    fn a_minutes_worth_may_come_at_once_and_is_made_good_evenly() {
        let gauge = Gauge::new();
        let limits = limits(Some(3), None);
        let start = Instant::now();
        for _ in 0..3 {
            gauge.request(&limits, start).unwrap();
        }
        let refusal = gauge.request(&limits, start).unwrap_err();
        assert_eq!((refusal.code, refusal.retry_after), (Code::RateLimit, Some(20)));
        let refusal = gauge.request(&limits, start + Duration::from_millis(19_001)).unwrap_err();
        assert_eq!(refusal.retry_after, Some(1));
        gauge.request(&limits, start + Duration::from_secs(20)).unwrap();
        gauge.request(&limits, start + Duration::from_secs(20)).unwrap_err();
        gauge.request(&limits, start + Duration::from_secs(40)).unwrap();
    }

    #[test]
    fn a_refused_request_holds_nothing() {
        let gauge = Gauge::new();
        let limits = limits(Some(1), Some(2));
        let start = Instant::now();
        let held = gauge.request(&limits, start).unwrap();
        gauge.request(&limits, start).unwrap_err();
        assert_eq!(gauge.read().requests, 1);
        drop(held);
        assert_eq!(gauge.read().requests, 0);
    }

    #[test]
    fn a_place_is_free_again_when_what_held_it_ends() {
        let gauge = Gauge::new();
        let limits = limits(None, Some(1));
        let held = gauge.request(&limits, Instant::now()).unwrap();
        assert_eq!(gauge.request(&limits, Instant::now()).unwrap_err().code, Code::ConcurrencyLimit);
        drop(held);
        gauge.request(&limits, Instant::now()).unwrap();

        gauge.bound(&RouteLimits { connections: Some(1.try_into().unwrap()), ..RouteLimits::default() });
        let host = Host::parse("a.test").unwrap();
        let held = gauge.connection(&host).unwrap();
        assert_eq!(gauge.connection(&host).unwrap_err(), TooManyConnections);
        drop(held);
        gauge.connection(&host).unwrap();
    }

    #[test]
    fn what_is_raised_for_one_host_of_a_route_is_not_for_the_others() {
        let gauge = Gauge::new();
        let connections =
            |most: u32| RouteLimits { connections: Some(most.try_into().unwrap()), ..RouteLimits::default() };
        gauge.bound(&connections(1));
        let (raised, other) = (Host::parse("a.test").unwrap(), Host::parse("b.test").unwrap());
        gauge.bound_for(&raised, &connections(3));
        gauge.bound_for(&other, &connections(1));
        let _first = gauge.connection(&other).unwrap();
        assert_eq!(gauge.connection(&other).unwrap_err(), TooManyConnections);
        let _second = gauge.connection(&raised).unwrap();
        assert_eq!(gauge.connection(&other).unwrap_err(), TooManyConnections);
        let _third = gauge.connection(&raised).unwrap();
        // Until then.
        gauge.bound_for(&raised, &connections(1));
        assert_eq!(gauge.connection(&raised).unwrap_err(), TooManyConnections);
    }
}
