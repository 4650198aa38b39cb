//! In a real terminal, which tmux holds: the operator's screen, and a bottle that people come to and leave.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Output;
use std::time::{Duration, Instant};

use nix::poll::{PollTimeout, poll};
use support::{Person, bottlecap};

const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_INTERVAL_MS: u16 = 50;

/// A terminal of 80 by 24, and a user with no bottle yet.
struct Stage {
    person: Person,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What a failed test left behind.
        let _ = self.bottlecap(&["stop", "--grace", "0"]);
        let _ = self.tmux(&["kill-server"]);
    }
}

impl Stage {
    fn new() -> Stage {
        let stage = Stage { person: Person::new() };
        let started = stage.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "sh"]);
        assert!(started.status.success(), "this test needs tmux: {started:?}");
        // What is typed before the shell asks for it stands before its prompt, and what follows stands behind that.
        stage.shows_any(&["#", "$"]);
        stage
    }

    fn tmux(&self, words: &[&str]) -> Output {
        let mut command = self.person.starts("tmux");
        command.arg("-S").arg(self.person.path("tmux")).args(words).env("PS1", "$ ");
        command.output().expect("this test needs tmux")
    }

    fn bottlecap(&self, words: &[&str]) -> String {
        self.person.said(words)
    }

    fn screen(&self) -> String {
        String::from_utf8(self.tmux(&["capture-pane", "-p"]).stdout).unwrap()
    }

    /// Types `text`, and then the key Enter.
    fn type_line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.key("Enter");
    }

    fn key(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Waits until the terminal shows `wanted`.
    fn shows(&self, wanted: &str) -> String {
        self.shows_any(&[wanted])
    }

    fn shows_any(&self, wanted: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if wanted.iter().any(|wanted| screen.contains(wanted)) {
                return screen;
            }
            assert!(Instant::now() < deadline, "{wanted:?} is not shown:\n{screen}");
            // A terminal tells nobody that it was drawn.
            let _ = poll(&mut [], PollTimeout::from(LOOK_INTERVAL_MS));
        }
    }
}

#[test]
fn a_bottle_goes_on_by_itself_and_people_come_and_go() {
    let stage = Stage::new();
    let script = "read line; echo got:$line; stty size; read line; exit 7";
    let said = stage.bottlecap(&["start", "--name", "web", "--", "sh", "-c", script]);
    assert!(said.starts_with("web runs; bottlecap attach web"), "{said}");
    assert!(stage.bottlecap(&["list"]).contains("running"));

    let attach = format!("{} attach web; echo code:$?", bottlecap().display());
    stage.type_line(&attach);
    stage.type_line("hello");
    stage.shows("got:hello");
    stage.shows("24 80");
    stage.key("C-]");
    stage.key("d");
    stage.shows("web goes on");
    stage.shows("code:0");
    assert!(stage.bottlecap(&["list"]).contains("running"));

    stage.type_line("clear");
    stage.type_line(&attach);
    stage.shows("got:hello");
    stage.type_line("end");
    stage.shows("code:7");
    // The command has ended; this returns when the bottle has.
    stage.bottlecap(&["stop", "web"]);
    assert!(stage.bottlecap(&["list"]).contains("ended, exit 7"));
    assert!(stage.bottlecap(&["logs", "web", "--console"]).contains("got:hello"));
    assert!(stage.bottlecap(&["attach", "web"]).contains("bottlecap resume web"));
}

#[test]
fn a_bottle_outlives_the_terminal_that_it_was_started_from() {
    let stage = Stage::new();
    let start = format!("{} start --name web -- sleep 600", bottlecap().display());
    stage.type_line(&start);
    stage.shows("web runs");
    stage.tmux(&["kill-server"]);
    assert!(stage.bottlecap(&["info", "web"]).contains("state    running"));
    assert_eq!(stage.bottlecap(&["stop", "web"]), "the bottle web has ended\n");
    assert!(stage.bottlecap(&["resume", "web"]).starts_with("web runs"));
    assert!(stage.bottlecap(&["info", "web"]).contains("state    running"));
    assert_eq!(stage.bottlecap(&["stop", "web"]), "the bottle web has ended\n");
    let left = stage.bottlecap(&["cleanup", "--yes"]);
    assert_eq!(left, "nothing is left behind\n");
}

#[test]
fn a_bottle_ends_with_the_terminal_that_it_runs_in() {
    let stage = Stage::new();
    stage.type_line(&format!("{} run --name web -- sh -c 'echo here; sleep 600'", bottlecap().display()));
    stage.shows("\nhere");
    stage.tmux(&["kill-server"]);
    // It waits for the bottle's end.
    stage.bottlecap(&["logs", "web", "--follow"]);
    let listed = stage.bottlecap(&["list"]);
    assert!(listed.contains("ended, exit 129"), "{listed}");
    assert_eq!(stage.bottlecap(&["cleanup", "--yes"]), "nothing is left behind\n");
}

