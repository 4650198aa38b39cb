//! What of a working copy's git directory is kept from the agent: the parts that the host's git runs as code.
//!
//! `config`, `hooks` and `info` are bound read-only; what they stand in is made a mount point, so that it cannot be
//! renamed away. `commondir` would send the host's git to another directory for all of these: while a bottle is open the
//! file is there, says "here", and cannot be written. A file `.git` says where the git directory is: it cannot be written
//! either, and what it stands in cannot be renamed away.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::unistd::{Gid, Uid, UnlinkatFlags};

use crate::sys::descriptors::open_beneath;
use crate::workdir::{self, shown};

mod beyond;
mod modules;

pub use beyond::beyond;

/// A path below the working directory, and how it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protected {
    /// Cannot be moved or replaced.
    Pinned(PathBuf),
    /// Cannot be moved, replaced or written.
    ReadOnly(PathBuf),
}

/// Why a working copy cannot be kept safe.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// A link points out of what is protected.
    #[error(
        "{} is a symbolic link: what it points at could be written in the bottle and run by git outside", shown(.0)
    )]
    Link(PathBuf),
    /// A git directory, where code of git's lies beside everything else.
    #[error("{} is a git directory, not a working copy", shown(.0))]
    Inside(PathBuf),
    /// The git directory has another name, in the working directory.
    #[error(
        "{} leads to {}, in the working directory, where configuration and hooks could be written in the bottle and run \
         by git outside",
        shown(.file), shown(.directory)
    )]
    Apart {
        /// The file that says so.
        file: PathBuf,
        /// What it says.
        directory: PathBuf,
    },
    /// Neither file nor directory.
    #[error("{} is not what git puts there", shown(.0))]
    Odd(PathBuf),
    /// More submodules than are looked at.
    #[error("{} has more than {SUBMODULES_MAX} submodules or other working copies in it", shown(.0))]
    TooMany(PathBuf),
    /// Somebody holds it alone for a moment.
    #[error("another bottle is starting on this repository, {}", shown(.0))]
    Busy(PathBuf),
    /// It cannot be prepared.
    #[error("cannot prepare {}", shown(.path))]
    Prepare {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl GitError {
    /// What to do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            GitError::Link(_) => "replace the link by what it points at, or give the bottle another clone",
            GitError::Inside(_) | GitError::Odd(_) | GitError::TooMany(_) => {
                "give the bottle another clone of the repository"
            }
            GitError::Apart { .. } => {
                "put the git directory in the place of the file, or move it out of the working directory"
            }
            GitError::Busy(_) => "try again; if it stays so, look for a program that locks the directory",
            GitError::Prepare { .. } => {
                "the bottle keeps .git/config, hooks and info read-only, and needs to make what is missing"
            }
        }
    }
}

const SUBMODULES_MAX: usize = 500;
const HERE: &str = ".\n";

/// The git directories of a working copy, prepared and held until the bottle is gone.
#[derive(Debug)]
pub struct WorkingCopy {
    path: PathBuf,
    protected: Vec<Protected>,
    placed: Vec<PathBuf>,
    lock: Option<Flock<File>>,
    before: Vec<(PathBuf, Print)>,
    dot_git: Option<Kind>,
    signs: Vec<String>,
}

/// Enough of a file to see that it is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Print(u64, i64, i64, u64);

