//! Full disks, hosts that die, clients that dawdle, pushes that meet: a clear refusal, and the next request works.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use common::{Gate, Upstream, Work, World, git, pkt};
use tempfile::TempDir;

/// Bytes that cannot be packed.
fn noise(mib: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..mib << 17).flat_map(|_| next()).collect()
}

fn shown(dir: &Path, gate: &Gate) -> String {
    let listing = git(dir, &["ls-remote", &gate.url("web")]).succeed();
    let refs = listing.lines().filter(|line| !line.ends_with("HEAD"));
    refs.map(|line| line.replace('\t', " ") + "\n").collect()
}

#[test]
fn a_full_disk_refuses_what_does_not_fit_and_serves_the_rest() {
    let dir = TempDir::new().unwrap();
    let upstream = Upstream::start(dir.path());
    let rules = "push: {allow: [refs/heads/*], force: true}";
    let gate = Gate::start_on_small_disk(dir.path(), &upstream.entry("web", rules), 6);
    git(dir.path(), &["clone", "-q", &gate.url("web"), "work"]).succeed();
    let work = Work { path: dir.path().join("work") };

    fs::write(work.path.join("noise"), noise(12)).unwrap();
    work.commit("more than there is room for");
    let said = work.push("HEAD:refs/heads/large").fail();
    assert!(said.contains("No space left") || said.contains("unpack"), "{said}");
    assert!(!upstream.refs().contains("large"));
    work.git(&["reset", "-q", "--hard", "HEAD^"]).succeed();
    work.write("small", "small\n").commit("small");
    work.push("HEAD:refs/heads/small").succeed();

    // Upstream gets what does not fit here.
    let seed = dir.path().join("upstream/seed");
    fs::write(seed.join("noise"), noise(12)).unwrap();
    git(&seed, &["add", "."]).succeed();
    git(&seed, &["commit", "-qm", "large"]).succeed();
    git(&seed, &["push", "-q", "origin", "HEAD:refs/heads/large"]).succeed();
    let said = git(dir.path(), &["clone", &gate.url("web"), "fails"]).fail();
    assert!(said.contains("git-gate: web: cannot refresh"), "{said}");
    git(&upstream.repository, &["update-ref", "-d", "refs/heads/large"]).succeed();
    git(dir.path(), &["clone", "-q", &gate.url("web"), "works"]).succeed();
    assert_eq!(shown(dir.path(), &gate), upstream.refs());
}

#[test]
fn an_upstream_that_dies_in_the_middle_of_a_push_leaves_no_lie() {
    for point in ["pre-receive", "update", "post-receive"] {
        let world = World::new();
        let work = world.clone_web();
        world.upstream.hook(point, "#!/bin/sh\nkill -9 $PPID\n");
        let new = work.write("a", point).commit("a");
        let said = work.push("HEAD:refs/heads/agent/x").said();
        let taken = world.upstream.refs().contains("agent/x");
        assert!(taken || said.contains("[remote rejected]"), "at {point}: {said}");
        assert_eq!(shown(world.dir.path(), &world.gate), world.upstream.refs(), "at {point}");
        world.upstream.hook(point, "#!/bin/sh\nexit 0\n");
        work.push("HEAD:refs/heads/agent/x").succeed();
        assert_eq!(world.upstream.rev("agent/x"), new, "at {point}");
        assert_eq!(shown(world.dir.path(), &world.gate), world.upstream.refs(), "at {point}");
    }
}

