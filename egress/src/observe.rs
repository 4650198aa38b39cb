//! What is kept of requests besides the journal: counts, the latest refusals, and a copy for who watches.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use audit::{Decision, RequestEvent};
use jiff::Timestamp;
use proposal::peer::Refusal;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// How many refusals are remembered.
const REFUSALS_MAX: usize = 1024;
/// How far who watches may fall behind before it misses something.
const BEHIND_MAX: usize = 1024;
/// The upper bounds of the durations that are counted together, in milliseconds.
const BUCKETS: [u64; 10] = [5, 10, 25, 50, 100, 250, 1_000, 5_000, 30_000, 300_000];

/// One request, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// When it ended.
    pub at: Timestamp,
    /// What the journal has of it.
    #[serde(flatten)]
    pub request: RequestEvent,
}

/// How many requests there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Those that went out.
    pub allowed: u64,
    /// Those that did not.
    pub refused: u64,
}

/// What is kept.
#[derive(Debug)]
pub(crate) struct Observer {
    refusals: Mutex<VecDeque<Arc<Seen>>>,
    watchers: broadcast::Sender<Arc<Seen>>,
    allowed: AtomicU64,
    /// By code. Failures of upstream, which were allowed, are here too.
    codes: Mutex<BTreeMap<String, u64>>,
    refused: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    durations: [AtomicU64; BUCKETS.len()],
    millis: AtomicU64,
    reloads: AtomicU64,
    reloads_refused: AtomicU64,
}

impl Observer {
    pub(crate) fn new() -> Arc<Observer> {
        Arc::new(Observer {
            refusals: Mutex::default(),
            watchers: broadcast::Sender::new(BEHIND_MAX),
            allowed: AtomicU64::new(0),
            codes: Mutex::default(),
            refused: AtomicU64::new(0),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            durations: Default::default(),
            millis: AtomicU64::new(0),
            reloads: AtomicU64::new(0),
            reloads_refused: AtomicU64::new(0),
        })
    }

    /// Notes a request that ended.
    pub(crate) fn request(&self, event: &RequestEvent) {
        let add = |count: &AtomicU64, amount| count.fetch_add(amount, Ordering::Relaxed);
        let refused = event.decision == Decision::Deny;
        add(if refused { &self.refused } else { &self.allowed }, 1);
        add(&self.bytes_up, event.bytes_up);
        add(&self.bytes_down, event.bytes_down);
        add(&self.millis, event.millis);
        if let Some(bucket) = BUCKETS.iter().position(|most| event.millis <= *most) {
            add(&self.durations[bucket], 1);
        }
        if let Some(code) = &event.code {
            let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
            match codes.get_mut(code) {
                Some(count) => *count += 1,
                None => drop(codes.insert(code.clone(), 1)),
            }
        }
        let watched = self.watchers.receiver_count() > 0;
        if !watched && event.block_id.is_none() {
            return;
        }
        let seen = Arc::new(Seen { at: Timestamp::now(), request: event.clone() });
        if event.block_id.is_some() {
            let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            if refusals.len() == REFUSALS_MAX {
                refusals.pop_front();
            }
            refusals.push_back(Arc::clone(&seen));
        }
        // No one watches any more: nothing is lost.
        let _ = self.watchers.send(seen);
    }

