//! Pushes that wait for the operator: nothing but the host's own file lets one pass.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::{Gate, Push, Supervise, Upstream, Work, git, github_token};
use proposal::peer::{Answer, Held, Question, Verdict, Word, message};
use tempfile::TempDir;

const RULES: &str = "push: {allow: [refs/heads/agent/*], on_secret: supervise}";

/// A gate, and the end of the socket that supervise has.
struct World {
    dir: TempDir,
    upstream: Upstream,
    gate: Gate,
    supervise: Supervise,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let upstream = Upstream::start(dir.path());
        let (supervise, peer) = Supervise::pair();
        let gate = Gate::start_with_peer(dir.path(), &upstream.entry("web", RULES), peer, &[]);
        Self { dir, upstream, gate, supervise }
    }

    /// Writes a release as the host does.
    fn release(&self, digest: &str) {
        common::release(&self.gate, &self.upstream.entry("web", RULES), digest);
    }

    fn work_with_secret(&self) -> (Work, String) {
        git(self.dir.path(), &["clone", "-q", &self.gate.url("web"), "work"]).succeed();
        let work = Work { path: self.dir.path().join("work") };
        let new = work.write("config", &format!("token = {}\n", github_token())).commit("leak");
        (work, new)
    }
}

#[test]
fn a_held_push_passes_by_a_release_of_its_digest_once_and_only_as_it_is() {
    let mut world = World::new();
    let (work, new) = world.work_with_secret();
    let before = world.upstream.refs();
    let mut push = Push::begin(&work, "HEAD:refs/heads/agent/x");
    let hold = world.supervise.held();
    push.until("waits for the operator");
    let Held::Push { repo, refs, objects, .. } = &hold.what else { panic!("{hold:?}") };
    assert_eq!((repo.as_str(), refs[0].name.as_str(), &refs[0].new), ("web", "refs/heads/agent/x", &new));
    assert_eq!((*objects, hold.found, hold.findings[0].rule.as_str()), (3, 1, "github-pat"));
    assert_eq!((hold.findings[0].position.as_str(), hold.findings[0].line), ("config", 1));
    assert_eq!(world.upstream.refs(), before, "nothing goes on before it may");

    // A word from supervise lets nothing pass.
    world.supervise.decide(&hold, Verdict::Approve, "");
    push.until("waiting for the operator");
    assert_eq!(world.upstream.refs(), before);

    world.release(&hold.digest);
    let (passed, said) = push.end();
    assert!(passed, "{said}");
    assert_eq!(world.upstream.rev("agent/x"), new);
    assert_eq!(message(&world.supervise.hear()), Some(Word::Exhausted { grant: "r1".to_owned() }));

    // Another push is another matter.
    work.write("key", &common::private_key()).commit("another");
    let mut push = Push::begin(&work, "HEAD:refs/heads/agent/y");
    push.until("waits for the operator");
    let other = world.supervise.held();
    assert_ne!(other.digest, hold.digest);
    world.supervise.decide(&other, Verdict::Reject, "not this\u{1b}[2J one");
    let (passed, said) = push.end();
    assert!(!passed && said.contains("The operator refused it: not this[2J one"), "{said}");
    assert!(!world.upstream.refs().contains("agent/y"));

    // The release was for one push: deleted upstream and pushed again, the same is held again.
    git(&world.upstream.repository, &["update-ref", "-d", "refs/heads/agent/x"]).succeed();
    let mut push = Push::begin(&work, "HEAD^:refs/heads/agent/x");
    push.until("waits for the operator");
    let again = world.supervise.held();
    assert_eq!(again.digest, hold.digest);
    push.0.kill().unwrap();
    push.0.wait().unwrap();
    assert_eq!(
        message(&world.supervise.hear()),
        Some(Word::Dropped { id: again.id }),
        "nobody waits any more"
    );
    assert!(!world.upstream.refs().contains("agent/x"));

    assert_eq!(world.gate.terminate(), Some(0));
    let events = world.gate.journal();
    let passed = events.iter().find(|event| event["outcome"] == "forwarded").unwrap();
    assert_eq!((&passed["grants"][0], &passed["findings"][0]["rule"]), (&"r1".into(), &"github-pat".into()));
}

