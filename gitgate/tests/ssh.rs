//! Upstreams behind ssh: which keys and algorithms do, and what of this machine has no say.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use common::{Gate, Upstream, git};
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
