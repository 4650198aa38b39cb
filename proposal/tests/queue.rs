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
    Change::Received { proposal: proposal(host).into(), key: None, block_id: None, supersedes: None }
}

fn approved() -> Change {
    Change::Approved { by: "uid:0".to_owned(), ttl_seconds: 600, max_uses: None, scope: None }
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

fn applying() -> Change {
    Change::Applying { digest: "sha256:00".to_owned() }
}

fn revoked() -> Change {
    Change::Revoked { by: "uid:0".to_owned(), reason: "enough".to_owned() }
}

#[test]
fn what_is_being_applied_can_be_taken_up_again_and_a_grant_can_be_taken_back() {
    let begun = [received("a.example"), approved(), applying()];
    assert_eq!(state(&after(&begun).unwrap(), 10), State::Applying);
    for (then, expected) in [
        (vec![applying(), applied(600)], State::Active),
        (vec![approved(), applying(), applied(600)], State::Active),
        (vec![failed()], State::ApplyFailed),
        (vec![revoked()], State::Revoked),
        (vec![applied(600), revoked()], State::Revoked),
        (vec![applied(600), Change::Exhausted], State::Exhausted),
    ] {
        let queue = after(&[begun.to_vec(), then].concat()).unwrap();
        assert_eq!(state(&queue, 10), expected);
        assert_eq!(queue.get(&id(1)).unwrap().revoked().is_some(), expected == State::Revoked);
    }
}

#[test]
fn an_approval_that_is_not_put_in_force_ends_by_itself() {
    let queue = after(&[received("a.example"), approved()]).unwrap();
    assert_eq!((state(&queue, 600), state(&queue, 601)), (State::Approved, State::Ended));
}

#[test]
fn a_grant_cannot_outlast_its_approval() {
    let refusal = after(&[received("a.example"), approved(), applied(602)]).unwrap_err();
    assert_eq!(refusal, Illegal::TooLong { id: id(1), until: at(601) });
    assert!(after(&[received("a.example"), approved(), applied(601)]).is_ok());
}

#[test]
fn a_clock_that_is_set_back_brings_nothing_back() {
    let mut queue = after(&[received("a.example"), approved(), applied(600)]).unwrap();
    queue.apply(&Event { id: id(2), at: at(700), change: received("b.example") }).unwrap();
    assert_eq!(queue.get(&id(1)).unwrap().state(queue.now(at(10))), State::Ended);
    let late = PENDING_LIFETIME.as_secs();
    queue.apply(&Event { id: id(3), at: at(701 + late), change: received("c.example") }).unwrap();
    let refusal = queue.apply(&Event { id: id(2), at: at(710), change: approved() }).unwrap_err();
    assert_eq!(refusal, Illegal::State { id: id(2), state: State::Expired });
}

#[test]
fn a_proposal_can_take_the_place_of_one_that_waits_and_of_no_other() {
    let replacing = |old: u8, host: &str| Change::Received {
        proposal: proposal(host).into(),
        key: None,
        block_id: None,
        supersedes: Some(id(old)),
    };
    let mut queue = after(&[received("a.example")]).unwrap();
    let apply = |queue: &mut Queue, number: u8, second: i64, change: Change| {
        queue.apply(&Event { id: id(number), at: at(second), change })
    };
    apply(&mut queue, 2, 5, replacing(1, "b.example")).unwrap();
    assert_eq!(state(&queue, 10), State::Superseded);
    assert_eq!(queue.pending(at(10)), 1);
    let state = |state| Err(Illegal::State { id: id(1), state });
    assert_eq!(apply(&mut queue, 1, 6, approved()), state(State::Superseded));
    assert_eq!(apply(&mut queue, 3, 6, replacing(1, "c.example")), state(State::Superseded));
    assert_eq!(apply(&mut queue, 3, 6, replacing(9, "c.example")), Err(Illegal::Unknown { id: id(9) }));
}

#[test]
fn a_key_stands_for_one_proposal_whatever_becomes_of_it() {
    let keyed = |host: &str| Change::Received {
        proposal: proposal(host).into(),
        key: Some("call-1".to_owned()),
        block_id: None,
        supersedes: None,
    };
    let mut queue = after(&[keyed("a.example"), rejected()]).unwrap();
    assert_eq!(queue.find_key("call-1").map(|item| &item.id), Some(&id(1)));
    let again = Event { id: id(2), at: at(20), change: keyed("b.example") };
    assert_eq!(queue.apply(&again), Err(Illegal::KeyTaken { id: id(1) }));
}

#[test]
fn no_program_puts_a_capability_in_force() {
    let ask = json!({"capability": "other", "what": "a compiler", "reason": "r"});
    let ask = Change::Received {
        proposal: proposal::Ask::parse(&ask).unwrap(),
        key: None,
        block_id: None,
        supersedes: None,
    };
    assert_eq!(state(&after(&[ask.clone(), approved()]).unwrap(), 10), State::Approved);
    for change in [applying(), applied(600), failed()] {
        let refusal = after(&[ask.clone(), approved(), change]).unwrap_err();
        assert_eq!(refusal, Illegal::ByHand { id: id(1) });
    }
    let routed = Change::Approved {
        by: "uid:0".to_owned(),
        ttl_seconds: 60,
        max_uses: None,
        scope: Some(proposal("a.example")),
    };
    assert_eq!(after(&[ask, routed]).unwrap_err(), Illegal::ByHand { id: id(1) });
}

#[test]
fn rejections_in_a_row_are_counted_until_a_yes() {
    let mut queue = Queue::default();
    let mut apply = |number: u8, change: Change| {
        queue.apply(&Event { id: id(number), at: at(i64::from(number)), change }).unwrap();
        queue.rejected_in_a_row()
    };
    for number in [1, 2, 3] {
        apply(number, received(&format!("h{number}.example")));
    }
    assert_eq!(apply(1, rejected()).0, 1);
    assert_eq!(apply(2, rejected()).0, 2);
    assert_eq!(apply(3, approved()).0, 0);
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        Just(applying()),
        Just(revoked()),
        Just(Change::Exhausted),
        prop_oneof![Just("a.example"), Just("b.example"), Just("c.example")].prop_map(received),
        Just(Change::Withdrawn),
        Just(approved()),
        Just(rejected()),
        (0..20_000_i64).prop_map(applied),
        Just(failed()),
    ]
}

