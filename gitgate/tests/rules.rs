//! The keys of `push` beside the names of refs, one by one, each with what passes.
#![allow(clippy::unwrap_used)]

mod common;

use common::{World, git, pkt};

fn refused(world: &World, work: &common::Work, refspec: &str, words: &str) {
    let (before, commands) = (world.upstream.refs(), world.upstream.commands());
    let said = work.push(refspec).fail();
    assert!(said.contains(words), "{said}");
    assert_eq!(world.upstream.refs(), before);
    let received = |log: &str| log.matches("git-receive-pack").count();
    assert_eq!(received(&world.upstream.commands()), received(&commands), "upstream was contacted");
}

#[test]
fn a_file_over_the_bound_is_refused_and_one_below_it_lands() {
    let world = World::with_rules("push: {allow: [refs/heads/agent/*], max_file: 4KiB}");
    let work = world.clone_web();
    work.write("small", &"x".repeat(4000)).commit("small");
    work.push("HEAD:refs/heads/agent/x").succeed();
    work.write("large", &"x".repeat(4097)).commit("large");
    refused(&world, &work, "HEAD:refs/heads/agent/x", "large has 4097 bytes; at most 4096 are taken");
    work.git(&["reset", "-q", "--hard", "HEAD^"]).succeed();
    work.commit(&"long ".repeat(1000));
    refused(&world, &work, "HEAD:refs/heads/agent/x", "(commit) has");
}

#[test]
fn addresses_of_other_domains_are_refused() {
    let world = World::with_rules("push: {allow: [refs/heads/agent/*], author_domains: [Example.test]}");
    let work = world.clone_web();
    work.write("a", "a\n").commit("by agent@example.test");
    work.push("HEAD:refs/heads/agent/x").succeed();
    work.git(&["commit", "-q", "--allow-empty", "--author", "A <a@example.test.evil>", "-m", "b"]).succeed();
    refused(&world, &work, "HEAD:refs/heads/agent/x", "has an address outside of example.test");
}

#[test]
fn pointers_of_lfs_and_its_configuration_need_their_key() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    let closed = World::new();
    let work = closed.clone_web();
    work.write("big.bin", pointer).commit("pointer");
    refused(&closed, &work, "HEAD:refs/heads/agent/x", "big.bin is a pointer of git-lfs");
    work.git(&["reset", "-q", "--hard", "HEAD^"]).succeed();
    work.write(".lfsconfig", "[lfs]\n\turl = https://elsewhere.example/\n").commit("config");
    refused(&closed, &work, "HEAD:refs/heads/agent/x", ".lfsconfig sends files to a server of its own");

    let open = World::with_rules("push: {allow: [refs/heads/agent/*], lfs: true}");
    let work = open.clone_web();
    work.write("big.bin", pointer).commit("pointer");
    work.push("HEAD:refs/heads/agent/x").succeed();
}

#[test]
fn urls_of_submodules_are_read_as_git_reads_them() {
    let world = World::new();
    let work = world.clone_web();
    let modules = |url: &str| format!("[submodule \"a\"]\n\tpath = a\n\turl = {url}\n");
    work.write(".gitmodules", &modules("../sibling.git")).commit("relative");
    work.push("HEAD:refs/heads/agent/x").succeed();
    work.write(".gitmodules", &modules("https://me:pw@git.example.test/x.git")).commit("password");
    refused(&world, &work, "HEAD:refs/heads/agent/x", "this URL has a password in it");
    work.git(&["reset", "-q", "--hard", "HEAD^"]).succeed();
    work.write(".gitmodules", &modules("file:///srv/x")).commit("local");
    refused(&world, &work, "HEAD:refs/heads/agent/x", "this is no address of a repository elsewhere");
}

#[test]
fn push_options_reach_upstream_where_they_may() {
    let hook = "#!/bin/sh\necho \"options: $GIT_PUSH_OPTION_COUNT $GIT_PUSH_OPTION_0\"\n";
    let open = World::with_rules("push: {allow: [refs/heads/agent/*], push_options: true}");
    open.upstream.hook("pre-receive", hook);
    git(&open.upstream.repository, &["config", "receive.advertisePushOptions", "true"]).succeed();
    let work = open.clone_web();
    work.write("a", "a\n").commit("a");
    let ran = work.git(&["push", "-o", "ci.skip", "origin", "HEAD:refs/heads/agent/x"]);
    assert!(ran.said().contains("options: 1 ci.skip"), "{}", ran.said());
    let secret = common::github_token();
    let said = work.git(&["push", "-o", &secret, "origin", "HEAD:refs/heads/agent/y"]).fail();
    assert!(said.contains("github-pat in (push option)"), "{said}");

    for option in ["a\u{1b}[2J", "a\u{9b}b"] {
        let said = work.git(&["push", "-o", option, "origin", "HEAD:refs/heads/agent/y"]).fail();
        assert!(said.contains("a push option has a control character in it"), "{said}");
    }
    assert!(!open.upstream.refs().contains("agent/y"));

    let closed = World::new();
    let work = closed.clone_web();
    work.write("a", "a\n").commit("a");
    let said = work.git(&["push", "-o", "ci.skip", "origin", "HEAD:refs/heads/agent/x"]).fail();
    assert!(said.contains("does not support push options"), "{said}");
}

