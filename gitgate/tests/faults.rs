//! Faults at every stage: afterwards mirror and upstream agree, and the next request works.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write as _;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use common::{Gate, World, git, pkt};
use tempfile::TempDir;

fn await_file(path: &std::path::Path) {
    let began = Instant::now();
    while !path.exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "{} never came", path.display());
        std::thread::yield_now();
    }
}

/// What the gate shows, in the form of [`common::Upstream::refs`].
fn shown(world: &World) -> String {
    let listing = git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed();
    let refs = listing.lines().filter(|line| !line.ends_with("HEAD"));
    refs.map(|line| line.replace('\t', " ") + "\n").collect()
}

#[test]
fn a_gate_that_is_killed_in_the_middle_of_a_push_agrees_with_upstream_afterwards() {
    // BOTTLECAP_ROUNDS makes it longer.
    let rounds = std::env::var("BOTTLECAP_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for point in ["pre-receive", "update", "post-receive"].repeat(rounds) {
        let mut world = World::new();
        let work = world.clone_web();
        let (here, go) = (world.dir.path().join("here"), world.dir.path().join("go"));
        let script = format!(
            "#!/bin/sh\ntouch '{}'\nwhile [ ! -e '{}' ]; do sleep 0.05; done\n",
            here.display(),
            go.display()
        );
        world.upstream.hook(point, &script);
        let new = work.write("a", point).commit("a");
        let mut push = common::client(&work.path);
        let mut push = push.args(["push", "-q", "origin", "HEAD:refs/heads/agent/x"]).spawn().unwrap();
        await_file(&here);
        world.gate.child.kill().unwrap();
        world.gate.child.wait().unwrap();
        fs::write(&go, "").unwrap();
        push.wait().unwrap();

        let repos = fs::read_to_string(world.gate.config_dir.join("repos.yaml")).unwrap();
        world.gate = Gate::start(world.dir.path(), &repos);
        work.git(&["remote", "set-url", "origin", &world.gate.url("web")]).succeed();
        work.git(&["push", "-q", "origin", "HEAD:refs/heads/agent/x"]).succeed();
        assert_eq!(world.upstream.rev("agent/x"), new, "at {point}");
        assert_eq!(shown(&world), world.upstream.refs(), "at {point}");
        git(world.dir.path(), &["clone", "-q", &world.gate.url("web"), "again"]).succeed();
        git(&world.dir.path().join("git/web.git"), &["fsck", "--connectivity-only"]).succeed();
    }
}

#[test]
fn what_a_git_that_was_killed_had_locked_is_free_at_the_next_start() {
    let mut world = World::new();
    let work = world.clone_web();
    world.gate.child.kill().unwrap();
    world.gate.child.wait().unwrap();
    let mirror = world.dir.path().join("git/web.git");
    let locks = ["packed-refs.lock", "HEAD.lock", "refs/heads/main.lock", "objects/info/commit-graph.lock"];
    for lock in locks {
        fs::create_dir_all(mirror.join(lock).parent().unwrap()).unwrap();
        fs::write(mirror.join(lock), "").unwrap();
    }
    let repos = fs::read_to_string(world.gate.config_dir.join("repos.yaml")).unwrap();
    world.gate = Gate::start(world.dir.path(), &repos);
    work.git(&["remote", "set-url", "origin", &world.gate.url("web")]).succeed();
    work.write("a", "a\n").commit("a");
    work.git(&["push", "-q", "origin", "HEAD:refs/heads/agent/x"]).succeed();
    assert_eq!(shown(&world), world.upstream.refs());
    for lock in locks {
        assert!(!mirror.join(lock).exists(), "{lock}");
    }
}

