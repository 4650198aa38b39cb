//! Writing and giving away below a directory that somebody else may write to: through no link, and never outside.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fchmod, mkdirat};

use super::descriptors::{open_beneath, open_path};

/// A directory, whatever its name is now.
#[derive(Debug)]
pub struct Tree(OwnedFd);

const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

impl Tree {
    /// The directory at `path`, which must not be a link itself.
    pub fn open(path: &Path) -> io::Result<Tree> {
        let found = open_path(path)?;
        open_beneath(found.as_fd(), Path::new("."), libc::O_DIRECTORY | libc::O_RDONLY).map(Tree)
    }

    /// Puts a file with `content` at `path` below it, in place of a file that is there; directories on the way are made.
    ///
    /// # Errors
    /// When something on the way is a link, or the place is taken by what is no file.
    pub fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.directories(path.parent().unwrap_or(Path::new("")))?;
        let (directory, name) = self.split(path)?;
        match nix::unistd::unlinkat(directory.as_fd(), name, nix::unistd::UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) | Ok(()) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(FILE_MODE);
        let mut file = File::from(nix::fcntl::openat(directory.as_fd(), name, flags, mode)?);
        fchmod(&file, mode)?;
        file.write_all(content)
    }

    /// Gives `path` below it to a user and a group. A link is given away itself, never what it points at.
    pub fn give(&self, path: &Path, user: u32, group: u32) -> io::Result<()> {
        let (directory, name) = self.split(path)?;
        let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
        let (user, group) = (nix::unistd::Uid::from_raw(user), nix::unistd::Gid::from_raw(group));
        Ok(nix::unistd::fchownat(directory.as_fd(), name, Some(user), Some(group), flags)?)
    }

    /// The directory that `path` lies in, and its name there.
    fn split<'p>(&self, path: &'p Path) -> io::Result<(OwnedFd, &'p std::ffi::OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok((open_beneath(self.0.as_fd(), parent, libc::O_DIRECTORY | libc::O_RDONLY)?, name))
    }

    fn directories(&self, path: &Path) -> io::Result<()> {
        let mut here = self.0.try_clone()?;
        for part in path.components() {
            let Component::Normal(name) = part else { return Err(io::ErrorKind::InvalidInput.into()) };
            here = step(here.as_fd(), name)?;
        }
        Ok(())
    }
}

fn step(directory: BorrowedFd<'_>, name: &std::ffi::OsStr) -> io::Result<OwnedFd> {
    match mkdirat(directory, name, Mode::from_bits_truncate(DIRECTORY_MODE)) {
        Err(Errno::EEXIST) => open_beneath(directory, Path::new(name), libc::O_DIRECTORY | libc::O_RDONLY),
        Err(errno) => Err(errno.into()),
        Ok(()) => {
            let made = open_beneath(directory, Path::new(name), libc::O_DIRECTORY | libc::O_RDONLY)?;
            // Whatever the umask of whoever starts us is.
            fchmod(&made, Mode::from_bits_truncate(DIRECTORY_MODE))?;
            Ok(made)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    struct Stage {
        root: tempfile::TempDir,
        tree: Tree,
    }

    /// A directory `in` that an agent had, beside a file `out/victim` of the host.
    fn stage() -> Stage {
        let root = tempfile::tempdir().expect("a directory");
        for name in ["in", "out"] {
            fs::create_dir(root.path().join(name)).expect("made");
        }
        fs::write(root.path().join("out/victim"), "of the host").expect("written");
        let tree = Tree::open(&root.path().join("in")).expect("opened");
        Stage { root, tree }
    }

    #[test]
    fn a_file_is_written_with_the_directories_on_the_way() {
        let stage = stage();
        stage.tree.write(Path::new("a/b/file"), b"one").expect("written");
        stage.tree.write(Path::new("a/b/file"), b"two").expect("written again");
        assert_eq!(fs::read(stage.root.path().join("in/a/b/file")).expect("read"), b"two");
    }

    #[test]
    fn no_link_leads_the_writing_out() {
        let stage = stage();
        let own = stage.root.path().join("in");
        symlink("../out", own.join("directory")).expect("a link");
        symlink("../out/victim", own.join("file")).expect("a link");
        symlink(stage.root.path().join("out"), own.join("absolute")).expect("a link");
        for path in ["directory/victim", "absolute/victim", "../out/victim", "directory/../../out/victim"] {
            assert!(stage.tree.write(Path::new(path), b"of the agent").is_err(), "{path}");
        }
        // A link in the last place is replaced, and what it pointed at stays.
        stage.tree.write(Path::new("file"), b"ours").expect("written");
        assert_eq!(fs::read_to_string(stage.root.path().join("out/victim")).expect("read"), "of the host");
        assert!(!fs::symlink_metadata(own.join("file")).expect("there").is_symlink());
        // The same words do lead out for who follows links.
        fs::write(own.join("directory/victim"), "of the agent").expect("written");
        assert_eq!(fs::read_to_string(stage.root.path().join("out/victim")).expect("read"), "of the agent");
    }

    #[test]
    fn a_link_is_given_away_and_not_what_it_points_at() {
        // Root shows that the owner changes; anybody that the call reaches the link alone.
        let root = nix::unistd::geteuid().is_root();
        let (user, group) = if root {
            (64_300, 64_300)
        } else {
            (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
        };
        let before = fs::metadata("/proc/self").expect("there").uid();
        let stage = stage();
        let own = stage.root.path().join("in");
        symlink("../out/victim", own.join("link")).expect("a link");
        symlink("../out", own.join("directory")).expect("a link");
        stage.tree.give(Path::new("link"), user, group).expect("given");
        assert!(stage.tree.give(Path::new("directory/victim"), user, group).is_err());
        assert_eq!(fs::metadata(stage.root.path().join("out/victim")).expect("there").uid(), before);
        assert_eq!(fs::symlink_metadata(own.join("link")).expect("there").uid(), user);
    }
}
