//! Decisions that were interrupted, files that are not what they should be, and daemons that lie.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use proposal::wire::{Request, View};
use proposal::{Id, digest};
use serde_json::{Value, json};
use tempfile::TempDir;

const BASE: &str = "# ours\nroutes:\n  - host: api.acme.test\n";
const ID: &str = "0123456789abcdef";

/// A bundle of which only the control sockets are there.
struct Stage {
    root: TempDir,
    heard: Arc<Mutex<Vec<Value>>>,
}

impl Stage {
    fn new() -> Stage {
        let stage = Stage { root: tempfile::tempdir().unwrap(), heard: Arc::default() };
        fs::create_dir(stage.path("routes")).unwrap();
        fs::write(stage.routes(), BASE).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn routes(&self) -> PathBuf {
        self.path("routes/routes.yaml")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.routes()).unwrap()
    }

    /// Routes that hold the grant already.
    fn with_grant(self) -> Stage {
        let view: View = serde_json::from_value(view("approved")).unwrap();
        let end = Timestamp::now() + jiff::SignedDuration::from_mins(3);
        let grant = view.proposal.route().unwrap().to_grant(&Id::parse(ID).unwrap(), end);
        fs::write(self.routes(), policy::append_route(BASE, &grant).unwrap()).unwrap();
        self
    }

    /// The daemon with the queue, which answers like this.
    fn queue(self, answer: impl Fn(&Value) -> Value + Send + 'static) -> Stage {
        let heard = Arc::clone(&self.heard);
        serve(&self.path("supervise.sock"), move |request| {
            let _: Request = serde_json::from_value(request.clone()).unwrap();
            heard.lock().unwrap().push(request.clone());
            answer(&request)
        });
        self
    }

    /// The supervisor, which answers a reload like this, given the routes as they are then.
    fn supervisor(self, answer: impl Fn(&str) -> Value + Send + 'static) -> Stage {
        let file = self.routes();
        serve(&self.path("supervisor.sock"), move |_| answer(&fs::read_to_string(&file).unwrap()));
        self
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bottlecap"));
        command.arg("requests").args(words).arg("--routes").arg(self.path("routes"));
        command.arg("--run-dir").arg(self.root.path()).env("XDG_STATE_HOME", self.root.path());
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Approves what `show` shows, if it shows anything.
    fn yes(&self, id: &str, more: &[&str]) -> Output {
        let shown = serde_json::from_slice(&self.run(&["show", id, "--json"]).stdout).unwrap_or(Value::Null);
        let token = shown["review"]["token"].as_str().unwrap_or("none").to_owned();
        self.run(&[&["approve", id, "--token", &token], more].concat())
    }

    fn told(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let ops = heard.iter().map(|request| request["op"].as_str().unwrap().to_owned());
        ops.filter(|op| op != "show").collect()
    }
}

fn serve(path: &Path, mut answer: impl FnMut(Value) -> Value + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            writeln!(stream, "{}", answer(serde_json::from_str(&line).unwrap())).unwrap();
        }
    });
}

fn view(state: &str) -> Value {
    json!({
        "id": ID, "state": state, "created_at": "2026-11-21T10:00:00Z",
        "proposal": {"host": "docs.acme.test", "reason": "to read", "ttl_seconds": 600},
    })
}

fn is(state: &'static str) -> impl Fn(&Value) -> Value + Send {
    move |_| json!({"ok": true, "result": view(state)})
}

fn taken(routes: &str) -> Value {
    json!({"ok": true, "result": {"daemons": [{"name": "egress", "generation": 2, "digest": digest(routes)}]}})
}

fn refused(message: &str) -> Value {
    json!({"ok": false, "error": {"code": "reload-failed", "message": message}})
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn an_approval_that_was_interrupted_after_writing_is_taken_up_again() {
    let stage = Stage::new().with_grant().queue(is("approved")).supervisor(taken);
    let before = stage.text();
    let output = stage.yes(ID, &[]);
    assert!(output.status.success(), "{}", errors(&output));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("an earlier attempt was interrupted"), "{shown}");
    assert!(shown.contains("this newly allows GET https://docs.acme.test/**"), "{shown}");
    assert_ne!(stage.text(), before, "with an end of its own");
    assert_eq!(stage.text().matches(ID).count(), 1);
    assert_eq!(stage.told(), ["approve", "applying", "applied"]);
}

#[test]
fn what_an_interrupted_approval_left_does_not_survive_a_failure() {
    let stage = Stage::new().with_grant().queue(is("approved"));
    let stage = stage.supervisor(|routes| if routes == BASE { taken(routes) } else { refused("no") });
    let output = stage.yes(ID, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stage.text(), BASE);
}

#[test]
fn what_an_interrupted_approval_left_does_not_survive_a_rejection() {
    let stage = Stage::new().with_grant().queue(is("rejected")).supervisor(taken);
    let output = stage.run(&["reject", ID]);
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(stage.text(), BASE);
}