#[test]
fn supervise_is_told_what_waits_and_where_the_journal_ends() {
    let world = World::new();
    let (work, _) = world.work_with_secret();
    let push = Push::begin(&work, "HEAD:refs/heads/agent/x");
    let hold = world.supervise.held();
    world.supervise.ask(&Question::Holds { seq: 1 });
    assert_eq!(message(&world.supervise.hear()), Some(Answer::Holds { seq: 1, ids: vec![hold.id.clone()] }));
    assert_eq!(world.supervise.held(), hold);
    world.supervise.ask(&Question::Head { seq: 2 });
    let head = message::<Answer>(&world.supervise.hear());
    assert!(
        matches!(&head, Some(Answer::Head { seq: 2, records: 1.., hash }) if hash.len() == 64),
        "{head:?}"
    );
    world.supervise.decide(&hold, Verdict::Reject, "");
    assert!(!push.end().0);
}

/// Takes the newest commit off upstream's branch.
fn purge(upstream: &Upstream) -> String {
    format!("git --git-dir={} update-ref refs/heads/main main^", upstream.repository.display())
}

/// What the mirror's refs are, as upstream's are told.
fn mirrored(world: &World) -> String {
    let mirror = world.dir.path().join("git/web.git");
    git(&mirror, &["for-each-ref", "--format=%(objectname) %(refname)"]).succeed()
}

fn has(upstream: &Upstream, object: &str) -> bool {
    common::client(&upstream.repository).args(["cat-file", "-e", object]).status().unwrap().success()
}

#[test]
fn a_held_push_does_not_bring_back_what_upstream_removed_meanwhile() {
    let world = World::new();
    let gone = world.upstream.commit("theirs");
    let (work, new) = world.work_with_secret();
    let mut push = Push::begin(&work, "HEAD:refs/heads/agent/x");
    let hold = world.supervise.held();
    push.until("waits for the operator");
    world.upstream.purge();
    let before = world.upstream.refs();
    world.supervise.decide(&hold, Verdict::Approve, "");
    world.release(&hold.digest);
    let (passed, said) = push.end();
    let told = "upstream removed something meanwhile; fetch, rebase onto what it has now, then push again";
    assert!(!passed && said.contains(&format!("git-gate: {told}")), "{said}");
    assert!(said.contains(&format!("[remote rejected] HEAD -> agent/x ({told})")), "{said}");
    assert_eq!((world.upstream.refs(), mirrored(&world)), (before.clone(), before));
    assert!(!has(&world.upstream, &gone) && !has(&world.upstream, &new), "nothing comes back");

    // What it says helps; what was released was another push.
    work.git(&["fetch", "-q"]).succeed();
    work.git(&["rebase", "-q", "--onto", "origin/main", "HEAD^"]).succeed();
    let rebased = work.git(&["rev-parse", "HEAD"]).succeed().trim().to_owned();
    let push = Push::begin(&work, "HEAD:refs/heads/agent/x");
    let again = world.supervise.held();
    assert_ne!(again.digest, hold.digest);
    world.supervise.decide(&again, Verdict::Approve, "");
    world.release(&again.digest);
    let (passed, said) = push.end();
    assert!(passed, "{said}");
    assert_eq!(world.upstream.rev("agent/x"), rebased);
    assert_eq!(mirrored(&world), world.upstream.refs());
    assert!(!has(&world.upstream, &gone));
}

