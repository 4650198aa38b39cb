//! A real upstream (OpenSSH on the loopback), a real gate, a real git client.
#![allow(dead_code, unreachable_pub, unused_imports, clippy::print_stderr)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tempfile::TempDir;

mod client;
mod gate;
mod operator;
mod upstream;

pub use client::{Ran, Work, client, fed, git};
pub use gate::Gate;
pub use operator::{Push, Supervise, release};
pub use upstream::{Upstream, descendants};

/// The request line of a push to `web`.
pub const RECEIVE: &[u8] = b"git-receive-pack /web.git\0host=h\0";

/// Everything one test needs; gone when it is dropped.
pub struct World {
    pub dir: TempDir,
    pub upstream: Upstream,
    pub gate: Gate,
}

impl World {
    /// One repository `web` that may be read, and pushed to at `agent/*` and tags.
    pub fn new() -> Self {
        Self::with_rules("push: {allow: [refs/heads/agent/*], tags: true}")
    }

    /// The same with other rules, given as lines of repos.yaml.
    pub fn with_rules(rules: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let upstream = Upstream::start(dir.path());
        let gate = Gate::start(dir.path(), &upstream.entry("web", rules));
        Self { dir, upstream, gate }
    }

    /// A clone of `web` through the gate, ready for commits.
    pub fn clone_web(&self) -> Work {
        let work = self.work("work");
        git(self.dir.path(), &["clone", "-q", &self.gate.url("web"), "work"]).succeed();
        work
    }

    /// Pushes past git's own client: these updates (old, new, name), this list of objects. What the gate says.
    pub fn push_raw(&self, work: &Work, updates: &[(&str, &str, &str)], objects: &[&str]) -> String {
        let request = [pkt(RECEIVE), self.commands_and_pack(work, updates, objects)].concat();
        self.gate.talk(&request)
    }

    /// What follows the request line of such a push.
    pub fn commands_and_pack(
        &self,
        work: &Work,
        updates: &[(&str, &str, &str)],
        objects: &[&str],
    ) -> Vec<u8> {
        let mut head = Vec::new();
        for (index, (old, new, name)) in updates.iter().enumerate() {
            let capabilities = if index == 0 { "\0report-status side-band-64k" } else { "" };
            head.extend(pkt(format!("{old} {new} {name}{capabilities}").as_bytes()));
        }
        head.extend(b"0000");
        let mut pack = client(&work.path);
        pack.args(["pack-objects", "--revs", "--stdout", "-q"]);
        let list = format!("{}\n--not\nrefs/remotes/origin/main\n", objects.join("\n"));
        head.extend(fed(pack, list.as_bytes()));
        head
    }

    /// Whether the mirror was packed.
    pub fn has_bitmap(&self) -> bool {
        let packs = fs::read_dir(self.dir.path().join("git/web.git/objects/pack")).unwrap();
        packs.flatten().any(|entry| entry.path().extension().is_some_and(|e| e == "bitmap"))
    }

    pub fn work(&self, name: &str) -> Work {
        Work { path: self.dir.path().join(name) }
    }
}

/// Looks again and again; the upkeep has its own time.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

/// A pkt-line.
pub fn pkt(payload: &[u8]) -> Vec<u8> {
    [format!("{:04x}", payload.len() + 4).as_bytes(), payload].concat()
}

/// Sends bytes and reads pkt-lines up to the next flush.
pub fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    loop {
        let mut head = [0; 4];
        stream.read_exact(&mut head).unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&head).unwrap(), 16).unwrap();
        if length == 0 {
            return String::from_utf8_lossy(&answer).into_owned();
        }
        let start = answer.len();
        answer.resize(start + length - 4, 0);
        stream.read_exact(&mut answer[start..]).unwrap();
    }
}

/// Sends bytes and reads to the end.
pub fn rest(mut stream: TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// A private key that is one for scanners only; made here so that none trips over this file.
pub fn private_key() -> String {
    let line = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gt";
    format!("-----BEGIN OPENSSH PRIVATE {0}-----\n{line}\n-----END OPENSSH PRIVATE {0}-----\n", "KEY")
}

/// A token with the checksum that makes it one.
pub fn github_token() -> String {
    ["ghp", "_zQWBuTSOoRi4A9spHcVY5", "ncnsDkxkJ0mLq17"].concat()
}

pub fn whoami() -> String {
    nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().expect("a named user").name
}
