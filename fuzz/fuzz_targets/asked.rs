//! What an agent asks for and what an operator's line says is refused, or is the same when it is written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proposal::wire::Request;
use proposal::{Ask, Proposal, escaped};
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|text: &str| {
    same_again::<Request>(text);
    if let Some(ask) = same_again::<Ask>(text) {
        assert!(!escaped(ask.reason()).contains(char::is_control), "{:?}", ask.reason());
        assert!(ask.is_same_as(&ask));
    }
    if let Some(proposal) = same_again::<Proposal>(text) {
        assert!(proposal.covers(&proposal));
    }
});

fn same_again<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(text: &str) -> Option<T> {
    let read: T = serde_json::from_str(text).ok()?;
    let written = serde_json::to_string(&read).expect("what was read can be written");
    assert_eq!(serde_json::from_str::<T>(&written).expect("what was written can be read"), read);
    Some(read)
}