impl WorkingCopy {
    /// Prepares the working copy at `path`: makes what is missing, and lists what has to be kept. `git_files` are the
    /// files in it, at any depth, that are named `.git`.
    ///
    /// # Errors
    /// When something in it cannot be kept.
    pub fn prepare(path: &Path, git_files: &[PathBuf]) -> Result<WorkingCopy, GitError> {
        let mut copy = WorkingCopy {
            path: path.to_path_buf(),
            protected: Vec::new(),
            placed: Vec::new(),
            lock: None,
            before: Vec::new(),
            dot_git: kind(&path.join(DOT_GIT))?,
            signs: Vec::new(),
        };
        if is_git_directory(path) {
            return Err(GitError::Inside(path.to_path_buf()));
        }
        let dot_git = Path::new(DOT_GIT);
        match copy.dot_git {
            None => {}
            Some(Kind::File) => {
                not_apart(path)?;
                copy.protected.push(Protected::ReadOnly(dot_git.into()));
            }
            Some(Kind::Directory) => {
                let full = path.join(dot_git);
                let file = File::open(&full).map_err(|source| prepare(&full, source))?;
                let lock =
                    Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, errno)| match errno {
                        Errno::EWOULDBLOCK => GitError::Busy(full.clone()),
                        errno => prepare(&full, errno.into()),
                    })?;
                copy.lock = Some(lock);
                copy.directory(dot_git)?;
                for directory in modules::git_directories(path, &dot_git.join("modules"))? {
                    copy.pin_way_to(&directory);
                    copy.directory(&directory)?;
                }
            }
        }
        let submodules: Vec<&PathBuf> = git_files.iter().filter(|file| !file.starts_with(dot_git)).collect();
        if submodules.len() > SUBMODULES_MAX {
            return Err(GitError::TooMany(path.to_path_buf()));
        }
        for file in submodules {
            copy.pin_way_to(file);
            copy.protected.push(Protected::ReadOnly(file.clone()));
        }
        copy.signs = copy.signs();
        copy.before = copy.prints();
        Ok(copy)
    }

    /// What is kept, outermost first.
    #[must_use]
    pub fn protected(&self) -> &[Protected] {
        &self.protected
    }

    /// Takes away what was put there for the bottle, and says what is not as it was.
    #[must_use]
    pub fn close(self) -> Vec<String> {
        let after = self.prints();
        let mut remarks: Vec<String> = self
            .before
            .iter()
            .filter(|entry| !after.contains(entry))
            .map(|(path, _)| {
                format!("{} was changed while the bottle was open", shown(&self.path.join(path)))
            })
            .collect();
        remarks.extend(self.signs().into_iter().filter(|sign| !self.signs.contains(sign)));
        if let Some(lock) = self.lock
            && let Ok(_alone) = lock.relock(FlockArg::LockExclusiveNonblock)
        {
            for path in &self.placed {
                remove_placed(&self.path, path);
            }
        }
        remarks
    }

    /// Keeps the parts of one git directory.
    fn directory(&mut self, git: &Path) -> Result<(), GitError> {
        let full = self.path.join(git);
        let root = File::open(&self.path).map_err(|source| prepare(&self.path, source))?;
        let handle = open_beneath(root.as_fd(), git, libc::O_RDONLY | libc::O_DIRECTORY)
            .map_err(|source| prepare(&full, source))?;
        let place = Place { directory: handle, path: full.clone() };
        self.pin(git);
        place.ensure_file("config", "")?;
        place.ensure_directory("hooks")?;
        place.ensure_directory("info")?;
        let commondir = place.ensure_file("commondir", HERE)?;
        if commondir == HERE {
            self.placed.push(git.join("commondir"));
        }
        let config = place.read("config")?;
        if config.to_ascii_lowercase().contains("worktreeconfig") {
            place.ensure_file("config.worktree", "")?;
        }
        for name in ["config", "config.worktree", "commondir", "hooks", "info", "worktrees"] {
            if kind(&full.join(name))?.is_some() {
                self.protected.push(Protected::ReadOnly(git.join(name)));
            }
        }
        Ok(())
    }

    /// Keeps everything that `path` lies in.
    fn pin_way_to(&mut self, path: &Path) {
        let mut way: Vec<&Path> =
            path.ancestors().skip(1).filter(|part| !part.as_os_str().is_empty()).collect();
        way.reverse();
        for part in way {
            self.pin(part);
        }
    }

    fn pin(&mut self, path: &Path) {
        let pinned = Protected::Pinned(path.to_path_buf());
        if !self.protected.contains(&pinned) {
            self.protected.push(pinned);
        }
    }

    /// What makes git do other things here than it seems; matters when it was not so before.
    fn signs(&self) -> Vec<String> {
        let is_there = |path: &Path| path.symlink_metadata().is_ok();
        let dot_git = self.path.join(DOT_GIT);
        let mut signs = Vec::new();
        if is_bare(&self.path) {
            signs.push(format!(
                "{} is a git directory itself now: its configuration and hooks are the agent's",
                shown(&self.path)
            ));
        }
        match self.dot_git {
            None if is_there(&dot_git) => signs.push(format!(
                "{} was made in the bottle: its configuration and hooks are the agent's",
                shown(&dot_git)
            )),
            None | Some(Kind::File) => {}
            Some(Kind::Directory) => {
                let lost = PARTS.map(|name| dot_git.join(name)).into_iter().filter(|path| !is_there(path));
                signs.extend(lost.map(|path| {
                    format!("{} is gone: git looks for another repository without it", shown(&path))
                }));
                let begun = BEGUN.map(|name| dot_git.join(name)).into_iter().filter(|path| is_there(path));
                signs.extend(begun.map(|path| {
                    format!("{} was made in the bottle: going on with it may run what it says", shown(&path))
                }));
            }
        }
        signs
    }

    fn prints(&self) -> Vec<(PathBuf, Print)> {
        let read_only = self.protected.iter().filter_map(|protected| match protected {
            Protected::ReadOnly(path) => Some(path),
            Protected::Pinned(_) => None,
        });
        read_only
            .map(|path| {
                let print = match self.path.join(path).symlink_metadata() {
                    Ok(found) => Print(found.ino(), found.mtime(), found.mtime_nsec(), found.len()),
                    Err(_) => Print(0, 0, 0, 0),
                };
                (path.clone(), print)
            })
            .collect()
    }
}

