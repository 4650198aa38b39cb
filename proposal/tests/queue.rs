//! The state machine: nothing is active that nobody approved.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use proposal::{Change, Event, Id, Illegal, KEPT_MAX, PENDING_LIFETIME, Proposal, Queue, State};
use proptest::prelude::*;
use serde_json::json;

fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(seconds)
}

fn id(number: u8) -> Id {
    Id::from_random([number; 8])
}

fn proposal(host: &str) -> Proposal {
    Proposal::parse(&json!({"host": host, "reason": "r"})).unwrap()
}

fn received(host: &str) -> Change {
    Change::Received { proposal: proposal(host) }
}

fn approved() -> Change {
    Change::Approved { by: "uid:0".to_owned(), ttl_seconds: 600 }
}

fn rejected() -> Change {
    Change::Rejected { by: "uid:0".to_owned(), reason: "no".to_owned() }
}

fn applied(until: i64) -> Change {
    Change::Applied { generation: 2, digest: "sha256:00".to_owned(), expires_at: at(until) }
}

fn failed() -> Change {
    Change::ApplyFailed { error: "disk full".to_owned() }
}

/// A queue after these changes of proposal 1, one each second.
fn after(changes: &[Change]) -> Result<Queue, Illegal> {
    let mut queue = Queue::default();
    for (second, change) in (0..).zip(changes) {
        queue.apply(&Event { id: id(1), at: at(second), change: change.clone() })?;
    }
    Ok(queue)
}

fn state(queue: &Queue, now: i64) -> State {
    queue.get(&id(1)).unwrap().state(at(now))
}

#[test]
fn a_proposal_goes_from_pending_over_approved_to_active_to_ended() {
    let queue = after(&[received("a.example")]).unwrap();
    assert_eq!(state(&queue, 10), State::Pending);
    let queue = after(&[received("a.example"), approved()]).unwrap();
    assert_eq!(state(&queue, 10), State::Approved);
    let queue = after(&[received("a.example"), approved(), applied(600)]).unwrap();
    assert_eq!(state(&queue, 599), State::Active);
    assert_eq!(state(&queue, 600), State::Ended);
}

#[test]
fn silence_never_grants() {
    let mut queue = after(&[received("a.example")]).unwrap();
    let late = PENDING_LIFETIME.as_secs();
    assert_eq!(state(&queue, late - 1), State::Pending);
    assert_eq!(state(&queue, late), State::Expired);
    let refusal = queue.apply(&Event { id: id(1), at: at(late), change: approved() }).unwrap_err();
    assert_eq!(refusal, Illegal::State { id: id(1), state: State::Expired });
}

#[test]
fn what_could_not_be_applied_can_be_tried_again_or_given_up() {
    let start = [received("a.example"), approved(), failed()];
    let queue = after(&start).unwrap();
    assert_eq!(
        (state(&queue, 10), queue.get(&id(1)).unwrap().error()),
        (State::ApplyFailed, Some("disk full"))
    );
    for (then, expected) in [
        (vec![applied(600)], State::Active),
        (vec![approved(), applied(600)], State::Active),
        (vec![rejected()], State::Rejected),
    ] {
        let queue = after(&[start.to_vec(), then].concat()).unwrap();
        assert_eq!(state(&queue, 10), expected);
    }
}

#[test]
fn what_cannot_follow_is_refused_and_changes_nothing() {
    let begun = [
        (vec![received("a.example")], vec![applied(600), failed()]),
        (vec![received("a.example"), approved()], vec![Change::Withdrawn]),
        (
            vec![received("a.example"), rejected()],
            vec![approved(), rejected(), applied(600), failed(), Change::Withdrawn],
        ),
        (
            vec![received("a.example"), Change::Withdrawn],
            vec![approved(), rejected(), applied(600), Change::Withdrawn],
        ),
        (
            vec![received("a.example"), approved(), applied(600)],
            vec![approved(), rejected(), applied(900), failed(), Change::Withdrawn],
        ),
    ];
    for (start, impossible) in begun {
        for change in impossible {
            let mut queue = after(&start).unwrap();
            let before = queue.clone();
            let event = Event { id: id(1), at: at(20), change };
            assert!(matches!(queue.apply(&event), Err(Illegal::State { .. })), "{event:?} after {start:?}");
            assert_eq!(queue, before);
        }
    }
}

