//! The operator's side: who may talk, what is understood, and that all of it is recorded.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use common::Bundle;
use serde_json::{Value, json};

fn say(bundle: &Bundle, line: &str) -> Vec<Value> {
    let mut stream = UnixStream::connect(bundle.path("supervise.sock")).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    BufReader::new(stream).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

#[test]
fn the_socket_is_for_its_owner_alone() {
    let bundle = Bundle::start();
    let mode = std::fs::metadata(bundle.path("supervise.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn each_line_gets_one_reply_also_after_a_bad_one() {
    let bundle = Bundle::start();
    let replies = say(&bundle, "{\"op\":\"list\"}\nwhat?\n{\"op\":\"list\",\"state\":\"pending\"}\n");
    let codes: Vec<&Value> = replies.iter().map(|reply| &reply["error"]["code"]).collect();
    assert_eq!(codes, [&Value::Null, &json!("bad-request"), &Value::Null]);
}

#[test]
fn a_line_without_end_is_refused_at_its_limit() {
    let bundle = Bundle::start();
    let mut stream = UnixStream::connect(bundle.path("supervise.sock")).unwrap();
    stream.write_all(&vec![b'x'; 64 << 10]).unwrap();
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).unwrap();
    assert!(reply.contains("at most 64 KiB"), "{reply}");
}

#[test]
fn who_decided_is_taken_from_the_kernel_and_recorded() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    let view = operator.view(json!({"op": "reject", "id": id, "reason": "no"}));
    let uid = std::fs::metadata(bundle.path("supervise.sock"))
        .map(|found| std::os::unix::fs::MetadataExt::uid(&found));
    assert_eq!(view.decision.unwrap().by, format!("uid:{}", uid.unwrap()));
    let journal = common::lines(&bundle.path("audit/journal.jsonl"));
    assert_eq!(journal.len(), 2);
    assert!(
        journal[1].contains("\"type\":\"rejected\"") && journal[1].contains("\"reason\":\"no\""),
        "{}",
        journal[1]
    );
    assert_eq!(audit::verify(bundle.path("audit/journal.jsonl")).unwrap().seq, 2);
}

#[test]
fn what_makes_no_sense_is_refused_and_not_recorded() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    let code = |request: Value| operator.ask(request).unwrap_err().code;
    assert_eq!(code(json!({"op": "approve", "id": id, "ttl_seconds": 90_000})), "bad-request");
    assert_eq!(code(json!({"op": "approve", "id": "none"})), "unknown-id");
    assert_eq!(code(json!({"op": "reject", "id": id, "reason": " "})), "bad-request");
    assert_eq!(
        code(json!({"op": "applied", "id": id, "generation": 2, "digest": "sha256:00"})),
        "wrong-state"
    );
    let forged = json!({"op": "applied", "id": id, "generation": 2, "digest": "sha256:00", "expires_at": "2999-01-01T00:00:00Z"});
    assert_eq!(code(forged), "wrong-state");
    assert_eq!(code(json!({"op": "apply_failed", "id": id, "error": "x"})), "wrong-state");
    assert_eq!(common::lines(&bundle.path("audit/journal.jsonl")).len(), 1);
}

#[test]
fn the_end_that_the_host_wrote_is_the_end_that_is_told() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let id = agent.propose("api.example.com").unwrap()["id"].clone();
    let until = (jiff::Timestamp::now() + jiff::SignedDuration::from_mins(10)).to_string();
    operator.ask(json!({"op": "approve", "id": id})).unwrap();
    operator
        .ask(json!({"op": "applied", "id": id, "generation": 2, "digest": "sha256:00", "expires_at": until}))
        .unwrap();
    let told = agent.call("get_request", json!({"id": id})).unwrap();
    assert_eq!((&told["state"], &told["expires_at"]), (&json!("active"), &json!(until)));
}

#[test]
fn who_watches_is_told_what_waits_and_then_what_changes_and_counts_as_there() {
    let bundle = Bundle::start();
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let first = agent.propose("one.example.com").unwrap();
    assert_eq!(first["operator_offline"], true);
    let mut watch = operator.watch();
    assert_eq!(watch.next()[0]["id"], first["id"]);
    let second = agent.propose("two.example.com").unwrap();
    assert_eq!(second["operator_offline"], false);
    assert_eq!(watch.next()[0]["id"], second["id"]);
    operator.ask(json!({"op": "reject", "id": first["id"], "reason": "no"})).unwrap();
    assert_eq!(watch.next()[0]["state"], "rejected");
}