#[test]
fn ctrl_c_is_for_the_command_and_the_bottle_ends_with_it() {
    let stage = Stage::new();
    let run = format!(
        "{} run --name web -- sh -c 'echo here; exec sleep 600'; echo code:$?",
        bottlecap().display()
    );
    stage.type_line(&run);
    stage.shows("\nhere");
    stage.key("C-c");
    stage.shows("code:130");
    assert!(stage.bottlecap(&["list"]).contains("ended, exit 130"));
    assert_eq!(stage.bottlecap(&["cleanup", "--yes"]), "nothing is left behind\n");
}

#[test]
fn the_operators_screen_shows_a_bottle_and_gives_the_terminal_back() {
    let stage = Stage::new();
    let ask = "curl -s https://api.example.com/x > /dev/null; sleep 600";
    stage.bottlecap(&["start", "--name", "web", "--", "sh", "-c", ask]);
    stage.type_line("echo before");
    stage.type_line(&format!("{} operator", bottlecap().display()));
    stage.shows("bottlecap  web  running");
    stage.key("2");
    let traffic = stage.shows("REFUSED");
    assert!(
        traffic.contains("https://api.example.com/x") && traffic.contains("host-not-allowed"),
        "{traffic}"
    );
    stage.key("5");
    stage.shows("egress      ready");
    stage.key("p");
    stage.shows("PAUSED");
    stage.key("q");
    stage.shows("before");
    stage.type_line("stty -a | grep -o ' icanon'");
    stage.shows("icanon");
    let traffic = stage.bottlecap(&["traffic", "web", "--json"]);
    let line: serde_json::Value = serde_json::from_str(traffic.lines().next().unwrap()).unwrap();
    assert_eq!((&line["host"], &line["decision"]), (&"api.example.com".into(), &"deny".into()));
    let once: serde_json::Value = serde_json::from_str(&stage.bottlecap(&["operator", "--json"])).unwrap();
    assert_eq!(once["bottles"][0]["facts"]["desk"]["paused"], true, "{once}");
}

/// A request, as an agent makes one without an MCP library.
const ASK: &str = r#"curl -s http://supervise:9100/mcp -H 'content-type: application/json' -H 'accept: application/json, text/event-stream' -H 'mcp-protocol-version: 2025-06-18' -d '{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "propose_route", "arguments": {"host": "docs.example.com", "paths": [{"type": "prefix", "value": "/guide"}], "methods": ["GET"], "reason": "the guide \u001b[2J\u202e"}}}' > /dev/null; exec sleep 600"#;

#[test]
fn a_request_is_narrowed_approved_and_revoked_at_the_screen() {
    let stage = Stage::new();
    stage.bottlecap(&["start", "--name", "web", "--", "sh", "-c", ASK]);
    stage.type_line(&format!("{} operator web", bottlecap().display()));
    let list = stage.shows("? pending");
    assert!(list.contains("GET https://docs.example.com/guide/**"), "{list}");
    stage.key("Enter");
    let review = stage.shows("Approve this, and nothing else?");
    assert!(review.contains("this newly allows GET https://docs.example.com/guide/**"), "{review}");
    assert!(review.contains("\\u{1b}[2J\\u{202e}"), "{review}");
    stage.key("n");
    stage.type_line("ttl=600 path=/guide/start");
    stage.shows("this newly allows GET https://docs.example.com/guide/start");
    assert!(
        !stage.bottlecap(&["routes", "show"]).contains("docs.example.com"),
        "nothing is granted by looking"
    );
    stage.key("y");
    stage.shows("it is in force");
    let routes = stage.bottlecap(&["routes", "show", "--json"]);
    assert!(routes.contains("GET https://docs.example.com/guide/start"), "{routes}");
    stage.key("3");
    stage.shows("left");
    stage.key("x");
    stage.type_line("enough");
    stage.shows("revoked");
    assert!(!stage.bottlecap(&["routes", "show"]).contains("docs.example.com"));
    let requests = stage.bottlecap(&["requests", "list", "--json"]);
    assert!(requests.contains("\"revoked\"") && requests.contains("enough"), "{requests}");
    stage.key("q");
}

#[test]
fn what_cannot_be_started_says_so_to_whoever_started_it() {
    let stage = Stage::new();
    assert!(stage.bottlecap(&["start", "--", "true"]).contains("hint: give one with --name"));
    let said = stage.bottlecap(&["start", "--name", "web", "--bottle", "./none.yaml", "--", "true"]);
    assert!(said.contains("cannot read the manifest"), "{said}");
    let said = stage.bottlecap(&["start", "--name", "web", "--", "no-such-program"]);
    assert!(said.contains("cannot execute no-such-program") && said.contains("did not start"), "{said}");
}
