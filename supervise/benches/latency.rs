//! How long a person and an agent wait for each other: `cargo bench -p supervise --bench latency`.
//!
//! Runs the daemon as it is and talks to both of its sides; prints median and largest of each, and the daemon's idle memory.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Agent, Bundle, PATIENT};
use serde_json::{Value, json};

const BUNDLES: usize = 3;
/// As many as an agent may ask for at once.
const ROUNDS: usize = 3;

fn main() {
    let (mut visible, mut woken) = (Vec::new(), Vec::new());
    for _ in 0..BUNDLES {
        let bundle = Bundle::with(PATIENT);
        let (agent, operator) = (bundle.agent(), bundle.operator());
        for round in 0..ROUNDS {
            let begun = Instant::now();
            let filed = agent.propose(&format!("h{round}.example.com")).unwrap();
            let listed = operator.ask(json!({"op": "list", "state": "pending"})).unwrap();
            assert_eq!(listed["requests"].as_array().unwrap().len(), 1);
            visible.push(begun.elapsed());
            let id = filed["id"].clone();
            let (waits, waiting) = mpsc::channel();
            let call = std::thread::spawn({
                let id = id.clone();
                move || wait(agent, &id, &waits)
            });
            waiting.recv().unwrap();
            operator.ask(json!({"op": "approve", "id": id})).unwrap();
            let begun = Instant::now();
            operator.ask(json!({"op": "applied", "id": id, "generation": 2, "digest": "sha256:00"})).unwrap();
            woken.push(call.join().unwrap().saturating_duration_since(begun));
        }
    }
    row("propose to visible in the operator's list", &mut visible);
    row("decision to the waiting agent, its record included", &mut woken);
    println!("idle memory of the daemon: {} KiB", idle());
}

/// Waits for a decision, and says so as soon as the daemon shows that the call waits; when it was told of it.
fn wait(agent: Agent, id: &Value, waits: &mpsc::Sender<()>) -> Instant {
    let message = json!({
        "jsonrpc": "2.0", "id": 9, "method": "tools/call",
        "params": {"name": "wait_decision", "arguments": {"id": id}, "_meta": {"progressToken": "t"}},
    });
    let headers = [
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("mcp-protocol-version", "2025-06-18"),
    ];
    for line in BufReader::new(agent.send("POST /mcp", &headers, &message.to_string())).lines() {
        let line = line.unwrap();
        if line.contains("notifications/progress") {
            // Once is enough.
            let _ = waits.send(());
        } else if line.contains("active") {
            return Instant::now();
        }
    }
    panic!("the call ended without a decision");
}

fn row(name: &str, taken: &mut [Duration]) {
    taken.sort();
    println!("{name}: median {:?}, largest {:?}", taken[taken.len() / 2], taken[taken.len() - 1]);
}

/// Resident memory of a daemon that has served one call.
fn idle() -> u64 {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("routes.yaml"), common::ROUTES).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_supervise"));
    command.env_clear().args(["--listen", "127.0.0.1:0", "--config"]).arg(place.path());
    command.arg("--run-dir").arg(place.path().join("run")).arg("--state-dir").arg(place.path().join("state"));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let listening = log.find(|line| line.as_ref().unwrap().contains("listening")).unwrap().unwrap();
    let agent = Agent { address: listening.rsplit_once("address=").unwrap().1.parse().unwrap() };
    agent.call("list_requests", json!({})).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib = resident.trim().trim_end_matches(" kB").trim().parse().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    kib
}
