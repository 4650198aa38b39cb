//! A person without bottles yet: a home, a configuration, a state and a working directory that exist for one test.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tempfile::TempDir;

/// The program, beside the daemons that it starts.
pub(crate) fn bottlecap() -> PathBuf {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_bottlecap"));
    for other in ["supervisor", "bottlecap-corpus"] {
        let other = program.with_file_name(other);
        assert!(other.exists(), "{} is not built: cargo build --workspace", other.display());
    }
    program
}

/// The person.
pub(crate) struct Person {
    root: TempDir,
}

impl Person {
    pub(crate) fn new() -> Person {
        let root = tempfile::tempdir().unwrap();
        // A bottle that root starts has a user of its own, who passes through here.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::create_dir(root.path().join("work")).unwrap();
        Person { root }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// A file and the directories that it lies in.
    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    /// Any program, as the person starts it: in the working directory, with nothing to read.
    pub(crate) fn starts(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.path("work")).stdin(Stdio::null());
        command.env_remove("BOTTLECAP_BOTTLE").env_remove("BOTTLECAP_BACKEND").env_remove("TMUX");
        for (name, place) in [
            ("HOME", "home"),
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_STATE_HOME", "state"),
            ("XDG_RUNTIME_DIR", "run"),
        ] {
            command.env(name, self.path(place));
        }
        command
    }

    /// `bottlecap WORDS…`
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.starts(bottlecap());
        command.args(words);
        command
    }

    pub(crate) fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What it prints, standard output first.
    pub(crate) fn said(&self, words: &[&str]) -> String {
        told(&self.output(words))
    }
}

/// What a program printed, standard output first.
pub(crate) fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits until `path` is there: what runs in a bottle makes it, and nothing else tells of it across the wall.
pub(crate) fn appears(path: &Path) {
    let changes = Inotify::init(InitFlags::empty()).unwrap();
    changes.add_watch(path.parent().unwrap(), AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO).unwrap();
    while !path.exists() {
        changes.read_events().unwrap();
    }
}
