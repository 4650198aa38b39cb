//! A git client that knows nothing of this machine.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A working copy.
pub struct Work {
    pub path: PathBuf,
}

impl Work {
    pub fn git(&self, arguments: &[&str]) -> Ran {
        git(&self.path, arguments)
    }

    pub fn write(&self, file: &str, content: &str) -> &Self {
        let path = self.path.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Commits everything; the new commit.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A"]).succeed();
        self.git(&["commit", "-q", "--allow-empty", "-m", message]).succeed();
        self.git(&["rev-parse", "HEAD"]).succeed().trim().to_owned()
    }

    /// Writes an object as it is, however odd; its name.
    pub fn object(&self, kind: &str, bytes: &[u8]) -> String {
        let mut command = client(&self.path);
        command.args(["hash-object", "-w", "--literally", "--stdin", "-t", kind]);
        String::from_utf8(fed(command, bytes)).unwrap().trim().to_owned()
    }

    pub fn push(&self, refspec: &str) -> Ran {
        self.git(&["push", "origin", refspec])
    }
}

/// What a command did.
pub struct Ran(Output);

impl Ran {
    /// Its output; it must have succeeded.
    pub fn succeed(self) -> String {
        let said = self.said();
        assert!(self.0.status.success(), "{said}");
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    /// What it said on standard error; it must have failed.
    pub fn fail(self) -> String {
        let said = self.said();
        assert!(!self.0.status.success(), "it should have failed: {said}");
        said
    }

    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }
}

pub fn git(dir: &Path, arguments: &[&str]) -> Ran {
    let mut command = client(dir);
    Ran(command.args(arguments).output().expect("these tests need git"))
}

/// The output of a command that reads these bytes.
pub fn fed(mut command: Command, input: &[u8]) -> Vec<u8> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

pub fn client(dir: &Path) -> Command {
    let mut command = Command::new("git");
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C");
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_TERMINAL_PROMPT", "0");
    for (name, value) in [("NAME", "Agent"), ("EMAIL", "agent@example.test")] {
        command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
    }
    command.current_dir(dir).stdin(Stdio::null());
    command
}
