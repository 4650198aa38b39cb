//! A bottle that runs is listed, looked at, read and stopped by the program; what a killed one leaves is cleaned up.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::thread;

use support::{Person, appears};

/// A bottle whose command is `script`, once that has made a file of the bottle's name.
fn bottle(person: &Person, name: &str, script: &str) -> Child {
    let made = format!("touch {name}; {script}");
    let mut command = person.command(&["run", "--name", name, "--", "sh", "-c", &made]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
    appears(&person.path("work").join(name));
    child
}

#[test]
fn a_bottle_is_looked_at_and_stopped() {
    let person = Person::new();
    let mut bottle = bottle(&person, "web", "exec sleep 600");
    let info = person.said(&["info", "web"]);
    assert!(info.contains("state    running") && info.contains("daemon   egress     ready"), "{info}");
    let logs = thread::scope(|scope| {
        let follower = scope.spawn(|| person.said(&["logs", "web", "--follow"]));
        let stopped = person.said(&["stop", "web"]);
        assert_eq!(stopped, "the bottle web has ended\n");
        // It ends with the bottle.
        follower.join().unwrap()
    });
    assert!(logs.contains("[egress]"), "{logs}");
    assert_eq!(bottle.wait().unwrap().code(), Some(128 + 15));
    assert!(person.said(&["list"]).contains("ended"));
    assert!(person.said(&["info", "web"]).contains("state    ended"));
    assert_eq!(person.said(&["stop", "web"]), "the bottle web has ended already\n");
}

#[test]
fn a_command_that_ignores_the_signal_is_ended_after_the_grace() {
    let person = Person::new();
    let mut bottle = bottle(&person, "deaf", "trap '' TERM; while :; do sleep 600; done");
    assert_eq!(person.said(&["stop", "deaf", "--grace", "0"]), "the bottle deaf has ended\n");
    assert_eq!(bottle.wait().unwrap().code(), Some(128 + 9));
    // Its holder took everything down.
    assert!(person.said(&["list"]).contains("ended, exit 137"), "{}", person.said(&["list"]));
    assert_eq!(person.said(&["cleanup", "--yes"]), "nothing is left behind\n");
}

#[test]
fn what_a_killed_bottle_leaves_is_cleaned_up() {
    let person = Person::new();
    let mut bottle = bottle(&person, "web", "exec sleep 600");
    bottle.kill().unwrap();
    bottle.wait().unwrap();
    assert!(person.said(&["list"]).contains("killed"), "{}", person.said(&["list"]));
    let refused = person.output(&["cleanup"]);
    assert_eq!(refused.status.code(), Some(64), "nobody was asked");
    let said = person.said(&["cleanup", "--history", "--yes"]);
    assert!(said.contains("history") && said.contains("sockets"), "{said}");
    assert_eq!(person.said(&["cleanup", "--history", "--yes"]), "nothing is left behind\n");
    assert_eq!(fs::read_dir(person.path("state/bottlecap/bottles")).unwrap().count(), 0);
}

#[test]
fn what_another_version_wrote_is_shown_and_neither_written_over_nor_swept_away() {
    let person = Person::new();
    let record =
        r#"{"name":"web","pid":1,"started":"2031-01-01T00:00:00Z","run_dir":"/run/x","backend":"moon"}"#;
    person.write("state/bottlecap/bottles/web/bottle.json", record);
    person.write("state/bottlecap/bottles/half/lock", "");
    let listed = person.said(&["list"]);
    assert!(listed.contains("web") && listed.contains("cannot be read"), "{listed}");
    assert!(!listed.contains("half"), "nothing was ever written there: {listed}");
    for words in [&["run", "--name", "web", "--", "true"][..], &["info", "web"], &["stop", "web"]] {
        let output = person.output(words);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{told}");
        assert!(told.contains("another version") && told.contains("moon"), "{told}");
    }
    let said = person.said(&["cleanup", "--yes"]);
    assert!(said.contains("half") && !said.contains("web"), "{said}");
    assert_eq!(fs::read_to_string(person.path("state/bottlecap/bottles/web/bottle.json")).unwrap(), record);
    let said = person.said(&["cleanup", "--history", "--yes"]);
    assert!(said.contains("state of another version"), "{said}");
    assert_eq!(fs::read_dir(person.path("state/bottlecap/bottles")).unwrap().count(), 0);
}

#[test]
fn git_makes_commits_in_a_bottle_that_says_nothing_of_it_and_where_it_cannot_that_is_told() {
    let person = Person::new();
    let git = |words: &[&str]| {
        let status = person.starts("git").args(words).status().unwrap();
        assert!(status.success(), "{words:?}");
    };
    git(&["init", "-q"]);
    let said = person.said(&[
        "run",
        "--",
        "sh",
        "-c",
        "git commit -q --allow-empty -m one && git log --format='%an <%ae>'",
    ]);
    assert_eq!(said, "Agent <agent@bottle.invalid>\n");
    // The repository's own word goes before it.
    git(&["config", "user.name", "Dana"]);
    let said = person.said(&[
        "run",
        "--",
        "sh",
        "-c",
        "git commit -q --allow-empty -m two && git log -1 --format=%an",
    ]);
    assert_eq!(said, "Dana\n");
    git(&["worktree", "add", "-q", "../beside"]);
    fs::create_dir(person.path("work/inner")).unwrap();
    for (place, repository) in [("beside", "work/.git/worktrees/beside"), ("work/inner", "work")] {
        let said = person.said(&["run", "--mount", person.path(place).to_str().unwrap(), "--", "true"]);
        let place = format!("its repository is at {},", person.path(repository).display());
        assert!(said.contains("git does not work") && said.contains(&place), "{said}");
    }
    // A mount shows it.
    person.write("shows.yaml", &format!("mounts: [{{path: {}}}]\n", person.path("work").display()));
    let (manifest, place) = (person.path("shows.yaml"), person.path("beside"));
    let words = [
        "run",
        "--bottle",
        manifest.to_str().unwrap(),
        "--mount",
        place.to_str().unwrap(),
        "--",
        "echo",
        "ran",
    ];
    let said = person.said(&words);
    assert!(said.contains("ran") && !said.contains("git does not work"), "{said}");
    let inner = person.path("work/inner").display().to_string();
    let said = person.said(&["run", "--name", "web", "--cwd", &inner, "--", "true"]);
    let place = format!("its repository is {}: --cwd", person.path("work").display());
    assert!(said.contains(&place), "{said}");
    // What was refused was no bottle.
    assert_eq!(person.said(&["cleanup", "--history", "--yes"]), "nothing is left behind\n");
}

#[test]
fn what_is_not_there_is_said_with_where_it_is_or_how_to_make_it() {
    let person = Person::new();
    let output = person.output(&["run", "--bottle", "webb", "--", "true"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`bottlecap init webb`"), "{output:?}");
    // A program of the person's own, which a bottle does not see.
    person.write("bin/tool", "#!/bin/sh\n");
    let run = |person: &Person| {
        let path = format!("{}:/usr/bin:/bin", person.path("bin").display());
        let output = person.command(&["run", "--", "tool"]).env("PATH", path).output().unwrap();
        assert_eq!(output.status.code(), Some(127), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let tool = person.path("bin/tool").display().to_string();
    assert!(run(&person).contains(&tool));
    fs::remove_file(&tool).unwrap();
    assert!(!run(&person).contains("this host has"));
    let output = person.command(&["run", "--", "true"]).env("XDG_STATE_HOME", "/proc").output().unwrap();
    assert_eq!(output.status.code(), Some(70));
    assert!(String::from_utf8_lossy(&output.stderr).contains("XDG_STATE_HOME names"), "{output:?}");
}

#[test]
fn what_was_started_and_killed_is_told_and_nothing_of_it_runs_on() {
    let person = Person::new();
    let there = person.path("work/there");
    let started = person.said(&["start", "--name", "web", "--", "sh", "-c", "touch there; exec sleep 600"]);
    assert!(started.starts_with("web runs"), "{started}");
    appears(&there);
    let info: serde_json::Value = serde_json::from_str(&person.said(&["info", "web", "--json"])).unwrap();
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
    assert!(person.said(&["list"]).contains("killed"), "{}", person.said(&["list"]));
    let attach = person.said(&["attach", "web"]);
    assert!(attach.contains("the bottle web does not run"), "{attach}");
    let resumed = person.said(&["resume", "web"]);
    assert!(resumed.starts_with("web runs"), "{resumed}");
    assert_eq!(person.said(&["stop", "web"]), "the bottle web has ended\n");
    assert!(person.said(&["list"]).contains("ended, exit 143"), "{}", person.said(&["list"]));
    assert_eq!(person.said(&["cleanup", "--yes"]), "nothing is left behind\n");
}

#[test]
fn a_bottle_of_before_a_reboot_is_told_as_cut_off() {
    let person = Person::new();
    let mut bottle = bottle(&person, "web", "exec sleep 600");
    bottle.kill().unwrap();
    bottle.wait().unwrap();
    let record = person.path("state/bottlecap/bottles/web/bottle.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    // The number of its holder is somebody else's by now.
    value["boot"] = "00000000-0000-0000-0000-000000000000".into();
    value["pid"] = std::process::id().into();
    fs::write(&record, value.to_string()).unwrap();
    let listed = person.said(&["list"]);
    assert!(listed.contains("cut off by a reboot"), "{listed}");
    assert_eq!(person.said(&["stop", "web"]), "the bottle web has ended already\n");
    assert!(person.said(&["cleanup", "--yes"]).contains("sockets"));
}

#[test]
fn a_dry_run_says_all_of_it_and_touches_nothing() {
    let person = Person::new();
    let manifest = person.path("bottle.yaml");
    let mark = person.path("asked");
    let secret = format!("secrets: {{T: {{command: [touch, {}]}}}}\n", mark.display());
    fs::write(&manifest, format!("name: web\ncommand: [bash, -l]\nagent: {{preset: shell}}\n{secret}"))
        .unwrap();
    let words = ["run", "--bottle", manifest.to_str().unwrap(), "--dry-run", "--format", "json"];
    let said = person.said(&words);
    let plan: serde_json::Value =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(plan["command"], serde_json::json!(["bash", "-l"]));
    assert_eq!(plan["secrets"]["T"], format!("the program touch {}", mark.display()));
    assert!(
        plan["files"].as_array().unwrap().iter().any(|step| step.as_str().unwrap().starts_with("writable"))
    );
    assert!(!mark.exists(), "no secret is asked for");
    assert!(!person.path("state").exists() && !person.path("run").exists());
    // The same without --dry-run asks.
    person.said(&words[..3]);
    assert!(mark.exists());
}

#[test]
fn a_bottle_that_init_wrote_runs_by_its_name() {
    let person = Person::new();
    let config = person.path("config");
    let with = |words: &[&str]| person.command(words).env("XDG_CONFIG_HOME", &config).output().unwrap();
    let wrote = with(&["init", "web"]);
    assert!(String::from_utf8_lossy(&wrote.stdout).contains("bottlecap run --bottle web -- bash"));
    let ran = with(&["run", "--bottle", "web", "--", "sh", "-c", "exit 7"]);
    assert_eq!(ran.status.code(), Some(7), "{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn completions_and_manual_pages_are_made() {
    let person = Person::new();
    assert!(person.said(&["completions", "bash"]).contains("_bottlecap"));
    let pages = person.path("man");
    fs::create_dir(&pages).unwrap();
    assert!(person.output(&["man", pages.to_str().unwrap()]).status.success());
    assert!(pages.join("bottlecap-run.1").exists());
}

#[test]
fn a_script_whose_interpreter_is_not_in_the_bottle_is_not_called_missing() {
    let person = Person::new();
    person.write("work/tool", "#!/nowhere/python\n");
    fs::set_permissions(person.path("work/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    let ran = person.output(&["run", "--", "./tool"]);
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(126), "{said}");
    assert!(said.contains("cannot execute ./tool") && said.contains("its interpreter is not"), "{said}");
    let ran = person.output(&["run", "--", "./none"]);
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.code() == Some(127) && said.contains("No such file or directory"), "{said}");
}