#[test]
fn a_signed_push_is_refused_even_when_nobody_offered_to_take_it() {
    let world = World::new();
    let work = world.clone_web();
    let old = world.upstream.rev("main");
    let new = work.write("a", "a\n").commit("a");
    let zero = "0".repeat(40);
    let mut request = pkt(common::RECEIVE);
    request.extend(pkt(b"push-cert\0report-status side-band-64k\n"));
    for line in [
        "certificate version 0.1\n".to_owned(),
        "pusher agent\n".to_owned(),
        "\n".to_owned(),
        format!("{zero} {new} refs/heads/agent/signed\n"),
        "-----BEGIN PGP SIGNATURE-----\nx\n-----END PGP SIGNATURE-----\n".to_owned(),
        "push-cert-end\n".to_owned(),
    ] {
        request.extend(pkt(line.as_bytes()));
    }
    let commands = world.commands_and_pack(&work, &[(&zero, &new, "refs/heads/agent/signed")], &[&new]);
    let flush = commands.windows(8).position(|w| w == b"0000PACK").unwrap();
    request.extend(&commands[flush..]);
    let answer = world.gate.talk(&request);
    assert!(answer.contains("a signed push cannot be forwarded"), "{answer}");
    assert_eq!(world.upstream.rev("main"), old);
    assert!(!world.upstream.refs().contains("signed"));
}

#[test]
fn a_grant_is_used_up_and_stays_so_after_a_restart() {
    let rules = "push: {allow: [refs/heads/agent/*], granted: [{ref: refs/heads/release, max_uses: 1, grant: g1, \
                 expires_at: 2999-01-01T00:00:00Z}]}";
    let mut world = World::with_rules(rules);
    let work = world.clone_web();
    world.upstream.hook("update", "#!/bin/sh\necho no >&2; exit 1\n");
    work.write("a", "a\n").commit("a");
    work.push("HEAD:refs/heads/release").fail();
    world.upstream.hook("update", "#!/bin/sh\nexit 0\n");
    work.push("HEAD:refs/heads/release").succeed();
    work.write("b", "b\n").commit("b");
    refused(
        &world,
        &work,
        "HEAD:refs/heads/release",
        "this permission was for 1 pushes and they are used up",
    );
    work.push("HEAD:refs/heads/agent/x").succeed();

    assert_eq!(world.gate.terminate(), Some(0));
    let begun = world.gate.journal().iter().filter(|event| event["type"] == "push_begun").count();
    assert_eq!(begun, 3);
    let repos = std::fs::read_to_string(world.gate.config_dir.join("repos.yaml")).unwrap();
    world.gate = common::Gate::start(world.dir.path(), &repos);
    work.git(&["remote", "set-url", "origin", &world.gate.url("web")]).succeed();
    refused(&world, &work, "HEAD:refs/heads/release", "they are used up");
}

#[test]
fn a_repository_whose_permission_ended_is_not_served() {
    let world = World::with_rules("expires_at: 2020-01-01T00:00:00Z");
    let said = git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).fail();
    assert!(said.contains("web: this permission ended at 2020-01-01T00:00:00Z"), "{said}");
    let later = World::with_rules("expires_at: 2999-01-01T00:00:00Z");
    git(later.dir.path(), &["ls-remote", &later.gate.url("web")]).succeed();
}

#[test]
fn where_there_is_no_operator_to_ask_a_secret_is_refused_with_words_that_say_so() {
    let world = World::with_rules("push: {allow: [refs/heads/agent/*], on_secret: supervise}");
    let work = world.clone_web();
    work.write("key", &common::private_key()).commit("leak");
    refused(
        &world,
        &work,
        "HEAD:refs/heads/agent/x",
        "There is no operator to ask here (supervise does not run)",
    );
}

#[test]
fn a_push_whose_answer_never_came_stays_counted() {
    let rules = "push: {granted: [{ref: refs/heads/release, max_uses: 1, grant: g1, expires_at: 2999-01-01T00:00:00Z}]}";
    let mut world = World::with_rules(rules);
    let work = world.clone_web();
    world.upstream.hook("update", "#!/bin/sh\nkill -9 $PPID\n");
    work.write("a", "a\n").commit("a");
    let said = work.push("HEAD:refs/heads/release").fail();
    assert!(said.contains("upstream's answer to the push did not come"), "{said}");
    world.upstream.hook("update", "#!/bin/sh\nexit 0\n");
    refused(&world, &work, "HEAD:refs/heads/release", "they are used up");
    assert_eq!(world.gate.terminate(), Some(0));
    let mut ends = world.gate.journal();
    ends.retain(|event| event["type"] == "push");
    assert_eq!(ends[0]["outcome"], "unanswered");
}
