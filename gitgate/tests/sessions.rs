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

/// What befalls upstream between what a push is shown and what it sends; the connections that there are live on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Befalls {
    Down,
    AnotherKey,
    IdentityTakenAway,
}

#[test]
fn a_push_is_not_forwarded_through_a_session_to_a_host_that_is_down_or_another_or_lets_us_in_no_more() {
    for (befalls, reason) in [
        (Befalls::Down, "it cannot be reached"),
        (Befalls::AnotherKey, "its host key is not the pinned one"),
        (Befalls::IdentityTakenAway, "does not accept the gate's identity"),
    ] {
        let mut world = World::new();
        let work = world.clone_web();
        warm(&world);
        let new = work.write("a", "a\n").commit("a");
        let zero = "0".repeat(40);
        let keys = world.dir.path().join("upstream/authorized_keys");
        let allowed = fs::read(&keys).unwrap();
        // The advertisement was made while upstream was well; the push comes when it is not.
        let mut conversation = world.gate.connect();
        let head = common::pkt(common::RECEIVE);
        common::exchange(&mut conversation, &head);
        match befalls {
            Befalls::Down => world.upstream.stop_listening(),
            Befalls::AnotherKey => {
                world.upstream.stop_listening();
                world.upstream.listen_with_key("other_host");
            }
            Befalls::IdentityTakenAway => fs::write(&keys, "").unwrap(),
        }
        let body = world.commands_and_pack(&work, &[(&zero, &new, "refs/heads/agent/x")], &[&new]);
        let said = common::rest(conversation, &body);
        assert!(said.contains(reason) && said.contains("push refused"), "{befalls:?}: {said}");
        assert!(!world.upstream.refs().contains("agent/x"), "{befalls:?}");
        match befalls {
            Befalls::Down => world.upstream.listen_again(),
            Befalls::AnotherKey => {
                world.upstream.stop_listening();
                world.upstream.listen_again();
            }
            Befalls::IdentityTakenAway => fs::write(&keys, allowed).unwrap(),
        }
        work.push("HEAD:refs/heads/agent/x").succeed();
        assert_eq!(world.upstream.rev("agent/x"), new);
    }
}

#[test]
fn a_push_goes_through_the_session_of_what_it_was_shown_and_the_login_beside_it_is_kept() {
    let world = World::new();
    let work = world.clone_web();
    // Each command with the port of our end of its connection.
    let log = world.dir.path().join("upstream/ports");
    let login = format!(
        "#!/bin/sh\nset -- $SSH_CONNECTION\necho \"$2 $SSH_ORIGINAL_COMMAND\" >> '{}'\nexec sh -c \"$SSH_ORIGINAL_COMMAND\"\n",
        log.display()
    );
    fs::write(world.dir.path().join("upstream/login"), login).unwrap();
    warm(&world);
    work.write("a", "a\n").commit("a");
    fs::write(&log, "").unwrap();
    work.push("HEAD:refs/heads/agent/x").succeed();
    list(&world).succeed();
    let text = fs::read_to_string(&log).unwrap();
    let commands: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let programs: Vec<&str> =
        commands.iter().map(|(_, command)| command.split(' ').next().unwrap()).collect();
    assert_eq!(programs, ["git-upload-pack", "git-receive-pack", "git-upload-pack"], "{text}");
    let [shown, pushed, after] = [0, 1, 2].map(|at: usize| commands[at].0);
    assert!(shown != pushed && pushed != after, "{text}");
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
