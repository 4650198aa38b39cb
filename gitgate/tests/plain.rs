//! `git-gate --plain` in the place of git daemon: what git's own tests of its protocol do, with git's own client.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use common::{Ran, Work, client, git, pkt};
use tempfile::TempDir;

struct Plain {
    dir: TempDir,
    port: u16,
    child: Child,
    log: Receiver<String>,
}

impl Plain {
    /// One repository `repo.git` of three commits under the base path.
    fn start(more: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("base")).unwrap();
        git(dir.path(), &["init", "-q", "-b", "main", "seed"]).succeed();
        let seed = Work { path: dir.path().join("seed") };
        for number in 0..3 {
            seed.write(&format!("file{number}"), &format!("{number}\n")).commit(&format!("commit {number}"));
        }
        seed.git(&["tag", "-a", "-m", "first", "v1"]).succeed();
        git(dir.path(), &["clone", "-q", "--bare", "seed", "base/repo.git"]).succeed();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(env!("CARGO_BIN_EXE_git-gate"));
        command.args([
            "--plain",
            "--listen=127.0.0.1",
            &format!("--port={port}"),
            "--reuseaddr",
            "--verbose",
        ]);
        command.arg(format!("--pid-file={}", dir.path().join("pid").display()));
        command.arg(format!("--base-path={}", dir.path().join("base").display()));
        command.args(more).arg(dir.path().join("base"));
        command.env("HOME", "/nonexistent").env("GIT_CONFIG_NOSYSTEM", "1");
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let first = lines.next().unwrap();
        assert_eq!(first, format!("[{}] Ready to rumble", child.id()));
        let (sender, log) = channel();
        std::thread::spawn(move || lines.for_each(|line| drop(sender.send(line))));
        Self { dir, port, child, log }
    }

    fn url(&self, name: &str) -> String {
        format!("git://127.0.0.1:{}/{name}", self.port)
    }

    fn repository(&self) -> PathBuf {
        self.dir.path().join("base/repo.git")
    }

    fn git(&self, arguments: &[&str]) -> Ran {
        git(self.dir.path(), arguments)
    }

    /// The first line of the log with this in it.
    fn heard(&self, part: &str) -> String {
        self.log.iter().find(|line| line.contains(part)).unwrap()
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_protocol_version_clones_shallow_and_partial() {
    let plain = Plain::start(&["--export-all"]);
    for key in ["uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"] {
        git(&plain.repository(), &["config", key, "true"]).succeed();
    }
    for version in ["0", "1", "2"] {
        let protocol = format!("protocol.version={version}");
        let clone = |name: &str, more: &[&str]| {
            let name = format!("{name}{version}");
            let url = plain.url("repo.git");
            plain.git(&[&["-c", &protocol, "clone", "-q"], more, &[&url, &name]].concat()).succeed();
            Work { path: plain.dir.path().join(name) }
        };
        let whole = clone("whole", &[]);
        assert_eq!(whole.git(&["rev-list", "--count", "HEAD"]).succeed().trim(), "3");
        assert_eq!(whole.git(&["tag"]).succeed().trim(), "v1");
        let shallow = clone("shallow", &["--depth=1"]);
        assert_eq!(shallow.git(&["rev-list", "--count", "HEAD"]).succeed().trim(), "1");
        shallow.git(&["-c", &protocol, "fetch", "-q", "--unshallow"]).succeed();
        assert_eq!(shallow.git(&["rev-list", "--count", "HEAD"]).succeed().trim(), "3");
        let partial = clone("partial", &["--filter=blob:none", "--no-checkout"]);
        let missing = partial.git(&["rev-list", "--objects", "--missing=print", "HEAD"]).succeed();
        assert!(missing.contains('?'), "{missing}");
        partial.git(&["-c", &protocol, "checkout", "-q", "main"]).succeed();
        partial.git(&["fsck"]).succeed();
    }
}

#[test]
fn a_bundle_that_the_server_names_is_taken() {
    let plain = Plain::start(&["--export-all"]);
    let bundle = plain.dir.path().join("base.bundle");
    git(&plain.repository(), &["bundle", "create", "-q", bundle.to_str().unwrap(), "main"]).succeed();
    let repository = plain.repository();
    let set = |key: &str, value: &str| git(&repository, &["config", key, value]).succeed();
    set("uploadpack.advertiseBundleURIs", "true");
    set("bundle.version", "1");
    set("bundle.mode", "all");
    set("bundle.one.uri", &format!("file://{}", bundle.display()));
    let trace = plain.dir.path().join("trace");
    let mut command = client(plain.dir.path());
    command.env("GIT_TRACE_PACKET", &trace);
    command.args(["-c", "transfer.bundleURI=true", "clone", "-q", &plain.url("repo.git"), "work"]);
    assert!(command.status().unwrap().success());
    let trace = fs::read_to_string(trace).unwrap();
    assert!(trace.contains("bundle.one.uri"), "{trace}");
    let work = Work { path: plain.dir.path().join("work") };
    assert!(work.git(&["for-each-ref", "refs/bundles"]).succeed().contains("refs/bundles/main"));
}

#[test]
fn pushes_need_the_service_and_are_atomic_where_asked() {
    let closed = Plain::start(&["--export-all", "--informative-errors"]);
    let said = closed.git(&["push", &closed.url("repo.git"), "HEAD:x"]).said();
    assert!(
        said.contains("service not enabled: /repo.git") || said.contains("not a git repository"),
        "{said}"
    );
    let seed = Work { path: closed.dir.path().join("seed") };
    let said = seed.git(&["push", &closed.url("repo.git"), "HEAD:refs/heads/x"]).fail();
    assert!(said.contains("service not enabled: /repo.git"), "{said}");

    let plain = Plain::start(&["--export-all", "--enable=receive-pack"]);
    let seed = Work { path: plain.dir.path().join("seed") };
    let url = plain.url("repo.git");
    let tip = seed.write("more", "more\n").commit("more");
    seed.git(&["push", "-q", &url, "HEAD:main", "HEAD:refs/heads/topic"]).succeed();
    let rev = |name: &str| git(&plain.repository(), &["rev-parse", name]).succeed().trim().to_owned();
    assert_eq!((rev("main"), rev("topic")), (tip.clone(), tip.clone()));
    let next = seed.write("next", "next\n").commit("next");
    let old = seed.git(&["rev-parse", "HEAD~2"]).succeed().trim().to_owned();
    seed.git(&["push", "--atomic", &url, "HEAD:refs/heads/topic", &format!("{old}:main")]).fail();
    assert_eq!((rev("main"), rev("topic")), (tip.clone(), tip));
    seed.git(&["push", "-q", "--atomic", "--force", &url, "HEAD:refs/heads/topic", &format!("{old}:main")])
        .succeed();
    assert_eq!((rev("main"), rev("topic")), (old, next));
    seed.git(&["push", "-q", &url, ":refs/heads/topic"]).succeed();
    seed.git(&["push", "-q", "--push-option=x", &url, "HEAD:refs/heads/o"]).fail();
}

#[test]
fn objects_of_an_alternate_are_served() {
    let plain = Plain::start(&["--export-all"]);
    git(&plain.dir.path().join("base"), &["clone", "-q", "--bare", "--shared", "repo.git", "fork.git"])
        .succeed();
    assert!(plain.dir.path().join("base/fork.git/objects/info/alternates").exists());
    plain.git(&["clone", "-q", &plain.url("fork.git"), "work"]).succeed();
    git(&plain.dir.path().join("work"), &["fsck"]).succeed();
}

#[test]
fn what_is_not_exported_is_refused_with_as_many_words_as_wanted() {
    let terse = Plain::start(&[]);
    let said = terse.git(&["ls-remote", &terse.url("repo.git")]).fail();
    assert!(said.contains("remote error: access denied or repository not exported: /repo.git"), "{said}");
    fs::write(terse.repository().join("git-daemon-export-ok"), "").unwrap();
    terse.git(&["ls-remote", &terse.url("repo.git")]).succeed();

    let frank = Plain::start(&["--informative-errors"]);
    let said = frank.git(&["ls-remote", &frank.url("repo.git")]).fail();
    assert!(said.contains("remote error: repository not exported: /repo.git"), "{said}");
    let said = frank.git(&["ls-remote", &frank.url("nowhere.git")]).fail();
    assert!(said.contains("remote error: no such repository: /nowhere.git"), "{said}");
    let line = pkt(b"git-upload-pack /../seed/.git\0host=h\0");
    let mut stream = TcpStream::connect(("127.0.0.1", frank.port)).unwrap();
    stream.write_all(&line).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("ERR no such repository: /../seed/.git"), "{answer}");
}

