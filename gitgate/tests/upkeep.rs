//! What happens to mirrors outside of requests, and what a request can see of it.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::{Gate, Upstream, World, eventually, git, pkt};
use tempfile::TempDir;

fn mirror(world: &World) -> PathBuf {
    world.dir.path().join("git/web.git")
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
fn what_upstream_purged_cannot_be_read_and_goes_away() {
    let world = World::new();
    let secret = world.upstream.commit("secret");
    let work = world.clone_web();
    let blob = work.git(&["rev-parse", "HEAD:secret"]).succeed().trim().to_owned();
    assert!(want(&world, &blob).contains("PACK"), "as long as a ref reaches it, it is served");
    eventually("the first packing", || world.has_bitmap());

    world.upstream.purge();
    git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed();
    for oid in [&secret, &blob] {
        let answer = want(&world, oid);
        assert!(answer.contains("not our ref") && !answer.contains("PACK"), "{answer}");
        for rest in [" x", "zz", "\0"] {
            let answer = want(&world, &format!("{oid}{rest}"));
            assert!(answer.contains("not a command") && !answer.contains("PACK"), "{rest:?}: {answer}");
        }
    }
    let main = world.upstream.rev("main");
    assert!(want(&world, &main).contains("PACK"));
    let tree = world.upstream.rev("main^{tree}");
    assert!(want(&world, &tree).contains("PACK"), "what a ref reaches is served, whatever it is");
}

#[test]
fn a_gate_that_starts_again_tidies_what_it_finds() {
    let mut world = World::new();
    let secret = world.upstream.commit("secret");
    world.clone_web();
    world.upstream.purge();
    git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed();
    world.gate.terminate();
    let repos = fs::read_to_string(world.gate.config_dir.join("repos.yaml")).unwrap();
    world.gate = Gate::start(world.dir.path(), &repos);
    git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed();
    let gone = || {
        let mut look = common::client(&mirror(&world));
        !look
            .args(["cat-file", "-e", &secret])
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap()
            .success()
    };
    eventually("the purged commit is gone", gone);
    git(&mirror(&world), &["fsck", "--full", "--strict"]).succeed();
    git(world.dir.path(), &["clone", "-q", &world.gate.url("web"), "again"]).succeed();
}

#[test]
fn readers_do_not_fail_while_refs_move_and_mirrors_are_packed() {
    let world = World::new();
    world.clone_web();
    let url = world.gate.url("web");
    let failures: Vec<String> = std::thread::scope(|scope| {
        let moving = scope.spawn(|| {
            for round in 0..10 {
                world.upstream.commit(&format!("round-{round}"));
                if round % 3 == 2 {
                    world.upstream.purge();
                }
            }
        });
        let readers: Vec<_> = (0..4)
            .map(|reader| {
                let (dir, url) = (world.dir.path(), &url);
                scope.spawn(move || {
                    let mut failures = Vec::new();
                    for round in 0..20 {
                        let name = format!("reader-{reader}-{round}");
                        let output = common::client(dir).args(["clone", "-q", url, &name]).output().unwrap();
                        if !output.status.success() {
                            failures.push(String::from_utf8_lossy(&output.stderr).into_owned());
                        }
                    }
                    failures
                })
            })
            .collect();
        moving.join().unwrap();
        readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect()
    });
    assert_eq!(failures, Vec::<String>::new(), "of 80 reads");
}

#[test]
fn refs_that_move_at_each_look_keep_no_reader_waiting() {
    let world = World::new();
    world.clone_web();
    world.upstream.move_at_each_look();
    for version in ["0", "1"] {
        let (protocol, clone) = (format!("protocol.version={version}"), format!("moving-{version}"));
        let url = world.gate.url("web");
        git(world.dir.path(), &["-c", &protocol, "clone", "-q", &url, &clone]).succeed();
        let work = world.work(&clone);
        let moving = work.git(&["rev-parse", "origin/moving"]).succeed();
        git(&world.upstream.repository, &["cat-file", "-e", moving.trim()]).succeed();
        assert!(!work.git(&["tag"]).succeed().is_empty());
        work.git(&["-c", &protocol, "fetch", "-q", "--tags"]).succeed();
        assert_ne!(work.git(&["rev-parse", "origin/moving"]).succeed(), moving);
    }
}

#[test]
fn a_ref_that_goes_while_upstream_shows_it_keeps_no_reader_from_the_rest() {
    let world = World::new();
    world.clone_web();
    let new = world.upstream.commit("theirs");
    git(&world.upstream.repository, &["update-ref", "refs/heads/going", &new]).succeed();
    let upstream = world.dir.path().join("upstream");
    let log = upstream.join("commands");
    fs::remove_file(&log).unwrap();
    // The gate looks first, then the git that copies, to which the ref is shown as upstream's git shows one that it cannot read any more.
    let valueless = format!(
        "import os\nwhile part := os.read(0, 65536): os.write(1, part.replace(b\"{new} refs/heads/going\", b\"{} refs/heads/going\"))",
        "0".repeat(40)
    );
    let login = format!(
        "#!/bin/sh\necho \"$SSH_ORIGINAL_COMMAND\" >> '{0}'\n\
         if [ $(wc -l < '{0}') -eq 2 ]; then sh -c \"$SSH_ORIGINAL_COMMAND\" | python3 -c '{valueless}'; exit; fi\n\
         exec sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
        log.display()
    );
    fs::write(upstream.join("login"), login).unwrap();
    let shown = git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed();
    assert!(shown.contains(&format!("{new}\trefs/heads/going")), "{shown}");
    assert!(shown.contains(&format!("{new}\trefs/heads/main")), "{shown}");
    assert_eq!(world.upstream.commands().lines().count(), 4, "{}", world.upstream.commands());
}

#[test]
fn older_data_is_served_where_allowed_and_says_so() {
    let mut world = World::with_rules("fetch: {stale: allow 10m}\n    push: {allow: [refs/heads/*]}");
    let work = world.clone_web();
    world.upstream.stop();
    let output =
        common::client(world.dir.path()).args(["clone", &world.gate.url("web"), "stale"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("upstream does not answer") && said.contains("this is what it had"), "{said}");
    work.commit("mine");
    assert!(
        work.push("HEAD:refs/heads/x").fail().contains("cannot refresh"),
        "a push is never judged by old data"
    );
    assert_eq!(world.gate.terminate(), Some(0));
    let stale = world.gate.journal().iter().any(|event| event["stale_seconds"].is_u64());
    assert!(stale, "{:?}", world.gate.journal());
}

#[test]
fn a_host_that_answers_with_another_key_is_not_a_silent_one() {
    let dir = TempDir::new().unwrap();
    let mut upstream = Upstream::start(dir.path());
    let gate = Gate::start(dir.path(), &upstream.entry("web", "fetch: {stale: allow 10m}"));
    git(dir.path(), &["ls-remote", &gate.url("web")]).succeed();
    upstream.stop();
    git(dir.path(), &["ls-remote", &gate.url("web")]).succeed();
    upstream.listen_with_key("other_host");
    let said = git(dir.path(), &["ls-remote", &gate.url("web")]).fail();
    assert!(said.contains("its host key is not the pinned one") || said.contains("no host key"), "{said}");
}

#[test]
fn one_session_to_upstream_is_kept_and_ends_with_the_gate_and_with_its_key() {
    let mut world = World::new();
    let url = world.gate.url("web");
    git(world.dir.path(), &["ls-remote", &url]).succeed();
    eventually("a session", || world.gate.kept_sessions() == Some(1));
    git(world.dir.path(), &["ls-remote", &url]).succeed();
    // A fetch has the session to itself as long as it goes on.
    eventually("it is told", || {
        let mut status = Command::new(env!("CARGO_BIN_EXE_git-gate"));
        let status = status.args(["status", "--run-dir"]).arg(world.dir.path().join("run")).output().unwrap();
        let text = String::from_utf8_lossy(&status.stdout).into_owned();
        text.contains("upstream sessions 1") && text.contains("web  refreshed 20")
    });

    // The key is taken away: no session may outlive it.
    let identity = world.dir.path().join("upstream/identity");
    let other = world.dir.path().join("upstream/other_host");
    fs::copy(&other, &identity).unwrap();
    let said = git(world.dir.path(), &["ls-remote", &url]).fail();
    assert!(said.contains("does not accept the gate's identity"), "{said}");
    assert_eq!(world.gate.kept_sessions(), Some(0));
    assert_eq!(world.gate.terminate(), Some(0));
}

#[test]
fn the_session_ends_when_the_gate_is_killed() {
    let mut world = World::new();
    git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed();
    eventually("a session", || world.gate.kept_sessions() == Some(1));
    assert!(world.upstream.connections() > 0);
    world.gate.child.kill().unwrap();
    world.gate.child.wait().unwrap();
    eventually("no session is left", || world.upstream.connections() == 0);
}

#[test]
fn what_a_push_through_the_gate_took_away_cannot_be_read() {
    let world = World::with_rules("push: {allow: [refs/heads/agent/*], delete: true}");
    let work = world.clone_web();
    eventually("the first packing", || world.has_bitmap());
    let gone = work.write("new", "new\n").commit("new");
    work.push("HEAD:refs/heads/agent/x").succeed();
    assert!(want(&world, &gone).contains("PACK"));
    work.push(":refs/heads/agent/x").succeed();
    let answer = want(&world, &gone);
    assert!(!answer.contains("PACK"), "{answer}");
}

/// What the gate shows of itself in each protocol version.
fn shown_in_all_versions(world: &World) -> Vec<String> {
    let shown = |version| {
        let version = format!("protocol.version={version}");
        git(world.dir.path(), &["-c", &version, "ls-remote", &world.gate.url("web")]).succeed()
    };
    (0..=2).map(shown).collect()
}

#[test]
fn a_head_that_leads_to_a_commit_keeps_nothing_that_no_ref_shows() {
    let world = World::new();
    let secret = world.upstream.commit("secret");
    let blob = world.upstream.rev("main:secret");
    git(&world.upstream.repository, &["update-ref", "--no-deref", "HEAD", &secret]).succeed();
    for shown in shown_in_all_versions(&world) {
        assert!(shown.contains(&format!("{secret}\tHEAD")), "the control: a branch shows it: {shown}");
    }
    assert!(want(&world, &blob).contains("PACK"));
    // The branch moves back; HEAD stays where it was.
    git(&world.upstream.repository, &["update-ref", "refs/heads/main", "main^"]).succeed();
    let direct = git(world.dir.path(), &["ls-remote", &world.upstream.direct_url()]).succeed();
    assert!(direct.contains(&secret), "{direct}");
    for shown in shown_in_all_versions(&world) {
        assert!(shown.contains("refs/heads/main") && !shown.contains(&secret), "{shown}");
    }
    for oid in [&secret, &blob] {
        let answer = want(&world, oid);
        assert!(answer.contains("not our ref") && !answer.contains("PACK"), "{answer}");
    }
}

#[test]
fn an_endless_depth_reaches_nothing_behind_what_was_purged() {
    let world = World::new();
    world.upstream.commit("secret");
    let end = world.upstream.commit("end");
    world.clone_web();
    eventually("the first packing", || world.has_bitmap());
    // From the end of a history that the client names, git would go on to what is before it.
    let ask = |version: &str| {
        let hello = pkt(format!("git-upload-pack /web.git\0host=h\0{version}").as_bytes());
        let mut stream = world.gate.connect();
        let refs = common::exchange(&mut stream, &hello);
        assert!(refs.contains("refs/heads/main"), "{refs}");
        let tip = world.upstream.rev("main");
        let lines =
            [format!("want {tip} side-band-64k\n"), format!("shallow {end}\n"), "deepen 2147483647\n".into()];
        let lines = lines.map(|line| pkt(line.as_bytes())).concat();
        common::rest(stream, &[&lines[..], b"0000", &pkt(b"done\n")].concat())
    };
    let versions = ["", "\0version=1\0"];
    for version in versions {
        let answer = ask(version);
        assert!(answer.contains("unshallow") && answer.contains("PACK"), "the control: {answer}");
    }
    world.upstream.purge();
    world.upstream.purge();
    for version in versions {
        let answer = ask(version);
        assert!(answer.contains("not our ref") && !answer.contains("PACK"), "{answer}");
    }
    for version in ["0", "1"] {
        let name = format!("still-{version}");
        let version = format!("protocol.version={version}");
        let url = world.gate.url("web");
        git(world.dir.path(), &["-c", &version, "clone", "-q", "--depth=1", &url, &name]).succeed();
        world.upstream.commit(&name);
        git(&world.dir.path().join(&name), &["-c", &version, "fetch", "-q", "--unshallow"]).succeed();
    }
}
