//! The operator's screen in a real terminal, which tmux holds, beside a bottle that has something to push.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use nix::poll::{PollTimeout, poll};
use tempfile::TempDir;
use tests::{Binaries, Finished, GitHost, PATIENCE, Run};

const LOOK_INTERVAL_MS: u16 = 50;

/// A person at a terminal of 100 by 30, and a git host.
struct Stage {
    root: TempDir,
    origin: GitHost,
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(Run::from(self.bottlecap(&["stop", "--grace", "0"])).finish());
        drop(Run::from(self.tmux(&["kill-server"])).finish());
    }
}

impl Stage {
    fn new() -> Stage {
        let root = tempfile::Builder::new().prefix("bc-scr-").tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let stage = Stage { root, origin: GitHost::start().unwrap() };
        fs::create_dir(stage.path("work")).unwrap();
        fs::write(stage.path("identity"), stage.origin.client_key().unwrap()).unwrap();
        fs::set_permissions(stage.path("identity"), fs::Permissions::from_mode(0o600)).unwrap();
        let repos = format!(
            "repos:\n  - name: web\n    upstream: {}\n    identity: {}\n    host_key: \"{}\"\n    \
             push: {{allow: [refs/heads/agent/*], on_secret: supervise}}\n",
            stage.origin.url(),
            stage.path("identity").display(),
            stage.origin.host_key().unwrap()
        );
        fs::write(stage.path("repos.yaml"), repos).unwrap();
        let manifest =
            "name: web\nrepos: repos.yaml\nagent: {git: {name: Agent, email: agent@example.com}}\n";
        fs::write(stage.path("bottle.yaml"), manifest).unwrap();
        let session = ["-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", "sh"];
        Run::from(stage.tmux(&session)).ok().expect("this test needs tmux: scripts/need.sh tmux");
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn starts(&self, program: PathBuf, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(words).current_dir(self.path("work")).env_remove("TMUX").env("PS1", "$ ");
        command.env("XDG_STATE_HOME", self.path("state")).env("XDG_RUNTIME_DIR", self.path("run"));
        command
    }

    fn bottlecap(&self, words: &[&str]) -> Command {
        self.starts(Binaries::find().unwrap().program("bottlecap"), words)
    }

    fn said(&self, words: &[&str]) -> Finished {
        Run::from(self.bottlecap(words)).finish().unwrap()
    }

    fn tmux(&self, words: &[&str]) -> Command {
        let socket = self.path("tmux").display().to_string();
        self.starts("tmux".into(), &[&["-S", &socket], words].concat())
    }

    fn keys(&self, words: &[&str]) {
        Run::from(self.tmux(&[&["send-keys"], words].concat())).ok().unwrap();
    }

    /// Waits until the terminal shows `wanted`.
    fn shows(&self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let screen = Run::from(self.tmux(&["capture-pane", "-p"])).ok().unwrap();
            if screen.contains(wanted) {
                return screen;
            }
            assert!(Instant::now() < deadline, "{wanted:?} is not shown:\n{screen}");
            // A terminal tells nobody that it was drawn.
            let _ = poll(&mut [], PollTimeout::from(LOOK_INTERVAL_MS));
        }
    }
}

#[test]
fn a_push_that_is_held_is_looked_at_and_let_pass_at_the_screen() {
    let stage = Stage::new();
    // The key in two pieces, so that no file of this repository has one.
    let push = format!(
        "git clone -q {} web && cd web && git checkout -q -b agent/x && read go <../go; \
         printf 'token = \"%s%s\"\\n' ghp_ 0aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT1uV2wX >token && git add token && git commit -qm token && \
         git push origin agent/x && echo the push went through || echo the push was refused; exec sleep 600",
        stage.origin.url()
    );
    nix::unistd::mkfifo(&stage.path("work/go"), nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    fs::set_permissions(stage.path("work/go"), fs::Permissions::from_mode(0o666)).unwrap();
    let manifest = stage.path("bottle.yaml").display().to_string();
    let started = stage.said(&["start", "--bottle", &manifest, "--", "sh", "-c", &push]);
    assert_eq!(started.code, 0, "{}", started.stderr);
    let program = Binaries::find().unwrap().program("bottlecap");
    stage.keys(&["-l", &format!("{} operator web", program.display())]);
    stage.keys(&["Enter"]);
    stage.shows("bottlecap  web  running");
    stage.keys(&["4"]);
    // The gate refuses what nobody is there to decide: now somebody is.
    fs::write(stage.path("work/go"), "go\n").unwrap();
    let list = stage.shows("? held");
    assert!(list.contains("let this push to refs/heads/agent/x of web pass once"), "{list}");
    stage.keys(&["Enter"]);
    let review = stage.shows("Approve this, and nothing else?");
    assert!(review.contains("in token, line 1"), "{review}");
    assert!(!review.contains("ghp_0aB1cD2e"), "{review}");
    assert_eq!(stage.origin.resolve("refs/heads/agent/x").unwrap(), None);
    stage.keys(&["y"]);
    stage.shows("approved ");
    stage.keys(&["q"]);
    let console = stage.bottlecap(&["logs", "web", "--console", "--follow"]);
    let mut console = tests::Process::start(&mut { console }).unwrap();
    console.stdout.wait(|line| line.contains("the push ")).unwrap();
    assert!(console.stdout.text().contains("the push went through"), "{}", console.stdout.text());
    assert!(stage.origin.resolve("refs/heads/agent/x").unwrap().is_some());
    stage.said(&["stop", "web", "--grace", "0"]);
    console.wait().unwrap();
}