#[test]
fn attributes_of_the_request_are_logged_and_fill_the_pattern() {
    let dir = TempDir::new().unwrap();
    let pattern = format!("--interpolated-path={}/%H%D", dir.path().display());
    let plain = Plain::start(&["--export-all", &pattern, dir.path().to_str().unwrap()]);
    fs::create_dir(dir.path().join("virtual.example")).unwrap();
    git(
        dir.path(),
        &["clone", "-q", "--bare", plain.repository().to_str().unwrap(), "virtual.example/interp.git"],
    )
    .succeed();
    let mut command = client(plain.dir.path());
    command.env("GIT_OVERRIDE_VIRTUAL_HOST", "virtual.example");
    command.args(["-c", "protocol.version=1", "ls-remote", &plain.url("interp.git")]);
    assert!(command.output().unwrap().status.success());
    assert!(plain.heard("Extended attribute").ends_with("Extended attribute \"host\": virtual.example"));
    assert!(plain.heard("Extended attribute").ends_with("Extended attribute \"protocol\": version=1"));
    assert!(plain.heard("Request").ends_with("Request upload-pack for '/interp.git'"));
}

#[test]
fn an_archive_is_served_where_it_is_enabled() {
    let plain = Plain::start(&["--export-all", "--enable=upload-archive"]);
    plain.git(&["archive", &format!("--remote={}", plain.url("repo.git")), "-o", "a.tar", "HEAD"]).succeed();
    assert!(fs::metadata(plain.dir.path().join("a.tar")).unwrap().len() > 0);
    let off = Plain::start(&["--export-all", "--disable=upload-pack", "--forbid-override=upload-pack"]);
    off.git(&["ls-remote", &off.url("repo.git")]).fail();
}

#[test]
fn a_newcomer_over_the_limit_is_refused_and_others_go_on() {
    let plain = Plain::start(&["--export-all", "--max-connections=1"]);
    let mut first = TcpStream::connect(("127.0.0.1", plain.port)).unwrap();
    plain.heard("Connection from");
    let said = plain.git(&["ls-remote", &plain.url("repo.git")]).fail();
    assert!(said.contains("too many connections"), "{said}");
    first.write_all(&pkt(b"git-upload-pack /repo.git\0host=h\0")).unwrap();
    let mut answer = [0; 4];
    first.read_exact(&mut answer).unwrap();
    assert!(answer.iter().all(u8::is_ascii_hexdigit));
}

#[test]
fn it_dies_of_the_signal_to_stop_and_its_number_stands_in_a_file() {
    let mut plain = Plain::start(&["--export-all"]);
    let pid: i32 = fs::read_to_string(plain.dir.path().join("pid")).unwrap().trim().parse().unwrap();
    assert_eq!(pid, i32::try_from(plain.child.id()).unwrap());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(plain.child.wait().unwrap().signal(), Some(15));
}
