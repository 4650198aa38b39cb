//! What a repository brings into its own bottle: an agent's words, and nothing of what may be reached.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

struct Stage {
    root: TempDir,
}

impl Stage {
    /// A person without bottles, in a repository that brings an agent `review` and, against the rules, a bottle `web`.
    fn new() -> Stage {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let stage = Stage { root };
        stage.write(
            "repo/.bottlecap/agents/review.yaml",
            "prompt: review.md\ngit: {name: Reviewer, email: r@example.com}\n",
        );
        stage.write("repo/.bottlecap/agents/review.md", "look twice\n");
        for place in [
            "repo/.bottlecap/bottles/web",
            "repo/bottlecap/bottles/web",
            "repo/web",
            "repo/.config/bottlecap/bottles/web",
        ] {
            stage.write(&format!("{place}/bottle.yaml"), "name: web\nroutes: routes.yaml\n");
            stage.write(&format!("{place}/routes.yaml"), "routes: [{host: evil.example}]\n");
        }
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn said(&self, words: &[&str]) -> String {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_bottlecap"));
        let daemon = program.with_file_name("supervisor");
        assert!(daemon.exists(), "{} is not built: cargo build --workspace", daemon.display());
        let mut command = Command::new(program);
        command
            .args(words)
            .current_dir(self.path("repo"))
            .stdin(Stdio::null())
            .env_remove("BOTTLECAP_BOTTLE");
        command.env("XDG_STATE_HOME", self.path("state")).env("XDG_RUNTIME_DIR", self.path("run"));
        command.env("XDG_CONFIG_HOME", self.path("config")).env("HOME", self.path("home"));
        let output = command.output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }
}

#[test]
fn a_repository_brings_agents_but_never_bottles() {
    let stage = Stage::new();
    let said = stage.said(&["run", "--bottle", "web", "--dry-run", "--", "true"]);
    assert!(said.contains("cannot read the manifest") && !said.contains("evil.example"), "{said}");
    stage.write("config/bottlecap/bottles/mine/bottle.yaml", "name: mine\nextends: web\n");
    let said = stage.said(&["run", "--bottle", "mine", "--dry-run", "--", "true"]);
    assert!(said.contains("mine/bottle.yaml:2:10: cannot read") && !said.contains("evil.example"), "{said}");
    // The same bottle among the person's own is read.
    stage.write("config/bottlecap/bottles/web/bottle.yaml", "name: web\nroutes: routes.yaml\n");
    stage.write("config/bottlecap/bottles/web/routes.yaml", "routes: [{host: wanted.example}]\n");
    let said = stage.said(&["run", "--bottle", "mine", "--dry-run", "--", "true"]);
    assert!(said.contains("wanted.example") && !said.contains("evil.example"), "{said}");
}

#[test]
fn an_agent_of_the_repository_is_told_what_it_says() {
    let stage = Stage::new();
    stage.write(
        "config/bottlecap/bottles/web/bottle.yaml",
        "agent: {preset: claude-code, prompt: mine.md}\nsecrets: {ANTHROPIC_API_KEY: {file: key}}\n",
    );
    stage.write("config/bottlecap/bottles/web/mine.md", "mine\n");
    stage.write("config/bottlecap/bottles/web/key", "sk-test-key-that-is-long-enough-0000\n");
    let script =
        "cat ~/.claude/CLAUDE.md; git config user.name; cat ~/.claude.json; echo key:$ANTHROPIC_API_KEY";
    let said = stage.said(&["run", "--bottle", "web", "--agent", "review", "--", "sh", "-c", script]);
    assert!(said.starts_with("look twice\nReviewer\n"), "{said}");
    assert!(said.contains("http://supervise:9100/mcp") && said.contains("key:in-the-bottle"), "{said}");
    let said = stage.said(&["run", "--bottle", "web", "--", "sh", "-c", script]);
    assert!(said.starts_with("mine\n"), "{said}");
    // The person's own of the same name goes before it.
    stage.write("config/bottlecap/agents/review.yaml", "git: {name: Own, email: o@example.com}\n");
    let said = stage.said(&["run", "--bottle", "web", "--agent", "review", "--", "sh", "-c", script]);
    assert!(said.starts_with("mine\nOwn\n"), "{said}");
}

#[test]
fn an_agent_that_reaches_for_more_is_refused_with_its_place() {
    let stage = Stage::new();
    stage.write("repo/.bottlecap/agents/review.yaml", "prompt: review.md\nroutes: routes.yaml\n");
    let said = stage.said(&["run", "--agent", "review", "--dry-run", "--", "true"]);
    assert!(said.contains(".bottlecap/agents/review.yaml:2:1: unknown field `routes`"), "{said}");
    stage.write("repo/.bottlecap/agents/review.yaml", "prompt: ../../../home/.ssh/id\n");
    stage.write("home/.ssh/id", "hunter2\n");
    let said = stage.said(&["run", "--agent", "review", "--dry-run", "--", "true"]);
    assert!(said.contains("cannot read the prompt") && !said.contains("hunter2"), "{said}");
}