#[test]
fn a_held_push_that_leaves_out_what_upstream_removes_meanwhile_is_refused() {
    let world = World::new();
    let seed = Work { path: world.dir.path().join("upstream/seed") };
    seed.git(&["checkout", "-q", "-b", "extra"]).succeed();
    seed.write("theirs", "only there\n").commit("extra");
    seed.git(&["push", "-q", "origin", "extra"]).succeed();
    let blob = world.upstream.rev("extra:theirs");
    let (work, _) = world.work_with_secret();
    // The file of the other branch, under another name, and a pack without it.
    work.git(&["update-index", "--add", "--cacheinfo", &format!("100644,{blob},mine")]).succeed();
    work.git(&["commit", "-q", "--amend", "--no-edit"]).succeed();
    let new = work.git(&["rev-parse", "HEAD"]).succeed().trim().to_owned();
    let objects = ["HEAD", "HEAD^{tree}", "HEAD:config"]
        .map(|name| work.git(&["rev-parse", name]).succeed().trim().to_owned());
    let mut pack = common::client(&work.path);
    pack.args(["pack-objects", "--stdout", "-q"]);
    let pack = common::fed(pack, (objects.join("\n") + "\n").as_bytes());
    let none = "0".repeat(40);
    let command = format!("{none} {new} refs/heads/agent/x\0report-status side-band-64k");
    let request =
        [common::pkt(common::RECEIVE), common::pkt(command.as_bytes()), b"0000".to_vec(), pack].concat();
    let stream = world.gate.connect();
    // On its own, so that what fails here does not wait for it.
    let push = std::thread::spawn(move || common::rest(stream, &request));
    let hold = world.supervise.held();
    assert_eq!(hold.found, 1);
    git(&world.upstream.repository, &["update-ref", "-d", "refs/heads/extra"]).succeed();
    git(&world.upstream.repository, &["gc", "-q", "--prune=now"]).succeed();
    let before = world.upstream.refs();
    world.release(&hold.digest);
    let said = push.join().unwrap();
    assert!(said.contains("ng refs/heads/agent/x upstream removed something meanwhile"), "{said}");
    assert_eq!((world.upstream.refs(), mirrored(&world)), (before.clone(), before));
    assert!(!has(&world.upstream, &blob) && !has(&world.upstream, &new), "nothing comes back");
}

#[test]
fn what_upstream_removed_during_a_session_is_judged_again() {
    let dir = TempDir::new().unwrap();
    let upstream = Upstream::start(dir.path());
    let seed = dir.path().join("upstream/seed");
    Work { path: seed.clone() }.write("config", &format!("token = {}\n", github_token())).commit("leak");
    git(&seed, &["push", "-q", "origin", "main"]).succeed();
    let gate = Gate::start(dir.path(), &upstream.entry("web", "push: {allow: [refs/heads/agent/*]}"));
    git(dir.path(), &["clone", "-q", &gate.url("web"), "work"]).succeed();
    let work = Work { path: dir.path().join("work") };
    // It runs after the refs were shown.
    let hook = work.path.join(".git/hooks/pre-push");
    fs::create_dir_all(hook.parent().unwrap()).unwrap();
    fs::write(&hook, format!("#!/bin/sh\n{}\n", purge(&upstream))).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let said = work.push("HEAD:refs/heads/agent/x").fail();
    assert!(said.contains("github-pat"), "{said}");
    assert!(!upstream.refs().contains("agent/x"));
}

#[test]
fn more_than_the_operator_can_be_shown_is_refused_and_not_held() {
    let world = World::new();
    let (work, _) = world.work_with_secret();
    for n in 0..proposal::peer::HELD_MAX {
        work.write(&format!("config{n}"), &format!("{n}\ntoken = {}\n", github_token()));
    }
    work.commit("many");
    let (passed, said) = Push::begin(&work, "HEAD:refs/heads/agent/x").end();
    assert!(!passed && said.contains("github-pat"), "{said}");
    assert!(!said.contains("waits for the operator"), "{said}");
}
