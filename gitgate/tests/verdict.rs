//! What git shows beside each ref of a refused push.
#![allow(clippy::unwrap_used)]

mod common;

use common::World;

/// The line that git shows of a ref, without its arrow.
fn shown(said: &str, name: &str) -> String {
    let line =
        said.lines().find(|line| line.contains("[remote rejected]") && line.contains(&format!("-> {name} ")));
    let line = line.unwrap_or_else(|| panic!("{name} is not in: {said}"));
    line.split_once(name).unwrap().1.trim().to_owned()
}

#[test]
fn a_ref_that_may_not_be_pushed_is_refused_with_its_own_reason_over_both_transports() {
    let world = World::new();
    let work = world.clone_web();
    work.write("a", "a\n").commit("a");
    let http = format!("http://{}/web.git", world.gate.address);
    for url in [world.gate.url("web"), http] {
        let said = work.git(&["push", &url, "HEAD:main", "HEAD:refs/heads/agent/x"]).fail();
        let (bad, good) = (shown(&said, "main"), shown(&said, "agent/x"));
        assert!(!bad.contains("hook declined") && bad.contains("refs/heads/agent/*"), "{said}");
        assert_eq!(good, "(another ref of this push was refused)", "{said}");
    }
}

#[test]
fn a_secret_is_named_beside_the_ref_and_listed_above_it() {
    let world = World::new();
    let work = world.clone_web();
    work.write("deploy.key", &common::private_key()).commit("a");
    let said = work.push("HEAD:refs/heads/agent/x").fail();
    let reason = shown(&said, "agent/x");
    assert!(reason.contains("private-key") && reason.contains("deploy.key:1"), "{said}");
    assert!(said.contains("remote: git-gate:   private-key in commit"), "{said}");
}

#[test]
fn upstreams_reason_stands_beside_the_ref() {
    let world = World::new();
    let script = "#!/bin/sh\n[ \"$1\" != refs/heads/agent/x ]\n";
    world.upstream.hook("update", script);
    let work = world.clone_web();
    work.write("a", "a\n").commit("a");
    let said = work.push("HEAD:refs/heads/agent/x").fail();
    assert_eq!(shown(&said, "agent/x"), "(hook declined)", "{said}");
    work.push("HEAD:refs/heads/agent/y").succeed();
}
