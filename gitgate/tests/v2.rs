//! Protocol v2: refs are shown at once, objects when they are there, and upstream is asked once.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use common::{World, git, pkt};

/// Lines of standard error, cut where git begins a line anew.
fn lines(stream: impl std::io::Read) -> impl Iterator<Item = String> {
    let parts = BufReader::new(stream).split(b'\n').map_while(Result::ok);
    parts.map(|part| String::from_utf8_lossy(&part).into_owned())
}

#[test]
fn the_first_contact_with_a_slow_upstream_says_what_it_waits_for_and_refs_are_shown_meanwhile() {
    for scheme in ["git", "http"] {
        let world = World::new();
        fs::write(world.upstream.slow(), "").unwrap();
        let url = world.gate.url("web").replacen("git", scheme, 1);
        let mut clone = common::client(world.dir.path());
        let mut clone = clone.args(["clone", &url, "work"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = lines(clone.stderr.take().unwrap());
        let told = said.find(|line| line.contains("git-gate: copying web from ssh://"));
        assert!(told.is_some_and(|line| line.starts_with("remote: ")), "over {scheme}");
        while world.upstream.commands().lines().count() < 2 {
            std::thread::yield_now();
        }
        let shown = git(world.dir.path(), &["ls-remote", &url]).succeed();
        assert!(shown.contains("refs/heads/main"), "{shown}");
        fs::remove_file(world.upstream.slow()).unwrap();
        said.for_each(drop);
        assert!(clone.wait().unwrap().success());
        assert!(world.work("work").path.join("README").exists());
    }
}

#[test]
fn what_was_shown_before_it_was_copied_is_had_although_upstream_moved() {
    for scheme in ["git", "http"] {
        let world = World::new();
        world.upstream.move_at_each_look();
        fs::write(world.upstream.slow(), "").unwrap();
        let url = world.gate.url("web").replacen("git", scheme, 1);
        let mut clone = common::client(world.dir.path());
        let mut clone = clone.args(["clone", &url, "work"]).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = lines(clone.stderr.take().unwrap());
        assert!(said.any(|line| line.contains("git-gate: copying web from ssh://")), "over {scheme}");
        fs::remove_file(world.upstream.slow()).unwrap();
        let rest: Vec<String> = said.collect();
        assert!(clone.wait().unwrap().success(), "over {scheme}: {rest:?}");
        // What the client was shown first is not where upstream was when it was copied.
        let first = world.work("work").git(&["rev-parse", "origin/moving"]).succeed();
        let mirror = world.dir.path().join("git/web.git");
        assert_ne!(git(&mirror, &["rev-parse", "moving"]).succeed(), first);
    }
}

#[test]
fn upstream_is_asked_once_for_each_read_over_either_transport() {
    let world = World::new();
    for scheme in ["git", "http"] {
        let url = world.gate.url("web").replacen("git", scheme, 1);
        git(world.dir.path(), &["clone", "-q", &url, &format!("first-{scheme}")]).succeed();
        let before = world.upstream.commands().lines().count();
        git(world.dir.path(), &["clone", "-q", &url, &format!("second-{scheme}")]).succeed();
        assert_eq!(world.upstream.commands().lines().count(), before + 1, "a clone over {scheme}");
        git(&world.dir.path().join(format!("second-{scheme}")), &["fetch", "-q"]).succeed();
        assert_eq!(world.upstream.commands().lines().count(), before + 2, "a fetch over {scheme}");
    }
}

#[test]
fn what_git_does_not_do_is_told_in_its_words() {
    let world = World::new();
    world.upstream.commit("second");
    for scheme in ["git", "http"] {
        let url = world.gate.url("web").replacen("git", scheme, 1);
        let clone = format!("over-{scheme}");
        git(world.dir.path(), &["clone", "-q", &url, &clone]).succeed();
        let work = world.work(&clone);
        for excluded in ["nothere", "main"] {
            let said = work.git(&["fetch", &format!("--shallow-exclude={excluded}")]).fail();
            assert!(said.contains("remote error: git-gate: web: fatal: "), "{scheme} {excluded}: {said}");
        }
        let filter = "--filter=sparse:oid=main:README";
        let said = git(world.dir.path(), &["clone", "-q", filter, &url, &format!("sparse-{scheme}")]).fail();
        assert!(said.contains("this filter is not served; blob:none"), "{said}");
    }
}

#[test]
fn tags_are_peeled_and_an_empty_upstream_names_its_branch() {
    let world = World::new();
    let seed = world.dir.path().join("upstream/seed");
    git(&seed, &["tag", "-a", "-m", "one", "v1"]).succeed();
    git(&seed, &["push", "-q", "origin", "v1"]).succeed();
    let direct = git(world.dir.path(), &["ls-remote", &world.upstream.direct_url()]).succeed();
    assert!(direct.contains("refs/tags/v1^{}"), "{direct}");
    for version in ["0", "1", "2"] {
        let version = format!("protocol.version={version}");
        let shown = git(world.dir.path(), &["-c", &version, "ls-remote", &world.gate.url("web")]).succeed();
        assert_eq!(shown, direct, "{version}");
    }
    git(&world.upstream.repository, &["update-ref", "-d", "refs/tags/v1"]).succeed();
    git(&world.upstream.repository, &["update-ref", "-d", "refs/heads/main"]).succeed();
    git(&world.upstream.repository, &["symbolic-ref", "HEAD", "refs/heads/trunk"]).succeed();
    let hello = pkt(b"git-upload-pack /web.git\0host=h\0\0version=2\0");
    let command =
        [&pkt(b"command=ls-refs")[..], b"0001", &pkt(b"symrefs"), &pkt(b"unborn"), b"00000000"].concat();
    let shown = world.gate.talk(&[hello, command].concat());
    assert!(shown.contains("unborn HEAD symref-target:refs/heads/trunk"), "{shown}");
}

#[test]
fn an_open_conversation_does_not_outlive_what_the_operator_put_in_force() {
    let world = World::new();
    let mut stream = world.gate.connect();
    common::exchange(&mut stream, &pkt(b"git-upload-pack /web.git\0host=h\0\0version=2\0"));
    let listing = [&pkt(b"command=ls-refs\n")[..], b"0000"].concat();
    assert!(common::exchange(&mut stream, &listing).contains("refs/heads/main"));
    let entry = world.upstream.entry("web", "fetch: {allow: [refs/tags/*]}");
    world.gate.forbid_pushes(&entry);
    let answer = common::rest(stream, &listing);
    assert!(answer.contains("connect again") && !answer.contains("refs/heads/main"), "{answer}");
}

#[test]
fn what_upstream_took_back_before_somebody_asked_is_not_shown_to_them() {
    let world = World::new();
    let upstream = &world.upstream;
    git(&upstream.repository, &["config", "uploadpack.allowAnySHA1InWant", "true"]).succeed();
    let before = upstream.rev("main");
    let url = world.gate.url("web");
    let look = || {
        let mut look = common::client(world.dir.path());
        look.args(["-c", "protocol.version=0", "ls-remote", &url]).stdout(Stdio::piped()).spawn().unwrap()
    };
    let asked = |count: u64| {
        common::eventually("upstream is asked", || {
            world.gate.status()["repos"][0]["refreshes"].as_u64() == Some(count)
        });
    };
    fs::write(upstream.slow(), "").unwrap();
    let first = look();
    common::eventually("it is copied", || upstream.commands().lines().count() == 2);
    // Who asks now was shown it, and waits for the copy.
    let leaked = upstream.commit("leaked");
    let second = look();
    asked(2);
    for name in ["main", "other"] {
        git(&upstream.repository, &["update-ref", &format!("refs/heads/{name}"), &before]).succeed();
    }
    let third = look();
    asked(3);
    fs::remove_file(upstream.slow()).unwrap();
    for look in [first, second] {
        assert!(look.wait_with_output().unwrap().status.success());
    }
    let shown = third.wait_with_output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains(&before) && !shown.contains(&leaked), "{shown}");
}
