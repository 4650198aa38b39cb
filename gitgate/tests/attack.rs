//! Pushes that no honest client sends: hand-made requests, hand-made objects.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};

use common::{RECEIVE, World, github_token, pkt, private_key};

const NONE: &str = "0000000000000000000000000000000000000000";

#[test]
fn a_ref_name_that_is_a_refspec_reaches_no_other_ref() {
    let world = World::new();
    let work = world.clone_web();
    let evil = work.write("key", &private_key()).commit("evil");
    work.git(&["reset", "-q", "--hard", "origin/main"]).succeed();
    let link = format!("160000,{evil},refs/heads/agent/x");
    work.git(&["update-index", "--add", "--cacheinfo", &link]).succeed();
    work.git(&["commit", "-q", "-m", "link"]).succeed();
    let carrier = work.git(&["rev-parse", "HEAD"]).succeed().trim().to_owned();
    let before = world.upstream.refs();
    let answer =
        world.push_raw(&work, &[(NONE, &carrier, "refs/heads/agent/x:refs/heads/main")], &[&carrier, &evil]);
    assert_eq!(world.upstream.refs(), before, "{answer}");
    assert!(answer.contains("this is not the name of a ref"), "{answer}");
}
#[test]
fn what_follows_a_zero_byte_in_a_commit_message_is_judged() {
    let world = World::new();
    let work = world.clone_web();
    let head = work.git(&["cat-file", "commit", "HEAD"]).succeed();
    let raw = format!("{head}harmless\0\n{}", private_key());
    let commit = work.object("commit", raw.as_bytes());
    let before = world.upstream.refs();
    let answer = world.push_raw(&work, &[(NONE, &commit, "refs/heads/agent/x")], &[&commit]);
    // Git's own check comes before ours, and has not always been there.
    assert!(answer.contains("nulInCommit") || answer.contains("(commit message)"), "{answer}");
    assert_eq!(world.upstream.refs(), before);
}

#[test]
fn objects_that_no_pushed_ref_reaches_are_refused() {
    let world = World::new();
    let work = world.clone_web();
    let commit = work.write("f", "clean\n").commit("clean");
    let stray = work.object("blob", private_key().as_bytes());
    let answer = world.push_raw(&work, &[(NONE, &commit, "refs/heads/agent/x")], &[&commit, &stray]);
    assert!(answer.contains("that no pushed ref reaches"), "{answer}");
    assert!(!world.upstream.refs().contains("agent/x"));
}

#[test]
fn what_git_reads_as_something_else_than_a_file_is_judged() {
    let world = World::new();
    let work = world.clone_web();
    let token = github_token();
    let password = "https://me:q8Zr2LkT0vWcN5mY@git.example.test/lib.git";
    std::os::unix::fs::symlink(&token, work.path.join("link")).unwrap();
    let link = work.commit("a symbolic link");
    let reset = || work.git(&["reset", "-q", "--hard", "origin/main"]).succeed();
    reset();
    let modules = format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {password}\n");
    let modules = work.write(".gitmodules", &modules).commit("a submodule");
    reset();
    let lfs = work.write(".lfsconfig", &format!("[lfs]\n\turl = {password}\n")).commit("large files");
    reset();
    let tree = work.write("dir/key", &private_key()).commit("a tree");
    let tree = work.git(&["rev-parse", &format!("{tree}^{{tree}}")]).succeed().trim().to_owned();
    reset();
    work.git(&["notes", "add", "-m", &token]).succeed();
    let notes = work.git(&["rev-parse", "refs/notes/commits"]).succeed().trim().to_owned();
    let cases = [
        (link.as_str(), "refs/heads/agent/x", "link:1"),
        (&modules, "refs/heads/agent/x", ".gitmodules:3"),
        (&lfs, "refs/heads/agent/x", ".lfsconfig:2"),
        (&tree, "refs/tags/tree", "dir/key:1"),
        (&notes, "refs/tags/notes", ":1"),
        (&notes, "refs/notes/commits", "this ref may not be pushed"),
        (&notes, "refs/replace/x", "this ref may not be pushed"),
    ];
    let before = world.upstream.refs();
    for (object, name, expected) in cases {
        let said = work.push(&format!("{object}:{name}")).fail();
        assert!(said.contains(expected), "{name}: {expected} is missing in:\n{said}");
    }
    assert_eq!(world.upstream.refs(), before);
}

