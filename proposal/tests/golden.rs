//! The operator protocol as it is documented, read and written by the types that both ends use.
#![allow(clippy::unwrap_used)]

use proposal::wire::{Reply, Request, Requests, Status, View};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const GOLDEN: &str = include_str!("../../docs/control/supervise.jsonl");

/// Reads `value` as a `T` and expects `T` to write it the same.
fn is_a<T: Serialize + DeserializeOwned>(value: &Value) -> T {
    let typed: T = serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{error}: {value}"));
    assert_eq!(serde_json::to_value(&typed).unwrap(), *value);
    typed
}

#[test]
fn the_documented_lines_are_requests_and_replies_in_turn() {
    let lines: Vec<Value> = GOLDEN.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len() % 2, 0);
    for pair in lines.chunks_exact(2) {
        let request: Request = is_a(&pair[0]);
        match (request, is_a(&pair[1])) {
            (_, Reply::Failed(_)) => {}
            (Request::List { .. } | Request::Tail, Reply::Done(result)) => drop(is_a::<Requests>(&result)),
            (Request::Status | Request::Pause | Request::Resume, Reply::Done(result)) => {
                drop(is_a::<Status>(&result));
            }
            (
                Request::Show { .. }
                | Request::Approve { .. }
                | Request::Reject { .. }
                | Request::Revoke { .. }
                | Request::Applying { .. }
                | Request::Exhausted { .. }
                | Request::Applied { .. }
                | Request::ApplyFailed { .. },
                Reply::Done(result),
            ) => drop(is_a::<View>(&result)),
        }
    }
}

#[test]
fn a_request_with_a_key_too_many_is_refused() {
    for line in [
        r#"{"op":"show","id":"a","x":1}"#,
        r#"{"op":"approve","id":"a","by":"me"}"#,
        r#"{"op":"grant","id":"a"}"#,
        r#"{"op":"show","id":"a b"}"#,
    ] {
        assert!(serde_json::from_str::<Request>(line).is_err(), "{line}");
    }
}

#[test]
fn a_reply_is_one_of_two() {
    for line in
        [r#"{"ok":true}"#, r#"{"ok":true,"error":{"code":"a","message":"b"}}"#, r#"{"ok":false,"result":{}}"#]
    {
        assert!(serde_json::from_str::<Reply>(line).is_err(), "{line}");
    }
}
