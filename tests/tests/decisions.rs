//! A person's decisions about a bottle of `bottlecap start`: whatever dies in between, what is in force was said yes to, and nothing is put
//! in force twice.
//!
//! `BOTTLECAP_KILLS` says how often the command that puts a decision in force is killed. `scripts/need.sh curl ssh strace` installs what this needs.
#![allow(clippy::unwrap_used)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Value, json};
use tests::{Binaries, Finished, Run};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH";
const ROUTES: &str = "# ours\nroutes:\n  - host: api.example.com\n";
const KILLS_DEFAULT: usize = 20;

/// A bottle whose command asks for what the test wants, and then stays.
struct Stage {
    root: tempfile::TempDir,
}

impl Stage {
    fn start(asks: &[Value]) -> Stage {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), Permissions::from_mode(0o711)).unwrap();
        let stage = Stage { root };
        fs::create_dir(stage.path("work")).unwrap();
        Run::bare("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .args([stage.path("key")])
            .ok()
            .unwrap();
        let repos = format!(
            "repos:\n  - name: web\n    upstream: ssh://git@git.example.test/web.git\n    identity: {}\n    host_key: \"{KEY}\"\n",
            stage.path("key").display()
        );
        fs::write(stage.path("repos.yaml"), repos).unwrap();
        fs::write(stage.path("routes.yaml"), ROUTES).unwrap();
        fs::write(stage.path("bottle.yaml"), "routes: routes.yaml\nrepos: repos.yaml\n").unwrap();
        let mut script = String::new();
        for ask in asks {
            let tool = if ask["capability"].is_null() { "propose_route" } else { "propose_capability" };
            let call = json!({
                "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": ask},
            });
            script.push_str(&format!(
                "curl -sS http://supervise:9100/mcp -H 'content-type: application/json' -H 'accept: application/json, text/event-stream' \
                 -H 'mcp-protocol-version: 2025-06-18' -d '{call}' >>told 2>&1; "
            ));
        }
        let there = stage.path("work/there");
        let bottle = stage.path("bottle.yaml").display().to_string();
        let script = format!("test -e there || {{ {script} touch there; }}; exec sleep 600");
        stage.said(&["start", "--name", "web", "--bottle", &bottle, "--", "sh", "-c", &script]);
        appears(&there);
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn run(&self, words: &[&str]) -> Finished {
        self.under(&[], words)
    }

    /// The command, started by another.
    fn under(&self, wrapper: &[&str], words: &[&str]) -> Finished {
        let program = Binaries::find().unwrap().program("bottlecap").display().to_string();
        let all: Vec<&str> = [wrapper, &[program.as_str()], words].concat();
        Run::bare(all[0])
            .args(&all[1..])
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("HOME", self.root.path())
            .within(self.path("work"))
            .finish()
            .unwrap()
    }

    fn said(&self, words: &[&str]) -> String {
        self.run(words).ok().unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.said(words)).unwrap()
    }

    /// The requests, oldest first.
    fn requests(&self) -> Vec<Value> {
        let requests = self.json(&["requests", "list", "--json"])["requests"].as_array().unwrap().clone();
        assert!(!requests.is_empty(), "{}", fs::read_to_string(self.path("work/told")).unwrap());
        requests
    }

    fn id(&self, at: usize) -> String {
        self.requests()[at]["id"].as_str().unwrap().to_owned()
    }

    fn state(&self, id: &str) -> String {
        self.json(&["requests", "show", id, "--json"])["state"].as_str().unwrap().to_owned()
    }

    fn token(&self, id: &str) -> String {
        let shown = self.json(&["requests", "show", id, "--json"]);
        shown["review"]["token"].as_str().unwrap_or_else(|| panic!("{shown}")).to_owned()
    }

    fn approve(&self, id: &str) {
        self.said(&["requests", "approve", id, "--token", &self.token(id)]);
    }

    /// The two files as the daemons have them.
    fn tables(&self) -> [String; 2] {
        let home = self.path("state/bottlecap/bottles/web/root/etc");
        ["egress/routes.yaml", "git-gate/repos.yaml"].map(|file| fs::read_to_string(home.join(file)).unwrap())
    }

    /// The digest of the routes that egress has in force.
    fn in_force(&self) -> String {
        let info = self.json(&["info", "web", "--json"]);
        let daemons = info["daemons"]["daemons"].as_array().unwrap();
        let egress = daemons.iter().find(|daemon| daemon["name"] == "egress").unwrap();
        egress["digest"].as_str().unwrap_or_else(|| panic!("{info}")).to_owned()
    }

    /// What the host noted, kinds and requests.
    fn ledger(&self) -> Vec<(String, String)> {
        let path = self.path("state/bottlecap/bottles/web/decisions/journal.jsonl");
        if !path.exists() {
            return Vec::new();
        }
        let word = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let text = fs::read_to_string(path).unwrap();
        let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].clone());
        records.map(|event| (word(&event, "kind"), word(&event, "id"))).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.run(&["stop", "web", "--grace", "0"]);
    }
}

/// Waits for the command in the bottle to say that it asked.
fn appears(path: &Path) {
    let changes = Inotify::init(InitFlags::empty()).unwrap();
    changes.add_watch(path.parent().unwrap(), AddWatchFlags::IN_CREATE).unwrap();
    while !path.exists() {
        changes.read_events().unwrap();
    }
}

