//! MCP clients that others wrote: the official conformance suite, the inspector, and Python's own client.
//!
//! `scripts/need.sh mcpclients` installs them; without them these tests fail and say so.
#![allow(clippy::unwrap_used)]

mod common;
mod suite;

use std::process::Command;

use common::Bundle;
use serde_json::{Value, json};

/// Those of the suite that a server with tools alone can pass. The rest want prompts, resources, sampling or tools made for the suite, and
/// one wants a page of localhost to be let in, which we keep out.
const SCENARIOS: [&str; 5] = ["server-initialize", "ping", "tools-list", "http-header-validation", "caching"];

#[test]
fn the_conformance_suite_passes_for_what_this_server_offers() {
    let bundle = Bundle::start();
    for scenario in SCENARIOS {
        assert_eq!(suite::failure(bundle.address, scenario), None);
    }
}

#[test]
fn pythons_own_client_asks_and_waits() {
    let bundle = Bundle::start();
    let operator = bundle.operator();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ask.py");
    let url = format!("http://{}/mcp", bundle.address);
    let mut watching = operator.watch();
    // Not joined: when the client fails there is nothing to decide.
    std::thread::spawn(move || {
        let id = watching.next_pending();
        operator.ask(json!({"op": "reject", "id": id, "reason": "use the mirror"})).unwrap();
    });
    let output = Command::new(suite::clients().join("bin/python")).args([script, &url]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    insta::assert_snapshot!(said.trim(), @"
    tools: 14
    filed: pending
    told: rejected: use the mirror
    ");
}

#[test]
fn the_inspector_lists_and_calls() {
    let bundle = Bundle::start();
    let url = format!("http://{}/mcp", bundle.address);
    let inspect = |words: &[&str]| -> Value {
        let mut command = suite::node("mcp-inspector");
        let output = command.args(["--cli", &url, "--transport", "http"]).args(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"))
    };
    let listed = inspect(&["--method", "tools/list"]);
    assert_eq!(listed["tools"].as_array().unwrap().len(), 14);
    let called = inspect(&[
        "--method",
        "tools/call",
        "--tool-name",
        "propose_route",
        "--tool-arg",
        "host=docs.example.com",
        "--tool-arg",
        "reason=the guide",
    ]);
    assert_eq!(called["structuredContent"]["state"], "pending");
    let pending = bundle.operator().ask(json!({"op": "list", "state": "pending"})).unwrap();
    assert_eq!(pending["requests"][0]["id"], called["structuredContent"]["id"]);
}
