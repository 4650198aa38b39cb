//! Pushes through the gate: clean ones land upstream, the others never get there.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Work, World, git, github_token, private_key};

/// Pushes and asserts a refusal that names `expected`, with upstream untouched and not contacted.
fn refused_before_upstream(world: &World, work: &Work, refspec: &str, expected: &[&str]) -> String {
    let before = world.upstream.refs();
    let said = work.push(refspec).fail();
    for part in expected {
        assert!(said.contains(part), "{part} is missing in:\n{said}");
    }
    assert_eq!(world.upstream.refs(), before);
    assert!(!world.upstream.commands().contains("receive-pack"), "{}", world.upstream.commands());
    said
}

#[test]
fn a_clean_push_lands_upstream() {
    let mut world = World::new();
    let work = world.clone_web();
    let mine = work.write("src/new.rs", "fn main() {}\n").commit("clean");
    work.push("HEAD:refs/heads/agent/clean").succeed();
    assert_eq!(world.upstream.rev("refs/heads/agent/clean"), mine);
    let listing = git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed();
    assert!(listing.contains(&format!("{mine}\trefs/heads/agent/clean")));
    world.gate.terminate();
    let push = world.gate.journal().into_iter().find(|e| e["type"] == "push").unwrap();
    assert_eq!(push["outcome"], "forwarded");
    assert_eq!(push["refs"][0]["new"], mine);
}

#[test]
fn a_key_in_a_middle_commit_is_refused_with_rule_file_and_line() {
    let mut world = World::new();
    let work = world.clone_web();
    work.write("a", "one\n").commit("first");
    let leaky = work.write("conf/deploy.txt", &format!("user: me\n{}", private_key())).commit("second");
    work.write("b", "two\n").commit("third");
    let place = format!("private-key in commit {}, conf/deploy.txt:2", &leaky[..10]);
    let said = refused_before_upstream(&world, &work, "HEAD:refs/heads/agent/x", &[&place, "git rebase -i"]);
    assert!(!said.contains("b3BlbnNzaC1rZXk"), "the secret is in the answer:\n{said}");
    world.gate.terminate();
    let push = world.gate.journal().into_iter().find(|e| e["type"] == "push").unwrap();
    assert_eq!(push["outcome"], "secrets");
    assert_eq!(push["findings"][0]["rule"], "private-key");
    assert_eq!(push["findings"][0]["path"], "conf/deploy.txt");
}

#[test]
fn the_same_commit_pushed_past_the_gate_lands() {
    let world = World::new();
    let work = world.clone_web();
    let leaky = work.write("key", &private_key()).commit("leaky");
    refused_before_upstream(&world, &work, "HEAD:refs/heads/agent/x", &["private-key"]);
    work.git(&["push", &world.upstream.direct_url(), "HEAD:refs/heads/agent/x"]).succeed();
    assert_eq!(world.upstream.rev("refs/heads/agent/x"), leaky);
}

#[test]
fn a_secret_that_a_later_commit_deletes_is_refused() {
    let world = World::new();
    let work = world.clone_web();
    work.write("token", &github_token()).commit("add");
    std::fs::remove_file(work.path.join("token")).unwrap();
    work.commit("remove");
    refused_before_upstream(&world, &work, "HEAD:refs/heads/agent/x", &["github-pat", "token:1"]);
}

#[test]
fn secrets_outside_of_files_are_refused() {
    let world = World::new();
    let work = world.clone_web();
    let token = github_token();
    work.commit(&format!("subject\n\nuse {token}"));
    refused_before_upstream(&world, &work, "HEAD:refs/heads/agent/x", &["github-pat", "(commit message):3"]);

    work.git(&["reset", "-q", "--hard", "origin/main"]).succeed();
    work.git(&[
        "-c",
        &format!("user.name={token}"),
        "commit",
        "-q",
        "--allow-empty",
        "-m",
        "m",
        &format!("--author={token} <a@b>"),
    ])
    .succeed();
    refused_before_upstream(&world, &work, "HEAD:refs/heads/agent/x", &["github-pat", "(commit header)"]);

    work.git(&["reset", "-q", "--hard", "origin/main"]).succeed();
    work.write(&format!("{token}/x"), "clean\n").commit("named");
    refused_before_upstream(&world, &work, "HEAD:refs/heads/agent/x", &["github-pat", "(file name)"]);

    work.git(&["reset", "-q", "--hard", "origin/main"]).succeed();
    refused_before_upstream(
        &world,
        &work,
        &format!("HEAD:refs/heads/agent/{token}"),
        &["github-pat", "(ref name)"],
    );

    work.git(&["tag", "-a", "v1", "-m", &token]).succeed();
    refused_before_upstream(&world, &work, "refs/tags/v1", &["github-pat", "(tag)"]);

    work.write("blob", &token);
    let blob = work.git(&["hash-object", "-w", "blob"]).succeed();
    work.git(&["tag", "plain", blob.trim()]).succeed();
    refused_before_upstream(&world, &work, "refs/tags/plain", &["github-pat", "(object)"]);
}

