//! A working copy of a bottle's own: a clone of a repository of the host, kept in the bottle's state.
//!
//! The host's git reads the repository and writes the clone before anything in the bottle lives. It runs nothing that either
//! of them brings: no hook, no file system monitor, no filter, no other transport than reading files. It follows nothing out
//! of the repository (`contained.rs`).

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use crate::errand::{self, Said};
use crate::fault::{Attempted, Fault};
use crate::progress::Progress;
use crate::state::Home;
use crate::workdir::shown;

mod contained;
mod origin;

/// The longest that git may take.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// What git says beside its progress when nothing is wrong.
const ASIDE: [&str; 2] = ["Cloning into ", "remote: Total "];
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
            "GIT_NO_LAZY_FETCH=1 git -C {} fetch --no-tags --no-recurse-submodules {} '+refs/heads/*:refs/remotes/{bottle}/*'",
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
    // No bottle that works in the repository changes it meanwhile.
    let _held = contained::hold(source)?;
    let told = || format!("cannot make {}", shown(&wanted.clone));
    crate::state::own_directory(home.path(), 0o700)?;
    let parent = home.path().join(WORK);
    crate::state::own_directory(&parent, 0o700)?;
    let new = tempfile::Builder::new().prefix(".new-").tempdir_in(&parent).failing(told)?;
    let clone = new.path().join("clone");
    let git = Git::new(new.path(), source).failing(told)?;
    // By its whole address, and strictly: git would try other names beside a path, in it and next to it.
    let strictly = "--upload-pack=git upload-pack --strict";
    let dot_git = source.join(".git");
    let words = ["clone", "--progress", "--no-local", strictly, "--template=", "--"];
    git.copy(&[&words[..], &[&address(&dot_git), path(&clone)?]].concat(), source)?;
    let config = dot_git.join("config");
    let url = git.say(&["config", "--file", path(&config)?, "--get", "remote.origin.url"])?;
    match url.and_then(|url| origin::without_credentials(&url)) {
        // What the bottle, and whoever sees our arguments, may know of it.
        Some(url) => git.run(&["-C", path(&clone)?, "remote", "set-url", "origin", &url])?,
        None => git.run(&["-C", path(&clone)?, "remote", "remove", "origin"])?,
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

/// `path` as git reads an address.
fn address(path: &Path) -> String {
    let mut text = "file://".to_owned();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            text.push(char::from(*byte));
        } else {
            // Writing to a text does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
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
        command.env("HOME", "/nonexistent").env("LC_ALL", "C").current_dir("/");
        command.args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]).args(words);
        command
    }

    fn ask(&self, words: &[&str]) -> Result<Said, Fault> {
        errand::finish(self.command(words), Vec::new(), PATIENCE)
    }

    fn run(&self, words: &[&str]) -> Result<(), Fault> {
        Git::good(self.ask(words)?)
    }

    /// The same for what takes a while: the copy of `source`.
    fn copy(&self, words: &[&str], source: &Path) -> Result<(), Fault> {
        let mut progress = Progress::start(format!("cloning {}", shown(source)));
        let take = move |line: &str| progress.git(line) || ASIDE.iter().any(|words| line.starts_with(words));
        Git::good(errand::finish_hearing(self.command(words), Vec::new(), PATIENCE, take)?)
    }

    fn good(said: Said) -> Result<(), Fault> {
        if said.good {
            return Ok(());
        }
        Err(Fault::refused(format!("the working copy cannot be cloned: {}", proposal::escaped(&said.errors)))
            .with_hint("--mount DIR gives the bottle the directory itself"))
    }

    /// What git prints, where it succeeds.
    fn say(&self, words: &[&str]) -> Result<Option<String>, Fault> {
        let said = self.ask(words)?;
        Ok((said.good && !said.output.is_empty()).then_some(said.output))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::state::Directories;
    use std::os::unix::fs::PermissionsExt;

    /// A way out of a repository, and how it is laid there.
    type Way<'a> = (&'a str, &'a dyn Fn(&Path));

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
    fn a_repository_that_leads_to_another_is_refused_and_nothing_of_that_is_copied() {
        let other = Stage::new();
        let git_of = other.source().join(".git");
        let head = git(&other.source(), &["rev-parse", "HEAD"]);
        let whole = |name: &str| git_of.join(name).display().to_string();
        let link = |from: &Path, to: &Path| std::os::unix::fs::symlink(from, to).unwrap();
        let replace = |source: &Path, name: &str| {
            fs::remove_dir_all(source.join(".git").join(name)).unwrap();
            link(&git_of.join(name), &source.join(".git").join(name));
        };
        let ways: [Way<'_>; 10] = [
            (".git", &|source| {
                fs::remove_dir_all(source.join(".git")).unwrap();
                link(&git_of, &source.join(".git"));
            }),
            (".git", &|source| {
                fs::remove_dir_all(source.join(".git")).unwrap();
                fs::write(source.join(".git"), format!("gitdir: {}\n", git_of.display())).unwrap();
            }),
            (".git/commondir", &|source| {
                fs::write(source.join(".git/commondir"), git_of.to_str().unwrap()).unwrap();
            }),
            (".git/objects/info/alternates", &|source| {
                fs::write(source.join(".git/objects/info/alternates"), whole("objects")).unwrap();
                fs::write(source.join(".git/refs/heads/theirs"), &head).unwrap();
            }),
            (".git/objects/info/http-alternates", &|source| {
                fs::write(source.join(".git/objects/info/http-alternates"), "https://a.test").unwrap();
            }),
            (".git/objects", &|source| replace(source, "objects")),
            (".git/refs", &|source| replace(source, "refs")),
            (".git/objects/zz", &|source| link(&git_of.join("objects"), &source.join(".git/objects/zz"))),
            (".git/packed-refs", &|source| {
                nix::unistd::mkfifo(&source.join(".git/packed-refs"), nix::sys::stat::Mode::S_IRUSR).unwrap();
            }),
            (".git/s", &|source| {
                std::os::unix::net::UnixListener::bind(source.join(".git/s")).unwrap();
            }),
        ];
        for (place, way) in ways {
            let stage = Stage::new();
            way(&stage.source());
            let fault = make(&stage.home, &stage.source()).unwrap_err();
            let told = fault.to_string();
            let wanted = format!("leads out of itself, by {}:", stage.source().join(place).display());
            assert!(told.contains(&wanted), "{place}: {told}");
            assert!(fault.hint().unwrap().contains("--mount DIR"), "{fault}");
            assert!(!place_of_clone(&stage).exists(), "{place}");
        }
        // What a bottle leaves there itself, and what git does: a linked worktree elsewhere.
        let stage = Stage::new();
        fs::write(stage.source().join(".git/commondir"), ".\n").unwrap();
        let linked = stage.root.path().join("linked");
        git(&stage.source(), &["worktree", "add", "-q", linked.to_str().unwrap()]);
        make(&stage.home, &stage.source()).unwrap();
    }

    fn place_of_clone(stage: &Stage) -> PathBuf {
        place(&stage.home, &stage.source())
    }

    #[test]
    fn git_takes_no_other_repository_than_the_one_that_was_looked_at() {
        // A repository whose name git would try as well: bare, beside it, and in it.
        let decoy = |at: &Path| {
            let made = Command::new("git").args(["init", "-q", "--bare"]).arg(at).status().unwrap();
            assert!(made.success());
        };
        let places: [fn(&Path) -> PathBuf; 3] =
            [Path::to_path_buf, |source| source.with_extension("git"), |source| source.join(".git/.git")];
        for place in places {
            let stage = Stage::new();
            decoy(&place(&stage.source()));
            let clone = make(&stage.home, &stage.source()).unwrap().clone;
            assert!(clone.join("a").exists(), "the one that was asked for");
            let stage = Stage::new();
            decoy(&place(&stage.source()));
            fs::write(stage.source().join(".git/HEAD"), "nothing\n").unwrap();
            let told = make(&stage.home, &stage.source()).unwrap_err().to_string();
            assert!(told.starts_with("the working copy cannot be cloned"), "{told}");
        }
    }

    #[test]
    fn a_name_that_git_could_read_otherwise_is_only_a_name() {
        let stage = Stage::new();
        let odd = stage.root.path().join("a b%20c'd:$(x)\u{fc}");
        fs::rename(stage.source(), &odd).unwrap();
        let origin = make(&stage.home, &odd).unwrap();
        assert!(origin.clone.join("a").exists());
    }

    #[test]
    fn a_password_in_the_address_of_the_original_is_not_in_the_clone() {
        let stage = Stage::new();
        git(&stage.source(), &["remote", "add", "origin", "https://me:S3CRET@git.example.com/acme/web.git"]);
        let origin = make(&stage.home, &stage.source()).unwrap();
        let kept = git(&origin.clone, &["config", "remote.origin.url"]);
        assert_eq!(kept, "https://git.example.com/acme/web.git");
        let found = Command::new("grep").args(["-r", "S3CRET"]).arg(stage.home.path()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    }

    #[test]
    fn what_comes_back_are_branches_alone() {
        let stage = Stage::new();
        let origin = make(&stage.home, &stage.source()).unwrap();
        git(&origin.clone, &["tag", "v1"]);
        let back = origin.way_back("b");
        assert!(Command::new("sh").arg("-c").arg(&back).status().unwrap().success(), "{back}");
        assert_eq!(git(&stage.source(), &["tag", "--list"]), "");
        let git_runs = Command::new("sh")
            .arg("-c")
            .arg(back.replace("git -C", "printenv GIT_NO_LAZY_FETCH; : "))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&git_runs.stdout), "1\n", "{back}");
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