#[test]
fn a_yes_is_recorded_again_so_that_a_decision_in_between_counts() {
    let stage = Stage::new().supervisor(taken).queue(|request| match request["op"].as_str() {
        Some("show") => json!({"ok": true, "result": view("approved")}),
        _ => json!({"ok": false, "error": {"code": "wrong-state", "message": "request is rejected"}}),
    });
    let output = stage.yes(ID, &[]);
    assert_eq!((output.status.code(), errors(&output).as_str()), (Some(64), "error: request is rejected\n"));
    assert_eq!(stage.text(), BASE);
}

#[test]
fn what_somebody_wrote_meanwhile_is_not_taken_back() {
    let stage = Stage::new().queue(is("pending"));
    let file = stage.routes();
    let stage = stage.supervisor(move |_| {
        fs::write(&file, "routes: []\n").unwrap();
        refused("egress: not ready")
    });
    let output = stage.yes(ID, &[]);
    assert!(errors(&output).contains("somebody changed the file meanwhile"), "{}", errors(&output));
    assert_eq!(stage.text(), "routes: []\n");
}

#[test]
fn a_link_in_place_of_the_routes_is_refused_before_anything_is_decided() {
    let stage = Stage::new().queue(is("pending")).supervisor(taken);
    fs::rename(stage.routes(), stage.path("elsewhere.yaml")).unwrap();
    std::os::unix::fs::symlink(stage.path("elsewhere.yaml"), stage.routes()).unwrap();
    let output = stage.yes(ID, &[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(errors(&output).contains("is a symbolic link"), "{}", errors(&output));
    assert_eq!(stage.told(), [""; 0]);
    assert!(fs::symlink_metadata(stage.routes()).unwrap().is_symlink());
}

#[test]
fn a_daemon_that_answers_about_another_request_is_not_believed() {
    let stage = Stage::new().queue(is("pending")).supervisor(taken);
    let output = stage.yes("fedcba9876543210", &[]);
    assert!(errors(&output).contains("the daemon answered about 0123456789abcdef"), "{}", errors(&output));
    assert_eq!(stage.text(), BASE);
}

#[test]
fn no_grant_lasts_longer_than_a_day_whatever_the_daemon_says_was_decided() {
    let stage = Stage::new().supervisor(taken).queue(|_| {
        let mut view = view("approved");
        view["decision"] =
            json!({"by": "uid:0", "at": "2026-11-21T10:00:00Z", "ttl_seconds": 4_000_000_000_u32});
        json!({"ok": true, "result": view})
    });
    let output = stage.yes(ID, &[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(errors(&output).contains("a grant lasts from 60 to 86400 seconds"), "{}", errors(&output));
    assert_eq!(stage.text(), BASE);
}

#[test]
fn what_a_daemon_says_cannot_move_the_cursor() {
    let stage = Stage::new().supervisor(taken);
    let stage = stage.queue(|_| refused("no\u{1b}[2J\u{202e}"));
    let output = stage.run(&["show", ID]);
    assert_eq!(errors(&output), "error: no\\u{1b}[2J\\u{202e}\n");
}

#[test]
fn a_failure_that_cannot_be_recorded_is_still_the_one_that_is_told() {
    let stage =
        Stage::new().supervisor(|_| refused("egress: is on fire")).queue(|request| {
            match request["op"].as_str() {
                Some("apply_failed") => refused("the disk is full"),
                _ => json!({"ok": true, "result": view("pending")}),
            }
        });
    let error = errors(&stage.yes(ID, &[]));
    assert!(error.contains("is on fire") && error.contains("the disk is full"), "{error}");
}

#[test]
fn a_failure_of_many_words_is_recorded_as_far_as_there_is_room() {
    let stage = Stage::new().supervisor(|_| refused(&"x".repeat(5000))).queue(is("pending"));
    stage.yes(ID, &[]);
    let heard = stage.heard.lock().unwrap();
    assert_eq!(heard.last().unwrap()["error"].as_str().unwrap().chars().count(), 2000);
}

#[test]
fn a_pipe_in_place_of_the_status_of_egress_does_not_hold_us() {
    let stage = Stage::new().queue(is("pending"));
    let status = stage.path("egress.status.json");
    nix::unistd::mkfifo(&status, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let script = stage.path("hup");
    let text = format!(
        "rm -f {0}; printf '{{\"generation\":7,\"digest\":\"sha256:%s\",\"last_error\":null}}' \
         \"$(sha256sum {1} | cut -d' ' -f1)\" >{0}\n",
        status.display(),
        stage.routes().display()
    );
    fs::write(&script, text).unwrap();
    let output = stage.yes(ID, &["--hup", &format!("/bin/sh {}", script.display())]);
    assert!(output.status.success(), "{}", errors(&output));
}

#[test]
fn an_id_that_is_unknown_or_decided_is_said_so_and_is_no_failure_of_ours() {
    let stage = Stage::new().supervisor(taken).queue(is("withdrawn"));
    let output = stage.yes(ID, &[]);
    assert_eq!(
        (output.status.code(), errors(&output)),
        (Some(64), format!("error: the request {ID} is withdrawn\n"))
    );
    let stage = Stage::new().supervisor(taken).queue(|_| refused("no request has the id none"));
    for words in [["approve", "none"], ["reject", "none"], ["show", "none"]] {
        let output = stage.run(&words);
        assert_eq!(
            (output.status.code(), errors(&output).as_str()),
            (Some(64), "error: no request has the id none\n")
        );
    }
}
