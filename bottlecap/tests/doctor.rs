//! What the doctor says of this host, and what it does to a bottle from inside.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::process::Output;

use serde_json::Value;
use support::Person;

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
    assert!(said.ends_with("plays from inside the bottle were withstood\n"), "{said}");
    // What must arrive does: refusing everything would not do.
    let output = doctor(&person, &["--bottle", manifest, "--only", "must work", "--json"]);
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        outcome["plays"].as_u64().unwrap() > 0 && outcome["failures"].as_array().unwrap().is_empty(),
        "{outcome}"
    );
    assert!(!person.path("state/bottlecap/bottles").read_dir().unwrap().any(|_| true), "nothing is left");
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