fn route(host: &str) -> Value {
    json!({"host": host, "reason": "r"})
}

#[test]
fn what_is_granted_is_there_again_after_a_restart_in_both_files_and_nothing_else_is() {
    let push = json!({"capability": "git_ref", "repo": "web", "ref": "refs/heads/release", "access": "push", "reason": "r"});
    let stage = Stage::start(&[route("docs.example.com"), push, route("gone.example.com")]);
    let [kept, pushed, gone] = [0, 1, 2].map(|at| stage.id(at));
    for id in [&kept, &pushed, &gone] {
        stage.approve(id);
    }
    stage.said(&["requests", "revoke", &gone, "--reason", "enough"]);
    let before = stage.tables();
    assert!(before[0].contains(&kept) && before[1].contains(&pushed), "{before:?}");
    assert!(!before.concat().contains(&gone), "{before:?}");
    let digest = stage.in_force();

    // Cut off, it leaves what the bundle saw; and that does not count.
    let holder = stage.json(&["info", "web", "--json"])["pid"].as_i64().unwrap();
    Run::bare("kill").args(["-KILL", &holder.to_string()]).ok().unwrap();
    stage.said(&["stop", "web"]);
    let etc = stage.path("state/bottlecap/bottles/web/root/etc/egress/routes.yaml");
    fs::write(
        &etc,
        format!(
            "{ROUTES}  - host: evil.example.com\n    grant: {gone}\n    expires_at: 2099-01-01T00:00:00Z\n"
        ),
    )
    .unwrap();
    stage.said(&["resume", "web"]);
    assert_eq!(stage.tables(), before);
    assert_eq!(stage.in_force(), digest);

    // A daemon that falls comes back with the same.
    let info = stage.json(&["info", "web", "--json"]);
    let daemons = info["daemons"]["daemons"].as_array().unwrap();
    let pid = daemons.iter().find(|daemon| daemon["name"] == "egress").unwrap()["pid"].as_i64().unwrap();
    let run = Run::bare("kill").args(["-KILL", &pid.to_string()]);
    run.ok().unwrap();
    let deadline = std::time::Instant::now() + tests::PATIENCE;
    let came_back = || {
        let info = stage.json(&["info", "web", "--json"]);
        let daemons = info["daemons"]["daemons"].as_array().unwrap().clone();
        daemons
            .iter()
            .any(|daemon| daemon["name"] == "egress" && daemon["pid"] != pid && daemon["state"] == "ready")
    };
    while !came_back() {
        assert!(std::time::Instant::now() < deadline, "egress does not come back");
    }
    assert_eq!(stage.in_force(), digest);
    assert_eq!(stage.tables(), before);
}

/// Kills the command before its `at`th call of that kind; whether it came to an end before.
fn killed(stage: &Stage, id: &str, call: &str, at: usize) -> bool {
    let token = stage.token(id);
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={at}"));
    let wrapper = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    let finished = stage.under(&wrapper, &["requests", "approve", id, "--token", &token]);
    assert!(finished.code == 0 || finished.code == 128 + 9, "{finished:?}");
    finished.code == 0
}

#[test]
fn a_command_that_is_killed_at_any_step_leaves_nothing_in_force_that_nobody_said_yes_to() {
    let kills = std::env::var("BOTTLECAP_KILLS").map_or(KILLS_DEFAULT, |text| text.parse().unwrap());
    let mut done = 0;
    for call in ["connect", "fdatasync", "fsync", "rename"].into_iter().cycle() {
        if done >= kills {
            break;
        }
        let more = life(call, kills - done);
        assert!(more > 0, "the command makes no call of {call}");
        done += more;
    }
}

/// One request, to which a yes is tried again after each kill, until it comes through; how often the command was killed.
fn life(call: &str, most: usize) -> usize {
    let stage = Stage::start(&[route("docs.example.com")]);
    let id = stage.id(0);
    let base = stage.tables();
    let mut kills = 0;
    while kills < most && stage.state(&id) != "active" {
        if killed(&stage, &id, call, kills + 1) {
            assert_eq!(stage.state(&id), "active");
            break;
        }
        kills += 1;
        let ledger = stage.ledger();
        let decided = ledger.iter().filter(|(kind, of)| kind == "decided" && *of == id).count();
        let [routes, repos] = stage.tables();
        assert_eq!(repos, base[1]);
        let holds = routes.matches(&id).count();
        assert!(
            holds == 0 && routes == base[0] || holds == 1 && decided > 0,
            "{call} {kills}: {ledger:?} {routes}"
        );
        let state = stage.state(&id);
        let is_as_noted = match state.as_str() {
            "pending" => decided == 0 && holds == 0,
            "approved" | "applying" | "active" => true,
            _ => false,
        };
        assert!(is_as_noted, "{call} {kills}: {state} {ledger:?}");
    }
    // Whatever was left half done: the ledger alone says what the next start is given.
    let ledger = stage.ledger();
    let applied = ledger.iter().any(|(kind, _)| kind == "applied");
    stage.said(&["stop", "web", "--grace", "0"]);
    stage.said(&["resume", "web"]);
    let [routes, _] = stage.tables();
    assert_eq!(routes.matches(&id).count(), usize::from(applied), "{ledger:?}");
    kills
}
