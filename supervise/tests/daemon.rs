//! The program: what it survives, what it refuses to start with, and what its commands print.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use common::{Agent, Operator, ROUTES};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proposal::State;
use serde_json::{Value, json};
use tempfile::TempDir;

const SUPERVISE: &str = env!("CARGO_BIN_EXE_supervise");

fn place() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("routes.yaml"), ROUTES).unwrap();
    directory
}

fn with_places(mut command: Command, place: &Path) -> Command {
    command
        .env_clear()
        .arg("--config")
        .arg(place)
        .arg("--run-dir")
        .arg(place.join("run"))
        .arg("--state-dir")
        .arg(place.join("state"));
    command
}

fn supervise(place: &Path, arguments: &[&str]) -> Output {
    with_places(Command::new(SUPERVISE), place).args(arguments).output().unwrap()
}

/// A running daemon; killed when dropped.
struct Daemon {
    child: Child,
    agent: Agent,
    operator: Operator,
}

impl Daemon {
    fn start(place: &Path) -> Daemon {
        Daemon::of(with_places(Command::new(SUPERVISE), place), place)
    }

    fn of(mut command: Command, place: &Path) -> Daemon {
        let mut child = command.args(["--listen", "127.0.0.1:0"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = log.find(|line| line.as_ref().unwrap().contains("listening")).unwrap().unwrap();
        let address = listening.rsplit_once("address=").unwrap().1.parse().unwrap();
        // The pipe has to stay open, or the daemon would be told that nobody reads its log.
        std::thread::spawn(move || log.for_each(drop));
        Daemon {
            child,
            agent: Agent { address },
            operator: Operator { socket: place.join("run/supervise.sock") },
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_killed_daemon_comes_back_with_every_request() {
    let place = place();
    let daemon = Daemon::start(place.path());
    let pending = daemon.agent.propose("one.example.com").unwrap()["id"].clone();
    let active = daemon.agent.propose("two.example.com").unwrap()["id"].clone();
    daemon.operator.ask(json!({"op": "approve", "id": active})).unwrap();
    daemon
        .operator
        .ask(json!({"op": "applied", "id": active, "generation": 2, "digest": "sha256:00"}))
        .unwrap();
    let before = daemon.operator.ask(json!({"op": "list"})).unwrap();
    daemon.signal(Signal::SIGKILL);
    drop(daemon);

    let daemon = Daemon::start(place.path());
    assert_eq!(daemon.operator.ask(json!({"op": "list"})).unwrap(), before);
    assert_eq!(daemon.agent.propose("one.example.com").unwrap()["id"], pending);
    daemon.operator.ask(json!({"op": "reject", "id": pending, "reason": "no"})).unwrap();
    assert_eq!(daemon.agent.call("wait_decision", json!({"id": pending})).unwrap()["state"], "rejected");
}

#[test]
fn a_foreign_uid_is_no_operator_even_where_it_may_open_the_socket() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let place = place();
    let everyone =
        |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    everyone(place.path(), 0o755);
    // A copy in a place that everybody can reach; another process makes it, so that no fork here keeps it open for writing.
    let program = place.path().join("supervise");
    assert!(Command::new("install").args(["-m", "755", SUPERVISE]).arg(&program).status().unwrap().success());
    let daemon = Daemon::start(place.path());
    daemon.agent.propose("api.example.com").unwrap();
    everyone(&place.path().join("run"), 0o755);
    everyone(&daemon.operator.socket, 0o666);
    for uid in [64101, 64103, 65534] {
        let output =
            with_places(Command::new(&program), place.path()).arg("list").uid(uid).gid(uid).output().unwrap();
        assert_eq!(
            (
                output.status.code(),
                String::from_utf8_lossy(&output.stderr).as_ref(),
                output.stdout.as_slice()
            ),
            (Some(64), "error: only root and the daemon's own uid are operators\n", b"".as_slice()),
            "uid {uid}"
        );
    }
    assert!(supervise(place.path(), &["list"]).status.success());
}

#[test]
fn an_id_that_is_unknown_or_decided_is_said_so() {
    let place = place();
    let daemon = Daemon::start(place.path());
    let id = daemon.agent.propose("api.example.com").unwrap()["id"].as_str().unwrap().to_owned();
    assert!(supervise(place.path(), &["reject", &id, "--reason", "no"]).status.success());
    let says = |words: &[&str]| {
        let output = supervise(place.path(), words);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let decided = (Some(64), format!("error: request {id} is rejected\n"));
    assert_eq!(says(&["approve", &id]), decided);
    assert_eq!(says(&["reject", &id, "--reason", "no"]), decided);
    let unknown = (Some(64), "error: no request has the id none\n".to_owned());
    for words in [&["show", "none"][..], &["approve", "none"], &["reject", "none", "--reason", "no"]] {
        assert_eq!(says(words), unknown);
    }
}

#[test]
fn a_hangup_is_ignored_and_a_termination_is_a_clean_end() {
    let place = place();
    let mut daemon = Daemon::start(place.path());
    daemon.signal(Signal::SIGHUP);
    assert!(daemon.agent.propose("one.example.com").is_ok());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    assert!(!daemon.operator.socket.exists());
}

#[test]
fn sockets_that_were_passed_are_used_and_readiness_is_reported() {
    let place = place();
    let notify = place.path().join("notify");
    let reports = UnixDatagram::bind(&notify).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Descriptor 3 and LISTEN_PID have to be those of the daemon itself, so a shell becomes it.
    let script = "exec 3<&0 0</dev/null && exec env LISTEN_PID=$$ \"$0\" \"$@\"";
    let mut command = Command::new("/bin/sh");
    command.arg0("sh").arg("-c").arg(script).arg(SUPERVISE);
    let mut command = with_places(command, place.path());
    command
        .env("PATH", "/usr/bin:/bin")
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "supervise")
        .env("NOTIFY_SOCKET", &notify)
        .stdin(OwnedFd::from(listener));
    let daemon = Daemon::of(command, place.path());
    assert_eq!(daemon.agent.address, address, "not the one of --listen");
    let mut report = [0; 64];
    let length = reports.recv(&mut report).unwrap();
    assert_eq!(&report[..length], b"READY=1");
    assert!(daemon.agent.propose("one.example.com").is_ok());
}

#[test]
fn a_full_disk_refuses_the_proposal_and_what_was_there_goes_on() {
    let place = place();
    // A file can grow to 1 KiB here; the signal that says so is ignored, so writing fails as on a full disk.
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg("trap '' XFSZ; ulimit -f 2; exec \"$0\" \"$@\"").arg(SUPERVISE);
    let daemon = Daemon::of(with_places(command, place.path()), place.path());
    let first = daemon.agent.propose("one.example.com").unwrap()["id"].clone();
    daemon.agent.propose("two.example.com").unwrap();
    let refused = daemon.agent.propose("three.example.com").unwrap_err();
    assert_eq!(refused["code"], "journal-unavailable");
    assert_eq!(daemon.agent.call("get_request", json!({"id": first})).unwrap()["state"], "pending");
    let listed = daemon.operator.ask(json!({"op": "list"})).unwrap();
    assert_eq!(listed["requests"].as_array().unwrap().len(), 2);
    drop(daemon);
    let daemon = Daemon::start(place.path());
    assert!(daemon.agent.propose("three.example.com").is_ok(), "with room again it works");
}

#[test]
fn a_second_daemon_on_the_same_state_does_not_start() {
    let place = place();
    let daemon = Daemon::start(place.path());
    let output = supervise(place.path(), &["--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(70));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("is in use by another process\nhint: another supervise has this --state-dir"),
        "{message}"
    );
    assert!(daemon.agent.propose("one.example.com").is_ok());
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    let place = place();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = supervise(place.path(), &["--listen", &address]);
    assert_eq!(output.status.code(), Some(70));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains(&format!("error: cannot listen on {address}: Address already in use")),
        "{message}"
    );
}

#[test]
fn a_changed_journal_is_refused_by_line_and_number() {
    let place = place();
    let daemon = Daemon::start(place.path());
    daemon.agent.propose("one.example.com").unwrap();
    daemon.agent.propose("two.example.com").unwrap();
    drop(daemon);
    let journal = place.path().join("state/audit/supervise/journal.jsonl");
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, text.replace("one.example.com", "own.example.com")).unwrap();
    for arguments in [["--listen", "127.0.0.1:0"].as_slice(), &["verify-log"]] {
        let output = supervise(place.path(), arguments);
        assert_eq!(output.status.code(), Some(70));
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            message.contains("is broken: line 1, seq 1: the hash does not match the record"),
            "{message}"
        );
    }
}

#[test]
fn check_reads_the_routes_and_starts_nothing() {
    let place = place();
    let output = supervise(place.path(), &["--check"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().starts_with("ok: 1 routes, 0 records in "));
    assert!(!place.path().join("run").exists() && !place.path().join("state").exists());
    std::fs::write(place.path().join("routes.yaml"), "routes:\n  - hots: a.example\n").unwrap();
    let output = supervise(place.path(), &["--check"]);
    assert_eq!(output.status.code(), Some(64));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("error: routes.yaml:2:5: unknown field `hots`"), "{message}");
}

#[test]
fn usage_errors_are_64_and_help_is_none() {
    let place = place();
    assert_eq!(supervise(place.path(), &["--no-such-flag"]).status.code(), Some(64));
    assert_eq!(supervise(place.path(), &["approve"]).status.code(), Some(64));
    assert_eq!(supervise(place.path(), &["approve", "x", "--ttl", "5"]).status.code(), Some(64));
    assert_eq!(supervise(place.path(), &["--help"]).status.code(), Some(0));
    assert_eq!(supervise(place.path(), &["--version"]).status.code(), Some(0));
}

#[test]
fn without_a_daemon_the_commands_say_where_they_looked() {
    let place = place();
    let output = supervise(place.path(), &["list"]);
    assert_eq!(output.status.code(), Some(70));
    let message = String::from_utf8(output.stderr).unwrap().replace(place.path().to_str().unwrap(), "PLACE");
    insta::assert_snapshot!(message, @"
    error: cannot reach the daemon at PLACE/run/supervise.sock: No such file or directory (os error 2)
    hint: is the bundle running? --run-dir says where its sockets are
    ");
}

#[test]
fn the_operators_commands_print_what_a_person_reads() {
    let place = place();
    let daemon = Daemon::start(place.path());
    let ask = json!({
        "host": "api.example.com", "paths": [{"type": "prefix", "value": "/v1"}],
        "reason": "see \u{202e}evil\u{1b}[2J",
    });
    let id = daemon.agent.call("propose_route", ask).unwrap()["id"].as_str().unwrap().to_owned();
    let print = |arguments: &[&str]| {
        let output = supervise(place.path(), arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap().replace(&id, "ID");
        let stamp = |word: &str| word.len() > 20 && word.starts_with("20") && word.ends_with('Z');
        let words = |line: &str| {
            line.split(' ').map(|word| if stamp(word) { "TIME" } else { word }).collect::<Vec<_>>().join(" ")
        };
        text.lines().map(words).map(|line| line.replace("uid:0", "UID") + "\n").collect::<String>()
    };
    let age = |text: String| {
        text.split_whitespace()
            .map(|word| if word.ends_with('s') && word.len() < 4 { "AGE" } else { word })
            .collect::<Vec<_>>()
            .join(" ")
    };
    insta::assert_snapshot!(age(print(&["list"])),
        @r#"ID pending AGE GET https://api.example.com/v1/** for 1 h "see \u{202e}evil\u{1b}[2J""#);
    insta::assert_snapshot!(print(&["approve", &id, "--ttl", "600"]), @r#"
    request  ID
    state    approved
    came     TIME
    asks     GET https://api.example.com/v1/** for 1 h
    reason   "see \u{202e}evil\u{1b}[2J" (the agent's words)
    approved TIME by UID
    granted  as asked, but for 10 min

    Recorded. Nothing is in force yet: the host puts it in force with
      bottlecap requests approve ID
    "#);
    let shown = supervise(place.path(), &["show", &id, "--json"]);
    let view: proposal::wire::View = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(view.state, proposal::State::Approved);
    let verified = print(&["verify-log"]);
    assert!(verified.contains("journal.jsonl: 2 records, the chain holds\nhead "), "{verified}");
}

#[test]
fn what_a_yes_would_change_is_told_and_write_access_to_a_new_host_wants_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    fs::write(place.join("routes.yaml"), "routes:\n  - host: api.github.com\n").unwrap();
    let daemon = Daemon::start(place);
    let ask = json!({"host": "new.example.com", "methods": ["POST"], "reason": "to write"});
    let filed = daemon.agent.call("propose_route", ask).unwrap();
    let id = filed["id"].as_str().unwrap();
    let text = |output: Output| String::from_utf8(output.stdout).unwrap();
    let told = text(supervise(place, &["diff", id]));
    assert!(told.starts_with("this newly allows POST https://new.example.com/**"), "{told}");
    assert!(told.contains("for example POST") && told.contains("breadth"), "{told}");
    let told: Value = serde_json::from_str(&text(supervise(place, &["diff", id, "--json"]))).unwrap();
    assert_eq!((&told["type_host"], &told["would_pass"]["of"]), (&json!(true), &json!(0)));

    let refused = supervise(place, &["approve", id]);
    assert!(!refused.status.success());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("--host new.example.com"), "{said}");
    assert!(!supervise(place, &["approve", id, "--host", "other.example.com"]).status.success());
    assert_eq!(daemon.operator.view(json!({"op": "show", "id": id})).state, State::Pending);

    let edited = place.join("edited.json");
    fs::write(
        &edited,
        json!({"host": "new.example.com", "methods": ["GET"], "ttl_seconds": 60, "reason": "less"})
            .to_string(),
    )
    .unwrap();
    let said = text(supervise(place, &["edit", id, edited.to_str().unwrap()]));
    assert!(said.contains("Recorded. Nothing is in force yet"), "{said}");
    let view = daemon.operator.view(json!({"op": "show", "id": id}));
    let scope = view.decision.unwrap().scope.unwrap();
    assert_eq!(
        (view.state, scope.methods(), scope.ttl_seconds()),
        (State::Approved, &["GET".to_owned()][..], 60)
    );
}