#[test]
fn what_only_a_merge_brings_is_judged() {
    let world = World::new();
    let work = world.clone_web();
    work.git(&["checkout", "-q", "-b", "side"]).succeed();
    work.write("side", "s\n").commit("side");
    work.git(&["checkout", "-q", "main"]).succeed();
    work.write("main", "m\n").commit("main");
    work.git(&["merge", "-q", "--no-commit", "side"]).succeed();
    work.write("evil", &private_key()).commit("merge");
    refused_before_upstream(&world, &work, "HEAD:refs/heads/agent/x", &["private-key", "evil:1"]);
}

#[test]
fn merging_what_upstream_already_has_is_not_refused() {
    let world = World::new();
    let work = world.clone_web();
    let theirs = world.work("theirs");
    git(world.dir.path(), &["clone", "-q", &world.upstream.direct_url(), "theirs"]).succeed();
    theirs.write("fixtures/old.key", &private_key()).commit("an old fixture");
    theirs.push("HEAD:refs/heads/main").succeed();
    work.write("mine", "m\n").commit("mine");
    work.git(&["fetch", "-q"]).succeed();
    work.git(&["merge", "-q", "-m", "merge", "origin/main"]).succeed();
    work.git(&["mv", "fixtures/old.key", "fixtures/moved.key"]).succeed();
    work.commit("move the fixture");
    work.push("HEAD:refs/heads/agent/x").succeed();
}

#[test]
fn a_replacement_does_not_hide_what_is_pushed() {
    let world = World::new();
    let work = world.clone_web();
    let clean = work.write("f", "clean\n").commit("clean");
    work.git(&["reset", "-q", "--hard", "origin/main"]).succeed();
    let leaky = work.write("f", &private_key()).commit("leaky");
    work.git(&["replace", &leaky, &clean]).succeed();
    refused_before_upstream(&world, &work, "HEAD:refs/heads/agent/x", &["private-key"]);
}

#[test]
fn a_ref_that_may_not_be_pushed_is_refused() {
    let world = World::new();
    let work = world.clone_web();
    work.write("f", "clean\n").commit("clean");
    let expected = ["refs/heads/main: this ref may not be pushed; allowed: refs/heads/agent/*, refs/tags/*"];
    refused_before_upstream(&world, &work, "HEAD:refs/heads/main", &expected);
}

#[test]
fn rewriting_and_deleting_are_refused_unless_allowed() {
    let world = World::new();
    let work = world.clone_web();
    work.write("f", "one\n").commit("one");
    git(
        &world.upstream.repository,
        &["fetch", "-q", &work.path.to_string_lossy(), "HEAD:refs/heads/agent/x"],
    )
    .succeed();
    work.git(&["reset", "-q", "--hard", "origin/main"]).succeed();
    work.write("f", "two\n").commit("two");
    refused_before_upstream(&world, &work, "+HEAD:refs/heads/agent/x", &["not a fast-forward"]);
    refused_before_upstream(&world, &work, ":refs/heads/agent/x", &["refs may not be deleted"]);
}

#[test]
fn rewriting_and_deleting_reach_upstream_when_allowed() {
    let world = World::with_rules("push: {allow: [refs/heads/agent/*], force: true, delete: true}");
    let work = world.clone_web();
    work.write("f", "one\n").commit("one");
    work.push("HEAD:refs/heads/agent/x").succeed();
    work.git(&["reset", "-q", "--hard", "origin/main"]).succeed();
    let two = work.write("f", "two\n").commit("two");
    work.push("+HEAD:refs/heads/agent/x").succeed();
    assert_eq!(world.upstream.rev("refs/heads/agent/x"), two);
    work.push(":refs/heads/agent/x").succeed();
    assert!(!world.upstream.refs().contains("agent/x"));
}

