//! What a daemon that is killed at any moment has promised: what was answered is there, and nothing is in force that nobody approved.
//!
//! `BOTTLECAP_KILLS` says how often it is killed.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use audit::replay;
use common::{Agent, ROUTES};
use proposal::{Change, Entry, Event, Id, State};
use serde_json::{Value, json};
use supervise::Desk;

const KILLS_DEFAULT: u64 = 20;

struct Daemon {
    child: Child,
    agent: Agent,
}

impl Daemon {
    fn start(place: &Path) -> Daemon {
        Daemon::under(&[], place)
    }

    /// As the last words of a command.
    fn under(command: &[&str], place: &Path) -> Daemon {
        let mut words = command.iter().copied().chain([env!("CARGO_BIN_EXE_supervise")]);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .args(["--listen", "127.0.0.1:0", "--config"])
            .arg(place)
            .arg("--run-dir")
            .arg(place.join("run"))
            .arg("--state-dir")
            .arg(place.join("state"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut said = String::new();
        let listening =
            log.by_ref().inspect(|line| said.push_str(line)).find(|line| line.contains("listening"));
        let listening = listening.unwrap_or_else(|| panic!("the daemon does not start: {said}"));
        let address = listening.rsplit_once("address=").unwrap().1.parse().unwrap();
        std::thread::spawn(move || log.for_each(drop));
        Daemon { child, agent: Agent { address } }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Small numbers that look random, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// One request over the operator's socket: written, and its reply read unless the daemon is to die first.
fn operate(place: &Path, request: &Value, reply: Reply) -> Option<Value> {
    let mut stream = UnixStream::connect(place.join("run/supervise.sock")).unwrap();
    writeln!(stream, "{request}").unwrap();
    if reply == Reply::Unread {
        return None;
    }
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    let reply: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(reply["ok"], true, "{reply}");
    Some(reply["result"].clone())
}

#[derive(Clone, Copy, PartialEq)]
enum Reply {
    Read,
    Unread,
}

/// Three requests, each through its life; the daemon dies with the step `last`, before or after its answer. What was answered.
fn live(place: &Path, daemon: Daemon, last: u64, reply: Reply) -> BTreeMap<Id, State> {
    let mut answered = BTreeMap::new();
    let mut ids = Vec::new();
    let mut step = 0;
    'life: for round in 0..4 {
        for number in 0..3 {
            let how = if step == last { reply } else { Reply::Read };
            if round == 0 {
                let ask = json!({"host": format!("h{number}.example.com"), "reason": "r"});
                if how == Reply::Unread {
                    let params = json!({"name": "propose_route", "arguments": ask});
                    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
                    let headers = [
                        ("content-type", "application/json"),
                        ("accept", "application/json, text/event-stream"),
                        ("mcp-protocol-version", "2025-06-18"),
                    ];
                    drop(daemon.agent.send("POST /mcp", &headers, &call.to_string()));
                    break 'life;
                }
                let filed = daemon.agent.call("propose_route", ask).unwrap();
                ids.push(Id::parse(filed["id"].as_str().unwrap()).unwrap());
                answered.insert(ids[number].clone(), State::Pending);
            } else {
                let id = &ids[number];
                let (request, state) = match (round, number) {
                    (1, 2) => (json!({"op": "reject", "id": id, "reason": "no"}), State::Rejected),
                    (_, 2) => (json!({"op": "show", "id": id}), State::Rejected),
                    (1, _) => (json!({"op": "approve", "id": id}), State::Approved),
                    (2, _) => (json!({"op": "applying", "id": id, "digest": "sha256:00"}), State::Applying),
                    (_, 0) => (
                        json!({"op": "applied", "id": id, "generation": 2, "digest": "sha256:00"}),
                        State::Active,
                    ),
                    (_, _) => (json!({"op": "apply_failed", "id": id, "error": "no"}), State::ApplyFailed),
                };
                if operate(place, &request, how).is_some() {
                    answered.insert(id.clone(), state);
                }
            }
            if step == last {
                break 'life;
            }
            step += 1;
        }
    }
    daemon.kill();
    answered
}

/// How far along its life a request is.
fn rank(state: State) -> u8 {
    match state {
        State::Pending => 0,
        State::Approved | State::Rejected => 1,
        State::Applying => 2,
        _ => 3,
    }
}

#[test]
fn what_was_answered_survives_a_kill_at_any_step_and_nothing_is_granted_without_a_yes() {
    let kills = std::env::var("BOTTLECAP_KILLS").map_or(KILLS_DEFAULT, |text| text.parse().unwrap());
    let mut numbers = Numbers(7);
    for round in 0..kills {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("routes.yaml"), ROUTES).unwrap();
        let (last, reply) = (round % 12, if numbers.below(2) == 0 { Reply::Read } else { Reply::Unread });
        let answered = live(place.path(), Daemon::start(place.path()), last, reply);
        let journal = place.path().join("state/audit/supervise/journal.jsonl");
        let copy = place.path().join("copy/journal.jsonl");
        std::fs::create_dir(place.path().join("copy")).unwrap();
        std::fs::copy(&journal, &copy).unwrap();

        let desk = Desk::open(&copy).unwrap();
        for (id, state) in &answered {
            let view = desk.view(id, desk.now()).unwrap_or_else(|| panic!("{id} is lost"));
            let is_as_said = view.state == *state || rank(view.state) == rank(*state) + 1;
            assert!(is_as_said, "{id} was said to be {state:?} and is {:?}", view.state);
        }
        let (mut approved, mut applied) = (Vec::new(), Vec::new());
        for record in replay::<Entry>(&journal).unwrap() {
            let Entry::Proposal(Event { id, change, .. }) = record.unwrap().event else { continue };
            match change {
                Change::Approved { .. } => approved.push(id),
                Change::Applied { .. } => {
                    assert!(approved.contains(&id) && !applied.contains(&id), "{id}");
                    applied.push(id);
                }
                _ => {}
            }
        }
        Daemon::start(place.path()).kill();
    }
}

#[test]
fn a_journal_cut_anywhere_in_its_last_three_records_loses_at_most_those() {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("routes.yaml"), ROUTES).unwrap();
    live(place.path(), Daemon::start(place.path()), 11, Reply::Read);
    let bytes = std::fs::read(place.path().join("state/audit/supervise/journal.jsonl")).unwrap();
    let ends: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b'\n').collect();
    let whole: Vec<_> = states_of(&bytes);
    let mut seen = std::collections::BTreeSet::new();
    for cut in ends[ends.len() - 4] + 1..bytes.len() {
        let states = states_of(&bytes[..cut]);
        for (id, state) in &states {
            let later = whole.iter().find(|(other, _)| other == id).unwrap().1;
            assert!(rank(*state) <= rank(later), "{id}: {state:?} is beyond {later:?}");
        }
        seen.insert(format!("{states:?}"));
    }
    assert_eq!(seen.len(), 3, "one for each record that is whole");
}

