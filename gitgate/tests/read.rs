//! Reads through the gate: fresh or refused.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;

use common::{Gate, Upstream, World, git, pkt};
use tempfile::TempDir;

#[test]
fn refs_are_those_of_now_also_late_in_a_long_conversation() {
    let world = World::new();
    let mut stream = world.gate.connect();
    common::exchange(&mut stream, &pkt(b"git-upload-pack /web.git\0host=h\0\0version=2\0"));
    let listing = [&pkt(b"command=ls-refs\n")[..], b"0000"].concat();
    assert!(common::exchange(&mut stream, &listing).contains("refs/heads/main"));
    let new = world.upstream.commit("later");
    let began = std::time::Instant::now();
    while !common::exchange(&mut stream, &listing).contains(&new) {
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "what is shown is old");
    }
}

#[test]
fn a_clone_has_what_upstream_has() {
    let world = World::new();
    let work = world.clone_web();
    assert_eq!(work.git(&["rev-parse", "HEAD"]).succeed().trim(), world.upstream.rev("main"));
    assert_eq!(work.git(&["branch", "--show-current"]).succeed().trim(), "main");
}

#[test]
fn a_fetch_sees_a_commit_made_upstream_a_moment_ago() {
    let world = World::new();
    let work = world.clone_web();
    let theirs = world.upstream.commit("theirs");
    work.git(&["fetch", "-q"]).succeed();
    assert_eq!(work.git(&["rev-parse", "origin/main"]).succeed().trim(), theirs);
}

#[test]
fn ls_remote_shows_new_and_deleted_refs_and_a_moved_head() {
    let world = World::new();
    let list = || git(world.dir.path(), &["ls-remote", "--symref", &world.gate.url("web")]).succeed();
    assert!(list().contains("ref: refs/heads/main\tHEAD"));
    git(&world.upstream.repository, &["branch", "next", "main"]).succeed();
    git(&world.upstream.repository, &["symbolic-ref", "HEAD", "refs/heads/next"]).succeed();
    let listing = list();
    assert!(
        listing.contains("ref: refs/heads/next\tHEAD") && listing.contains("refs/heads/next\n"),
        "{listing}"
    );
    git(&world.upstream.repository, &["symbolic-ref", "HEAD", "refs/heads/main"]).succeed();
    git(&world.upstream.repository, &["branch", "-D", "next"]).succeed();
    assert!(!list().contains("next"));
}

#[test]
fn a_branch_may_become_a_directory_of_branches() {
    let world = World::new();
    let list = || git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed();
    git(&world.upstream.repository, &["branch", "topic", "main"]).succeed();
    assert!(list().contains("refs/heads/topic\n"));
    git(&world.upstream.repository, &["branch", "-D", "topic"]).succeed();
    git(&world.upstream.repository, &["branch", "topic/one", "main"]).succeed();
    assert!(list().contains("refs/heads/topic/one\n"));
}

#[test]
fn what_may_not_be_fetched_is_not_shown() {
    let world = World::with_rules("fetch: {allow: [refs/heads/main]}");
    git(&world.upstream.repository, &["branch", "secret", "main"]).succeed();
    let listing = git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).succeed();
    assert!(listing.contains("refs/heads/main") && !listing.contains("secret"), "{listing}");
}

#[test]
fn old_protocol_versions_are_spoken() {
    let world = World::new();
    for version in ["0", "1", "2"] {
        let setting = format!("protocol.version={version}");
        let target = format!("clone-{version}");
        git(world.dir.path(), &["-c", &setting, "clone", "-q", &world.gate.url("web"), &target]).succeed();
    }
}

#[test]
fn git_archive_is_refused_in_words() {
    let world = World::new();
    let said = git(world.dir.path(), &["archive", "--remote", &world.gate.url("web"), "HEAD"]).fail();
    assert!(said.contains("`git-upload-archive` is not served here"), "{said}");
}

#[test]
fn a_partial_and_a_shallow_clone_work() {
    let world = World::new();
    git(world.dir.path(), &["clone", "-q", "--filter=blob:none", &world.gate.url("web"), "partial"])
        .succeed();
    git(world.dir.path(), &["clone", "-q", "--depth=1", &world.gate.url("web"), "shallow"]).succeed();
}

#[test]
fn a_version_in_which_nothing_could_be_had_later_leaves_nothing_out() {
    let world = World::new();
    world.upstream.commit("second");
    for version in ["0", "1", "2"] {
        let (protocol, clone) = (format!("protocol.version={version}"), format!("clone-{version}"));
        let url = world.gate.url("web");
        git(world.dir.path(), &["-c", &protocol, "clone", "-q", "--filter=blob:none", &url, &clone])
            .succeed();
        let work = world.work(&clone);
        let shown = work.git(&["-c", &protocol, "log", "--patch"]).succeed();
        assert!(shown.contains("+hello") && shown.contains("+theirs"), "{version}: {shown}");
    }
}

