//! MCP clients that others wrote: the official conformance suite and Python's own client.
//!
//! `scripts/need.sh mcpclients` installs them; without them these tests fail and say so.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;
use std::process::{Command, Output};

use common::Bundle;
use serde_json::json;

/// Those of the suite that a server with tools alone can pass. The rest want prompts, resources, sampling or tools made for the suite, and
/// one wants a page of localhost to be let in, which we keep out.
const SCENARIOS: [&str; 5] = ["server-initialize", "ping", "tools-list", "http-header-validation", "caching"];

/// Where scripts/need.sh puts them.
fn clients() -> PathBuf {
    let named = std::env::var_os("BOTTLECAP_CLIENTS").map(PathBuf::from);
    // TARGET/PROFILE/deps/TEST
    let beside = || std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("clients");
    let clients = named.unwrap_or_else(beside);
    for program in ["mcp/bin/python", "mcp/node_modules/.bin/conformance", "mcp/node_modules/.bin/node"] {
        let path = clients.join(program);
        assert!(path.exists(), "no {}: run `scripts/need.sh mcpclients`", path.display());
    }
    clients.join("mcp")
}

/// Runs a scenario of the conformance suite against the daemon.
fn conformance(bundle: &Bundle, scenario: &str) -> Output {
    let clients = clients();
    let results = tempfile::tempdir().unwrap();
    Command::new(clients.join("node_modules/.bin/node"))
        .arg(clients.join("node_modules/.bin/conformance"))
        .args(["server", "--url", &format!("http://{}/mcp", bundle.address), "--scenario", scenario])
        .current_dir(results.path())
        .output()
        .unwrap()
}

#[test]
fn the_conformance_suite_passes_for_what_this_server_offers() {
    let bundle = Bundle::start();
    for scenario in SCENARIOS {
        let output = conformance(&bundle, scenario);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{scenario}: {said}{}", String::from_utf8_lossy(&output.stderr));
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
    let output = Command::new(clients().join("bin/python")).args([script, &url]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    insta::assert_snapshot!(said.trim(), @"
    tools: 14
    filed: pending
    told: rejected: use the mirror
    ");
}