#[test]
fn upstreams_own_words_reach_the_agent_without_terminal_codes() {
    let world = World::new();
    let script =
        "#!/bin/sh\nprintf 'Ticket \\033[31mnumber\\033[0m is missing, see wiki/pushing\\n' >&2\nexit 1\n";
    world.upstream.hook("pre-receive", script);
    let work = world.clone_web();
    work.write("f", "clean\n").commit("clean");
    let before = world.upstream.refs();
    let said = work.push("HEAD:refs/heads/agent/x").fail();
    assert!(said.contains("remote: Ticket [31mnumber[0m is missing, see wiki/pushing"), "{said}");
    assert!(said.contains("pre-receive hook declined"), "{said}");
    assert_eq!(world.upstream.refs(), before);
    let listing = git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed();
    assert!(!listing.contains("agent/x"), "the mirror took what upstream refused");
}

#[test]
fn words_of_an_accepting_upstream_reach_the_agent() {
    let world = World::new();
    world
        .upstream
        .hook("post-receive", "#!/bin/sh\necho 'Create a pull request: https://git.example.test/pr' >&2\n");
    let work = world.clone_web();
    work.write("f", "clean\n").commit("clean");
    let ran = work.push("HEAD:refs/heads/agent/x");
    assert!(
        ran.said().contains("remote: Create a pull request: https://git.example.test/pr"),
        "{}",
        ran.said()
    );
    ran.succeed();
}

#[test]
fn several_refs_land_together_or_not_at_all() {
    let world = World::new();
    let work = world.clone_web();
    work.write("f", "clean\n").commit("clean");
    work.git(&["push", "origin", "HEAD:refs/heads/agent/a", "HEAD:refs/heads/agent/b"]).succeed();
    assert!(world.upstream.refs().contains("agent/a") && world.upstream.refs().contains("agent/b"));
    world.upstream.hook("update", "#!/bin/sh\ncase $1 in *bad*) echo no bad names >&2; exit 1;; esac\n");
    let before = world.upstream.refs();
    let said =
        work.git(&["push", "origin", "HEAD:refs/heads/agent/good", "HEAD:refs/heads/agent/bad"]).fail();
    assert!(said.contains("no bad names"), "{said}");
    assert_eq!(world.upstream.refs(), before);
}

#[test]
fn one_denied_ref_refuses_the_whole_push() {
    let world = World::new();
    let work = world.clone_web();
    work.write("f", "clean\n").commit("clean");
    let before = world.upstream.refs();
    work.git(&["push", "origin", "HEAD:refs/heads/agent/a", "HEAD:refs/heads/main"]).fail();
    assert_eq!(world.upstream.refs(), before);
}

#[test]
fn a_push_is_judged_against_what_upstream_has_now() {
    let world = World::with_rules("push: {allow: [refs/heads/main]}");
    let work = world.clone_web();
    work.write("mine", "m\n").commit("mine");
    let theirs = world.upstream.commit("theirs");
    let said = work.push("HEAD:refs/heads/main").fail();
    assert!(said.contains("fetch first") || said.contains("non-fast-forward"), "{said}");
    assert_eq!(world.upstream.rev("main"), theirs);
}

#[test]
fn with_upstream_down_a_push_is_refused_with_the_reason() {
    let mut world = World::new();
    let work = world.clone_web();
    work.write("f", "clean\n").commit("clean");
    world.upstream.stop();
    let said = work.push("HEAD:refs/heads/agent/x").fail();
    assert!(said.contains("remote error: git-gate: web: cannot refresh"), "{said}");
}

#[test]
fn a_repository_without_push_rules_says_so_at_once() {
    let world = World::with_rules("fetch: {}");
    let work = world.clone_web();
    work.write("f", "clean\n").commit("clean");
    let said = work.push("HEAD:refs/heads/agent/x").fail();
    assert!(said.contains("nothing may be pushed to this repository"), "{said}");
}

