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
        self.requests(&[&["approve", ID], more].concat())
    }

    fn requests(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bottlecap"));
        command.arg("requests").args(words).arg("--routes").arg(self.routes_directory());
        command.arg("--run-dir").arg(self.root.path()).env("XDG_STATE_HOME", self.root.path());
        command.stdin(std::process::Stdio::null()).output().unwrap()
    }

    /// The token of what `show` shows.
    fn token(&self) -> String {
        let shown: Value = serde_json::from_slice(&self.requests(&["show", ID, "--json"]).stdout).unwrap();
        shown["review"]["token"].as_str().unwrap().to_owned()
    }

    /// Approves what `show` shows.
    fn yes(&self, more: &[&str]) -> Output {
        self.approve(&[&["--token", &self.token()], more].concat())
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
    let output = stage.yes(&[]);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));
    assert!(shown.contains("this newly allows GET https://docs.acme.test/guide/**"), "{shown}");
    let added: Vec<&str> = shown
        .lines()
        .filter_map(|line| line.strip_prefix('+'))
        .filter(|line| !line.starts_with("++"))
        .collect();
    assert_eq!(stage.routes(), format!("{BASE}{}\n", added.join("\n")));
    assert_eq!(stage.told(), ["approve", "applying", "applied"]);
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
    let output = stage.yes(&[]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("egress: routes.yaml:5:5: no; the old routes are back in force"), "{error}");
    assert_eq!(stage.routes(), BASE);
    assert_eq!(stage.told(), ["approve", "applying", "apply_failed"]);
}

#[test]
fn another_digest_than_the_written_one_is_no_acknowledgement() {
    let stage = Stage::with(|_| acknowledged("something else"));
    let output = stage.yes(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stage.routes(), BASE);
    assert_eq!(stage.told(), ["approve", "applying", "apply_failed"]);
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
    let output = stage.yes(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("changed since the request was shown"));
    assert_eq!(stage.routes(), "routes: []\n");
    assert_eq!(stage.told(), ["approve", "applying", "apply_failed"]);
}