#[test]
fn a_duplicate_flips_nothing() {
    let mut queue = after(&[received("a.example"), approved(), applied(600)]).unwrap();
    let before = queue.clone();
    let again = Event { id: id(2), at: at(30), change: received("a.example") };
    assert_eq!(queue.apply(&again), Err(Illegal::Duplicate { id: id(1) }));
    let taken = Event { id: id(1), at: at(30), change: received("b.example") };
    assert_eq!(queue.apply(&taken), Err(Illegal::IdTaken { id: id(1) }));
    assert_eq!(queue, before);
    let later = Event { id: id(2), at: at(601), change: received("a.example") };
    assert_eq!(queue.apply(&later), Ok(()), "once it ended it can be asked for again");
}

#[test]
fn an_event_for_nobody_is_refused() {
    let refusal = Queue::default().apply(&Event { id: id(1), at: at(0), change: approved() });
    assert_eq!(refusal, Err(Illegal::Unknown { id: id(1) }));
}

#[test]
fn the_oldest_that_is_over_makes_room_and_what_is_live_stays() {
    let mut queue = Queue::default();
    let name = |number: u64| Id::from_random(number.to_be_bytes());
    let mut apply = |number: u64, change: Change| {
        queue.apply(&Event { id: name(number), at: at(number.try_into().unwrap()), change }).unwrap();
    };
    apply(0, received("live.example"));
    apply(0, approved());
    let kept = u64::try_from(KEPT_MAX).unwrap();
    for number in 1..kept + 10 {
        apply(number, received("a.example"));
        apply(number, Change::Withdrawn);
    }
    let left: Vec<&Id> = queue.items().map(|item| &item.id).collect();
    let expected: Vec<Id> = std::iter::once(0).chain(11..kept + 10).map(name).collect();
    assert_eq!(left, expected.iter().collect::<Vec<_>>());
    assert_eq!(queue.get(&name(10)), None);
}

#[test]
fn an_event_has_one_form_in_the_journal() {
    let event = Event { id: id(0xab), at: at(0), change: approved() };
    let text = serde_json::to_string(&event).unwrap();
    insta::assert_snapshot!(text,
        @r#"{"id":"abababababababab","at":"1970-01-01T00:00:00Z","type":"approved","by":"uid:0","ttl_seconds":600}"#);
    assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        prop_oneof![Just("a.example"), Just("b.example"), Just("c.example")].prop_map(received),
        Just(Change::Withdrawn),
        Just(approved()),
        Just(rejected()),
        (0..20_000_i64).prop_map(applied),
        Just(failed()),
    ]
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = (0..4_u8, 0..8_000_i64, changes());
    prop::collection::vec(event, 0..60).prop_map(|mut events| {
        events.sort_by_key(|(_, second, _)| *second);
        events
            .into_iter()
            .map(|(number, second, change)| Event { id: id(number), at: at(second), change })
            .collect()
    })
}

proptest! {
    #[test]
    fn no_grant_is_active_without_an_approval(events in events(), now in 0..20_000_i64) {
        let mut queue = Queue::default();
        let mut approved = BTreeSet::new();
        for event in &events {
            let before = queue.clone();
            match queue.apply(event) {
                Ok(()) => match &event.change {
                    Change::Approved { .. } => drop(approved.insert(event.id.clone())),
                    Change::Rejected { .. } => drop(approved.remove(&event.id)),
                    Change::Received { .. } | Change::Withdrawn | Change::Applied { .. } | Change::ApplyFailed { .. } => {}
                },
                Err(_) => prop_assert_eq!(&queue, &before),
            }
        }
        for item in queue.items() {
            let state = item.state(at(now));
            if matches!(state, State::Approved | State::Active | State::ApplyFailed | State::Ended) {
                prop_assert!(approved.contains(&item.id), "{:?} is {:?}", item.id, state);
            }
            if state == State::Active {
                prop_assert!(item.granted().unwrap().expires_at > at(now));
            }
        }
    }

    #[test]
    fn replaying_what_was_taken_gives_the_same_queue(events in events()) {
        let mut queue = Queue::default();
        let taken: Vec<Event> = events.into_iter().filter(|event| queue.apply(event).is_ok()).collect();
        let mut replayed = Queue::default();
        for event in &taken {
            let text = serde_json::to_string(event).unwrap();
            prop_assert_eq!(replayed.apply(&serde_json::from_str(&text).unwrap()), Ok(()));
        }
        prop_assert_eq!(replayed, queue);
    }

    #[test]
    fn two_live_proposals_never_ask_for_the_same(events in events(), now in 0..20_000_i64) {
        let mut queue = Queue::default();
        for event in &events {
            let _ = queue.apply(event);
        }
        let last = events.last().map_or(at(now), |event| event.at);
        let live: Vec<_> = queue.items().filter(|item| item.state(last).is_live()).collect();
        for (at, one) in live.iter().enumerate() {
            prop_assert!(live[at + 1..].iter().all(|other| !one.proposal.is_same_as(&other.proposal)));
        }
    }
}
