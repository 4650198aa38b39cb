//! An upstream behind https: git's own http server behind TLS, with a certificate of its own and a token.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use common::{Gate, Push, Supervise, Work, git, github_token};
use proposal::peer::Verdict;
use tempfile::TempDir;

const TOKEN: &str = "tok-3n-of-the-operator";

const SERVER: &str = include_str!("https_server.py");

struct Host {
    dir: TempDir,
    port: u16,
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Host {
    fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let root = dir.path().join("root");
        git(dir.path(), &["init", "-q", "-b", "main", "seed"]).succeed();
        let seed = Work { path: dir.path().join("seed") };
        seed.write("README", "hello\n").commit("one commit");
        fs::create_dir(&root).unwrap();
        git(dir.path(), &["clone", "-q", "--bare", "seed", "root/web.git"]).succeed();
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ])
            .args(["-subj", "/CN=git.example.test", "-addext", "subjectAltName=DNS:git.example.test"])
            .args(["-keyout", "key.pem", "-out", "ca.pem"])
            .current_dir(dir.path())
            .stderr(Stdio::null())
            .status();
        assert!(made.expect("these tests need openssl (Debian: openssl)").success());
        let both =
            ["key.pem", "ca.pem"].map(|name| fs::read_to_string(dir.path().join(name)).unwrap()).concat();
        fs::write(dir.path().join("server.pem"), both).unwrap();
        let mut command = Command::new("python3");
        command.args(["-c", SERVER]).arg(&root).arg(dir.path().join("server.pem")).arg(TOKEN);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("these tests need python3");
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = said.next().unwrap().parse().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || said.for_each(|line| drop(sender.send(line))));
        fs::create_dir(dir.path().join("secrets")).unwrap();
        fs::write(dir.path().join("secrets/GIT_TOKEN"), format!("{TOKEN}\n")).unwrap();
        Self { dir, port, child, lines }
    }

    fn gate(&self, path: &str, more: &[&str]) -> Gate {
        self.gate_with("push: {allow: [refs/heads/agent/*]}", path, more)
    }

    fn gate_with(&self, rules: &str, path: &str, more: &[&str]) -> Gate {
        let secrets = self.path("secrets");
        let secrets = ["--secrets-dir", secrets.to_str().unwrap()];
        Gate::start_with(self.dir.path(), &self.entry(rules, path), &[&secrets, more].concat())
    }

    /// Its entry of repos.yaml.
    fn entry(&self, rules: &str, path: &str) -> String {
        format!(
            "repos:\n  - name: web\n    upstream: https://git.example.test:{}/{path}\n    token_file: GIT_TOKEN\n    \
             extra_hosts: {{git.example.test: 127.0.0.1}}\n    {rules}\n",
            self.port
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn reads_and_pushes_go_through_with_the_token_and_the_agent_never_sees_it() {
    let host = Host::start();
    let ca = host.path("ca.pem");
    let gate = host.gate("web.git", &["--upstream-ca", ca.to_str().unwrap()]);
    git(host.dir.path(), &["clone", "-q", &gate.url("web"), "work"]).succeed();
    let work = Work { path: host.path("work") };
    let mine = work.write("mine", "x\n").commit("mine");
    work.push("HEAD:refs/heads/agent/x").succeed();
    let there = git(&host.path("root/web.git"), &["rev-parse", "agent/x"]).succeed();
    assert_eq!(there.trim(), mine);
    assert!(host.lines.try_iter().any(|line| line.contains("git-receive-pack True")));
    // Not in the mirror, its configuration, or what the gate keeps.
    let found =
        Command::new("grep").args(["-r", "-l", TOKEN]).arg(host.path("git")).arg(host.path("state")).output();
    assert_eq!(String::from_utf8(found.unwrap().stdout).unwrap(), "");
}

#[test]
fn every_kind_of_push_lands_behind_https_as_asked_or_not_at_all() {
    let host = Host::start();
    let ca = host.path("ca.pem");
    let rules = "push: {allow: [refs/heads/agent/*, refs/notes/*], tags: true, force: true, delete: true}";
    let gate = host.gate_with(rules, "web.git", &["--upstream-ca", ca.to_str().unwrap()]);
    git(host.dir.path(), &["clone", "-q", &gate.url("web"), "work"]).succeed();
    let work = Work { path: host.path("work") };
    let shown = |repository: &str| {
        git(&host.path(repository), &["for-each-ref", "--format=%(objectname) %(refname)"]).succeed()
    };
    let landed = |arguments: &[&str]| {
        work.git(&[&["push", "-q", "origin"], arguments].concat()).succeed();
        assert_eq!(shown("git/web.git"), shown("root/web.git"), "{arguments:?}");
    };
    work.write("mine", "x\n").commit("mine");
    work.git(&["tag", "-a", "-m", "one", "v1"]).succeed();
    landed(&["--atomic", "HEAD:refs/heads/agent/a", "HEAD^:refs/heads/agent/b", "v1"]);
    work.git(&["commit", "-q", "--amend", "-m", "another"]).succeed();
    landed(&["--force", "HEAD:refs/heads/agent/a"]);
    landed(&["--delete", "agent/b", "v1"]);
    assert_eq!(shown("root/web.git").lines().count(), 2, "{}", shown("root/web.git"));

    let hook = host.path("root/web.git/hooks/pre-receive");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, "#!/bin/sh\necho 'closed for the day' >&2\nexit 1\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let before = shown("root/web.git");
    let said = work.git(&["push", "origin", "HEAD:refs/heads/agent/c", ":refs/heads/agent/a"]).fail();
    assert!(said.contains("remote: closed for the day"), "{said}");
    assert!(said.contains("[remote rejected] HEAD -> agent/c (pre-receive hook declined)"), "{said}");
    assert_eq!((shown("git/web.git"), shown("root/web.git")), (before.clone(), before));

    // What is there and may not be fetched.
    fs::remove_file(&hook).unwrap();
    work.git(&["notes", "add", "-m", "one"]).succeed();
    work.push("refs/notes/commits").succeed();
    work.git(&["update-ref", "-d", "refs/notes/commits"]).succeed();
    work.git(&["notes", "add", "-m", "two"]).succeed();
    let said = work.push("refs/notes/commits").fail();
    assert!(said.contains("(stale info: upstream has something else there; fetch first)"), "{said}");
}

#[test]
fn a_wrong_token_a_strange_certificate_and_a_redirect_are_refused_in_words() {
    let host = Host::start();
    let ca = host.path("ca.pem");
    let trusted = ["--upstream-ca", ca.to_str().unwrap()];
    let said = |path: &str, more: &[&str]| {
        let gate = host.gate(path, more);
        git(host.dir.path(), &["ls-remote", &gate.url("web")]).fail()
    };
    let strange = said("web.git", &[]);
    assert!(strange.contains("its certificate is not one that the gate trusts"), "{strange}");
    let elsewhere = said("elsewhere/web.git", &trusted);
    assert!(elsewhere.contains("cannot refresh"), "{elsewhere}");
    assert_eq!(
        host.lines.try_iter().filter(|line| line.contains(" /web.git")).count(),
        0,
        "the redirect was not followed"
    );
    fs::write(host.path("secrets/GIT_TOKEN"), "another\n").unwrap();
    let wrong = said("web.git", &trusted);
    assert!(wrong.contains("it does not accept the gate's token") && !wrong.contains("another"), "{wrong}");
    fs::remove_file(host.path("secrets/GIT_TOKEN")).unwrap();
    let missing = said("web.git", &trusted);
    assert!(missing.contains("the secret `GIT_TOKEN` with its token cannot be read"), "{missing}");
}

#[test]
fn a_held_push_goes_to_an_upstream_behind_https_as_it_was_shown_and_only_while_that_rests_on_it() {
    let host = Host::start();
    let (ca, secrets) = (host.path("ca.pem"), host.path("secrets"));
    let options = ["--upstream-ca", ca.to_str().unwrap(), "--secrets-dir", secrets.to_str().unwrap()];
    let entry = host.entry("push: {allow: [refs/heads/agent/*], on_secret: supervise}", "web.git");
    let (supervise, peer) = Supervise::pair();
    let gate = Gate::start_with_peer(host.dir.path(), &entry, peer, &options);
    git(host.dir.path(), &["clone", "-q", &gate.url("web"), "work"]).succeed();
    let work = Work { path: host.path("work") };
    let shown = |repository: &str| {
        git(&host.path(repository), &["for-each-ref", "--format=%(objectname) %(refname)"]).succeed()
    };
    let before = shown("root/web.git");

    // What upstream takes back while the push waits is not brought again.
    let upstream =
        |arguments: &[&str]| git(&host.path("root/web.git"), arguments).succeed().trim().to_owned();
    let old = upstream(&["rev-parse", "main"]);
    let other = upstream(&["commit-tree", "-m", "another", "main^{tree}"]);
    work.write("config", &format!("token = {}\n", github_token())).commit("leak");
    let mut push = Push::begin(&work, "HEAD:refs/heads/agent/x");
    let hold = supervise.held();
    push.until("waits for the operator");
    assert_eq!(shown("root/web.git"), before, "nothing goes on before it may");
    upstream(&["update-ref", "refs/heads/main", &other]);
    supervise.decide(&hold, Verdict::Approve, "");
    common::release(&gate, &entry, &hold.digest);
    let (passed, said) = push.end();
    assert!(!passed && said.contains("upstream removed something meanwhile; fetch, rebase"), "{said}");
    assert!(!shown("root/web.git").contains("agent/x"));

    // Upstream as it was, another push that waits lands.
    upstream(&["update-ref", "refs/heads/main", &old]);
    let mine = work.commit("nothing more");
    let push = Push::begin(&work, "HEAD:refs/heads/agent/x");
    let again = supervise.held();
    assert_ne!(again.digest, hold.digest);
    supervise.decide(&again, Verdict::Approve, "");
    common::release(&gate, &entry, &again.digest);
    let (passed, said) = push.end();
    assert!(passed, "{said}");
    assert_eq!(shown("root/web.git"), format!("{mine} refs/heads/agent/x\n{before}"));
    assert_eq!(shown("git/web.git"), shown("root/web.git"));
}