#[test]
fn a_connection_that_was_open_before_a_reload_is_judged_by_the_new_rules() {
    let world = World::new();
    let work = world.clone_web();
    let commit = work.write("f", "clean\n").commit("clean");
    let before = world.upstream.refs();
    let mut early = world.gate.connect();
    early.write_all(&pkt(RECEIVE)).unwrap();
    early.read_exact(&mut [0; 4]).unwrap();
    world.gate.forbid_pushes(&world.upstream.entry("web", "fetch: {}"));
    early
        .write_all(&world.commands_and_pack(&work, &[(NONE, &commit, "refs/heads/agent/x")], &[&commit]))
        .unwrap();
    let mut answer = Vec::new();
    early.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert_eq!(world.upstream.refs(), before, "{answer}");
    assert!(answer.contains("this ref may not be pushed; allowed: nothing"), "{answer}");
}

/// The only push on the record.
fn recorded(world: &World) -> serde_json::Value {
    let mut pushes = world.gate.journal();
    pushes.retain(|event| event["type"] == "push");
    assert_eq!(pushes.len(), 1, "{pushes:?}");
    pushes.remove(0)
}

#[test]
fn a_push_that_git_cannot_read_is_on_the_record() {
    let mut world = World::new();
    let work = world.clone_web();
    let head = work.git(&["cat-file", "commit", "HEAD"]).succeed();
    let commit = work.object("commit", head.replacen("tree ", "tee ", 1).as_bytes());
    let line = format!("{NONE} {commit} refs/heads/agent/x\0report-status side-band-64k");
    let request = [pkt(RECEIVE), pkt(line.as_bytes()), b"0000PACKnonenone".to_vec()];
    world.gate.talk(&request.concat());
    world.gate.terminate();
    assert_eq!(recorded(&world)["outcome"], "failed");
}

#[test]
fn a_push_that_is_refused_at_the_door_is_on_the_record() {
    let mut world = World::with_rules("fetch: {}");
    let work = world.clone_web();
    work.push("HEAD:refs/heads/agent/x").fail();
    world.gate.terminate();
    assert_eq!(recorded(&world)["outcome"], "denied");

    let mut world = World::new();
    let work = world.clone_web();
    world.upstream.stop();
    work.push("HEAD:refs/heads/agent/x").fail();
    world.gate.terminate();
    assert_eq!(recorded(&world)["outcome"], "refresh-failed");
}

#[test]
fn a_push_of_nothing_is_no_push() {
    let mut world = World::with_rules("push: {allow: [refs/heads/main]}");
    let work = world.clone_web();
    work.push("HEAD:refs/heads/main").succeed();
    world.gate.terminate();
    assert!(world.gate.journal().iter().all(|event| event["type"] == "fetch"));
}

#[test]
fn a_push_of_very_many_refs_is_refused_and_on_the_record() {
    let mut world = World::new();
    let work = world.clone_web();
    let head = work.git(&["rev-parse", "HEAD"]).succeed().trim().to_owned();
    let names: Vec<String> = (0..1001).map(|n| format!("refs/heads/agent/{n}-{}", "x".repeat(900))).collect();
    let updates: Vec<_> = names.iter().map(|name| (NONE, head.as_str(), name.as_str())).collect();
    let answer = world.push_raw(&work, &updates, &[&head]);
    assert!(answer.contains("a push changes at most 1000 refs"), "{answer}");
    world.gate.terminate();
    assert_eq!(recorded(&world)["outcome"], "denied");
}

#[test]
fn a_secret_in_a_name_is_not_in_the_journal() {
    let mut world = World::new();
    let work = world.clone_web();
    let token = github_token();
    work.write(&format!("{token}/key"), &private_key()).commit("named");
    work.push(&format!("HEAD:refs/heads/agent/{token}")).fail();
    world.gate.terminate();
    let push = recorded(&world);
    assert_eq!(push["outcome"], "secrets");
    assert!(!push.to_string().contains(&token), "{push}");
}