#[test]
fn a_pack_over_the_limit_is_refused() {
    let world = World::with_rules("push: {allow: [refs/heads/agent/*], max_pack: 1KiB}");
    let work = world.clone_web();
    let noise: String =
        (0..20_000u32).map(|i| char::from(b'a' + (i.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)).collect();
    work.write("big", &noise).commit("big");
    refused_before_upstream(&world, &work, "HEAD:refs/heads/agent/x", &["pack exceeds maximum allowed size"]);
}

#[test]
fn a_read_during_a_push_is_served() {
    let world = World::new();
    let work = world.clone_web();
    work.write("f", "clean\n").commit("clean");
    let mut reader = common::client(world.dir.path());
    reader.args(["ls-remote", &world.gate.url("web")]).stdout(std::process::Stdio::null());
    let mut reader = reader.spawn().unwrap();
    work.push("HEAD:refs/heads/agent/x").succeed();
    assert!(reader.wait().unwrap().success());
}

#[test]
fn a_push_from_a_shallow_and_from_a_partial_clone_lands() {
    let world = World::new();
    let large: String = (0..400).map(|i| format!("line {i}\n")).collect();
    std::fs::write(world.dir.path().join("upstream/seed/large"), &large).unwrap();
    world.upstream.commit("theirs");
    for (name, option) in [("shallow", "--depth=1"), ("partial", "--filter=blob:none")] {
        git(world.dir.path(), &["clone", "-q", option, &world.gate.url("web"), name]).succeed();
        let work = world.work(name);
        // A small change to a large file: git sends a difference to what the gate has.
        let mine = work.write("large", &format!("{large}{name}\n")).commit(name);
        work.push(&format!("HEAD:refs/heads/agent/{name}")).succeed();
        assert_eq!(world.upstream.rev(&format!("refs/heads/agent/{name}")), mine);
    }
}

#[test]
fn pushes_without_objects_and_with_very_many_bytes_land() {
    let world = World::with_rules("push: {allow: [refs/heads/agent/*], delete: true, tags: true}");
    let work = world.clone_web();
    let main = world.upstream.rev("main");
    work.push("HEAD:refs/heads/agent/known").succeed();
    assert_eq!(world.upstream.rev("agent/known"), main, "a new name for what upstream has");
    work.push(":refs/heads/agent/known").succeed();
    assert!(!world.upstream.refs().contains("agent/known"));

    let mut state = 1_u64;
    let mut noise = String::new();
    while noise.len() < 12 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.push_str(&format!("{state:016x}\n"));
    }
    work.write("README", &format!("hello\n{noise}"));
    let large = work.commit("more than is packed in one go");
    work.git(&["tag", "-a", "-m", "of it", "large"]).succeed();
    work.git(&["push", "-q", "--atomic", "origin", "HEAD:refs/heads/agent/large", "refs/tags/large"])
        .succeed();
    assert_eq!(world.upstream.rev("agent/large"), large);
    assert_eq!(world.upstream.rev("large^{commit}"), large);
    git(&world.upstream.repository, &["fsck", "--full", "--strict"]).succeed();
    git(&world.dir.path().join("git/web.git"), &["fsck", "--full", "--strict"]).succeed();
}

#[test]
fn a_header_that_git_does_not_know_is_judged() {
    let world = World::new();
    let work = world.clone_web();
    let head = work.git(&["cat-file", "commit", "HEAD"]).succeed();
    let (header, message) = head.split_once("\n\n").unwrap();
    let with = |line: &str| work.object("commit", format!("{header}\n{line}\n\n{message}").as_bytes());
    let clean = with("x-note nothing");
    let leaky = with(&format!("x-note first\n {}", github_token()));
    refused_before_upstream(
        &world,
        &work,
        &format!("{leaky}:refs/heads/agent/x"),
        &["github-pat", "(commit header)"],
    );
    work.push(&format!("{clean}:refs/heads/agent/clean")).succeed();
}

#[test]
fn refs_that_upstream_shows_to_readers_only_do_not_count_as_moved() {
    let world = World::with_rules(
        "fetch: {allow: [refs/heads/*, refs/pull/*]}\n    push: {allow: [refs/heads/agent/*]}",
    );
    let tip = world.upstream.rev("main");
    git(&world.upstream.repository, &["update-ref", "refs/pull/1/head", &tip]).succeed();
    let work = world.clone_web();
    let pushes = || world.upstream.commands().matches("git-receive-pack").count();
    let push = |name: &str| {
        let before = pushes();
        work.write(name, "mine\n").commit(name);
        work.push(&format!("HEAD:refs/heads/agent/{name}")).succeed();
        pushes() - before
    };
    assert_eq!(push("shown"), 1, "the control: everything is shown to everybody");
    git(&world.upstream.repository, &["config", "receive.hideRefs", "refs/pull"]).succeed();
    assert_eq!(push("hidden"), 1, "the push was judged again");
    assert!(
        git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed().contains("refs/pull/1/head")
    );
}