/// A git directory that is open.
struct Place {
    directory: OwnedFd,
    path: PathBuf,
}

impl Place {
    /// Makes `name` a file with `text` if there is none; the text of the file.
    fn ensure_file(&self, name: &str, text: &str) -> Result<String, GitError> {
        let path = self.path.join(name);
        match kind(&path)? {
            Some(Kind::File) => return self.read(name),
            Some(Kind::Directory) => return Err(GitError::Odd(path)),
            None => {}
        }
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let make = || -> io::Result<()> {
            let mode = Mode::from_bits_truncate(0o644);
            let mut file = File::from(nix::fcntl::openat(&self.directory, name, flags, mode)?);
            file.write_all(text.as_bytes())?;
            self.give_to_owner(file.as_fd())
        };
        make().map_err(|source| prepare(&path, source))?;
        Ok(text.to_owned())
    }

    fn ensure_directory(&self, name: &str) -> Result<(), GitError> {
        let path = self.path.join(name);
        match kind(&path)? {
            Some(Kind::Directory) => return Ok(()),
            Some(Kind::File) => return Err(GitError::Odd(path)),
            None => {}
        }
        let make = || -> io::Result<()> {
            nix::sys::stat::mkdirat(&self.directory, name, Mode::from_bits_truncate(0o755))?;
            let made =
                open_beneath(self.directory.as_fd(), Path::new(name), libc::O_RDONLY | libc::O_DIRECTORY)?;
            self.give_to_owner(made.as_fd())
        };
        make().map_err(|source| prepare(&path, source))
    }

    fn read(&self, name: &str) -> Result<String, GitError> {
        let read = || -> io::Result<String> {
            let file =
                open_beneath(self.directory.as_fd(), Path::new(name), libc::O_RDONLY | libc::O_NONBLOCK)?;
            let mut bytes = Vec::new();
            File::from(file).take(TEXT_MAX).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().map_err(|source| prepare(&self.path.join(name), source))
    }

    fn give_to_owner(&self, made: BorrowedFd<'_>) -> io::Result<()> {
        let owner: FileStat = nix::sys::stat::fstat(&self.directory)?;
        if nix::unistd::geteuid().is_root() {
            nix::unistd::fchown(made, Some(Uid::from_raw(owner.st_uid)), Some(Gid::from_raw(owner.st_gid)))?;
        }
        Ok(())
    }
}

const DOT_GIT: &str = ".git";
/// What git knows a git directory by.
const PARTS: [&str; 3] = ["HEAD", "objects", "refs"];
/// What git leaves there in the middle of a longer work, with commands to go on with.
const BEGUN: [&str; 3] = ["rebase-merge", "rebase-apply", "sequencer"];
const TEXT_MAX: u64 = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
}

/// Whether git, started in `path`, would take it for a git directory itself, or it lies in one.
fn is_git_directory(path: &Path) -> bool {
    is_bare(path) || path.components().any(|part| part.as_os_str() == ".git")
}

fn is_bare(path: &Path) -> bool {
    PARTS.iter().all(|name| path.join(name).symlink_metadata().is_ok())
}

/// Refuses the file `.git` in `root` when it leads to a git directory in `root`, now or after a change of the agent's.
fn not_apart(root: &Path) -> Result<(), GitError> {
    let file = root.join(DOT_GIT);
    let mut bytes = Vec::new();
    File::open(&file)
        .and_then(|file| file.take(TEXT_MAX).read_to_end(&mut bytes))
        .map_err(|source| prepare(&file, source))?;
    let Some(said) = bytes.strip_prefix(b"gitdir: ") else { return Ok(()) };
    let end = said.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
    let directory = PathBuf::from(OsStr::from_bytes(&said[..end]));
    let leads_here = leads_into(root, &directory).map_err(|source| prepare(&file, source))?;
    if leads_here { Err(GitError::Apart { file, directory }) } else { Ok(()) }
}