fn states_of(journal: &[u8]) -> Vec<(Id, State)> {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("journal.jsonl");
    std::fs::write(&path, journal).unwrap();
    let desk = Desk::open(&path).unwrap();
    desk.views(None, desk.now()).into_iter().map(|view| (view.id, view.state)).collect()
}

#[test]
fn on_a_full_disk_nothing_is_decided_and_what_was_answered_is_there_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    std::fs::write(place.join("routes.yaml"), ROUTES).unwrap();
    std::fs::create_dir(place.join("state")).unwrap();
    // A small file system of its own for the journal, which nobody else sees.
    let script = "mount -t tmpfs -o size=64k journal \"$0/state\" && exec \"$@\"";
    let own =
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, place.to_str().unwrap()];
    let daemon = Daemon::under(&own, place);
    let operator = common::Operator { socket: place.join("run/supervise.sock") };

    let id = daemon.agent.propose("a.example.com").unwrap()["id"].clone();
    let full = (0..2000).find_map(|_| {
        operator.ask(json!({"op": "pause"})).and_then(|_| operator.ask(json!({"op": "resume"}))).err()
    });
    assert_eq!(full.expect("the disk is full at last").code, "journal-unavailable");
    let decided = operator.ask(json!({"op": "reject", "id": id, "reason": "x".repeat(2000)})).unwrap_err();
    assert_eq!(decided.code, "journal-unavailable");
    assert_eq!(operator.view(json!({"op": "show", "id": id})).state, State::Pending);
    let journal = place.join("state/audit/supervise/journal.jsonl");
    let seen = format!("/proc/{}/root{}", daemon.child.id(), journal.display());
    let records = audit::verify(&seen).unwrap().seq;
    assert_eq!(operator.ask(json!({"op": "status"})).unwrap()["records"], json!(records));
    daemon.kill();
}