    /// Notes a reload.
    pub(crate) fn reload(&self, refused: bool) {
        let count = if refused { &self.reloads_refused } else { &self.reloads };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// The latest refusals, oldest first.
    pub(crate) fn refusals(&self) -> Vec<Arc<Seen>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Every request that ends from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Arc<Seen>> {
        self.watchers.subscribe()
    }

    /// The refusal that the agent was told under this name, if it is still known.
    pub(crate) fn refusal(&self, block_id: &str) -> Option<Refusal> {
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |seen: &&Arc<Seen>| seen.request.block_id.as_deref() == Some(block_id);
        let seen = refusals.iter().rev().find(named)?;
        let request = &seen.request;
        Some(Refusal {
            block_id: block_id.to_owned(),
            code: request.code.clone().unwrap_or_default(),
            at: seen.at,
            scheme: request.scheme.to_string(),
            host: request.host.clone(),
            port: request.port,
            method: request.method.clone(),
            path: request.path.clone(),
        })
    }

    pub(crate) fn totals(&self) -> Totals {
        Totals {
            allowed: self.allowed.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// The counts in the text form of Prometheus.
    pub(crate) fn metrics(&self, text: &mut String) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Totals { allowed, refused } = self.totals();
        family(text, "requests_total", "counter", "Requests that ended, by decision.");
        sample(text, "requests_total", "{decision=\"allow\"}", allowed);
        sample(text, "requests_total", "{decision=\"deny\"}", refused);
        family(text, "answers_by_code_total", "counter", "Refusals and failures, by code.");
        for (code, count) in self.codes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            sample(text, "answers_by_code_total", &format!("{{code=\"{code}\"}}"), *count);
        }
        family(text, "body_bytes_total", "counter", "Bytes of bodies and streams, by direction.");
        sample(text, "body_bytes_total", "{direction=\"up\"}", get(&self.bytes_up));
        sample(text, "body_bytes_total", "{direction=\"down\"}", get(&self.bytes_down));
        let name = "request_duration_seconds";
        family(text, name, "histogram", "From the head of a request to the end of its answer.");
        let mut below = 0;
        for (most, count) in BUCKETS.iter().zip(&self.durations) {
            below += get(count);
            let labels = format!("{{le=\"{}.{:03}\"}}", most / 1_000, most % 1_000);
            sample(text, "request_duration_seconds_bucket", &labels, below);
        }
        let all = (allowed + refused).max(below);
        sample(text, "request_duration_seconds_bucket", "{le=\"+Inf\"}", all);
        let millis = get(&self.millis);
        let _ =
            writeln!(text, "{PREFIX}request_duration_seconds_sum {}.{:03}", millis / 1_000, millis % 1_000);
        sample(text, "request_duration_seconds_count", "", all);
        family(
            text,
            "reloads_total",
            "counter",
            "Sets of routes that were read after the first, by outcome.",
        );
        sample(text, "reloads_total", "{outcome=\"in_force\"}", get(&self.reloads));
        sample(text, "reloads_total", "{outcome=\"refused\"}", get(&self.reloads_refused));
    }
}

const PREFIX: &str = "bottlecap_egress_";

/// What a family of metrics is.
pub(crate) fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(text, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n");
}

/// One line of a family; `labels` in braces, or nothing.
pub(crate) fn sample(text: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(text, "{PREFIX}{name}{labels} {value}");
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn event(code: Option<&str>) -> RequestEvent {
        RequestEvent {
            decision: if code.is_some() { Decision::Deny } else { Decision::Allow },
            code: code.map(str::to_owned),
            block_id: code.map(|code| format!("id-{code}")),
            host: "api.example.com".to_owned(),
            port: 443,
            scheme: "https".into(),
            method: "GET".to_owned(),
            path: "/v1".to_owned(),
            route: Some("routes[0]".to_owned()),
            grant: None,
            generation: 1,
            digest: "sha256:ab".into(),
            status: Some(200),
            bytes_up: 1,
            bytes_down: 2,
            millis: 7,
            answered_millis: Some(5),
            late: false,
            sent: false,
        }
    }

    #[test]
    fn a_refusal_is_known_by_its_name_until_newer_ones_take_its_place() {
        let observer = Observer::new();
        observer.request(&event(None));
        observer.request(&event(Some("host-not-allowed")));
        let refusal = observer.refusal("id-host-not-allowed").map(|refusal| (refusal.code, refusal.path));
        assert_eq!(refusal, Some(("host-not-allowed".to_owned(), "/v1".to_owned())));
        assert_eq!(observer.refusal("other"), None);
        for _ in 0..REFUSALS_MAX {
            observer.request(&event(Some("path-not-allowed")));
        }
        assert_eq!(observer.refusal("id-host-not-allowed"), None);
        assert_eq!(observer.refusals().len(), REFUSALS_MAX);
    }

    #[test]
    fn the_counts_are_told_in_the_form_of_prometheus() {
        let observer = Observer::new();
        observer.request(&event(None));
        observer.request(&event(Some("rate-limit")));
        observer.reload(true);
        let mut text = String::new();
        observer.metrics(&mut text);
        for line in [
            "bottlecap_egress_requests_total{decision=\"allow\"} 1",
            "bottlecap_egress_requests_total{decision=\"deny\"} 1",
            "bottlecap_egress_answers_by_code_total{code=\"rate-limit\"} 1",
            "bottlecap_egress_body_bytes_total{direction=\"down\"} 4",
            "bottlecap_egress_request_duration_seconds_bucket{le=\"0.005\"} 0",
            "bottlecap_egress_request_duration_seconds_bucket{le=\"0.010\"} 2",
            "bottlecap_egress_request_duration_seconds_sum 0.014",
            "bottlecap_egress_reloads_total{outcome=\"refused\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