#[test]
fn a_client_that_hangs_up_anywhere_in_a_push_leaves_nothing_behind() {
    let world = World::new();
    let work = world.clone_web();
    let new = work.write("a", "a\n").commit("a");
    let zero = "0".repeat(40);
    let body = world.commands_and_pack(&work, &[(&zero, &new, "refs/heads/agent/cut")], &[&new]);
    let request = [pkt(common::RECEIVE), body].concat();
    for cut in (1..request.len()).step_by(request.len() / 12) {
        let mut stream = world.gate.connect();
        stream.write_all(&request[..cut]).unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
    }
    // Those that were cut short give their places back by themselves.
    let began = Instant::now();
    while !work.push("HEAD:refs/heads/agent/whole").said().contains("new branch") {
        assert!(began.elapsed() < Duration::from_secs(60), "no place became free");
    }
    assert_eq!(world.upstream.rev("agent/whole"), new);
    assert_eq!(shown(&world), world.upstream.refs());
}

#[test]
fn a_name_below_a_name_is_refused_and_the_next_push_works() {
    let world = World::new();
    let work = world.clone_web();
    work.write("a", "a\n").commit("a");
    work.push("HEAD:refs/heads/agent/x").succeed();
    let said = work.push("HEAD:refs/heads/agent/x/y").fail();
    assert!(said.contains("agent/x"), "{said}");
    for name in
        ["agent/a..b", "agent/.hidden", "agent/a.lock", "agent/a b", "agent/\u{1b}[2J", "agent/-x/../y"]
    {
        let zero = "0".repeat(40);
        let tip = work.git(&["rev-parse", "HEAD"]).succeed().trim().to_owned();
        let answer = world.push_raw(&work, &[(&zero, &tip, &format!("refs/heads/{name}"))], &[&tip]);
        assert!(!answer.contains("ok refs/heads/"), "{name:?}: {answer:?}");
    }
    work.push("HEAD:refs/heads/agent/z").succeed();
    assert_eq!(shown(&world), world.upstream.refs());
}

#[test]
fn a_small_pack_of_a_huge_file_is_refused_by_its_size() {
    let world = World::with_rules("push: {allow: [refs/heads/agent/*], max_pack: 2MiB}");
    let work = world.clone_web();
    let file = fs::File::create(work.path.join("zeros")).unwrap();
    file.set_len(100 << 20).unwrap();
    work.commit("bomb");
    let said = work.push("HEAD:refs/heads/agent/x").fail();
    assert!(said.contains("zeros has 104857600 bytes"), "{said}");
    work.git(&["reset", "-q", "--hard", "HEAD^"]).succeed();
    work.write("a", "a\n").commit("a");
    work.push("HEAD:refs/heads/agent/x").succeed();
}

#[test]
fn objects_named_by_sha256_are_refused_in_words() {
    let dir = TempDir::new().unwrap();
    git(dir.path(), &["init", "-q", "--object-format=sha256", "-b", "main", "seed"]).succeed();
    common::Work { path: dir.path().join("seed") }.write("a", "a\n").commit("a");
    let yaml = format!("repos:\n  - {{name: web, upstream: 'file://{}/seed'}}\n", dir.path().display());
    let gate = Gate::start_with(dir.path(), &yaml, &["--allow-local-upstream"]);
    let said = git(dir.path(), &["ls-remote", &gate.url("web")]).fail();
    assert!(said.contains("named by SHA-256") && said.contains("this needs the operator"), "{said}");
}

#[test]
fn very_many_refs_are_mirrored_and_shown() {
    let world = World::new();
    let count = std::env::var("BOTTLECAP_REFS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let tip = world.upstream.rev("main");
    let mut packed = "# pack-refs with: peeled fully-peeled sorted \n".to_owned();
    for n in 0..count {
        packed.push_str(&format!("{tip} refs/heads/many/{n:07}\n"));
    }
    fs::write(world.upstream.repository.join("packed-refs"), packed).unwrap();
    assert_eq!(shown(&world).lines().count(), count + 1);
    let status = fs::read_to_string(format!("/proc/{}/status", world.gate.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: usize = peak.split_whitespace().next().unwrap().parse().unwrap();
    assert!(peak < (64 << 10) + count, "{peak} KiB");
    assert_eq!(shown(&world), world.upstream.refs());
}