#[test]
fn a_disk_that_does_not_write_refuses_what_it_cannot_keep_and_what_was_answered_is_there_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    std::fs::write(place.join("routes.yaml"), ROUTES).unwrap();
    let daemon = Daemon::start(place);
    let [kept, decided] =
        ["a", "b"].map(|name| daemon.agent.propose(&format!("{name}.example.com")).unwrap()["id"].clone());
    daemon.kill();
    // From now on nothing can be made durable. strace: scripts/need.sh strace.
    let inject = "inject=fdatasync:error=EIO";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", inject];
    let Daemon { mut child, agent } = Daemon::under(&strace, place);
    let operator = common::Operator { socket: place.join("run/supervise.sock") };

    assert_eq!(agent.propose("c.example.com").unwrap_err()["code"], "journal-unavailable");
    let refused = operator.ask(json!({"op": "approve", "id": decided})).unwrap_err();
    assert_eq!(refused.code, "journal-unavailable");
    for id in [&kept, &decided] {
        assert_eq!(operator.view(json!({"op": "show", "id": id})).state, State::Pending);
    }
    let tracer = child.id();
    let daemon = std::fs::read_to_string(format!("/proc/{tracer}/task/{tracer}/children")).unwrap();
    let daemon = nix::unistd::Pid::from_raw(daemon.trim().parse().unwrap());
    nix::sys::signal::kill(daemon, nix::sys::signal::Signal::SIGKILL).unwrap();
    child.wait().unwrap();
    let states = states_of(&std::fs::read(place.join("state/audit/supervise/journal.jsonl")).unwrap());
    let expected = [kept, decided].map(|id| (Id::parse(id.as_str().unwrap()).unwrap(), State::Pending));
    assert_eq!(states, expected);
}

/// The most memory that the process has had, in KiB.
fn peak(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_flood_of_proposals_costs_neither_memory_nor_disk() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    std::fs::write(place.join("routes.yaml"), ROUTES).unwrap();
    let daemon = Daemon::start(place);
    let mut taken = 0;
    let mut flood = |rounds: std::ops::Range<u32>| {
        for number in rounds {
            // What is refused is as long as what is taken may be.
            let arguments = json!({"host": format!("h{number}.example.com"), "reason": "x".repeat(400)});
            match daemon.agent.call("propose_route", arguments) {
                Ok(_) => taken += 1,
                Err(refused) => assert_eq!(refused["code"], "too-many-requests"),
            }
        }
    };
    flood(0..100);
    let (before, journal) = (peak(&daemon), place.join("state/audit/supervise/journal.jsonl"));
    flood(100..1100);
    let growth = peak(&daemon) - before;
    assert!(growth < 4096, "{growth} KiB more for a thousand proposals");
    let written = std::fs::metadata(journal).unwrap().len();
    assert!(written < 64 * 1024, "{written} bytes of journal");
    assert!((3..=20).contains(&taken), "{taken}");
    daemon.kill();
}
