//! The client's side: the rendered configuration, with git itself.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{World, git};

/// Git with the configuration that a bottle has for the upstream `git@github.com:acme/web.git`.
fn bottled(world: &World, dir: &Path, arguments: &[&str]) -> String {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH";
    let text = format!(
        "repos:\n  - {{name: web, upstream: 'git@github.com:acme/web.git', identity: /k, host_key: '{key}'}}\n"
    );
    let repos = repos::Repos::parse("repos.yaml", &text, repos::Allow::SshUpstream).unwrap();
    let config = world.dir.path().join("gitconfig");
    fs::write(&config, repos::gitconfig(&repos, &format!("git://{}", world.gate.address))).unwrap();
    let mut command = common::client(dir);
    command.env("GIT_CONFIG_GLOBAL", config).args(arguments);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "git {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn every_spelling_of_the_upstream_leads_to_the_gate() {
    let world = World::new();
    let main = world.upstream.rev("main");
    for url in [
        "git@github.com:acme/web.git",
        "git@github.com:acme/web",
        "ssh://git@github.com/acme/web.git",
        "ssh://git@github.com:22/acme/web",
        "https://github.com/acme/web.git",
        "https://github.com/acme/web",
    ] {
        let shown = bottled(&world, world.dir.path(), &["ls-remote", url, "refs/heads/main"]);
        assert!(shown.starts_with(&main), "{url}: {shown}");
    }
}

#[test]
fn a_checkout_that_was_there_before_fetches_and_pushes_unchanged() {
    let world = World::new();
    git(world.dir.path(), &["clone", "-q", &world.upstream.direct_url(), "old"]).succeed();
    let work = world.work("old");
    work.git(&["remote", "set-url", "origin", "git@github.com:acme/web.git"]).succeed();
    let theirs = world.upstream.commit("theirs");
    bottled(&world, &work.path, &["pull", "-q", "--ff-only"]);
    assert_eq!(work.git(&["rev-parse", "HEAD"]).succeed().trim(), theirs);
    let mine = work.write("mine", "x\n").commit("mine");
    bottled(&world, &work.path, &["push", "-q", "origin", "HEAD:refs/heads/agent/mine"]);
    assert_eq!(world.upstream.rev("agent/mine"), mine);
}

#[test]
fn a_rule_of_the_users_own_sends_no_push_past_the_gate() {
    let world = World::new();
    git(world.dir.path(), &["clone", "-q", &world.upstream.direct_url(), "old"]).succeed();
    let work = world.work("old");
    work.git(&["remote", "set-url", "origin", "https://github.com/acme/web.git"]).succeed();
    work.git(&["config", "url.file:///elsewhere/.pushInsteadOf", "https://github.com/"]).succeed();
    let alone = work.git(&["remote", "get-url", "--push", "origin"]).succeed();
    assert_eq!(alone, "file:///elsewhere/acme/web.git\n", "the control: by itself the rule counts");
    let mine = work.write("mine", "x\n").commit("mine");
    bottled(&world, &work.path, &["push", "-q", "origin", "HEAD:refs/heads/agent/mine"]);
    assert_eq!(world.upstream.rev("agent/mine"), mine);
}

#[test]
fn submodules_come_through_the_gate_by_absolute_and_by_relative_address() {
    let world = World::new();
    let seed = world.dir.path().join("upstream/seed");
    let inner = world.upstream.rev("main");
    let modules = ["https://github.com/acme/web.git", "../web.git"]
        .iter()
        .enumerate()
        .map(|(n, url)| format!("[submodule \"m{n}\"]\n\tpath = m{n}\n\turl = {url}\n"));
    fs::write(seed.join(".gitmodules"), modules.collect::<String>()).unwrap();
    git(&seed, &["add", ".gitmodules"]).succeed();
    for name in ["m0", "m1"] {
        git(&seed, &["update-index", "--add", "--cacheinfo", &format!("160000,{inner},{name}")]).succeed();
    }
    git(&seed, &["commit", "-qm", "submodules"]).succeed();
    git(&seed, &["push", "-q", "origin", "main"]).succeed();
    bottled(
        &world,
        world.dir.path(),
        &["clone", "-q", "--recurse-submodules", "git@github.com:acme/web.git", "whole"],
    );
    for name in ["m0", "m1"] {
        assert!(world.dir.path().join("whole").join(name).join("README").exists(), "{name}");
    }
}

#[test]
fn an_address_that_only_begins_like_a_repository_is_told_apart() {
    let world = World::new();
    let url = format!("{}site.git", world.gate.url("web"));
    let said = git(world.dir.path(), &["ls-remote", &url]).fail();
    assert!(said.contains("begins like that of `web`") && said.contains("repos.yaml"), "{said}");
}

#[test]
fn a_client_of_git_lfs_is_told_that_its_files_do_not_go_this_way() {
    let world = World::with_rules("push: {allow: [refs/heads/agent/*], lfs: true}");
    bottled(&world, world.dir.path(), &["clone", "-q", "git@github.com:acme/web.git", "work"]);
    let work = world.work("work");
    let version = common::client(&work.path).args(["lfs", "version"]).output().unwrap();
    assert!(version.status.success(), "this test needs git-lfs (Debian: git-lfs)");
    bottled(&world, &work.path, &["lfs", "install", "--local"]);
    bottled(&world, &work.path, &["lfs", "track", "*.bin"]);
    work.write("large.bin", &"content\n".repeat(100));
    bottled(&world, &work.path, &["add", "-A"]);
    bottled(&world, &work.path, &["commit", "-qm", "a large file"]);
    let before = world.upstream.refs();
    let mut push = common::client(&work.path);
    push.env("GIT_CONFIG_GLOBAL", world.dir.path().join("gitconfig"));
    let output = push.args(["push", "origin", "HEAD:refs/heads/agent/x"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("git-lfs is not served here"), "{said}");
    assert_eq!(world.upstream.refs(), before);
}
