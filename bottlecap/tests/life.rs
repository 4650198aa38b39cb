//! A bottle that runs is listed, looked at, read and stopped by the program; what a killed one leaves is cleaned up.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use tempfile::TempDir;

struct Stage {
    root: TempDir,
}

impl Stage {
    fn new() -> Stage {
        let root = tempfile::tempdir().unwrap();
        // A bottle that root starts has a user of its own, who passes through here.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::create_dir(root.path().join("work")).unwrap();
        Stage { root }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(bottlecap());
        command.args(words).current_dir(self.root.path().join("work")).stdin(Stdio::null());
        command.env("XDG_STATE_HOME", self.root.path().join("state"));
        command.env("XDG_RUNTIME_DIR", self.root.path().join("run")).env_remove("BOTTLECAP_BOTTLE");
        command
    }

    fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn said(&self, words: &[&str]) -> String {
        let output = self.output(words);
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    /// A bottle whose command is `script`, once that has made the file `there`.
    fn bottle(&self, name: &str, script: &str) -> Child {
        let there = self.root.path().join("work").join(name);
        let made = format!("touch {name}; {script}");
        let mut command = self.command(&["run", "--name", name, "--", "sh", "-c", &made]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
        appears(&there);
        child
    }
}

/// Waits for the command in the bottle to say that it runs: nothing else tells of it across the wall.
fn appears(path: &Path) {
    let changes = nix::sys::inotify::Inotify::init(nix::sys::inotify::InitFlags::empty()).unwrap();
    changes.add_watch(path.parent().unwrap(), nix::sys::inotify::AddWatchFlags::IN_CREATE).unwrap();
    while !path.exists() {
        changes.read_events().unwrap();
    }
}

/// The program, beside the daemons that it starts.
fn bottlecap() -> PathBuf {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_bottlecap"));
    let daemon = program.with_file_name("supervisor");
    assert!(daemon.exists(), "{} is not built: cargo build --workspace", daemon.display());
    program
}

#[test]
fn a_bottle_is_looked_at_and_stopped() {
    let stage = Stage::new();
    let mut bottle = stage.bottle("web", "exec sleep 600");
    let info = stage.said(&["info", "web"]);
    assert!(info.contains("state    running") && info.contains("daemon   egress     ready"), "{info}");
    let logs = thread::scope(|scope| {
        let follower = scope.spawn(|| stage.said(&["logs", "web", "--follow"]));
        let stopped = stage.said(&["stop", "web"]);
        assert_eq!(stopped, "the bottle web has ended\n");
        // It ends with the bottle.
        follower.join().unwrap()
    });
    assert!(logs.contains("[egress]"), "{logs}");
    assert_eq!(bottle.wait().unwrap().code(), Some(128 + 15));
    assert!(stage.said(&["list"]).contains("ended"));
    assert!(stage.said(&["info", "web"]).contains("state    ended"));
    assert_eq!(stage.said(&["stop", "web"]), "the bottle web has ended already\n");
}

#[test]
fn a_command_that_ignores_the_signal_is_ended_after_the_grace() {
    let stage = Stage::new();
    let mut bottle = stage.bottle("deaf", "trap '' TERM; while :; do sleep 600; done");
    assert_eq!(stage.said(&["stop", "deaf", "--grace", "0"]), "the bottle deaf has ended\n");
    bottle.wait().unwrap();
}

#[test]
fn what_a_killed_bottle_leaves_is_cleaned_up() {
    let stage = Stage::new();
    let mut bottle = stage.bottle("web", "exec sleep 600");
    bottle.kill().unwrap();
    bottle.wait().unwrap();
    assert!(stage.said(&["list"]).contains("killed"), "{}", stage.said(&["list"]));
    let refused = stage.output(&["cleanup"]);
    assert_eq!(refused.status.code(), Some(64), "nobody was asked");
    let said = stage.said(&["cleanup", "--history", "--yes"]);
    assert!(said.contains("history") && said.contains("sockets"), "{said}");
    assert_eq!(stage.said(&["cleanup", "--history", "--yes"]), "nothing is left behind\n");
    assert_eq!(fs::read_dir(stage.root.path().join("state/bottlecap/bottles")).unwrap().count(), 0);
}

#[test]
fn what_was_started_and_killed_is_told_and_nothing_of_it_runs_on() {
    let stage = Stage::new();
    let there = stage.root.path().join("work/there");
    let started = stage.said(&["start", "--name", "web", "--", "sh", "-c", "touch there; exec sleep 600"]);
    assert!(started.starts_with("web runs"), "{started}");
    appears(&there);
    let info: serde_json::Value = serde_json::from_str(&stage.said(&["info", "web", "--json"])).unwrap();
    let holder = i32::try_from(info["pid"].as_i64().unwrap()).unwrap();
    let daemon = i32::try_from(info["daemons"]["daemons"][0]["pid"].as_i64().unwrap()).unwrap();
    let ended =
        [holder, daemon].map(|pid| bottlecap::sys::process::watch(nix::unistd::Pid::from_raw(pid)).unwrap());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(holder), nix::sys::signal::Signal::SIGKILL).unwrap();
    for process in &ended {
        use std::os::fd::AsFd;
        let mut watched = [nix::poll::PollFd::new(process.as_fd(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut watched, 20_000_u16).unwrap(), 1, "it ends with its holder");
    }
    assert!(stage.said(&["list"]).contains("killed"), "{}", stage.said(&["list"]));
    let attach = stage.said(&["attach", "web"]);
    assert!(attach.contains("the bottle web does not run"), "{attach}");
    let resumed = stage.said(&["resume", "web"]);
    assert!(resumed.starts_with("web runs"), "{resumed}");
    assert_eq!(stage.said(&["stop", "web"]), "the bottle web has ended\n");
    assert!(stage.said(&["list"]).contains("ended, exit 143"), "{}", stage.said(&["list"]));
    assert_eq!(stage.said(&["cleanup", "--yes"]), "nothing is left behind\n");
}

#[test]
fn a_bottle_of_before_a_reboot_is_told_as_cut_off() {
    let stage = Stage::new();
    let mut bottle = stage.bottle("web", "exec sleep 600");
    bottle.kill().unwrap();
    bottle.wait().unwrap();
    let record = stage.root.path().join("state/bottlecap/bottles/web/bottle.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    // The number of its holder is somebody else's by now.
    value["boot"] = "00000000-0000-0000-0000-000000000000".into();
    value["pid"] = std::process::id().into();
    fs::write(&record, value.to_string()).unwrap();
    let listed = stage.said(&["list"]);
    assert!(listed.contains("cut off by a reboot"), "{listed}");
    assert_eq!(stage.said(&["stop", "web"]), "the bottle web has ended already\n");
    assert!(stage.said(&["cleanup", "--yes"]).contains("sockets"));
}

#[test]
fn a_dry_run_says_all_of_it_and_touches_nothing() {
    let stage = Stage::new();
    let manifest = stage.root.path().join("bottle.yaml");
    let mark = stage.root.path().join("asked");
    let secret = format!("secrets: {{T: {{command: [touch, {}]}}}}\n", mark.display());
    fs::write(&manifest, format!("name: web\ncommand: [bash, -l]\nagent: {{preset: shell}}\n{secret}"))
        .unwrap();
    let words = ["run", "--bottle", manifest.to_str().unwrap(), "--dry-run", "--format", "json"];
    let said = stage.said(&words);
    let plan: serde_json::Value =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(plan["command"], serde_json::json!(["bash", "-l"]));
    assert_eq!(plan["secrets"]["T"], format!("the program touch {}", mark.display()));
    assert!(
        plan["files"].as_array().unwrap().iter().any(|step| step.as_str().unwrap().starts_with("writable"))
    );
    assert!(!mark.exists(), "no secret is asked for");
    assert!(!stage.root.path().join("state").exists() && !stage.root.path().join("run").exists());
    // The same without --dry-run asks.
    stage.said(&words[..3]);
    assert!(mark.exists());
}

#[test]
fn a_bottle_that_init_wrote_runs_by_its_name() {
    let stage = Stage::new();
    let config = stage.root.path().join("config");
    let with = |words: &[&str]| stage.command(words).env("XDG_CONFIG_HOME", &config).output().unwrap();
    let wrote = with(&["init", "web"]);
    assert!(String::from_utf8_lossy(&wrote.stdout).contains("bottlecap run --bottle web -- bash"));
    let ran = with(&["run", "--bottle", "web", "--", "sh", "-c", "exit 7"]);
    assert_eq!(ran.status.code(), Some(7), "{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn completions_and_manual_pages_are_made() {
    let stage = Stage::new();
    assert!(stage.said(&["completions", "bash"]).contains("_bottlecap"));
    let pages = stage.root.path().join("man");
    fs::create_dir(&pages).unwrap();
    assert!(stage.output(&["man", pages.to_str().unwrap()]).status.success());
    assert!(pages.join("bottlecap-run.1").exists());
}