/// In any order of time: a clock can be set back.
fn unordered() -> impl Strategy<Value = Vec<Event>> {
    let event = (0..4_u8, 0..8_000_i64, changes());
    let event = event.prop_map(|(number, second, change)| Event { id: id(number), at: at(second), change });
    prop::collection::vec(event, 0..60)
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
                    Change::Rejected { .. } | Change::Revoked { .. } => drop(approved.remove(&event.id)),
                    Change::Received { .. }
                    | Change::Withdrawn
                    | Change::Applying { .. }
                    | Change::Applied { .. }
                    | Change::ApplyFailed { .. }
                    | Change::Exhausted => {}
                },
                Err(_) => prop_assert_eq!(&queue, &before),
            }
        }
        for item in queue.items() {
            let state = item.state(at(now));
            if matches!(state, State::Approved | State::Applying | State::Active | State::ApplyFailed | State::Ended) {
                prop_assert!(approved.contains(&item.id), "{:?} is {:?}", item.id, state);
            }
            if state == State::Active {
                prop_assert!(item.granted().unwrap().expires_at > at(now));
            }
        }
    }

    #[test]
    fn no_grant_is_put_in_force_twice_and_none_outlasts_its_approval(events in unordered()) {
        let mut queue = Queue::default();
        let (mut applied, mut latest) = (BTreeSet::new(), at(0));
        for event in &events {
            let until = queue.get(&event.id).and_then(|item| item.decided()).and_then(|decided| decided.until());
            if queue.apply(event).is_err() {
                continue;
            }
            latest = latest.max(event.at);
            if let Change::Applied { expires_at, .. } = event.change {
                prop_assert!(applied.insert(event.id.clone()), "{:?} twice", event.id);
                prop_assert!(until.is_some_and(|until| expires_at <= until));
            }
            prop_assert_eq!(queue.now(at(0)), latest);
        }
    }

    #[test]
    fn what_is_over_stays_over_whatever_the_clock_says(events in unordered(), clocks in prop::collection::vec(0..8_000_i64, 60)) {
        let mut queue = Queue::default();
        let mut over = BTreeSet::new();
        for (event, clock) in events.iter().zip(clocks) {
            let _ = queue.apply(event);
            let now = queue.now(at(clock.min(4_000)));
            for item in queue.items() {
                if item.state(queue.now(at(0))).is_live() {
                    continue;
                }
                over.insert(item.id.clone());
            }
            for id in &over {
                prop_assert!(!queue.get(id).unwrap().state(now).is_live(), "{:?}", id);
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
