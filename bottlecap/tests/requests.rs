//! A decision is applied as a whole, or not at all: the program against stand-ins for the daemons.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use proposal::digest;
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
    /// With a supervisor that answers a reload by `reload`, given the routes as they are then.
    fn with(reload: impl Fn(&str) -> Value + Send + 'static) -> Stage {
        let stage = Stage { root: tempfile::tempdir().unwrap(), heard: Arc::default() };
        fs::create_dir(stage.routes_directory()).unwrap();
        fs::write(stage.routes_file(), BASE).unwrap();
        let heard = Arc::clone(&stage.heard);
        serve(&stage.root.path().join("supervise.sock"), move |request| {
            heard.lock().unwrap().push(request.clone());
            json!({"ok": true, "result": view(&request)})
        });
        let file = stage.routes_file();
        serve(&stage.root.path().join("supervisor.sock"), move |_| {
            reload(&fs::read_to_string(&file).unwrap())
        });
        stage
    }

    fn routes_directory(&self) -> std::path::PathBuf {
        self.root.path().join("routes")
    }

    fn routes_file(&self) -> std::path::PathBuf {
        self.routes_directory().join("routes.yaml")
    }

    fn routes(&self) -> String {
        fs::read_to_string(self.routes_file()).unwrap()
    }

    fn approve(&self, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bottlecap"));
        command.args(["requests", "approve", ID, "--routes"]).arg(self.routes_directory());
        command.arg("--run-dir").arg(self.root.path()).args(more).env("XDG_STATE_HOME", self.root.path());
        command.stdin(std::process::Stdio::null()).output().unwrap()
    }

    /// What the daemon with the queue was told, without being asked.
    fn told(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        heard
            .iter()
            .map(|request| request["op"].as_str().unwrap().to_owned())
            .filter(|op| op != "show")
            .collect()
    }
}

fn serve(path: &Path, mut answer: impl FnMut(Value) -> Value + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let reply = answer(serde_json::from_str(&line).unwrap());
            writeln!(stream, "{reply}").unwrap();
        }
    });
}

fn view(request: &Value) -> Value {
    let state = if request["op"] == "show" { "pending" } else { "approved" };
    json!({
        "id": ID, "state": state, "created_at": "2026-11-21T10:00:00Z",
        "proposal": {"host": "docs.acme.test", "ports": [443], "scheme": "https", "methods": ["GET"],
                     "paths": [{"type": "prefix", "value": "/guide"}], "ttl_seconds": 600, "reason": "to read"},
    })
}

fn acknowledged(routes: &str) -> Value {
    json!({"ok": true, "result": {"daemons": [{"name": "egress", "generation": 2, "digest": digest(routes)}]}})
}

#[test]
fn what_was_shown_is_written_and_counts_when_egress_has_it() {
    let stage = Stage::with(acknowledged);
    let output = stage.approve(&["--yes"]);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));
    assert!(shown.contains("this newly allows GET https://docs.acme.test/guide/**"), "{shown}");
    let added: Vec<&str> = shown
        .lines()
        .filter_map(|line| line.strip_prefix('+'))
        .filter(|line| !line.starts_with("++"))
        .collect();
    assert_eq!(stage.routes(), format!("{BASE}{}\n", added.join("\n")));
    assert_eq!(stage.told(), ["approve", "applied"]);
    let heard = stage.heard.lock().unwrap();
    assert_eq!(heard.last().unwrap()["digest"], digest(&fs::read_to_string(stage.routes_file()).unwrap()));
}

#[test]
fn routes_that_egress_refuses_are_taken_back() {
    let stage = Stage::with(|routes| {
        if routes == BASE {
            acknowledged(routes)
        } else {
            json!({"ok": false, "error": {"code": "reload-failed", "message": "egress: routes.yaml:5:5: no"}})
        }
    });
    let output = stage.approve(&["--yes"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("egress: routes.yaml:5:5: no; the old routes are back in force"), "{error}");
    assert_eq!(stage.routes(), BASE);
    assert_eq!(stage.told(), ["approve", "apply_failed"]);
}

#[test]
fn another_digest_than_the_written_one_is_no_acknowledgement() {
    let stage = Stage::with(|_| acknowledged("something else"));
    let output = stage.approve(&["--yes"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stage.routes(), BASE);
    assert_eq!(stage.told(), ["approve", "apply_failed"]);
}

#[test]
fn routes_that_changed_meanwhile_are_not_overwritten() {
    let stage = Stage::with(acknowledged);
    let file = stage.routes_file();
    fs::remove_file(stage.root.path().join("supervise.sock")).unwrap();
    let heard = Arc::clone(&stage.heard);
    serve(&stage.root.path().join("supervise.sock"), move |request| {
        if request["op"] == "approve" {
            fs::write(&file, "routes: []\n").unwrap();
        }
        heard.lock().unwrap().push(request.clone());
        json!({"ok": true, "result": view(&request)})
    });
    let output = stage.approve(&["--yes"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("changed since the request was shown"));
    assert_eq!(stage.routes(), "routes: []\n");
    assert_eq!(stage.told(), ["approve", "apply_failed"]);
}

#[test]
fn without_a_terminal_and_without_yes_nothing_is_decided() {
    let stage = Stage::with(acknowledged);
    let output = stage.approve(&[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("hint: look at the change with `bottlecap requests show ID`")
    );
    assert_eq!(stage.routes(), BASE);
    assert_eq!(stage.told(), [""; 0]);
}

#[test]
fn a_command_can_stand_in_for_the_supervisor() {
    let stage = Stage::with(|_| json!({"ok": false, "error": {"code": "x", "message": "not asked"}}));
    let script = stage.root.path().join("hup");
    let text = format!(
        "#!/bin/sh\nprintf '{{\"generation\":7,\"digest\":\"sha256:%s\",\"loaded_at\":\"now\",\"last_error\":null}}' \
         \"$(sha256sum {} | cut -d' ' -f1)\" >{}/egress.status.json\n",
        stage.routes_file().display(),
        stage.root.path().display()
    );
    fs::write(&script, text).unwrap();
    let output = stage.approve(&["--yes", "--json", "--hup", &format!("/bin/sh {}", script.display())]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(stage.told(), ["approve", "applied"]);
    assert_eq!(stage.heard.lock().unwrap().last().unwrap()["generation"], 7);
}
