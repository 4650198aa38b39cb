//! Kept ssh sessions: they save time, and are never a way round the question who upstream is now.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{Ran, World, eventually, git};

fn list(world: &World) -> Ran {
    git(world.dir.path(), &["ls-remote", &world.gate.url("web")])
}

/// Reads until a session is kept and was gone through.
fn warm(world: &World) {
    list(world).succeed();
    eventually("a session", || world.gate.kept_sessions() == Some(1));
    list(world).succeed();
    eventually("a session", || world.gate.kept_sessions() == Some(1));
}

#[test]
fn a_session_that_lives_on_does_not_stand_for_a_host_that_is_down() {
    let mut world = World::new();
    warm(&world);
    world.upstream.stop_listening();
    let said = list(&world).fail();
    assert!(said.contains("it cannot be reached") && said.contains("Connection refused"), "{said}");
    assert_eq!(world.gate.kept_sessions(), Some(0));
    world.upstream.listen_again();
    warm(&world);
}

#[test]
fn a_session_that_lives_on_does_not_stand_for_a_host_with_another_key() {
    let mut world = World::new();
    warm(&world);
    world.upstream.stop_listening();
    world.upstream.listen_with_key("other_host");
    let said = list(&world).fail();
    assert!(said.contains("its host key is not the pinned one"), "{said}");
    assert_eq!(world.gate.kept_sessions(), Some(0));
    world.upstream.stop_listening();
    world.upstream.listen_again();
    warm(&world);
}

#[test]
fn a_session_that_lives_on_does_not_stand_for_an_identity_that_was_taken_away() {
    let world = World::new();
    warm(&world);
    let keys = world.dir.path().join("upstream/authorized_keys");
    let allowed = fs::read(&keys).unwrap();
    fs::write(&keys, "").unwrap();
    let said = list(&world).fail();
    assert!(said.contains("does not accept the gate's identity"), "{said}");
    fs::write(&keys, allowed).unwrap();
    warm(&world);
}

#[test]
fn a_push_is_not_forwarded_through_a_session_to_a_host_that_is_down_or_another() {
    for key in [None, Some("other_host")] {
        let mut world = World::new();
        let work = world.clone_web();
        warm(&world);
        let new = work.write("a", "a\n").commit("a");
        let zero = "0".repeat(40);
        // The advertisement was made while upstream was well; the push comes when it is not.
        let mut conversation = world.gate.connect();
        let head = common::pkt(common::RECEIVE);
        common::exchange(&mut conversation, &head);
        world.upstream.stop_listening();
        if let Some(key) = key {
            world.upstream.listen_with_key(key);
        }
        let body = world.commands_and_pack(&work, &[(&zero, &new, "refs/heads/agent/x")], &[&new]);
        let said = common::rest(conversation, &body);
        let reason =
            if key.is_some() { "its host key is not the pinned one" } else { "it cannot be reached" };
        assert!(said.contains(reason) && said.contains("push refused"), "{said}");
        assert!(!world.upstream.refs().contains("agent/x"));
        if key.is_some() {
            world.upstream.stop_listening();
        }
        world.upstream.listen_again();
        work.push("HEAD:refs/heads/agent/x").succeed();
        assert_eq!(world.upstream.rev("agent/x"), new);
    }
}

#[test]
fn a_host_that_takes_one_command_for_each_session_does() {
    let mut world = World::new();
    world.upstream.stop();
    world.upstream.listen_with("host", "MaxSessions 1");
    let work = world.clone_web();
    for name in ["a", "b"] {
        warm(&world);
        let theirs = world.upstream.commit(name);
        work.git(&["fetch", "-q", "origin"]).succeed();
        assert_eq!(work.git(&["rev-parse", "origin/main"]).succeed().trim(), theirs);
        let ours = work.write("ours", name).commit("ours");
        work.push("HEAD:refs/heads/agent/x").succeed();
        assert_eq!(world.upstream.rev("agent/x"), ours);
    }
}
