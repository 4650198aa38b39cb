//! What a bottle may use of the machine, where its caller has control groups to say so.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::{Bottle, Caller, is_root, said};

/// Takes 256 MiB in one process, then as many processes as it is given, up to 64.
const GREEDY: &str = r#"
import os, signal, subprocess, sys
big = subprocess.run([sys.executable, "-I", "-c", "print(len(bytearray(256 << 20)))"], capture_output=True)
children = []
for _ in range(64):
    try:
        child = os.fork()
    except BlockingIOError:
        break
    if child == 0:
        signal.pause()
    children.append(child)
for child in children:
    os.kill(child, signal.SIGKILL)
print(big.returncode, len(children))
"#;

fn greedy(bottle: &Bottle, limits: &str) -> String {
    let manifest = bottle.path("bottle.yaml");
    fs::write(&manifest, format!("name: greedy\nlimits: {limits}\n")).unwrap();
    let manifest = manifest.to_str().unwrap();
    said(&mut bottle.bottlecap(["run", "--bottle", manifest, "--", "/usr/bin/python3", "-I", "-c", GREEDY]))
}

/// The groups of the bottle `name`.
fn groups(name: &str) -> Vec<String> {
    let mut found = std::process::Command::new("find");
    found.args(["/sys/fs/cgroup", "-type", "d", "-name", &format!("bottlecap-{name}")]);
    // Groups of others come and go while it looks.
    let output = found.stderr(Stdio::null()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_bottle_gets_the_memory_and_the_processes_that_its_manifest_says() {
    if !is_root() {
        return;
    }
    let bottle = Bottle::of(Caller::Root);
    assert_eq!(greedy(&bottle, "{}"), "0 64");
    assert_eq!(greedy(&bottle, "{memory: 64MiB, processes: 16, cpus: 0.5}"), "-9 15");
    assert_eq!(groups("greedy"), [""; 0]);
}

#[test]
fn the_groups_of_a_killed_bottle_are_cleaned_up() {
    if !is_root() {
        return;
    }
    let bottle = Bottle::of(Caller::Root);
    let (name, manifest) = (format!("k{}", std::process::id()), bottle.path("bottle.yaml"));
    fs::write(&manifest, format!("name: {name}\nlimits: {{memory: 64MiB, cpus: 0.5}}\n")).unwrap();
    let words =
        ["run", "--bottle", manifest.to_str().unwrap(), "--", "/bin/sh", "-c", "echo there; exec sleep 600"];
    let mut child = bottle.bottlecap(words).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "there\n");
    let made = groups(&name);
    let bounds: Vec<String> = made
        .iter()
        .flat_map(|group| ["cpu.max", "cpu.cfs_quota_us"].map(|file| format!("{group}/{file}")))
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect();
    assert_eq!(
        bounds.iter().map(|text| text.split_whitespace().next().unwrap()).collect::<Vec<_>>(),
        ["50000"]
    );
    child.kill().unwrap();
    child.wait().unwrap();
    let cleaned = said(&mut bottle.bottlecap(["cleanup", "--yes"]));
    assert!(cleaned.contains("control group"), "{cleaned}");
    assert_eq!(groups(&name), [""; 0]);
}

#[test]
fn limits_that_nothing_keeps_are_refused_before_anything_starts() {
    let bottle = Bottle::of(Caller::Ordinary);
    let manifest = bottle.path("bottle.yaml");
    fs::write(&manifest, "name: web\nlimits: {memory: 1GiB}\n").unwrap();
    let output = bottle
        .bottlecap(["run", "--bottle", manifest.to_str().unwrap(), "--", "/bin/true"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if is_root() {
        // The user that root becomes for this has no group of its own.
        assert_eq!(output.status.code(), Some(64), "{said}");
        assert!(said.contains("bottle.yaml:2:9: these limits cannot be kept by a sandbox here"), "{said}");
    }
}
