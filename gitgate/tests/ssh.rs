//! Upstreams behind ssh: which keys and algorithms do, and what of this machine has no say.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::{Gate, Upstream, Work, World, eventually, git};
use tempfile::TempDir;

const HOST_KEYS: [(&str, &[&str]); 4] = [
    ("rsa_host", &["rsa", "-b", "2048"]),
    ("p256_host", &["ecdsa", "-b", "256"]),
    ("p384_host", &["ecdsa", "-b", "384"]),
    ("p521_host", &["ecdsa", "-b", "521"]),
];

#[test]
fn a_host_may_be_pinned_to_a_key_of_any_kind_and_shows_no_other() {
    for (name, kind) in HOST_KEYS {
        let dir = TempDir::new().unwrap();
        let mut upstream = Upstream::start(dir.path());
        upstream.make_key(name, kind);
        let entry = upstream.entry_with_host_key("web", "fetch: {}", name);
        let gate = Gate::start(dir.path(), &entry);
        let said = git(dir.path(), &["ls-remote", &gate.url("web")]).fail();
        assert!(said.contains("no host key of the pinned type"), "{name}: {said}");
        upstream.stop();
        upstream.listen_with_key(name);
        let shown = git(dir.path(), &["ls-remote", &gate.url("web")]).succeed();
        assert!(shown.contains("refs/heads/main"), "{name}: {shown}");
    }
}

#[test]
fn a_signature_with_sha_1_proves_neither_a_host_nor_us() {
    let dir = TempDir::new().unwrap();
    let mut upstream = Upstream::start(dir.path());
    upstream.make_key("rsa_host", &["rsa", "-b", "2048"]);
    let gate = Gate::start(dir.path(), &upstream.entry_with_host_key("web", "fetch: {}", "rsa_host"));
    let list = || git(dir.path(), &["ls-remote", &gate.url("web")]);
    upstream.stop();
    upstream.listen_with("rsa_host", "HostKeyAlgorithms ssh-rsa");
    let said = list().fail();
    assert!(said.contains("no host key of the pinned type") && said.contains("ssh-rsa"), "{said}");
    upstream.stop();
    upstream.listen_with("rsa_host", "HostKeyAlgorithms rsa-sha2-256");
    list().succeed();

    let home = dir.path().join("upstream");
    fs::remove_file(home.join("identity")).unwrap();
    upstream.make_key("identity", &["rsa", "-b", "2048"]);
    fs::copy(home.join("identity.pub"), home.join("authorized_keys")).unwrap();
    upstream.stop();
    upstream.listen_with("rsa_host", "PubkeyAcceptedAlgorithms ssh-rsa");
    let said = list().fail();
    assert!(said.contains("does not accept the gate's identity"), "{said}");
    upstream.stop();
    upstream.listen_with("rsa_host", "PubkeyAcceptedAlgorithms rsa-sha2-256");
    list().succeed();
}

#[test]
fn a_host_may_be_as_narrow_as_it_likes_within_what_sshd_offers_by_itself() {
    let dir = TempDir::new().unwrap();
    let mut upstream = Upstream::start(dir.path());
    let gate = Gate::start(dir.path(), &upstream.entry("web", "fetch: {}"));
    for narrow in [
        "KexAlgorithms curve25519-sha256",
        "KexAlgorithms ecdh-sha2-nistp256",
        "KexAlgorithms ecdh-sha2-nistp521",
        "KexAlgorithms diffie-hellman-group-exchange-sha256",
        "KexAlgorithms diffie-hellman-group16-sha512",
        "KexAlgorithms diffie-hellman-group14-sha256",
        "Ciphers chacha20-poly1305@openssh.com",
        "Ciphers aes128-gcm@openssh.com",
        "Ciphers aes256-ctr\nMACs hmac-sha2-256",
        "Ciphers aes128-ctr\nMACs hmac-sha2-512-etm@openssh.com",
    ] {
        upstream.stop();
        upstream.listen_with("host", narrow);
        let listed = git(dir.path(), &["ls-remote", &gate.url("web")]);
        let said = listed.said();
        assert!(said.is_empty(), "{narrow}: {said}");
        listed.succeed();
    }
    upstream.stop();
    upstream.listen_with("host", "Ciphers aes128-cbc");
    let said = git(dir.path(), &["ls-remote", &gate.url("web")]).fail();
    assert!(said.contains("no cipher in common (it offers aes128-cbc)"), "{said}");
}

/// An ssh of this user that goes to the upstream with the surroundings that the gate has.
fn ordinary_ssh(home: &Path, agent: &Path, port: u16) {
    let mut ssh = Command::new("ssh");
    ssh.arg("-F").arg(home.join(".ssh/config")).env("SSH_AUTH_SOCK", agent).env("HOME", home);
    ssh.args(["-o", "BatchMode=yes", "-p", &port.to_string(), "git.example.test", "true"]);
    let _ = ssh.output().expect("this test needs ssh");
}

