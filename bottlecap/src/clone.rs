//! A working copy of a bottle's own: a clone of a repository of the host, kept in the bottle's state.
//!
//! The host's git reads the repository and writes the clone before anything in the bottle lives. It runs nothing that either
//! of them brings: no hook, no file system monitor, no filter, no other transport than reading files.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::fault::{Attempted, Fault};
use crate::state::Home;
use crate::workdir::shown;

/// Where a clone is kept in a bottle's state.
const WORK: &str = "work";
/// What is known about it, where the bottle cannot write.
const RECORD: &str = "clone.json";

/// Where the work of a bottle is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Copy {
    /// In the directory itself.
    #[default]
    Live,
    /// In a clone of it.
    Clone,
}

/// What a bottle's clone is a clone of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The repository.
    pub source: PathBuf,
    /// The clone.
    pub clone: PathBuf,
}

/// That of the bottle at `home`, if it has one.
#[must_use]
pub fn of(home: &Home) -> Option<Origin> {
    serde_json::from_slice(&fs::read(home.path().join(RECORD)).ok()?).ok()
}

/// Where the clone of `source` is to be.
#[must_use]
pub fn place(home: &Home, source: &Path) -> PathBuf {
    home.path().join(WORK).join(source.file_name().unwrap_or("work".as_ref()))
}

impl Origin {
    /// How the work comes back.
    #[must_use]
    pub fn way_back(&self, bottle: &str) -> String {
        format!(
            "git -C {} fetch {} '+refs/heads/*:refs/remotes/{bottle}/*'",
            quoted(&self.source),
            quoted(&self.clone)
        )
    }
}

/// As a shell reads it.
fn quoted(path: &Path) -> String {
    let text = shown(path).to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+@:".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// The clone of `source` for the bottle at `home`: the one that is there, with the work in it, or a new one.
pub fn make(home: &Home, source: &Path) -> Result<Origin, Fault> {
    let wanted = Origin { source: source.to_path_buf(), clone: place(home, source) };
    match of(home) {
        Some(origin) if origin == wanted && origin.clone.exists() => return Ok(origin),
        Some(origin) if origin.clone.exists() => {
            return Err(Fault::refused(format!(
                "the bottle's clone is one of {}, not of {}",
                shown(&origin.source),
                shown(source)
            ))
            .with_hint("choose another --name, or fetch the work and run `bottlecap cleanup --history`"));
        }
        Some(_) | None => {}
    }
    if !source.join(".git").exists() {
        return Err(Fault::refused(format!("{} is not a git working copy", shown(source)))
            .with_hint("--mount DIR gives the bottle the directory itself"));
    }
    let told = || format!("cannot make {}", shown(&wanted.clone));
    crate::state::own_directory(home.path(), 0o700)?;
    let parent = home.path().join(WORK);
    crate::state::own_directory(&parent, 0o700)?;
    let new = tempfile::Builder::new().prefix(".new-").tempdir_in(&parent).failing(told)?;
    let clone = new.path().join("clone");
    let git = Git::new(new.path(), source).failing(told)?;
    git.run(&["clone", "--quiet", "--no-local", "--template=", "--", path(source)?, path(&clone)?])?;
    match git.say(&["-C", path(source)?, "config", "--local", "--get", "remote.origin.url"])? {
        Some(url) if !url.starts_with('-') => {
            git.run(&["-C", path(&clone)?, "remote", "set-url", "origin", &url])?;
        }
        Some(_) | None => git.run(&["-C", path(&clone)?, "remote", "remove", "origin"])?,
    }
    if geteuid().is_root() {
        let owner = fs::metadata(source).failing(told)?;
        give(&clone, owner.uid(), owner.gid()).failing(told)?;
    }
    // First: a record without a clone is made good by the next start, a clone without a record is in its way.
    let text = serde_json::to_vec(&wanted).failing(told)?;
    fs::write(home.path().join(RECORD), text).failing(told)?;
    fs::rename(&clone, &wanted.clone).failing(told)?;
    Ok(wanted)
}

fn path(path: &Path) -> Result<&str, Fault> {
    path.to_str().ok_or_else(|| Fault::refused(format!("{} is not text", shown(path))))
}

/// Nobody else has had it yet; links are given away themselves.
fn give(path: &Path, user: u32, group: u32) -> io::Result<()> {
    lchown(path, Some(user), Some(group))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user, group)?;
        }
    }
    Ok(())
}

/// The host's git, which runs nothing that a repository brings.
struct Git {
    configuration: PathBuf,
}

