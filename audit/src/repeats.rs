//! Counting refusals that repeat, so that an agent cannot fill a disk, or bury a record, with them.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::event::{RepeatedEvent, RequestEvent};

/// Over how long is counted.
const WINDOW: SignedDuration = SignedDuration::from_mins(1);
/// So many of the same are recorded one by one.
const SAME: u64 = 20;
/// So many refusals of whatever kind are.
const ALL: u64 = 600;
/// So many kinds are told apart; beyond it only their codes are.
const KINDS: usize = 256;

/// The refusals of the present minute. Time is an argument.
#[derive(Debug, Default)]
pub struct Repeats {
    since: Option<Timestamp>,
    recorded: u64,
    kinds: BTreeMap<Kind, Count>,
}

type Kind = (String, String, String, String);

#[derive(Debug, Default)]
struct Count {
    recorded: u64,
    counted: u64,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
}

impl Count {
    fn add(&mut self, now: Timestamp) {
        self.counted += 1;
        self.first.get_or_insert(now);
        self.last = Some(now);
    }
}

/// What becomes of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is recorded.
    Record,
    /// It is one more of its kind.
    Count,
}

impl Repeats {
    /// What becomes of `event` at `now`. What passed, or may have in part, is always recorded.
    pub fn admit(&mut self, event: &RequestEvent, now: Timestamp) -> Admission {
        if event.went_out() {
            return Admission::Record;
        }
        let is_full = self.recorded >= ALL;
        let count = self.count_of(event, now);
        if !is_full && count.recorded < SAME {
            count.recorded += 1;
            self.recorded += 1;
            return Admission::Record;
        }
        count.add(now);
        Admission::Count
    }

    /// Counts a refusal that was to be recorded and cannot be.
    pub fn count(&mut self, event: &RequestEvent, now: Timestamp) {
        self.count_of(event, now).add(now);
    }

    fn count_of(&mut self, event: &RequestEvent, now: Timestamp) -> &mut Count {
        self.since.get_or_insert(now);
        let code = event.code.clone().unwrap_or_default();
        let mut kind = (code.clone(), event.host.clone(), event.method.clone(), event.path.clone());
        if self.recorded >= ALL || self.kinds.len() >= KINDS && !self.kinds.contains_key(&kind) {
            kind = (code, "*".to_owned(), "*".to_owned(), "*".to_owned());
        }
        self.kinds.entry(kind).or_default()
    }

    /// What was counted, once the minute is over.
    pub fn due(&mut self, now: Timestamp) -> Vec<RepeatedEvent> {
        match self.since {
            // A clock that was set back ends the minute as well.
            Some(since) if (SignedDuration::ZERO..WINDOW).contains(&now.duration_since(since)) => Vec::new(),
            Some(_) => self.flush(),
            None => Vec::new(),
        }
    }

    /// What was counted so far.
    pub fn flush(&mut self) -> Vec<RepeatedEvent> {
        let Repeats { kinds, .. } = std::mem::take(self);
        let event = |((code, host, method, path), count): (Kind, Count)| {
            let Count { counted, first, last, .. } = count;
            Some(RepeatedEvent { code, host, method, path, count: counted, first: first?, last: last? })
        };
        kinds.into_iter().filter_map(event).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::Decision;

    fn refused(path: &str) -> RequestEvent {
        let event = json!({
            "decision": "deny", "code": "host-not-allowed", "host": "a.example", "port": 443, "scheme": "https", "method": "GET",
            "path": path, "generation": 1, "digest": "", "bytes_up": 0, "bytes_down": 0, "millis": 0,
        });
        serde_json::from_value(event).unwrap()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn the_same_refusal_is_recorded_a_few_times_and_then_counted() {
        let mut repeats = Repeats::default();
        let admitted = (0..1000).filter(|_| repeats.admit(&refused("/"), at(0)) == Admission::Record).count();
        assert_eq!(admitted, 20);
        assert_eq!(repeats.due(at(59)), []);
        let due = repeats.due(at(60));
        assert_eq!((due.len(), due[0].count, due[0].path.as_str()), (1, 980, "/"));
        assert_eq!(repeats.admit(&refused("/"), at(61)), Admission::Record, "a new minute");
    }

    #[test]
    fn a_flood_of_refusals_that_are_all_different_is_bounded_too() {
        let mut repeats = Repeats::default();
        let admitted = (0..100_000)
            .filter(|number| repeats.admit(&refused(&format!("/{number}")), at(0)) == Admission::Record)
            .count();
        assert!(admitted <= 600, "{admitted}");
        let due = repeats.flush();
        assert_eq!(due.iter().map(|event| event.count).sum::<u64>(), 100_000 - admitted as u64);
        assert!(due.len() <= 257);
    }

    #[test]
    fn what_was_to_be_recorded_and_cannot_be_is_counted_in_its_kind() {
        let mut repeats = Repeats::default();
        assert_eq!(repeats.admit(&refused("/"), at(0)), Admission::Record);
        repeats.count(&refused("/"), at(1));
        repeats.count(&refused("/"), at(3));
        let event = &repeats.flush()[0];
        assert_eq!((event.count, event.path.as_str(), event.first, event.last), (2, "/", at(1), at(3)));
    }

    #[test]
    fn what_passed_is_never_only_counted() {
        let mut repeats = Repeats::default();
        for passed in [
            RequestEvent { decision: Decision::Allow, ..refused("/") },
            RequestEvent { sent: true, ..refused("/") },
        ] {
            assert!((0..10_000).all(|_| repeats.admit(&passed, at(0)) == Admission::Record));
        }
    }
}