#[test]
fn without_a_terminal_and_without_a_token_nothing_is_decided() {
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
    let output = stage.yes(&["--json", "--hup", &format!("/bin/sh {}", script.display())]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(stage.told(), ["approve", "applying", "applied"]);
    assert_eq!(stage.heard.lock().unwrap().last().unwrap()["generation"], 7);
}

#[test]
fn a_yes_without_a_token_or_with_that_of_something_else_decides_nothing() {
    let stage = Stage::with(acknowledged);
    assert_eq!(
        stage.approve(&["--yes"]).status.code(),
        Some(64),
        "there is no yes to whatever it is by then"
    );
    let output = stage.approve(&["--token", "0123456789abcdef0123456789abcdef"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("the token is of something else"), "{error}");
    assert_eq!((stage.routes().as_str(), stage.told()), (BASE, vec![]));
}

#[test]
fn a_request_that_became_another_after_it_was_shown_is_not_granted() {
    let stage = Stage::with(acknowledged);
    fs::remove_file(stage.root.path().join("supervise.sock")).unwrap();
    let heard = Arc::clone(&stage.heard);
    serve(&stage.root.path().join("supervise.sock"), move |request| {
        let mut heard = heard.lock().unwrap();
        let mut view = view(&request);
        if !heard.is_empty() {
            view["proposal"]["host"] = json!("evil.acme.test");
        }
        heard.push(request);
        json!({"ok": true, "result": view})
    });
    let output = stage.yes(&[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!((stage.routes().as_str(), stage.told()), (BASE, vec![]));
}

#[test]
fn a_reload_between_looking_and_answering_makes_the_token_void() {
    let stage = Stage::with(acknowledged);
    let status = |generation: u64| {
        let status = json!({"generation": generation, "digest": digest(BASE), "last_error": null});
        fs::write(stage.root.path().join("egress.status.json"), status.to_string()).unwrap();
    };
    status(1);
    let first = stage.yes(&[]);
    assert!(first.status.success(), "the same generation: {}", String::from_utf8_lossy(&first.stderr));
    fs::write(stage.routes_file(), BASE).unwrap();
    let token = stage.token();
    status(2);
    let output = stage.approve(&["--token", &token]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stage.routes(), BASE);
}

#[test]
fn less_than_was_asked_for_is_granted_and_more_is_not() {
    let stage = Stage::with(acknowledged);
    let narrow = ["--path", "/guide/start", "--ttl", "60"];
    let shown = stage.requests(&[&["show", ID, "--json"], &narrow[..]].concat());
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let token = shown["review"]["token"].as_str().unwrap().to_owned();
    let wider = stage.approve(&["--token", &token]);
    assert_eq!(wider.status.code(), Some(1), "the token is of the narrower grant alone");
    let output = stage.approve(&[&["--token", &token], &narrow[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(stage.routes().contains(r#"{type: exact, value: "/guide/start"}"#), "{}", stage.routes());
    let heard = stage.heard.lock().unwrap().clone();
    let approval = heard.iter().find(|request| request["op"] == "approve").unwrap();
    assert_eq!(
        (&approval["ttl_seconds"], &approval["scope"]["paths"][0]["value"]),
        (&json!(60), &json!("/guide/start"))
    );

    for more in [["--method", "POST"], ["--path", "/other"], ["--path", "/**"]] {
        let output = stage.requests(&[&["show", ID], &more[..]].concat());
        assert_eq!(output.status.code(), Some(64), "{more:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("more than was asked for"));
    }
}

#[test]
fn write_access_to_a_new_host_needs_the_host_named() {
    let stage = Stage::with(acknowledged);
    let set = stage.root.path().join("edited.json");
    let wanted =
        json!({"host": "docs.acme.test", "methods": ["POST"], "reason": "to write", "ttl_seconds": 600});
    fs::write(&set, wanted.to_string()).unwrap();
    let edit =
        |more: &[&str]| stage.requests(&[&["edit", ID, "--set", set.to_str().unwrap()], more].concat());
    let refused = edit(&["--token", "x"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let shown = String::from_utf8(refused.stdout).unwrap();
    assert!(shown.contains("careful  no route leads to this host yet"), "{shown}");
    assert!(shown.contains("it can change things there"), "{shown}");
    assert_eq!(stage.routes(), BASE);
}

#[test]
fn what_was_revoked_leaves_the_routes() {
    let stage = Stage::with(acknowledged);
    assert!(stage.yes(&[]).status.success());
    assert_ne!(stage.routes(), BASE);
    let output = stage.requests(&["revoke", ID, "--reason", "enough"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(stage.routes(), BASE);
    assert_eq!(stage.told().last().unwrap(), "revoke");
}

#[test]
fn a_grant_is_taken_out_even_when_the_daemon_does_not_answer() {
    let stage = Stage::with(acknowledged);
    assert!(stage.yes(&[]).status.success());
    fs::remove_file(stage.root.path().join("supervise.sock")).unwrap();
    let output = stage.requests(&["revoke", ID]);
    assert_eq!(output.status.code(), Some(70));
    assert!(String::from_utf8_lossy(&output.stderr).contains("but the agent could not be told"));
    assert_eq!(stage.routes(), BASE);
}

const REPOS: &str = "repos:\n  - name: web   # ours\n    upstream: git@git.acme.test:web.git\n    identity: /keys/web\n    host_key: \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH\"\n";

/// A bundle that is asked for this, and whose git-gate acknowledges what `acknowledges` says of its file.
fn asked_for(ask: &Value, acknowledges: impl Fn(&str) -> String + Send + 'static) -> Stage {
    let stage = Stage { root: tempfile::tempdir().unwrap(), heard: Arc::default() };
    fs::create_dir(stage.routes_directory()).unwrap();
    fs::write(stage.routes_file(), BASE).unwrap();
    let repos = stage.routes_directory().join("repos.yaml");
    fs::write(&repos, REPOS).unwrap();
    let (heard, ask) = (Arc::clone(&stage.heard), ask.clone());
    serve(&stage.root.path().join("supervise.sock"), move |request| {
        heard.lock().unwrap().push(request.clone());
        let mut view = view(&request);
        view["proposal"] = ask.clone();
        json!({"ok": true, "result": view})
    });
    serve(&stage.root.path().join("supervisor.sock"), move |request| {
        let digest = acknowledges(&fs::read_to_string(&repos).unwrap());
        json!({"ok": true, "result": {"daemons": [{"name": request["name"], "generation": 5, "digest": digest}]}})
    });
    stage
}

fn with_repos<'w>(stage: &'w Stage, directory: &'w str, words: &[&'w str]) -> Output {
    stage.requests(&[words, &["--repos", directory]].concat())
}

#[test]
fn a_grant_for_git_is_written_for_git_gate_and_counts_when_it_has_it() {
    let ask = json!({"capability": "git_ref", "repo": "web", "ref": "refs/heads/release", "access": "push", "reason": "r"});
    let stage = asked_for(&ask, digest);
    let directory = stage.routes_directory().display().to_string();
    let shown = with_repos(&stage, &directory, &["show", ID, "--max-uses", "2", "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let token = shown["review"]["token"].as_str().unwrap().to_owned();
    let other_terms = with_repos(&stage, &directory, &["approve", ID, "--token", &token]);
    assert!(!other_terms.status.success(), "the token is of what was shown");
    let done = with_repos(&stage, &directory, &["approve", ID, "--max-uses", "2", "--token", &token]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let written = fs::read_to_string(stage.routes_directory().join("repos.yaml")).unwrap();
    assert!(
        written.starts_with(REPOS) && written.contains("ref: \"refs/heads/release\", max_uses: 2"),
        "{written}"
    );
    assert_eq!(stage.routes(), BASE);
    assert_eq!(stage.told(), ["approve", "applying", "applied"]);
    let nowhere = stage.requests(&["show", ID]);
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("--repos DIR"));
}

#[test]
fn what_git_gate_does_not_take_is_taken_back_and_both_are_told() {
    let ask = json!({"capability": "git_ref", "repo": "web", "ref": "refs/heads/release", "access": "push", "reason": "r"});
    let stage = asked_for(&ask, |_| digest(REPOS));
    let directory = stage.routes_directory().display().to_string();
    let shown = with_repos(&stage, &directory, &["show", ID, "--json"]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let token = shown["review"]["token"].as_str().unwrap().to_owned();
    let failed = with_repos(&stage, &directory, &["approve", ID, "--token", &token]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && said.contains("git-gate did not take the repositories"), "{said}");
    assert!(said.contains("the old repositories are back in force"), "{said}");
    assert_eq!(fs::read_to_string(stage.routes_directory().join("repos.yaml")).unwrap(), REPOS);
    assert_eq!(stage.told(), ["approve", "applying", "apply_failed"]);
}

#[test]
fn what_no_program_can_grant_is_said_to_be_for_a_person() {
    let ask = json!({"capability": "other", "what": "a compiler", "reason": "r"});
    let stage = asked_for(&ask, digest);
    let refused = stage.approve(&["--token", "x"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no program can grant"));
    assert_eq!((stage.routes().as_str(), stage.told().len()), (BASE, 0));
}

/// A daemon that tells of one pending request and ends.
fn telling() -> Stage {
    let stage = Stage { root: tempfile::tempdir().unwrap(), heard: Arc::default() };
    fs::create_dir(stage.routes_directory()).unwrap();
    serve(
        &stage.root.path().join("supervise.sock"),
        |_| json!({"ok": true, "result": {"requests": [view(&json!({"op": "show"}))]}}),
    );
    stage
}

#[test]
fn a_webhook_gets_the_request_signed_and_what_it_answers_is_nothing() {
    use std::io::Read;
    let stage = telling();
    let receiver = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", receiver.local_addr().unwrap());
    let secret = stage.root.path().join("secret");
    fs::write(&secret, "0123456789abcdef\n").unwrap();
    let received = std::thread::spawn(move || {
        let (mut stream, _) = receiver.accept().unwrap();
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while !String::from_utf8_lossy(&text).contains("\"state\":\"pending\"}") && !text.ends_with(b"}") {
            let length = stream.read(&mut buffer).unwrap();
            assert!(length > 0);
            text.extend_from_slice(&buffer[..length]);
        }
        let answer = "{\"op\":\"approve\"}";
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}", answer.len()).unwrap();
        String::from_utf8(text).unwrap()
    });
    let output = stage.requests(&["tail", "--webhook", &url, "--webhook-secret", secret.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = received.join().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let header = |name: &str| {
        let find =
            |line: &str| line.to_ascii_lowercase().strip_prefix(name).map(|value| value.trim().to_owned());
        head.lines().find_map(find).unwrap()
    };
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["id"], &body["state"]), (&json!(ID), &json!("pending")));
    assert!(header("x-bottlecap-timestamp:").parse::<i64>().is_ok());
    let signature = header("x-bottlecap-signature:");
    assert_eq!((&signature[..3], signature.len()), ("v1=", 3 + 64));
    assert!(!head.contains("0123456789abcdef"));
    assert!(stage.told().is_empty());
}

#[test]
fn what_cannot_be_told_holds_nothing_up_and_a_webhook_needs_a_secret() {
    let stage = telling();
    let gone = stage.requests(&["tail", "--command", "/nowhere/at/all"]);
    assert!(gone.status.success() && String::from_utf8_lossy(&gone.stdout).contains(ID));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("nobody could be told"));
    let short = stage.root.path().join("short");
    fs::write(&short, "short").unwrap();
    for words in [
        &["tail", "--webhook", "https://hooks.acme.test/"][..],
        &["tail", "--webhook", "https://hooks.acme.test/", "--webhook-secret", short.to_str().unwrap()],
        &["tail", "--webhook", "http://hooks.acme.test/", "--webhook-secret", short.to_str().unwrap()],
    ] {
        assert!(!stage.requests(words).status.success(), "{words:?}");
    }
}