impl Git {
    /// `directory` is a place for its configuration; `source` may belong to somebody else.
    fn new(directory: &Path, source: &Path) -> io::Result<Git> {
        let configuration = directory.join("gitconfig");
        let quoted = source.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
        let text = format!(
            "[safe]\n\tdirectory = \"{quoted}\"\n\tdirectory = \"{quoted}/.git\"\n[core]\n\tfsmonitor = false\n\thooksPath = /dev/null\n"
        );
        fs::write(&configuration, text)?;
        Ok(Git { configuration })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.env("GIT_CONFIG_GLOBAL", &self.configuration).env("GIT_CONFIG_NOSYSTEM", "1");
        // These cannot be changed by the configuration of a repository.
        command
            .env("GIT_ALLOW_PROTOCOL", "file")
            .env("GIT_NO_LAZY_FETCH", "1")
            .env("GIT_TERMINAL_PROMPT", "0");
        command.env("HOME", "/nonexistent").env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
        command.args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]).args(words);
        command
    }

    fn run(&self, words: &[&str]) -> Result<(), Fault> {
        let output = self.command(words).output().failing(|| "cannot run git".to_owned())?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Fault::refused(format!("the working copy cannot be cloned: {}", proposal::escaped(&said)))
            .with_hint("--mount DIR gives the bottle the directory itself"))
    }

    /// What git prints; nothing where it ends with 1.
    fn say(&self, words: &[&str]) -> Result<Option<String>, Fault> {
        let output = self.command(words).output().failing(|| "cannot run git".to_owned())?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok((output.status.success() && !text.is_empty()).then_some(text))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::state::Directories;
    use std::os::unix::fs::PermissionsExt;

    struct Stage {
        root: tempfile::TempDir,
        home: Home,
    }

    fn git(directory: &Path, words: &[&str]) -> String {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=A", "-c", "user.email=a@x.test", "-c", "init.defaultBranch=main"]);
        let output = command.arg("-C").arg(directory).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    impl Stage {
        fn new() -> Stage {
            let root = tempfile::tempdir().unwrap();
            let state = root.path().join("state");
            let directories =
                Directories { bottles: state.join("bottles"), state, runtime: root.path().join("run") };
            directories.create().unwrap();
            let source = root.path().join("web");
            fs::create_dir(&source).unwrap();
            git(&source, &["init", "-q"]);
            fs::write(source.join("a"), "one\n").unwrap();
            git(&source, &["add", "a"]);
            git(&source, &["commit", "-qm", "one"]);
            let home = directories.home(&"b".parse().unwrap());
            Stage { root, home }
        }

        fn source(&self) -> PathBuf {
            self.root.path().join("web")
        }
    }

    #[test]
    fn work_is_done_in_a_clone_and_fetched_back() {
        let stage = Stage::new();
        git(&stage.source(), &["remote", "add", "origin", "ssh://git@git.example.com/acme/web.git"]);
        let origin = make(&stage.home, &stage.source()).unwrap();
        assert_eq!(fs::read_to_string(origin.clone.join("a")).unwrap(), "one\n");
        assert_eq!(
            git(&origin.clone, &["config", "remote.origin.url"]),
            "ssh://git@git.example.com/acme/web.git"
        );
        git(&origin.clone, &["commit", "-q", "--allow-empty", "-m", "two"]);
        assert_eq!(git(&stage.source(), &["log", "--format=%s"]), "one", "the original is as it was");
        let back = origin.way_back("b");
        let status = Command::new("sh").arg("-c").arg(&back).status().unwrap();
        assert!(status.success(), "{back}");
        assert_eq!(git(&stage.source(), &["log", "-1", "--format=%s", "b/main"]), "two");
        // The next start goes on in it.
        assert_eq!(make(&stage.home, &stage.source()).unwrap(), origin);
        assert_eq!(git(&origin.clone, &["log", "-1", "--format=%s"]), "two");
        let other = stage.root.path().join("other");
        let told = make(&stage.home, &other).unwrap_err().to_string();
        assert!(told.starts_with("the bottle's clone is one of"), "{told}");
    }

    #[test]
    fn nothing_that_the_repository_brings_is_run() {
        let stage = Stage::new();
        let (source, mark) = (stage.source(), stage.root.path().join("ran"));
        let evil = stage.root.path().join("evil");
        fs::write(&evil, format!("#!/bin/sh\ntouch {}\ncat\n", mark.display())).unwrap();
        fs::set_permissions(&evil, fs::Permissions::from_mode(0o755)).unwrap();
        let evil = evil.to_str().unwrap();
        for hook in ["post-checkout", "post-index-change", "reference-transaction"] {
            fs::copy(evil, source.join(".git/hooks").join(hook)).unwrap();
        }
        fs::write(source.join(".gitattributes"), "* filter=evil\n").unwrap();
        git(&source, &["add", ".gitattributes"]);
        git(&source, &["-c", "core.hooksPath=/dev/null", "commit", "-qm", "two"]);
        for (key, value) in [
            ("core.fsmonitor", evil),
            ("filter.evil.smudge", evil),
            ("filter.evil.clean", evil),
            ("uploadpack.packObjectsHook", evil),
            ("core.alternateRefsCommand", evil),
            ("core.sshCommand", evil),
        ] {
            git(&source, &["config", key, value]);
        }
        let _ = fs::remove_file(&mark);
        make(&stage.home, &source).unwrap();
        assert!(!mark.exists(), "something was run");
        // The same repository makes an ordinary git run it.
        git(&source, &["status"]);
        assert!(mark.exists());
    }

    #[test]
    fn objects_are_not_shared_with_the_original() {
        let stage = Stage::new();
        let origin = make(&stage.home, &stage.source()).unwrap();
        assert!(!origin.clone.join(".git/objects/info/alternates").exists());
        let object = git(&stage.source(), &["rev-parse", "HEAD"]);
        let (directory, name) = object.split_at(2);
        let original = stage.source().join(".git/objects").join(directory).join(name);
        assert_eq!(fs::metadata(original).unwrap().nlink(), 1);
    }

    #[test]
    fn what_is_no_working_copy_is_refused() {
        let stage = Stage::new();
        let told = make(&stage.home, stage.root.path()).unwrap_err();
        assert!(told.hint().unwrap().starts_with("--mount DIR"), "{told}");
    }
}