#[test]
fn of_two_pushes_to_one_ref_one_lands_and_the_other_is_told() {
    let world = World::new();
    for name in ["one", "two"] {
        git(world.dir.path(), &["clone", "-q", &world.gate.url("web"), name]).succeed();
        world.work(name).write("mine", name).commit(name);
    }
    let pushed: Vec<(bool, String)> = std::thread::scope(|scope| {
        let both = ["one", "two"].map(|name| {
            let work = world.work(name);
            scope.spawn(move || {
                let mut push = common::client(&work.path);
                let output = push.args(["push", "origin", "HEAD:refs/heads/agent/x"]).output().unwrap();
                (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
            })
        });
        both.map(|push| push.join().unwrap()).into()
    });
    assert_eq!(pushed.iter().filter(|(landed, _)| *landed).count(), 1, "{pushed:?}");
    let (_, said) = pushed.iter().find(|(landed, _)| !landed).unwrap();
    assert!(said.contains("rejected"), "{said}");
    assert_eq!(shown(world.dir.path(), &world.gate), world.upstream.refs());
}

#[test]
fn a_pack_that_is_damaged_or_cut_is_refused_and_the_next_push_works() {
    let world = World::new();
    let work = world.clone_web();
    let new = work.write("a", &"abc\n".repeat(500)).commit("a");
    let zero = "0".repeat(40);
    let body = world.commands_and_pack(&work, &[(&zero, &new, "refs/heads/agent/x")], &[&new]);
    let pack = body.windows(4).position(|w| w == b"PACK").unwrap();
    for at in [pack + 5, pack + 11, pack + 14, body.len() - 30, body.len() - 1] {
        let mut damaged = body.clone();
        damaged[at] ^= 0x55;
        let mut stream = world.gate.connect();
        stream.write_all(&[pkt(common::RECEIVE), damaged].concat()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        assert!(!String::from_utf8_lossy(&said).contains("ok refs/heads/"), "byte {at}");
        assert!(!world.upstream.refs().contains("agent/x"), "byte {at}");
    }
    work.push("HEAD:refs/heads/agent/x").succeed();
    assert_eq!(world.upstream.rev("agent/x"), new);
}

#[test]
fn clients_that_dawdle_at_any_stage_keep_nobody_waiting_and_those_that_say_nothing_are_cut_off() {
    let world = World::new();
    world.clone_web();
    let hello = pkt(b"git-upload-pack /web.git\0host=h\0\0version=2\0");
    let old = pkt(b"git-upload-pack /web.git\0host=h\0");
    let command = pkt(b"command=ls-refs");
    let stages: [&[u8]; 7] = [
        b"",
        b"00",
        &hello[..20],
        &[&hello[..], &command[..8]].concat(),
        &[&hello[..], &command[..], b"0001"].concat(),
        &old,
        b"POST /web.git/git-upload-pack HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n00",
    ];
    let mut slow = Vec::new();
    for stage in stages.iter().cycle().take(28) {
        let mut stream = world.gate.connect();
        stream.write_all(stage).unwrap();
        slow.push(stream);
    }
    git(world.dir.path(), &["clone", "-q", &world.gate.url("web"), "meanwhile"]).succeed();
    // The first three stages end by themselves.
    for stream in &mut slow[..3] {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(
            said.is_empty() || said.contains("ERR git-gate: the request line did not come in time"),
            "{said}"
        );
    }
}

#[test]
fn clients_that_hang_up_at_any_stage_of_a_read_give_their_places_back() {
    let world = World::new();
    let hello = pkt(b"git-upload-pack /web.git\0host=h\0\0version=2\0");
    let list = [&pkt(b"command=ls-refs")[..], b"0000"].concat();
    let main = world.upstream.rev("main");
    let want = format!("want {main}\n");
    let fetch =
        [&pkt(b"command=fetch")[..], b"0001", &pkt(want.as_bytes()), &pkt(b"done\n"), b"0000"].concat();
    let request = [hello, list, fetch].concat();
    // More than there are places for.
    for cut in (1..=request.len()).chain(1..=request.len()).step_by(2) {
        let mut stream = world.gate.connect();
        stream.write_all(&request[..cut]).unwrap();
        drop(stream);
    }
    let clone = || git(world.dir.path(), &["clone", "-q", &world.gate.url("web"), "work"]).said();
    let served = (0..1000).map(|_| clone()).find(|said| !said.contains("try again in a moment"));
    assert_eq!(served.as_deref(), Some(""));
}
