//! Git as a child process: nothing in its environment or configuration but what is written here.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::door::Door;

/// Where the gate keeps what its children need: this program, under the names that git knows.
#[derive(Debug, Clone)]
pub(crate) struct GateDir(PathBuf);

/// The objects a child sees.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Objects<'a> {
    /// Those of the repository.
    Own,
    /// Those of a quarantine too.
    Quarantine(&'a Path),
}

const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Configuration for every child, strongest of all by its place on the command line.
const CONFIG: [&str; 17] = [
    "safe.directory=*",
    "core.fsmonitor=false",
    "protocol.allow=never",
    "gc.auto=0",
    "maintenance.auto=false",
    "receive.autogc=false",
    "receive.fsckObjects=true",
    "receive.shallowUpdate=false",
    "transfer.credentialsInUrl=die",
    "receive.denyCurrentBranch=ignore",
    "receive.denyDeleteCurrent=ignore",
    "receive.keepAlive=5",
    "uploadpack.allowFilter=true",
    "uploadpack.allowSidebandAll=true",
    "uploadpack.keepAlive=5",
    "fetch.writeCommitGraph=false",
    "push.recurseSubmodules=no",
];

impl GateDir {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self(root)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The directory that holds our hook and no other.
    pub(crate) fn hooks(&self) -> PathBuf {
        self.0.join("hooks")
    }

    /// The program that git takes for ssh.
    pub(crate) fn ssh_program(&self) -> PathBuf {
        self.0.join("bin/ssh")
    }

    /// The program that git asks for a password.
    pub(crate) fn askpass_program(&self) -> PathBuf {
        self.0.join("bin/askpass")
    }

    /// A git command on a repository. It reaches no other.
    pub(crate) fn git(&self, repository: &Path, objects: Objects<'_>) -> Command {
        let mut command = Command::new("git");
        bare_environment(&mut command);
        command.env("GIT_DIR", repository).current_dir(repository).env("GIT_ALLOW_PROTOCOL", "");
        for setting in CONFIG {
            command.args(["-c", setting]);
        }
        let mut hooks = OsString::from("core.hooksPath=");
        hooks.push(self.hooks());
        command.arg("-c").arg(hooks);
        if let Objects::Quarantine(quarantine) = objects {
            command
                .env("GIT_OBJECT_DIRECTORY", quarantine)
                .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", repository.join("objects"));
        }
        command
    }

    /// A git command that reaches upstream through its door, if it has one, and nothing else.
    pub(crate) fn git_through(
        &self,
        repository: &Path,
        objects: Objects<'_>,
        door: Option<&Door>,
    ) -> io::Result<Command> {
        let mut command = self.git(repository, objects);
        if let Some(door) = door {
            door.open(&mut command, self)?;
        }
        Ok(command)
    }
}

/// Where programs are looked for.
pub(crate) fn search_path() -> OsString {
    std::env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT_PATH.into())
}

/// Clears the environment and sets what every child gets.
pub(crate) fn bare_environment(command: &mut Command) {
    command
        .env_clear()
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .env("HOME", "/nonexistent")
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_ATTR_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_NO_REPLACE_OBJECTS", "1");
}

/// Text of a child or of upstream without anything that a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|c| *c == '\n' || *c == '\t' || !is_control(*c)).collect()
}

fn is_control(c: char) -> bool {
    // Beside the C0 and C1 sets: marks that reorder or hide text.
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_taken_out() {
        assert_eq!(printable("a\x1b[31mred\x07\r\n\tb\u{9b}0m\u{202e}"), "a[31mred\n\tb0m");
    }

    #[test]
    fn a_child_sees_nothing_of_our_environment() {
        let gate = GateDir::new("/gate".into());
        let command = gate.git(Path::new("/r"), Objects::Own);
        let names: Vec<_> = command.get_envs().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        let expected = [
            "GIT_ALLOW_PROTOCOL",
            "GIT_ATTR_NOSYSTEM",
            "GIT_CONFIG_GLOBAL",
            "GIT_CONFIG_NOSYSTEM",
            "GIT_DIR",
            "GIT_NO_REPLACE_OBJECTS",
            "GIT_TERMINAL_PROMPT",
            "HOME",
            "LC_ALL",
            "PATH",
            "XDG_CONFIG_HOME",
        ];
        assert_eq!(names, expected);
    }
}