#[test]
fn with_upstream_down_a_read_is_refused_with_the_reason() {
    let mut world = World::new();
    let work = world.clone_web();
    world.upstream.stop();
    let said = work.git(&["fetch"]).fail();
    assert!(said.contains("remote error: git-gate: web: cannot refresh from ssh://"), "{said}");
    assert!(said.contains("cannot be reached (ssh: connect to host"), "{said}");
    assert!(
        git(world.dir.path(), &["clone", &world.gate.url("web"), "again"])
            .fail()
            .contains("Old data is not served; try again when upstream answers")
    );
}

#[test]
fn another_host_key_than_the_pinned_one_is_refused_in_words() {
    let dir = TempDir::new().unwrap();
    let upstream = Upstream::start(dir.path());
    let gate = Gate::start(dir.path(), &upstream.entry_with_host_key("web", "fetch: {}", "other_host"));
    let said = git(dir.path(), &["ls-remote", &gate.url("web")]).fail();
    assert!(said.contains("its host key is not the pinned one"), "{said}");
    assert_eq!(upstream.commands(), "");
}

#[test]
fn an_identity_that_upstream_does_not_know_is_told() {
    let world = World::new();
    std::fs::write(world.dir.path().join("upstream/authorized_keys"), "").unwrap();
    let said = git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).fail();
    assert!(said.contains("it does not accept the gate's identity"), "{said}");
}

#[test]
fn many_readers_at_once_are_all_served() {
    let world = World::new();
    world.clone_web();
    world.upstream.commit("theirs");
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let mut command = common::client(world.dir.path());
            command
                .args(["ls-remote", &world.gate.url("web")])
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let head = world.upstream.rev("main");
    for reader in readers {
        let output = reader.wait_with_output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains(&head));
    }
}

#[test]
fn an_unknown_repository_is_refused_without_a_list() {
    let world = World::new();
    let said = git(world.dir.path(), &["ls-remote", &world.gate.url("other")]).fail();
    assert!(said.contains("no repository `/other.git` here"), "{said}");
    assert!(!said.contains("web"), "{said}");
}

#[test]
fn garbage_gets_an_error_line_and_no_path_reaches_the_disk() {
    let world = World::new();
    world.clone_web();
    let garbage = world.gate.talk(b"what is this\r\n\r\n");
    assert!(garbage.contains("ERR git-gate: the request line is not a pkt-line"), "{garbage}");
    let ask = |line: &str| world.gate.talk(format!("{:04x}{line}", line.len() + 4).as_bytes());
    assert!(
        ask("git-upload-archive /web.git\0host=h\0")
            .contains("ERR git-gate: `git-upload-archive` is not served")
    );
    for path in
        ["/../git/web.git", "/web.git/../web.git", "/%77eb.git", "/.git-gate", "//web.git", "/web.git\n/x"]
    {
        let answer = ask(&format!("git-upload-pack {path}\0host=h\0"));
        assert!(answer.contains("ERR git-gate: no repository"), "{path}: {answer}");
    }
}

#[test]
fn a_read_is_on_the_record() {
    let mut world = World::new();
    world.clone_web();
    assert_eq!(world.gate.terminate(), Some(0));
    let last = world.gate.journal().pop().unwrap();
    assert_eq!(last["type"], "fetch");
    assert_eq!(last["repo"], "web");
    assert_eq!(last["outcome"], "served");
    assert!(last["bytes_down"].as_u64() > Some(0));
}

#[test]
fn a_uid_that_the_user_database_does_not_know_reaches_upstream() {
    let dir = TempDir::new().unwrap();
    let upstream = Upstream::start(dir.path());
    let gate = Gate::start_as_nobody_known(dir.path(), &upstream.entry("web", "fetch: {}"));
    git(dir.path(), &["clone", "-q", &gate.url("web"), "web"]).succeed();
}

#[test]
fn a_read_that_is_refused_is_on_the_record() {
    let mut world = World::new();
    world.upstream.stop();
    git(world.dir.path(), &["ls-remote", &world.gate.url("web")]).fail();
    // The client is told before the conversation is over, which is when it is recorded.
    world.gate.terminate();
    let events = world.gate.journal();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((&events[0]["type"], &events[0]["outcome"]), (&"fetch".into(), &"refresh-failed".into()));
}

#[test]
fn when_the_journal_cannot_be_written_nothing_is_served() {
    let dir = TempDir::new().unwrap();
    let upstream = Upstream::start(dir.path());
    let gate = Gate::start_with_file_limit(dir.path(), &upstream.entry("web", "push: {tags: true}"), 2);
    let list = || git(dir.path(), &["ls-remote", &gate.url("web")]).said();
    let said = (0..32).map(|_| list()).find(|said| !said.is_empty()).unwrap();
    assert!(
        said.contains("remote error: git-gate: web: audit-unavailable: requests cannot be recorded"),
        "{said}"
    );
    assert!(gate.talk(&common::pkt(common::RECEIVE)).contains("ERR git-gate: web: audit-unavailable"));
}

