//! The first copies of a bottle's repositories, which are made before its command runs, and how a person sees it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use tests::{Binaries, Finished, GitHost, Run};

struct Stage {
    root: TempDir,
    origin: GitHost,
}

impl Stage {
    fn new() -> Stage {
        let root = tempfile::Builder::new().prefix("bc-copy-").tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let stage = Stage { root, origin: GitHost::start().unwrap() };
        fs::create_dir(stage.path("work")).unwrap();
        stage.write("identity", &stage.origin.client_key().unwrap());
        stage.write("bottle.yaml", "repos: repos.yaml\n");
        stage.furnish(&stage.origin.host_key().unwrap());
        stage
    }

    /// The repository behind the host with that key.
    fn furnish(&self, key: &str) {
        let (url, identity) = (self.origin.url(), self.path("identity"));
        let text = format!(
            "repos:\n  - name: web\n    upstream: {url}\n    identity: {}\n    host_key: \"{key}\"\n",
            identity.display()
        );
        self.write("repos.yaml", &text);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// A bottle with a script for its shell, to the end of it.
    fn bottle(&self, options: &[&str], script: &str) -> Finished {
        let mut command = Command::new(Binaries::find().unwrap().program("bottlecap"));
        command
            .args(["run", "--bottle"])
            .arg(self.path("bottle.yaml"))
            .args(options)
            .args(["--", "sh", "-c", script]);
        command.env("XDG_STATE_HOME", self.path("state")).env("XDG_RUNTIME_DIR", self.path("run"));
        Run::from(command).within(self.path("work")).finish().unwrap()
    }
}

#[test]
fn the_first_copy_is_made_and_told_before_the_command_runs_and_the_second_start_needs_none() {
    let stage = Stage::new();
    let ran = stage.bottle(&["--name", "web"], "echo ran");
    assert_eq!((ran.code, ran.stdout.trim_end()), (0, "ran"), "{}", ran.stderr);
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(lines.first(), Some(&"copying web"), "{}", ran.stderr);
    assert!(lines[1..].iter().all(|line| line.starts_with("copying web: ")), "{}", ran.stderr);
    let asked = stage.origin.commands().unwrap().len();
    assert!(asked > 0, "upstream was asked, though the command did not");
    // It is kept with the bottle.
    let again = stage.bottle(&["--name", "web"], "echo ran");
    assert_eq!((again.stdout.trim_end(), again.stderr.as_str()), ("ran", ""));
    assert_eq!(stage.origin.commands().unwrap().len(), asked);
}

#[test]
fn a_bottle_without_a_name_copies_what_its_command_asks_for() {
    let stage = Stage::new();
    let ran = stage.bottle(&[], "echo ran");
    assert_eq!((ran.stdout.trim_end(), ran.stderr.as_str()), ("ran", ""));
    assert_eq!(stage.origin.commands().unwrap(), Vec::<String>::new());
}

#[test]
fn a_copy_that_cannot_be_made_is_told_and_the_command_runs() {
    let stage = Stage::new();
    stage.furnish("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl");
    let ran = stage.bottle(&["--name", "web"], "echo ran");
    assert_eq!(ran.stdout.trim_end(), "ran");
    assert!(ran.stderr.contains("there is no copy of web yet: "), "{}", ran.stderr);
}
