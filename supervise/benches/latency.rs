//! How long a person and an agent wait for each other: `cargo bench -p supervise --bench latency`.
//!
//! Runs the daemon as it is and talks to both of its sides; prints median and largest of each, and the daemon's idle memory.
// The daemon paces an agent by the clock, so the clock is what is waited for.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Agent, Bundle, PATIENT};
use serde_json::json;

const ROUNDS: usize = 9;

fn main() {
    let bundle = Bundle::with(PATIENT);
    let (agent, operator) = (bundle.agent(), bundle.operator());
    let (mut visible, mut woken) = (Vec::new(), Vec::new());
    while visible.len() < ROUNDS {
        let begun = Instant::now();
        let filed = match agent.propose(&format!("h{}.example.com", visible.len())) {
            Ok(filed) => filed,
            Err(refused) => {
                // The pace of six a minute is part of the daemon.
                std::thread::sleep(Duration::from_secs(refused["retry_after_seconds"].as_u64().unwrap_or(1)));
                continue;
            }
        };
        let listed = operator.ask(json!({"op": "list", "state": "pending"})).unwrap();
        assert_eq!(listed["requests"].as_array().unwrap().len(), 1);
        visible.push(begun.elapsed());
        let id = filed["id"].clone();
        let waiting = std::thread::spawn({
            let id = id.clone();
            move || (agent.call("wait_decision", json!({"id": id})).unwrap(), Instant::now())
        });
        // So that the call waits already.
        std::thread::sleep(Duration::from_millis(200));
        operator.ask(json!({"op": "approve", "id": id})).unwrap();
        let begun = Instant::now();
        operator.ask(json!({"op": "applied", "id": id, "generation": 2, "digest": "sha256:00"})).unwrap();
        let (told, at) = waiting.join().unwrap();
        assert_eq!(told["state"], "active");
        woken.push(at.saturating_duration_since(begun));
    }
    row("propose to visible in the operator's list", &mut visible);
    row("decision to the waiting agent, its record included", &mut woken);
    println!("idle memory of the daemon: {} KiB", idle());
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