#[test]
fn no_agent_no_jump_and_no_configuration_of_this_machine_has_a_say() {
    let dir = TempDir::new().unwrap();
    let upstream = Upstream::start(dir.path());
    let home = dir.path().join("home");
    fs::create_dir_all(home.join(".ssh")).unwrap();
    let (marker, agent) = (dir.path().join("jumped"), dir.path().join("agent"));
    let jump = dir.path().join("jump");
    fs::write(
        &jump,
        format!("#!/bin/sh\ntouch '{}'\nexec nc 127.0.0.1 {}\n", marker.display(), upstream.port),
    )
    .unwrap();
    fs::set_permissions(&jump, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(home.join(".ssh/config"), format!("Host *\nProxyCommand {}\n", jump.display())).unwrap();
    let listener = UnixListener::bind(&agent).unwrap();
    listener.set_nonblocking(true).unwrap();

    let surroundings =
        [("HOME", home.as_path()), ("SSH_AUTH_SOCK", &agent), ("GIT_SSH", &jump), ("GIT_SSH_COMMAND", &jump)];
    let gate = Gate::start_among(
        dir.path(),
        &upstream.entry("web", "push: {allow: [refs/heads/agent/*]}"),
        &surroundings,
    );
    git(dir.path(), &["clone", "-q", &gate.url("web"), "work"]).succeed();
    let push = ["push", "-q", "origin", "HEAD:refs/heads/agent/x"];
    git(&dir.path().join("work"), &push).succeed();
    fs::write(dir.path().join("upstream/authorized_keys"), "").unwrap();
    let said = git(dir.path(), &["ls-remote", &gate.url("web")]).fail();
    assert!(said.contains("does not accept the gate's identity"), "{said}");
    assert!(!marker.exists(), "something went another way");
    assert!(listener.accept().is_err(), "an agent was asked");

    // The control: an ordinary ssh does as it is told there.
    ordinary_ssh(&home, &agent, upstream.port);
    assert!(marker.exists());
}

#[test]
fn an_upstream_that_refuses_a_pack_before_its_end_is_heard_and_gives_the_turn_back() {
    let world = World::new();
    let work = world.clone_web();
    git(&world.upstream.repository, &["config", "receive.maxInputSize", "100k"]).succeed();
    // More than what ssh lets be sent to somebody who does not read it.
    let mut noise = vec![0; 3 << 20];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    fs::write(work.path.join("noise"), noise).unwrap();
    work.commit("noise");
    let same = Work { path: work.path.clone() };
    let pushed = thread::spawn(move || same.push("HEAD:refs/heads/agent/noise"));
    eventually("upstream's answer", || pushed.is_finished());
    let said = pushed.join().unwrap().fail();
    assert!(said.contains("pack exceeds maximum allowed size"), "{said}");
    work.git(&["reset", "-q", "--hard", "HEAD^"]).succeed();
    let small = work.write("a", "a\n").commit("small");
    work.push("HEAD:refs/heads/agent/small").succeed();
    assert_eq!(world.upstream.rev("agent/small"), small);
}

#[test]
fn a_host_that_says_its_version_and_nothing_more_keeps_no_connection_of_ours() {
    let dir = TempDir::new().unwrap();
    let mut upstream = Upstream::start(dir.path());
    let gate = Gate::start(dir.path(), &upstream.entry("web", "fetch: {}"));
    upstream.stop();
    let listener = TcpListener::bind(("127.0.0.1", upstream.port)).unwrap();
    let ended = thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"SSH-2.0-x\r\n")?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        io::copy(&mut stream, &mut io::sink())
    });
    let said = git(dir.path(), &["ls-remote", &gate.url("web")]).fail();
    assert!(said.contains("it takes too long to let us in"), "{said}");
    assert!(ended.join().unwrap().is_ok(), "the connection is still there");
}

#[test]
fn a_host_that_refuses_us_with_its_leave_is_not_a_silent_one() {
    let dir = TempDir::new().unwrap();
    let mut upstream = Upstream::start(dir.path());
    let gate = Gate::start(dir.path(), &upstream.entry("web", "fetch: {stale: allow 10m}"));
    let list = || git(dir.path(), &["ls-remote", &gate.url("web")]);
    list().succeed();
    fs::write(dir.path().join("upstream/authorized_keys"), "").unwrap();
    for narrow in ["MaxAuthTries 1", "MaxAuthTries 6"] {
        upstream.stop();
        upstream.listen_with("host", narrow);
        let said = list().fail();
        assert!(said.contains("does not accept the gate's identity"), "{narrow}: {said}");
    }
    // The control: of one that is silent it is served what it had.
    upstream.stop();
    list().succeed();
}
