//! How much an agent may do at once, how fast, and how long its calls wait.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use common::{Agent, Bundle};
use serde_json::{Value, json};
use supervise::mcp::Patience;

fn start_waiting(agent: Agent, id: &Value, meta: &Value) -> BufReader<std::net::TcpStream> {
    let message = json!({
        "jsonrpc": "2.0", "id": 9, "method": "tools/call",
        "params": {"name": "wait_decision", "arguments": {"id": id}, "_meta": meta},
    });
    let headers = [
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("mcp-protocol-version", "2025-06-18"),
    ];
    BufReader::new(agent.send("POST /mcp", &headers, &message.to_string()))
}

/// A call of `wait_decision` that has its place and showed progress; none when there is no place.
fn try_waiting(agent: Agent, id: &Value) -> Option<BufReader<std::net::TcpStream>> {
    let mut stream = start_waiting(agent, id, &json!({"progressToken": "t"}));
    let mut line = String::new();
    while !line.contains("notifications/progress") {
        line.clear();
        assert_ne!(stream.read_line(&mut line).unwrap(), 0, "the stream ended");
        if line.contains("too-many-waiters") {
            return None;
        }
    }
    assert!(line.contains("still pending"), "{line}");
    Some(stream)
}

fn waiting(agent: Agent, id: &Value) -> BufReader<std::net::TcpStream> {
    try_waiting(agent, id).unwrap()
}

#[test]
fn a_flood_is_slowed_down_and_told_when_to_come_back() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    let asked: Vec<_> = (0..5).map(|number| agent.propose(&format!("h{number}.example.com"))).collect();
    let refused: Vec<&Value> = asked.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert_eq!(refused.len(), 2, "{asked:?}");
    assert_eq!(refused[0]["code"], "too-many-requests");
    assert!((1..=20).contains(&refused[0]["retry_after_seconds"].as_u64().unwrap()), "{}", refused[0]);
}

#[test]
fn a_waiting_call_shows_that_it_lives_and_hanging_up_does_not_cancel_the_request() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    drop(waiting(agent, &id));
    assert_eq!(agent.call("get_request", json!({"id": id})).unwrap()["state"], "pending");
}

#[test]
fn only_so_many_calls_wait_at_once() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    let streams: Vec<_> = (0..4).map(|_| waiting(agent, &id)).collect();
    let refused = agent.call("wait_decision", json!({"id": id})).unwrap_err();
    assert_eq!(refused["code"], "too-many-waiters");
    operator.ask(json!({"op": "reject", "id": id, "reason": "no"})).unwrap();
    for mut stream in streams {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut stream, &mut rest).unwrap();
        assert!(rest.contains("rejected"), "{rest}");
    }
    assert_eq!(agent.call("wait_decision", json!({"id": id})).unwrap()["state"], "rejected");
}

#[test]
fn calls_whose_client_hung_up_give_their_places_back() {
    let bundle = Bundle::start();
    let agent = bundle.agent();
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    for _ in 0..4 {
        drop(waiting(agent, &id));
        drop(start_waiting(agent, &id, &json!({})));
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    let places: Vec<_> = (0..4)
        .map(|_| {
            loop {
                match try_waiting(agent, &id) {
                    Some(place) => break place,
                    None => assert!(Instant::now() < deadline, "the places are not given back"),
                }
            }
        })
        .collect();
    assert!(try_waiting(agent, &id).is_none(), "{} places", places.len());
}

#[test]
fn after_several_rejections_in_a_row_the_agent_has_to_wait() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    for host in ["one.example.com", "two.example.com", "three.example.com"] {
        let id = agent.propose(host).unwrap()["id"].clone();
        operator.ask(json!({"op": "reject", "id": id, "reason": "no"})).unwrap();
    }
    let refused = agent.propose("four.example.com").unwrap_err();
    assert_eq!(refused["code"], "cool-down");
    assert!((1..=60).contains(&refused["retry_after_seconds"].as_u64().unwrap()), "{refused}");
}

