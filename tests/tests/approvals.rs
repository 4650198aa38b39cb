//! From a refusal to a grant and back, through the whole bundle and the host's command.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Binaries, Bundle, Run};

const WANTED: &str = "https://docs.example.com/guide/start";

/// One call of a tool, as an agent without an MCP library would make it.
fn call(bundle: &Bundle, tool: &str, arguments: &Value) -> Value {
    let params = json!({"name": tool, "arguments": arguments});
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).to_string();
    let address = bundle.address(9100);
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(
        stream,
        "POST /mcp HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\n\
         MCP-Protocol-Version: 2025-06-18\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let body = text.split_once("\r\n\r\n").unwrap().1;
    let last = body.lines().filter_map(|line| line.strip_prefix("data:")).next_back().unwrap_or(body);
    let message: Value = serde_json::from_str(last.trim()).unwrap_or_else(|error| panic!("{error}: {text}"));
    message["result"]["structuredContent"].clone()
}

/// `bottlecap` for this bundle.
fn bottlecap(bundle: &Bundle, words: &[&str]) -> String {
    let program = Binaries::find().unwrap().program("bottlecap");
    let mut run = Run::new(program).args(words);
    if words[0] == "requests" {
        run = run.args(["--routes"]).args([bundle.root.path("etc/egress")]);
        run = run.args(["--run-dir"]).args([bundle.root.path("run/sidecars")]);
    }
    run.ok().unwrap()
}

/// What egress would say to a GET. Nothing is looked up or dialled.
fn outcome(bundle: &Bundle, url: &str) -> Value {
    let asked = format!("http://_egress.local/explain?url={}", url.replace('/', "%2F").replace(':', "%3A"));
    let told = bundle.curl([asked]).unwrap().json().unwrap();
    if told["outcome"] == "deny" { told["code"].clone() } else { told["outcome"].clone() }
}

fn approve(bundle: &Bundle, id: &str) {
    let shown: Value = serde_json::from_str(&bottlecap(bundle, &["requests", "show", id, "--json"])).unwrap();
    let token = shown["review"]["token"].as_str().unwrap();
    bottlecap(bundle, &["requests", "approve", id, "--token", token]);
}

#[test]
fn what_was_refused_is_asked_for_granted_and_taken_back() {
    let bundle = Bundle::builder().unwrap().start().unwrap();
    let refused = bundle.curl([WANTED]).unwrap();
    let block_id = refused.json().unwrap()["error"]["block_id"].as_str().unwrap().to_owned();

    let explained = call(&bundle, "explain_block", &json!({"block_id": block_id}));
    assert_eq!(
        (&explained["host"], &explained["path"]),
        (&json!("docs.example.com"), &json!("/guide/start"))
    );
    let filed = call(&bundle, "propose_route", &json!({"block_id": block_id, "reason": "the guide"}));
    let id = filed["id"].as_str().unwrap_or_else(|| panic!("{filed}")).to_owned();
    assert_eq!(filed["proposal"]["paths"], json!([{"type": "exact", "value": "/guide/start"}]));
    assert_eq!(outcome(&bundle, WANTED), "host-not-allowed", "nothing is allowed by asking");

    approve(&bundle, &id);
    assert_eq!(outcome(&bundle, WANTED), "allow");
    assert_eq!(outcome(&bundle, "https://docs.example.com/other"), "path-not-allowed");
    assert_eq!(call(&bundle, "wait_decision", &json!({"id": id}))["state"], "active");

    bottlecap(&bundle, &["requests", "revoke", &id, "--reason", "enough"]);
    assert_eq!(outcome(&bundle, WANTED), "host-not-allowed");
    assert_eq!(call(&bundle, "get_request", &json!({"id": id}))["state"], "revoked");
}

#[test]
fn the_journals_of_a_bundle_hold_and_a_cut_end_shows() {
    let bundle = Bundle::builder().unwrap().start().unwrap();
    for number in 0..30 {
        bundle.curl([format!("https://docs.example.com/{number}")]).unwrap();
    }
    let audit = bundle.root.path("var/lib/sidecars/audit");
    let audit = audit.to_str().unwrap();
    let said = bottlecap(&bundle, &["audit", "verify", "--dir", audit]);
    assert!(
        said.contains("egress") && said.contains("supervise") && said.contains("the chain holds"),
        "{said}"
    );
    let exported = bottlecap(&bundle, &["audit", "export", "--dir", audit]);
    let anchors = exported.lines().filter(|line| line.contains("\"desk\":\"anchor\"")).count();
    assert!(anchors >= 1, "supervise recorded where egress' journal ended: {exported}");
}