/// Whether `path`, as `root` sees it, is in `root` or on its way goes through what is.
fn leads_into(root: &Path, path: &Path) -> io::Result<bool> {
    let whole = root.join(path);
    let mut plain = PathBuf::new();
    for part in whole.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
        if plain.starts_with(root) && plain != root {
            return Ok(true);
        }
    }
    let place = workdir::Place::look(root)?;
    let nearest = whole.ancestors().find_map(|part| workdir::Place::look(part).ok());
    Ok(plain == root || nearest.is_some_and(|nearest| nearest.lies_in(&place)))
}

/// What is at `path`; a link or anything odd is an error.
fn kind(path: &Path) -> Result<Option<Kind>, GitError> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(prepare(path, source)),
        Ok(found) if found.is_symlink() => Err(GitError::Link(path.to_path_buf())),
        Ok(found) if found.is_dir() => Ok(Some(Kind::Directory)),
        Ok(found) if found.is_file() => Ok(Some(Kind::File)),
        Ok(_) => Err(GitError::Odd(path.to_path_buf())),
    }
}

/// Removes the `commondir` that was placed, if it is still that.
fn remove_placed(root: &Path, path: &Path) {
    let remove = || -> io::Result<()> {
        let root = File::open(root)?;
        let parent = path.parent().unwrap_or(Path::new("."));
        let directory = open_beneath(root.as_fd(), parent, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let found = nix::sys::stat::fstatat(&directory, "commondir", AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let is_file = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        if is_file && found.st_size == HERE.len() as i64 {
            nix::unistd::unlinkat(&directory, "commondir", UnlinkatFlags::NoRemoveDir)?;
        }
        Ok(())
    };
    if let Err(error) = remove() {
        tracing::debug!(path = %path.display(), %error, "commondir stays");
    }
}

fn prepare(path: &Path, source: io::Error) -> GitError {
    GitError::Prepare { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn repository() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join(".git/modules/a/b")).expect("directories");
        fs::write(root.path().join(".git/config"), "[extensions]\n\tworktreeConfig = true\n")
            .expect("a file");
        fs::write(root.path().join(".git/modules/a/b/HEAD"), "ref: refs/heads/main\n").expect("a file");
        root
    }

    #[test]
    fn every_file_that_git_runs_as_code_is_kept_and_what_holds_it_is_pinned() {
        let root = repository();
        let copy = WorkingCopy::prepare(root.path(), &[]).expect("prepared");
        let lines: Vec<String> = copy.protected().iter().map(|entry| format!("{entry:?}")).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        Pinned(".git")
        ReadOnly(".git/config")
        ReadOnly(".git/config.worktree")
        ReadOnly(".git/commondir")
        ReadOnly(".git/hooks")
        ReadOnly(".git/info")
        Pinned(".git/modules")
        Pinned(".git/modules/a")
        Pinned(".git/modules/a/b")
        ReadOnly(".git/modules/a/b/config")
        ReadOnly(".git/modules/a/b/commondir")
        ReadOnly(".git/modules/a/b/hooks")
        ReadOnly(".git/modules/a/b/info")
        "#);
    }

    #[test]
    fn the_file_that_was_placed_is_gone_when_the_last_bottle_closes() {
        let root = repository();
        let commondir = root.path().join(".git/commondir");
        let first = WorkingCopy::prepare(root.path(), &[]).expect("prepared");
        let second = WorkingCopy::prepare(root.path(), &[]).expect("prepared");
        assert_eq!(first.close(), Vec::<String>::new());
        assert_eq!(fs::read_to_string(&commondir).expect("still there"), HERE);
        assert_eq!(second.close(), Vec::<String>::new());
        assert!(!commondir.exists());
    }

    #[test]
    fn hooks_that_are_a_link_are_refused() {
        let root = repository();
        std::os::unix::fs::symlink("../hooks", root.path().join(".git/hooks")).expect("a link");
        let error = WorkingCopy::prepare(root.path(), &[]).expect_err("refused");
        assert!(matches!(error, GitError::Link(path) if path.ends_with(".git/hooks")));
    }

    #[test]
    fn a_git_directory_is_no_working_copy() {
        let root = repository();
        fs::create_dir_all(root.path().join("bare.git/refs")).expect("directories");
        fs::create_dir(root.path().join("bare.git/objects")).expect("a directory");
        fs::write(root.path().join("bare.git/HEAD"), "ref: refs/heads/main\n").expect("a file");
        for name in ["bare.git", ".git", ".git/modules"] {
            let error = WorkingCopy::prepare(&root.path().join(name), &[]).expect_err("refused");
            assert!(matches!(error, GitError::Inside(_)), "{name}");
        }
    }

    #[test]
    fn a_configuration_that_changed_meanwhile_is_told() {
        let root = repository();
        let copy = WorkingCopy::prepare(root.path(), &[]).expect("prepared");
        fs::write(root.path().join(".git/config"), "[core]\n\tfsmonitor = ./evil\n").expect("written");
        let remarks = copy.close();
        assert_eq!(remarks.len(), 1);
        assert!(remarks[0].ends_with(".git/config was changed while the bottle was open"));
    }

    #[test]
    fn a_repository_that_appears_is_told() {
        let root = tempfile::tempdir().expect("a directory");
        let copy = WorkingCopy::prepare(root.path(), &[]).expect("prepared");
        fs::create_dir(root.path().join(".git")).expect("a directory");
        assert_eq!(copy.close().len(), 1);
    }

    #[test]
    fn the_git_file_of_a_submodule_is_kept_and_cannot_be_moved_away() {
        let root = tempfile::tempdir().expect("a directory");
        let files = ["libs/a/.git".into(), "libs/b/.git".into()];
        let copy = WorkingCopy::prepare(root.path(), &files).expect("prepared");
        let lines: Vec<String> = copy.protected().iter().map(|entry| format!("{entry:?}")).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        Pinned("libs")
        Pinned("libs/a")
        ReadOnly("libs/a/.git")
        Pinned("libs/b")
        ReadOnly("libs/b/.git")
        "#);
    }

    #[test]
    fn more_submodules_than_are_kept_are_refused() {
        let root = tempfile::tempdir().expect("a directory");
        let files: Vec<PathBuf> =
            (0..=SUBMODULES_MAX).map(|number| format!("{number}/.git").into()).collect();
        assert!(matches!(WorkingCopy::prepare(root.path(), &files), Err(GitError::TooMany(_))));
    }

    #[test]
    fn a_git_file_that_leads_into_the_working_directory_is_refused_and_another_is_not() {
        let around = tempfile::tempdir().expect("a directory");
        let root = around.path().join("work");
        fs::create_dir_all(root.join("real")).expect("directories");
        fs::create_dir(around.path().join("outside")).expect("a directory");
        std::os::unix::fs::symlink("work/real", around.path().join("alias")).expect("a link");
        let verdict = |directory: &str| {
            fs::write(root.join(".git"), format!("gitdir: {directory}\n")).expect("a file");
            match WorkingCopy::prepare(&root, &[]) {
                Ok(_) => "given",
                Err(GitError::Apart { .. }) => "refused",
                Err(error) => panic!("{error}"),
            }
        };
        let whole = root.join("real").display().to_string();
        for inside in [
            "real",
            "./real",
            "missing",
            ".",
            "../work/real",
            "real/../../outside",
            "../alias",
            "../alias/x",
            &whole,
        ] {
            assert_eq!(verdict(inside), "refused", "{inside}");
        }
        let whole = around.path().join("outside").display().to_string();
        for outside in ["../outside", "../missing", &whole] {
            assert_eq!(verdict(outside), "given", "{outside}");
        }
    }

    #[test]
    fn a_repository_that_is_locked_is_not_waited_for() {
        let root = repository();
        let held = File::open(root.path().join(".git")).expect("open");
        let _held = Flock::lock(held, FlockArg::LockExclusiveNonblock).expect("locked");
        let error = WorkingCopy::prepare(root.path(), &[]).expect_err("refused");
        assert!(error.to_string().starts_with("another bottle is starting on this repository, "));
    }

    #[test]
    fn what_makes_git_do_something_else_is_told() {
        let root = repository();
        let make = |name: &str| fs::create_dir(root.path().join(name)).expect("a directory");
        for part in [".git/HEAD", ".git/objects", ".git/refs", ".git/rebase-merge", "HEAD", "refs"] {
            make(part);
        }
        let copy = WorkingCopy::prepare(root.path(), &[]).expect("prepared");
        fs::remove_dir(root.path().join(".git/HEAD")).expect("removed");
        make(".git/sequencer");
        make("objects");
        let at = root.path().display().to_string();
        let told: Vec<String> = copy.close().iter().map(|remark| remark.replace(&at, "WORK")).collect();
        insta::assert_snapshot!(told.join("\n"), @r"
        WORK is a git directory itself now: its configuration and hooks are the agent's
        WORK/.git/HEAD is gone: git looks for another repository without it
        WORK/.git/sequencer was made in the bottle: going on with it may run what it says
        ");
    }
}