#[test]
fn a_thousand_proposals_leave_the_queue_usable() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            std::thread::spawn(move || {
                let mut taken = 0;
                for number in 0..250 {
                    match agent.propose(&format!("h{thread}-{number}.example.com")) {
                        Ok(_) => taken += 1,
                        Err(refused) => {
                            assert_eq!(refused["code"], "too-many-requests");
                            let wait = refused["retry_after_seconds"].as_u64();
                            assert!(wait.is_some_and(|seconds| (1..=30).contains(&seconds)), "{refused}");
                        }
                    }
                }
                taken
            })
        })
        .collect();
    let taken: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    let pending = operator.ask(json!({"op": "list", "state": "pending"})).unwrap();
    let pending = pending["requests"].as_array().unwrap();
    assert_eq!(pending.len(), taken);
    assert!((3..=20).contains(&taken), "{taken}");
    operator.ask(json!({"op": "reject", "id": pending[0]["id"], "reason": "no"})).unwrap();
}

#[test]
fn a_wait_is_shorter_than_clients_are_patient_and_shows_that_it_lives() {
    let Patience { poll, progress } = Patience::default();
    assert_eq!((poll, progress), (Duration::from_secs(45), Duration::from_secs(5)));
}

#[test]
fn only_so_many_calls_are_open_at_once() {
    // An egress that never answers: whoever asks about a refusal waits for it.
    let (bundle, _silent) = Bundle::with_voice();
    let agent = bundle.agent();
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    let _waiting: Vec<_> = (0..4).map(|_| waiting(agent, &id)).collect();
    let asking: Vec<_> = (0..12)
        .map(|_| {
            std::thread::spawn(move || agent.call("explain_block", json!({"block_id": "5f1d"})).unwrap_err())
        })
        .collect();
    let codes: Vec<Value> = asking.into_iter().map(|asking| asking.join().unwrap()["code"].clone()).collect();
    let refused = codes.iter().filter(|code| **code == "too-many-calls").count();
    assert!(
        refused >= 1 && codes.iter().all(|code| code == "too-many-calls" || code == "refusals-unavailable"),
        "{codes:?}"
    );
    assert_eq!(
        agent.call("get_request", json!({"id": id})).unwrap()["state"],
        "pending",
        "a place is free again"
    );
}

#[test]
fn twenty_requests_wait_and_the_next_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let desk = supervise::Desk::open(&directory.path().join("journal.jsonl")).unwrap();
    let wanted = |number: i64| {
        let ask = json!({"host": format!("h{number}.example.com"), "reason": "r"});
        supervise::desk::Wanted::from(proposal::Ask::parse(&ask).unwrap())
    };
    // One each ten seconds is as fast as an agent may ask for long.
    let at = |number: i64| jiff::Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(10 * number);
    for number in 0..20 {
        desk.propose(wanted(number), at(number)).unwrap();
    }
    let full = desk.propose(wanted(20), at(20)).unwrap_err();
    assert_eq!(full.code(), "queue-full");
    // One of those that wait, asked for again, is that one; a better one may take its place.
    let first = desk.propose(wanted(0), at(21)).unwrap();
    let instead = supervise::desk::Wanted { supersedes: Some(first.id), ..wanted(22) };
    assert!(desk.propose(instead, at(22)).is_ok());
}

#[test]
fn an_agent_that_comes_back_in_the_middle_of_a_wait_is_told_what_was_decided_meanwhile() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    drop(waiting(agent, &id));
    operator.ask(json!({"op": "approve", "id": id})).unwrap();
    let mut again = start_waiting(agent, &id, &json!({}));
    operator.ask(json!({"op": "applied", "id": id, "generation": 2, "digest": "sha256:00"})).unwrap();
    let mut told = String::new();
    std::io::Read::read_to_string(&mut again, &mut told).unwrap();
    assert!(told.contains("active"), "{told}");
}

#[test]
fn a_wait_ends_with_the_state_as_it_is() {
    let bundle = Bundle::with(Patience { poll: Duration::from_millis(30), progress: Duration::from_secs(5) });
    let agent = bundle.agent();
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    assert_eq!(agent.call("wait_decision", json!({"id": id})).unwrap()["state"], "pending");
}