#[test]
fn what_an_earlier_gate_left_unfinished_is_removed() {
    let world = World::new();
    world.clone_web();
    let World { dir, upstream, gate } = world;
    drop(gate);
    let objects = dir.path().join("git/web.git/objects");
    let left = [objects.join("tmp_objdir-incoming-abc/pack/tmp_pack_1"), objects.join("pack/tmp_pack_2")];
    for path in &left {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "PACK").unwrap();
    }
    let gate = Gate::start(dir.path(), &upstream.entry("web", "fetch: {}"));
    assert!(left.iter().all(|path| !path.exists()));
    git(dir.path(), &["clone", "-q", &gate.url("web"), "again"]).succeed();
}

#[test]
fn a_newcomer_over_the_limit_is_told_so() {
    let world = World::new();
    let (sender, answers) = std::sync::mpsc::channel();
    for mut stream in (0..300).map(|_| world.gate.connect()) {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut answer = String::new();
            let _ = stream.read_to_string(&mut answer);
            sender.send(answer)
        });
    }
    let first = answers.recv().unwrap();
    assert!(first.contains("ERR git-gate: too many connections at once; try again"), "{first}");
}

#[test]
fn a_local_upstream_is_served_when_allowed() {
    let world = World::new();
    let dir = TempDir::new().unwrap();
    let yaml = format!("repos:\n  - {{name: near, upstream: '{}'}}\n", world.upstream.direct_url());
    let gate = Gate::start_with(dir.path(), &yaml, &["--allow-local-upstream"]);
    git(dir.path(), &["clone", "-q", &gate.url("near"), "near"]).succeed();
}

#[test]
fn identities_of_every_kind_are_let_in() {
    for kind in [&["rsa"][..], &["rsa", "-m", "PEM"], &["ecdsa"], &["ecdsa", "-b", "521", "-m", "PEM"]] {
        let dir = TempDir::new().unwrap();
        let upstream = Upstream::start(dir.path());
        let home = dir.path().join("upstream");
        let (identity, public) = (home.join("identity"), home.join("identity.pub"));
        for path in [&identity, &public] {
            std::fs::remove_file(path).unwrap();
        }
        let mut make = std::process::Command::new("ssh-keygen");
        make.args(["-q", "-N", "", "-f"]).arg(&identity).arg("-t").args(kind);
        assert!(make.status().unwrap().success());
        let gate = Gate::start(dir.path(), &upstream.entry("web", "fetch: {}"));
        let said = git(dir.path(), &["ls-remote", &gate.url("web")]).fail();
        assert!(said.contains("does not accept the gate's identity"), "the control: {said}");
        std::fs::copy(&public, home.join("authorized_keys")).unwrap();
        let shown = git(dir.path(), &["ls-remote", &gate.url("web")]).succeed();
        assert!(shown.contains("refs/heads/main"), "{kind:?}: {shown}");
    }
}

#[test]
fn what_goes_straight_to_a_reader_is_counted_in_the_journal_and_in_the_metrics() {
    let dir = TempDir::new().unwrap();
    let upstream = Upstream::start(dir.path());
    let mut state = 1_u64;
    let mut noise = String::new();
    while noise.len() < 2 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.push_str(&format!("{state:016x}\n"));
    }
    std::fs::write(dir.path().join("upstream/seed/noise"), &noise).unwrap();
    upstream.commit("theirs");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    drop(taken);
    let entry = upstream.entry("web", "fetch: {}");
    let mut gate = Gate::start_with(dir.path(), &entry, &["--metrics", &address]);
    git(dir.path(), &["clone", "-q", &gate.url("web"), "work"]).succeed();
    let cloned = std::fs::read_to_string(dir.path().join("work/noise")).unwrap();
    assert!(cloned == noise, "it came whole");
    let mut metrics = std::net::TcpStream::connect(&address).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n";
    std::io::Write::write_all(&mut metrics, request).unwrap();
    let mut said = String::new();
    metrics.read_to_string(&mut said).unwrap();
    assert!(said.contains("git_gate_refreshes_total{repo=\"web\"}"), "{said}");
    assert_eq!(gate.terminate(), Some(0));
    let read = gate.journal().pop().unwrap();
    // Half of what hexadecimal digits take, and git's words around it.
    let bytes = read["bytes_down"].as_u64().unwrap();
    assert!((1 << 20..4 << 20).contains(&bytes), "{read}");
}

#[test]
fn metrics_are_not_served_where_a_bottle_could_ask() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("repos.yaml");
    std::fs::write(config, "repos: []\n").unwrap();
    let mut gate = std::process::Command::new(env!("CARGO_BIN_EXE_git-gate"));
    gate.arg("--config").arg(dir.path()).arg("--repo-dir").arg(dir.path().join("git"));
    gate.arg("--state-dir").arg(dir.path().join("state"));
    gate.args(["--listen", "127.0.0.1:0", "--metrics", "0.0.0.0:0"]);
    let output = gate.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("could be reached from a bottle"), "{said}");
}
