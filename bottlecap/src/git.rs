//! What of a working copy's git directory is kept from the agent: the parts that the host's git runs as code.
//!
//! `config`, `hooks` and `info` are bound read-only; what they stand in is made a mount point, so that it cannot be
//! renamed away. `commondir` would send the host's git to another directory for all of these: while a bottle is open the
//! file is there, says "here", and cannot be written.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::unistd::{Gid, Uid, UnlinkatFlags};

use crate::sys::descriptors::open_beneath;

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
        "{0} is a symbolic link: what it points at could be written in the bottle and run by git outside"
    )]
    Link(PathBuf),
    /// A git directory, where code of git's lies beside everything else.
    #[error("{0} is a git directory, not a working copy")]
    Inside(PathBuf),
    /// Neither file nor directory.
    #[error("{0} is not what git puts there")]
    Odd(PathBuf),
    /// More submodules than are looked at.
    #[error("{0} has more than {MODULES_MAX} directories")]
    TooMany(PathBuf),
    /// It cannot be prepared.
    #[error("cannot prepare {path}")]
    Prepare {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

const MODULES_MAX: usize = 500;
const HERE: &str = ".\n";

/// The git directories of a working copy, prepared and held until the bottle is gone.
#[derive(Debug)]
pub struct WorkingCopy {
    path: PathBuf,
    protected: Vec<Protected>,
    placed: Vec<PathBuf>,
    lock: Option<Flock<File>>,
    before: Vec<(PathBuf, Print)>,
}

/// Enough of a file to see that it is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Print(u64, i64, i64, u64);

impl WorkingCopy {
    /// Prepares the working copy at `path`: makes what is missing, and lists what has to be kept.
    ///
    /// # Errors
    /// When something in it cannot be kept.
    pub fn prepare(path: &Path) -> Result<WorkingCopy, GitError> {
        let mut copy = WorkingCopy {
            path: path.to_path_buf(),
            protected: Vec::new(),
            placed: Vec::new(),
            lock: None,
            before: Vec::new(),
        };
        let dot_git = Path::new(".git");
        if is_git_directory(path) {
            return Err(GitError::Inside(path.to_path_buf()));
        }
        match kind(&path.join(dot_git))? {
            None => {}
            Some(Kind::File) => copy.protected.push(Protected::ReadOnly(dot_git.into())),
            Some(Kind::Directory) => {
                let file = File::open(path.join(dot_git)).map_err(|source| prepare(path, source))?;
                let lock = Flock::lock(file, FlockArg::LockShared)
                    .map_err(|(_, errno)| prepare(&path.join(dot_git), errno.into()))?;
                copy.lock = Some(lock);
                copy.directory(dot_git)?;
                copy.modules(&dot_git.join("modules"))?;
            }
        }
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
                format!("{} was changed while the bottle was open", self.path.join(path).display())
            })
            .collect();
        let appeared = self.protected.is_empty() && self.path.join(".git").symlink_metadata().is_ok();
        if appeared {
            remarks.push(format!(
                "{} was made in the bottle: its configuration and hooks are the agent's",
                self.path.join(".git").display()
            ));
        }
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
        self.protected.push(Protected::Pinned(git.to_path_buf()));
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

    /// Keeps the git directories of submodules, which may lie in one another.
    fn modules(&mut self, modules: &Path) -> Result<(), GitError> {
        let mut queue = vec![modules.to_path_buf()];
        let mut seen = 0;
        while let Some(directory) = queue.pop() {
            let full = self.path.join(&directory);
            if kind(&full)? != Some(Kind::Directory) {
                continue;
            }
            seen += 1;
            if seen > MODULES_MAX {
                return Err(GitError::TooMany(self.path.join(modules)));
            }
            if full.join("HEAD").symlink_metadata().is_ok() {
                self.directory(&directory)?;
                queue.push(directory.join("modules"));
                continue;
            }
            self.protected.push(Protected::Pinned(directory.clone()));
            for entry in fs::read_dir(&full).map_err(|source| prepare(&full, source))? {
                let entry = entry.map_err(|source| prepare(&full, source))?;
                queue.push(directory.join(entry.file_name()));
            }
        }
        Ok(())
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

const TEXT_MAX: u64 = 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
}

/// Whether git, started in `path`, would take it for a git directory itself, or it lies in one.
fn is_git_directory(path: &Path) -> bool {
    let bare = ["HEAD", "objects", "refs"].iter().all(|name| path.join(name).symlink_metadata().is_ok());
    bare || path.components().any(|part| part.as_os_str() == ".git")
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
        let copy = WorkingCopy::prepare(root.path()).expect("prepared");
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
        let first = WorkingCopy::prepare(root.path()).expect("prepared");
        let second = WorkingCopy::prepare(root.path()).expect("prepared");
        assert_eq!(first.close(), Vec::<String>::new());
        assert_eq!(fs::read_to_string(&commondir).expect("still there"), HERE);
        assert_eq!(second.close(), Vec::<String>::new());
        assert!(!commondir.exists());
    }

    #[test]
    fn hooks_that_are_a_link_are_refused() {
        let root = repository();
        std::os::unix::fs::symlink("../hooks", root.path().join(".git/hooks")).expect("a link");
        let error = WorkingCopy::prepare(root.path()).expect_err("refused");
        assert!(matches!(error, GitError::Link(path) if path.ends_with(".git/hooks")));
    }

    #[test]
    fn a_git_directory_is_no_working_copy() {
        let root = repository();
        fs::create_dir_all(root.path().join("bare.git/refs")).expect("directories");
        fs::create_dir(root.path().join("bare.git/objects")).expect("a directory");
        fs::write(root.path().join("bare.git/HEAD"), "ref: refs/heads/main\n").expect("a file");
        for name in ["bare.git", ".git", ".git/modules"] {
            let error = WorkingCopy::prepare(&root.path().join(name)).expect_err("refused");
            assert!(matches!(error, GitError::Inside(_)), "{name}");
        }
    }

    #[test]
    fn a_configuration_that_changed_meanwhile_is_told() {
        let root = repository();
        let copy = WorkingCopy::prepare(root.path()).expect("prepared");
        fs::write(root.path().join(".git/config"), "[core]\n\tfsmonitor = ./evil\n").expect("written");
        let remarks = copy.close();
        assert_eq!(remarks.len(), 1);
        assert!(remarks[0].ends_with(".git/config was changed while the bottle was open"));
    }

    #[test]
    fn a_repository_that_appears_is_told() {
        let root = tempfile::tempdir().expect("a directory");
        let copy = WorkingCopy::prepare(root.path()).expect("prepared");
        fs::create_dir(root.path().join(".git")).expect("a directory");
        assert_eq!(copy.close().len(), 1);
    }
}
