//! Smart HTTP, with git's own client and by hand.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use common::{Ran, World, git, github_token, pkt};

fn url(world: &World) -> String {
    format!("http://{}/web.git", world.gate.address)
}

/// Sends a request and returns head and body of the answer.
fn ask(world: &World, head: &str, body: &[u8]) -> String {
    let mut stream = world.gate.connect();
    let more = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    write!(stream, "{head}\r\nhost: git-gate\r\nconnection: close\r\n{more}\r\n").unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut child = Command::new("gzip").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let fed = std::thread::spawn(move || stdin.write_all(&bytes));
    let packed = child.wait_with_output().unwrap().stdout;
    fed.join().unwrap().unwrap();
    packed
}

#[test]
fn every_protocol_version_clones_fetches_and_pushes_over_http() {
    let world = World::new();
    for version in ["0", "1", "2"] {
        let name = format!("over-http-{version}");
        let protocol = format!("protocol.version={version}");
        git(world.dir.path(), &["-c", &protocol, "clone", "-q", &url(&world), &name]).succeed();
        let work = world.work(&name);
        let theirs = world.upstream.commit(&format!("theirs-{version}"));
        work.git(&["-c", &protocol, "pull", "-q", "--ff-only"]).succeed();
        assert_eq!(work.git(&["rev-parse", "HEAD"]).succeed().trim(), theirs);
        let mine = work.write(&format!("mine-{version}"), "x\n").commit("mine");
        work.git(&["-c", &protocol, "push", "-q", "origin", &format!("HEAD:refs/heads/agent/v{version}")])
            .succeed();
        assert_eq!(world.upstream.rev(&format!("agent/v{version}")), mine);
    }
}

#[test]
fn a_secret_is_refused_over_http_too_and_a_large_push_lands() {
    let world = World::new();
    git(world.dir.path(), &["clone", "-q", &url(&world), "work"]).succeed();
    let work = world.work("work");
    let before = world.upstream.refs();
    work.write("token", &github_token()).commit("leak");
    let said = work.push("HEAD:refs/heads/agent/x").fail();
    assert!(said.contains("github-pat"), "{said}");
    assert_eq!(world.upstream.refs(), before);

    work.git(&["reset", "-q", "--hard", "HEAD^"]).succeed();
    let noise: String =
        (0..200_000_u64).map(|n| format!("{:x}\n", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    let mine = work.write("noise", &noise).commit("more than one buffer of the client");
    work.push("HEAD:refs/heads/agent/large").succeed();
    assert_eq!(world.upstream.rev("agent/large"), mine);
}

#[test]
fn refusals_over_http_are_told_in_gits_words() {
    let mut world = World::with_rules("fetch: {}");
    let nobody = url(&world).replace("web.git", "nobody.git");
    let told = |ran: Ran, what: &str| {
        let said = ran.fail();
        assert!(said.contains(&format!("remote error: git-gate: {what}")), "{said}");
    };
    told(git(world.dir.path(), &["ls-remote", &nobody]), "no repository `/nobody.git`");
    git(world.dir.path(), &["clone", "-q", &url(&world), "work"]).succeed();
    told(world.work("work").push("HEAD:refs/heads/x"), "web: nothing may be pushed");
    world.upstream.stop();
    told(git(world.dir.path(), &["ls-remote", &url(&world)]), "web: cannot refresh from ssh://");
}

#[test]
fn dumb_paths_are_not_found_and_lfs_is_refused_in_its_own_form() {
    let world = World::new();
    world.clone_web();
    for path in [
        "HEAD",
        "info/refs",
        "objects/info/packs",
        "config",
        "../web.git/HEAD",
        "info/refs?service=git-upload-archive",
    ] {
        let answer = ask(&world, &format!("GET /web.git/{path} HTTP/1.1"), b"");
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    let answer = ask(&world, "POST /web.git/info/lfs/objects/batch HTTP/1.1", b"{}");
    assert!(answer.starts_with("HTTP/1.1 501 ") && answer.contains("vnd.git-lfs+json"), "{answer}");
}

#[test]
fn a_packed_request_is_unpacked_up_to_a_bound() {
    let world = World::new();
    world.clone_web();
    let head = "POST /web.git/git-upload-pack HTTP/1.1\r\ngit-protocol: version=2\r\ncontent-encoding: gzip";
    let listing =
        [&pkt(b"command=ls-refs\n")[..], b"0001", &pkt(b"ref-prefix refs/heads/\n"), b"0000"].concat();
    let answer = ask(&world, head, &gzip(&listing));
    assert!(answer.contains("refs/heads/main"), "{answer}");

    // A hundred megabytes of one request, in a hundred kilobytes.
    let line = pkt(&[&b"ref-prefix "[..], &vec![b'x'; 60_000]].concat());
    let bomb = gzip(&[&pkt(b"command=ls-refs\n")[..], b"0001", &line.repeat(1700)].concat());
    assert!(bomb.len() < 1 << 20);
    ask(&world, head, &bomb);
    git(world.dir.path(), &["ls-remote", &url(&world)]).succeed();

    let other = head.replace("gzip", "br");
    assert!(ask(&world, &other, &listing).starts_with("HTTP/1.1 415 "));
    ask(&world, head, b"this is not gzip");
    git(world.dir.path(), &["ls-remote", &url(&world)]).succeed();
}

#[test]
fn refs_are_those_of_now_also_where_a_conversation_is_said_to_go_on() {
    let world = World::new();
    let listing = [&pkt(b"command=ls-refs\n")[..], b"0000"].concat();
    let head = "POST /web.git/git-upload-pack HTTP/1.1\r\ngit-protocol: version=2";
    git(world.dir.path(), &["clone", "-q", &url(&world), "work"]).succeed();
    let new = world.upstream.commit("later");
    let answer = ask(&world, head, &listing);
    assert!(answer.contains(&new), "{answer}");
}

#[test]
fn a_conversation_that_begins_in_its_middle_is_refreshed_first() {
    let mut world = World::new();
    let listing = [&pkt(b"command=ls-refs\n")[..], b"0000"].concat();
    let head = "POST /web.git/git-upload-pack HTTP/1.1\r\ngit-protocol: version=2";
    assert!(ask(&world, head, &listing).contains("refs/heads/main"));
    world.gate.terminate();
    world.upstream.stop();
    let repos = std::fs::read_to_string(world.gate.config_dir.join("repos.yaml")).unwrap();
    world.gate = common::Gate::start(world.dir.path(), &repos);
    let answer = ask(&world, head, &listing);
    assert!(answer.contains("ERR git-gate: web: cannot refresh"), "{answer}");
}
