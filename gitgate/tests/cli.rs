//! The program as its callers see it: flags, exit codes, signals, sockets, the scanner.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::{Work, World, git, github_token, private_key};
use tempfile::TempDir;

fn gate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_git-gate")).env_clear().args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn check(dir: &Path, yaml: &str) -> Output {
    fs::write(dir.join("repos.yaml"), yaml).unwrap();
    gate(&["--check", "--config", dir.to_str().unwrap()])
}

#[test]
fn help_and_version_are_a_success_and_a_wrong_flag_is_64() {
    let help = gate(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(printed(&help).contains("Examples:"));
    assert_eq!(gate(&["--version"]).status.code(), Some(0));
    assert_eq!(gate(&["--nonsense"]).status.code(), Some(64));
    assert_eq!(gate(&["scan"]).status.code(), Some(64));
}

#[test]
fn check_prints_a_summary_or_every_fault_with_its_place() {
    let world = World::new();
    let good = gate(&["--check", "--config", world.gate.config_dir.to_str().unwrap()]);
    assert_eq!(good.status.code(), Some(0), "{}", said(&good));
    assert!(
        printed(&good).starts_with("repos.yaml: 1 repositories\n  web.git  read, push  ssh://"),
        "{}",
        printed(&good)
    );

    let dir = TempDir::new().unwrap();
    let bad = check(dir.path(), "repos:\n  - name: a/b\n    upstream: http://h/p\n");
    assert_eq!(bad.status.code(), Some(64));
    assert!(said(&bad).contains("repos.yaml:2:11: `a/b`"), "{}", said(&bad));
    assert!(said(&bad).contains("repos.yaml:3:15: `http://h/p`"), "{}", said(&bad));
}

#[test]
fn a_missing_file_says_where_it_was_looked_for() {
    let dir = TempDir::new().unwrap();
    let output = gate(&["--check", "--config", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64));
    assert!(
        said(&output).contains("error: cannot read") && said(&output).contains("hint: --config"),
        "{}",
        said(&output)
    );
}

#[test]
fn an_identity_that_cannot_be_used_is_an_error_at_the_start() {
    let world = World::new();
    let yaml = world.upstream.entry("web", "fetch: {}");
    let identity = world.dir.path().join("upstream/identity");
    let _ = fs::remove_file(identity.with_extension("pub"));
    let dir = TempDir::new().unwrap();
    fs::set_permissions(&identity, fs::Permissions::from_mode(0o644)).unwrap();
    let open = check(dir.path(), &yaml);
    assert_eq!(open.status.code(), Some(64));
    assert!(
        said(&open).contains("repository `web`: the identity") && said(&open).contains("chmod 600"),
        "{}",
        said(&open)
    );
    fs::remove_file(&identity).unwrap();
    let mut make = Command::new("ssh-keygen");
    make.args(["-q", "-t", "ed25519", "-N", "secret", "-f"]).arg(&identity);
    assert!(make.stdin(Stdio::piped()).status().unwrap().success());
    let locked = check(dir.path(), &yaml);
    assert_eq!(locked.status.code(), Some(64));
    assert!(said(&locked).contains("has a passphrase"), "{}", said(&locked));
    fs::remove_file(&identity).unwrap();
    let missing = check(dir.path(), &yaml);
    assert_eq!(missing.status.code(), Some(64));
    assert!(said(&missing).contains("cannot read the identity"), "{}", said(&missing));
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("repos.yaml"), "repos: []\n").unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let output = gate(&[
        "--config",
        dir.path().to_str().unwrap(),
        "--repo-dir",
        &path("git"),
        "--state-dir",
        &path("state"),
        "--listen",
        &address,
    ]);
    assert_eq!(output.status.code(), Some(70));
    assert!(said(&output).contains(&format!("cannot listen on {address}")), "{}", said(&output));
}

