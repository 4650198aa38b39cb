//! What the doctor says of this host, and what it does to a bottle from inside.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{Person, appears};

fn doctor(person: &Person, words: &[&str]) -> Output {
    person.output(&[&["doctor"], words].concat())
}

#[test]
fn this_host_is_looked_at_thing_by_thing() {
    let person = Person::new();
    let output = doctor(&person, &["--json"]);
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let state = |what: &str| {
        let mut found = findings.as_array().unwrap().iter();
        found
            .find(|finding| finding["what"].as_str().unwrap().contains(what))
            .map(|finding| finding["state"].clone())
    };
    for what in [
        "namespaces",
        "system call filters",
        "the clock",
        "a certificate authority can be made",
        "the daemons",
    ] {
        assert_eq!(state(what), Some("ok".into()), "{what}: {findings:#}");
    }
    for what in ["Docker", "control groups", "roots of trust"] {
        assert!(state(what).is_some(), "{what}: {findings:#}");
    }
    assert!(output.status.success());
}

#[test]
fn a_bottle_is_attacked_from_inside() {
    let person = Person::new();
    let manifest = person.path("bottle.yaml");
    // The secret of the manifest is not asked for.
    fs::write(&manifest, "name: web\nsecrets: {T: {file: nowhere}}\ntransparent: true\n").unwrap();
    let manifest = manifest.to_str().unwrap();
    let output = doctor(&person, &["--bottle", manifest, "--only", "smuggling: both"]);
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{told}");
    let line = said.lines().find(|line| line.contains("smuggling: both")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(
        words[0] == "ok" && words[words.len() - 3] == words[words.len() - 1] && words[words.len() - 1] != "0",
        "{said}"
    );
    assert!(said.ends_with("plays from inside a bottle made for it (sandbox) were withstood\n"), "{said}");
    // What must arrive does: refusing everything would not do.
    let output = doctor(&person, &["--bottle", manifest, "--only", "must work", "--json"]);
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        outcome["plays"].as_u64().unwrap() > 0 && outcome["failures"].as_array().unwrap().is_empty(),
        "{outcome}"
    );
    assert!(!person.path("state/bottlecap/bottles").read_dir().unwrap().any(|_| true), "nothing is left");
}

/// The bottle `web` with those routes, its manifest, and the file of the routes that its egress has.
fn running(person: &Person, routes: &str) -> (Bottle, String, PathBuf) {
    person.write("bottle.yaml", "name: web\nroutes: routes.yaml\n");
    person.write("routes.yaml", routes);
    let manifest = person.path("bottle.yaml").display().to_string();
    let words = ["run", "--bottle", &manifest, "--", "sh", "-c", "touch there; exec sleep 600"];
    let child = person.command(&words).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
    appears(&person.path("work/there"));
    (Bottle(child), manifest, person.path("state/bottlecap/bottles/web/root/etc/egress/routes.yaml"))
}

/// A bottle that does not outlive its test.
struct Bottle(Child);

impl Drop for Bottle {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ended(person: &Person, mut bottle: Bottle) {
    person.said(&["stop", "web"]);
    bottle.0.wait().unwrap();
}

#[test]
fn a_bottle_that_runs_is_attacked_where_it_is() {
    let person = Person::new();
    let routes = "# mine\nroutes:\n  - host: example.com\n";
    let (bottle, manifest, in_force) = running(&person, routes);
    for word in ["web", &manifest] {
        let output = doctor(&person, &["--bottle", word, "--only", "must work", "--json"]);
        let told = String::from_utf8_lossy(&output.stderr);
        let outcome: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{told}"));
        assert_eq!(outcome["bottle"]["running"], "web", "{outcome}");
        assert!(
            outcome["plays"].as_u64().unwrap() > 0 && outcome["failures"].as_array().unwrap().is_empty(),
            "{outcome}"
        );
    }
    let output = doctor(&person, &["--bottle", "web", "--only", "smuggling: both"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.ends_with("plays from inside the running bottle web (sandbox) were withstood\n"), "{said}");
    assert_eq!(output.status.code(), Some(0), "{said}");
    // It was this bottle's own egress, which has its own routes again, and notes who had others.
    assert!(person.said(&["traffic", "web", "--json"]).contains("localhost"));
    assert_eq!(fs::read_to_string(&in_force).unwrap(), routes);
    // One that is made has an egress of its own.
    let output = doctor(&person, &["--bottle", &manifest, "--fresh", "--only", "must work", "--json"]);
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(outcome["bottle"]["running"], Value::Null, "{outcome}");
    ended(&person, bottle);
    // Nothing that egress would trust is left of it.
    assert!(!person.path("state/bottlecap/bottles/web/doctor").exists());
}

#[test]
fn what_is_broken_off_leaves_the_routes_as_they_were() {
    let person = Person::new();
    let (bottle, _, in_force) = running(&person, "routes: []\n");
    let changes = Inotify::init(InitFlags::empty()).unwrap();
    changes.add_watch(in_force.parent().unwrap(), AddWatchFlags::IN_MOVED_TO).unwrap();
    let mut doctor = person.command(&["doctor", "--bottle", "web"]).stdout(Stdio::piped()).spawn().unwrap();
    let output = doctor.stdout.take().unwrap();
    let with = loop {
        let fds = [changes.as_fd(), output.as_fd()];
        let mut watched = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut watched, PollTimeout::NONE).unwrap();
        assert!(!watched[1].any().unwrap(), "the doctor ended: {:?}", doctor.wait());
        changes.read_events().unwrap();
        let text = fs::read_to_string(&in_force).unwrap();
        if text.contains("localhost") {
            break text;
        }
    };
    // When nobody takes them out they end by themselves.
    assert_eq!(with.matches("host: localhost").count(), with.matches("expires_at: ").count(), "{with}");
    kill(Pid::from_raw(i32::try_from(doctor.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(doctor.wait().unwrap().code(), Some(70));
    assert_eq!(fs::read_to_string(&in_force).unwrap(), "routes: []\n");
    ended(&person, bottle);
}

#[test]
fn routes_that_nothing_can_be_added_to_stay_as_they_are() {
    let person = Person::new();
    let routes = "routes: [{host: example.com}]\n";
    let (bottle, _, in_force) = running(&person, routes);
    let output = doctor(&person, &["--bottle", "web", "--only", "must work"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(64) && told.contains("--fresh"), "{told}");
    assert_eq!(fs::read_to_string(&in_force).unwrap(), routes);
    ended(&person, bottle);
}

#[test]
fn what_cannot_be_played_is_said() {
    let person = Person::new();
    let output = doctor(&person, &["--bottle", "./none.yaml"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot read the manifest"));
    let manifest = person.path("bottle.yaml");
    fs::write(&manifest, "{}\n").unwrap();
    let output = doctor(&person, &["--bottle", manifest.to_str().unwrap(), "--only", "no such case"]);
    assert_eq!(output.status.code(), Some(70), "{}", String::from_utf8_lossy(&output.stderr));
}