#[test]
fn a_ref_that_is_there_but_may_not_be_fetched_is_not_told_as_moved() {
    let world = World::with_rules("push: {allow: [refs/notes/*]}");
    let work = world.clone_web();
    work.git(&["notes", "add", "-m", "one"]).succeed();
    work.push("refs/notes/commits").succeed();
    let landed = world.upstream.rev("refs/notes/commits");
    // Somebody else's, who cannot know of the first.
    work.git(&["update-ref", "-d", "refs/notes/commits"]).succeed();
    work.git(&["notes", "add", "-m", "two"]).succeed();
    let said = work.push("refs/notes/commits").fail();
    assert!(
        said.contains("may not be fetched through this gate") && said.contains("`fetch.allow`"),
        "{said}"
    );
    assert!(said.contains("(it is there upstream, but may not be fetched)"), "{said}");
    assert_eq!(world.upstream.rev("refs/notes/commits"), landed);
}

#[test]
fn a_second_push_to_a_ref_that_may_not_be_fetched_is_told_what_it_lacks() {
    let world = World::with_rules("push: {allow: [refs/notes/*]}");
    let work = world.clone_web();
    work.git(&["notes", "add", "-m", "one"]).succeed();
    work.push("refs/notes/commits").succeed();
    let landed = world.upstream.rev("refs/notes/commits");
    // On top of what upstream has, which nobody is shown here.
    work.git(&["notes", "append", "-m", "two"]).succeed();
    let said = work.push("refs/notes/commits").fail();
    assert!(said.contains("refs/notes/commits may not be fetched through this gate"), "{said}");
    assert!(said.contains("`fetch.allow`") && !said.contains("no longer has"), "{said}");
    assert_eq!(world.upstream.rev("refs/notes/commits"), landed);
}

#[test]
fn a_push_whose_answer_does_not_come_is_not_told_as_refused() {
    let mut world = World::new();
    let work = world.clone_web();
    work.write("f", "clean\n").commit("clean");
    world.upstream.hook("pre-receive", "#!/bin/sh\nkill -9 $PPID\n");
    let said = work.push("HEAD:refs/heads/agent/x").fail();
    assert!(said.contains("upstream's answer did not come; it may have taken it"), "{said}");
    world.upstream.hook("pre-receive", "#!/bin/sh\nexit 1\n");
    let said = work.push("HEAD:refs/heads/agent/x").fail();
    assert!(!said.contains("may have taken it") && said.contains("nothing was changed"), "{said}");
    world.gate.terminate();
    let pushes = world.gate.journal().into_iter().filter(|event| event["type"] == "push");
    let outcomes: Vec<_> = pushes.map(|push| push["outcome"].clone()).collect();
    assert_eq!(outcomes, ["unanswered", "rejected"]);
}

#[test]
fn a_name_that_a_terminal_does_not_show_whole_is_pushed_and_refused_as_it_is() {
    let world = World::new();
    let work = world.clone_web();
    let mine = work.write("f", "clean\n").commit("clean");
    let name = "refs/heads/agent/a\u{200d}b";
    work.push(&format!("HEAD:{name}")).succeed();
    assert_eq!(world.upstream.rev(name), mine);
    world.upstream.hook("pre-receive", "#!/bin/sh\nexit 1\n");
    let said = work.push(&format!("HEAD:{name}c")).fail();
    assert!(said.contains("nothing was changed"), "{said}");
}

#[test]
fn a_key_that_may_read_and_not_push_is_told_so() {
    let world = World::new();
    let work = world.clone_web();
    work.write("f", "clean\n").commit("clean");
    let login = "#!/bin/sh\ncase $SSH_ORIGINAL_COMMAND in git-receive-pack*) echo 'this key is read-only' >&2; exit 1;; esac\n\
                 exec sh -c \"$SSH_ORIGINAL_COMMAND\"\n";
    std::fs::write(world.dir.path().join("upstream/login"), login).unwrap();
    let said = work.push("HEAD:refs/heads/agent/x").fail();
    assert!(said.contains("upstream cannot be pushed to: this key is read-only"), "{said}");
    assert!(!said.contains("cannot refresh"), "{said}");
    git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed();
}