#[test]
fn a_hangup_reloads_the_repositories_and_a_bad_file_leaves_the_old() {
    let dir = TempDir::new().unwrap();
    let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let hear = || {
        let mut buffer = [0; 4096];
        let n = notify.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..n]).into_owned()
    };
    let upstream = common::Upstream::start(dir.path());
    fs::write(dir.path().join("repos.yaml"), "repos: []\n").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=git-gate exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_git-gate"), "--config"]).arg(dir.path());
    command.arg("--repo-dir").arg(dir.path().join("git")).arg("--state-dir").arg(dir.path().join("state"));
    command.env("NOTIFY_SOCKET", dir.path().join("notify")).stdin(Stdio::from(OwnedFd::from(listener)));
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    assert!(hear().starts_with("READY=1\nX_GENERATION=1\nX_DIGEST=sha256:"));

    let url = format!("git://{address}/web.git");
    assert!(git(dir.path(), &["ls-remote", &url]).fail().contains("no repository"));
    fs::write(dir.path().join("repos.yaml"), upstream.entry("web", "fetch: {}")).unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    let hangup = || nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    hangup();
    assert!(hear().starts_with("RELOADING=1\nMONOTONIC_USEC="));
    let second = hear();
    assert!(second.starts_with("READY=1\nX_GENERATION=2\nX_DIGEST=sha256:"), "{second}");
    git(dir.path(), &["ls-remote", &url]).succeed();

    fs::write(dir.path().join("repos.yaml"), "repos:\n  - nmae: x\n").unwrap();
    hangup();
    assert!(hear().starts_with("RELOADING=1\n"));
    let answer = hear();
    assert!(
        answer.starts_with(&format!("{second}X_RELOAD_ERROR=repos.yaml:2:5: unknown field `nmae`")),
        "{answer}"
    );
    git(dir.path(), &["ls-remote", &url]).succeed();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn scan_reads_files_and_prints_one_json_object_for_each_finding() {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("sub/.git")).unwrap();
    fs::write(dir.path().join("clean"), "nothing\n").unwrap();
    fs::write(dir.path().join("sub/token"), format!("x\nt = {}\n", github_token())).unwrap();
    fs::write(dir.path().join("sub/.git/ignored"), private_key()).unwrap();
    let path = dir.path().to_str().unwrap();
    let output = gate(&["scan", "--json", path]);
    assert_eq!(output.status.code(), Some(1));
    let expected =
        "{\"file\":\"sub/token\",\"line\":2,\"line_end\":2,\"column\":5,\"rule\":\"github-pat\"}\n";
    assert_eq!(printed(&output), expected);
    assert_eq!(printed(&gate(&["scan", path])), "sub/token:2:5: github-pat\n");
    let clean = gate(&["scan", &format!("{path}/clean")]);
    assert_eq!((clean.status.code(), printed(&clean)), (Some(0), String::new()));
}

#[test]
fn scan_reads_the_objects_of_a_range() {
    let dir = TempDir::new().unwrap();
    git(dir.path(), &["init", "-q", "-b", "main", "repo"]).succeed();
    let work = Work { path: dir.path().join("repo") };
    work.write("key", &private_key()).commit("leaky");
    let path = work.path.to_str().unwrap();
    fs::remove_file(work.path.join("key")).unwrap();
    let base = work.commit("remove");
    work.write("clean", "c\n").commit("clean");
    assert_eq!(gate(&["scan", path]).status.code(), Some(0));
    assert_eq!(gate(&["scan", path, &format!("{base}..HEAD")]).status.code(), Some(0));
    let output = gate(&["scan", "--json", path, "HEAD"]);
    assert_eq!(output.status.code(), Some(1));
    let line: serde_json::Value = serde_json::from_str(printed(&output).trim()).unwrap();
    assert_eq!(
        (&line["file"], &line["rule"], &line["line"]),
        (&"key".into(), &"private-key".into(), &1.into())
    );
    assert!(line["commit"].is_string() && line["object"].is_string());
    git(dir.path(), &["clone", "-q", "--bare", "repo", "bare.git"]).succeed();
    assert_eq!(gate(&["scan", dir.path().join("bare.git").to_str().unwrap()]).status.code(), Some(1));
}

#[test]
fn scan_takes_rules_of_ones_own_in_addition() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let text = file("text", &format!("id = zzkey-12345678\nt = {}\n", github_token()));
    let rules =
        file("rules.toml", "[[rules]]\nid = \"zz\"\nregex = \"zzkey-[0-9]{8}\"\nkeywords = [\"zzkey\"]\n");
    assert!(!printed(&gate(&["scan", &text])).contains("zz"));
    let both = printed(&gate(&["scan", "--rules", &rules, &text]));
    assert!(both.contains(": zz\n") && both.contains(": github-pat\n"), "{both}");
}

#[test]
fn what_scan_cannot_do_is_a_usage_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_str().unwrap();
    let rules = gate(&["scan", "--rules", "rules.toml", path]);
    assert_eq!(rules.status.code(), Some(64));
    assert!(said(&rules).contains("cannot read rules.toml"), "{}", said(&rules));
    assert_eq!(gate(&["scan", &format!("{path}/absent")]).status.code(), Some(64));
    assert_eq!(gate(&["scan", path, "A..B"]).status.code(), Some(64));
}

#[test]
fn scan_in_a_hook_sees_what_the_push_brings() {
    let dir = TempDir::new().unwrap();
    git(dir.path(), &["init", "-q", "--bare", "-b", "main", "plain.git"]).succeed();
    let hook = dir.path().join("plain.git/hooks/pre-receive");
    let script = format!(
        "#!/bin/sh\nwhile read old new ref; do {} scan . $old..$new || exit 1; done\n",
        env!("CARGO_BIN_EXE_git-gate")
    );
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    git(dir.path(), &["clone", "-q", "plain.git", "work"]).succeed();
    let work = Work { path: dir.path().join("work") };
    work.write("a", "a\n").commit("clean");
    work.push("HEAD:refs/heads/main").succeed();
    work.write("token", &github_token()).commit("leak");
    for name in ["main", "new"] {
        let said = work.push(&format!("HEAD:refs/heads/{name}")).fail();
        assert!(said.contains("token:1:1: github-pat"), "{said}");
    }
    work.git(&["reset", "-q", "--hard", "HEAD^"]).succeed();
    work.write("b", "b\n").commit("clean again");
    work.push("HEAD:refs/heads/other").succeed();
}
