//! Pushes that no honest client sends: hand-made requests, hand-made objects.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::process::Command;

use common::{RECEIVE, Work, World, git, github_token, pkt, private_key};

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

/// An update and a pack of these objects, without what they rest on.
fn push_only(world: &World, work: &Work, new: &str, objects: &[&str]) -> String {
    let line = format!("{NONE} {new} refs/heads/agent/x\0report-status side-band-64k");
    let mut pack = common::client(&work.path);
    pack.args(["pack-objects", "--stdout", "-q"]);
    let list: String = objects.iter().map(|oid| format!("{oid}\n")).collect();
    let pack = common::fed(pack, list.as_bytes());
    world.gate.talk(&[pkt(RECEIVE), pkt(line.as_bytes()), b"0000".to_vec(), pack].concat())
}

/// A pack of one object: a difference to one of seven bytes that is not in the pack, which adds an `x` to it.
fn one_more(other: &str) -> Vec<u8> {
    let delta = [7, 8, 0x90, 7, 1, b'x'];
    let mut pack = b"PACK\0\0\0\x02\0\0\0\x01\x76".to_vec();
    pack.extend((0..other.len()).step_by(2).map(|at| u8::from_str_radix(&other[at..at + 2], 16).unwrap()));
    // Not compressed.
    pack.extend([0x78, 0x01, 1, 6, 0, 0xf9, 0xff]);
    pack.extend(delta);
    let step =
        |(a, b): (u32, u32), byte: &u8| ((a + u32::from(*byte)) % 65521, (a + b + u32::from(*byte)) % 65521);
    let (a, b) = delta.iter().fold((1, 0), step);
    pack.extend(((b << 16) | a).to_be_bytes());
    let digest = String::from_utf8(common::fed(Command::new("sha1sum"), &pack)).unwrap();
    pack.extend((0..40).step_by(2).map(|at| u8::from_str_radix(&digest[at..at + 2], 16).unwrap()));
    pack
}

#[test]
fn what_upstream_purged_does_not_come_back_by_its_name() {
    let world = World::new();
    let purged = world.upstream.commit("secret");
    let work = world.clone_web();
    let blob = work.git(&["rev-parse", "HEAD:secret"]).succeed().trim().to_owned();
    let base = work.git(&["rev-parse", "HEAD^"]).succeed().trim().to_owned();
    common::eventually("the first packing", || world.has_bitmap());
    world.upstream.purge();
    git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed();
    // A push that is under way keeps the mirror from being tidied.
    let mut other = world.gate.connect();
    common::exchange(&mut other, &pkt(RECEIVE));
    let mut look = common::client(&world.dir.path().join("git/web.git"));
    assert!(look.args(["cat-file", "-e", &purged]).status().unwrap().success(), "it is still there");

    let before = world.upstream.refs();
    let gone = |answer: &str| {
        assert!(answer.contains("upstream no longer has object"), "{answer}");
        assert_eq!(world.upstream.refs(), before);
    };
    gone(&push_only(&world, &work, &purged, &[]));

    work.git(&["reset", "-q", "--hard", &base]).succeed();
    let named = |blob: &str| {
        let tree = format!("100644 blob {blob}\tnamed\n");
        let mut make = common::client(&work.path);
        make.args(["mktree", "--missing"]);
        let tree = String::from_utf8(common::fed(make, tree.as_bytes())).unwrap().trim().to_owned();
        let commit = work.git(&["commit-tree", "-p", &base, "-m", "named", &tree]).succeed();
        (commit.trim().to_owned(), tree)
    };
    let (commit, tree) = named(&blob);
    gone(&push_only(&world, &work, &commit, &[&commit, &tree]));

    // The same where the name is that of something to which what is sent is a difference.
    let more = work.object("blob", b"theirs\nx");
    let line = format!("{NONE} {more} refs/tags/x\0report-status side-band-64k");
    let request = [pkt(RECEIVE), pkt(line.as_bytes()), b"0000".to_vec(), one_more(&blob)].concat();
    gone(&world.gate.talk(&request));

    // The controls: what a ref of upstream reaches may be named, and ordinary pushes pass.
    let old = work.git(&["rev-parse", &format!("{base}:README")]).succeed().trim().to_owned();
    let (commit, tree) = named(&old);
    let answer = push_only(&world, &work, &commit, &[&commit, &tree]);
    assert!(answer.contains("ok refs/heads/agent/x"), "{answer}");
    assert_eq!(world.upstream.rev("agent/x"), commit);
    work.git(&["mv", "README", "MOVED"]).succeed();
    let moved = work.commit("moved");
    work.push("HEAD:refs/heads/agent/moved").succeed();
    assert_eq!(world.upstream.rev("agent/moved"), moved);
    work.push(&format!("{base}:refs/heads/agent/old")).succeed();
}

#[test]
fn what_was_taken_away_can_be_pushed_again_soon() {
    let world = World::with_rules("push: {allow: [refs/heads/agent/*], delete: true}");
    let work = world.clone_web();
    let new = work.write("a", "a\n").commit("a");
    for _ in 0..3 {
        let said = work.push("HEAD:refs/heads/agent/x").said();
        if said.contains("upstream no longer has object") {
            let whole = world.dir.path().join("git/web.git/git-gate-whole");
            common::eventually("the mirror is tidied", || whole.exists());
            work.push("HEAD:refs/heads/agent/x").succeed();
        }
        assert_eq!(world.upstream.rev("agent/x"), new, "{said}");
        work.push(":refs/heads/agent/x").succeed();
    }
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
fn a_push_that_names_a_ref_twice_is_refused() {
    let world = World::new();
    let work = world.clone_web();
    let one = work.write("a", "a\n").commit("a");
    let two = work.write("b", "b\n").commit("b");
    let name = "refs/heads/agent/x";
    let answer = world.push_raw(&work, &[(NONE, &one, name), (NONE, &two, name)], &[&two]);
    assert!(answer.contains("it is named twice in this push"), "{answer}");
    assert!(!world.upstream.refs().contains(name));
    let answer = world.push_raw(&work, &[(NONE, &one, name), (NONE, &two, "refs/heads/agent/y")], &[&two]);
    assert!(answer.contains(&format!("ok {name}")) && answer.contains("ok refs/heads/agent/y"), "{answer}");
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
