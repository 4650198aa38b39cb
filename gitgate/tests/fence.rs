//! A git that serves a client is held to its own mirror.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{World, client, git, pkt};

const HIDDEN: &str = "from another repository\n";

/// A bare repository with one object in it; the object's name.
fn other(at: &Path) -> String {
    fs::create_dir_all(at).unwrap();
    git(at, &["init", "-q", "--bare", "."]).succeed();
    fs::write(at.join("text"), HIDDEN).unwrap();
    git(at, &["hash-object", "-w", "text"]).succeed().trim().to_owned()
}

/// Asks for one object by its name, in protocol version 2.
fn want(world: &World, oid: &str) -> String {
    let hello = pkt(b"git-upload-pack /web.git\0host=h\0\0version=2\0");
    let line = format!("want {oid}\n");
    let fetch =
        [&pkt(b"command=fetch")[..], b"0001", &pkt(line.as_bytes()), &pkt(b"done\n"), b"0000"].concat();
    world.gate.talk(&[hello, fetch, b"0000".to_vec()].concat())
}

#[test]
fn git_cannot_open_another_mirror_and_could_without_the_fence() {
    let world = World::new();
    world.clone_web();
    let mirrors = world.dir.path().join("git");
    let (inside, outside) = (mirrors.join("web.git/inside"), mirrors.join("other.git"));
    let oid = other(&inside);
    assert_eq!(other(&outside), oid);
    let borrow = |from: &Path| {
        let file = mirrors.join("web.git/objects/info/alternates");
        fs::write(file, format!("{}\n", from.join("objects").display())).unwrap();
    };

    // The control: what the mirror borrows from inside of itself is served.
    borrow(&inside);
    let began = Instant::now();
    while !want(&world, &oid).contains("PACK") {
        assert!(began.elapsed() < Duration::from_secs(60), "the mirror is never packed");
    }
    // The same from outside, where the same user may read it, and this test and the gate itself do.
    borrow(&outside);
    let mut look = client(&mirrors.join("web.git"));
    assert!(look.args(["cat-file", "-e", &oid]).status().unwrap().success());
    let answer = want(&world, &oid);
    assert!(!answer.contains("PACK") && answer.contains("not our ref"), "{answer}");
}

#[test]
fn a_push_works_within_the_fence_and_so_do_shallow_and_partial_clones() {
    let world = World::new();
    let work = world.clone_web();
    world.upstream.commit("second");
    for (name, argument) in [("shallow", "--depth=1"), ("partial", "--filter=blob:none")] {
        git(world.dir.path(), &["clone", "-q", argument, &world.gate.url("web"), name]).succeed();
    }
    let new = work.write("a", "a\n").commit("a");
    work.push("HEAD:refs/heads/agent/x").succeed();
    assert_eq!(world.upstream.rev("agent/x"), new);
}
