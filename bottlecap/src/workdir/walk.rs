//! Looks at everything in a directory before a bottle is given it. What cannot be seen is refused, not passed over: an
//! agent may have hidden it for the next bottle.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstatat};

use super::shown;
use crate::sys::descriptors::open_beneath;

/// What matters of the files in a directory, by paths relative to it, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Unix sockets.
    pub sockets: Vec<PathBuf>,
    /// Files named `.git`, which say where the git directory of a working copy is.
    pub git_files: Vec<PathBuf>,
}

/// What is thought of files that run with the rights of their owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetIds {
    /// One of them is enough to refuse: an agent that can write it would have those rights outside.
    Refused,
    /// They are as good as any other file.
    Accepted,
}

/// Why a directory could not be looked at as a whole, or what was found that must not be there.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// A part that cannot be seen.
    #[error("cannot look at everything in {}, where a socket of the host may be", shown(.path))]
    Unseen {
        /// The part.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is more than is looked at.
    #[error("{} has more than {limit} files", shown(.path))]
    TooMany {
        /// The directory.
        path: PathBuf,
        /// How many are looked at.
        limit: usize,
    },
    /// A file that runs with the rights of its owner.
    #[error(
        "{} has a set-user-id or set-group-id bit: the agent could rewrite it, and it would run with its owner's rights",
        shown(.0)
    )]
    SetId(PathBuf),
}

impl WalkError {
    /// What to do.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            WalkError::Unseen { path, source } if source.raw_os_error() == Some(libc::ENAMETOOLONG) => {
                format!("move {} up, or give the bottle another working directory", shown(path))
            }
            WalkError::Unseen { path, .. } => format!(
                "chmod u+rwx {} and what it lies in, or give the bottle another working directory",
                shown(path)
            ),
            WalkError::TooMany { .. } => {
                "take files out of it, or give the bottle another working directory".into()
            }
            WalkError::SetId(path) => format!("chmod u-s,g-s {}", shown(path)),
        }
    }
}

const ENTRIES_MAX: usize = 2_000_000;

/// Looks at everything below `root`.
///
/// # Errors
/// When a part of it cannot be seen, or must not be there.
pub fn walk(root: &Path, set_ids: SetIds) -> Result<Found, WalkError> {
    walk_up_to(root, set_ids, ENTRIES_MAX)
}

fn walk_up_to(root: &Path, set_ids: SetIds, limit: usize) -> Result<Found, WalkError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let top = nix::fcntl::open(root, flags, Mode::empty()).map_err(|errno| unseen(root, errno.into()))?;
    let mut found = Found::default();
    let mut queue = vec![PathBuf::new()];
    let mut seen = 0;
    while let Some(directory) = queue.pop() {
        let full = root.join(&directory);
        let Some(entries) =
            present(entries(&top, &directory, set_ids)).map_err(|error| unseen(&full, error))?
        else {
            continue;
        };
        for Entry { name, kind, set_id } in entries {
            seen += 1;
            if seen > limit {
                return Err(WalkError::TooMany { path: root.to_path_buf(), limit });
            }
            let path = directory.join(OsStr::from_bytes(&name));
            match kind {
                _ if set_id => return Err(WalkError::SetId(root.join(path))),
                Type::Directory => queue.push(path),
                Type::Socket => found.sockets.push(path),
                Type::File if name == b".git" => found.git_files.push(path),
                Type::File | Type::Symlink | Type::Fifo | Type::CharacterDevice | Type::BlockDevice => {}
            }
        }
    }
    found.sockets.sort();
    found.git_files.sort();
    Ok(found)
}

struct Entry {
    name: Vec<u8>,
    kind: Type,
    set_id: bool,
}

/// What is in the directory at `path` below `top`, reached through no link.
fn entries(top: &OwnedFd, path: &Path, set_ids: SetIds) -> io::Result<Vec<Entry>> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let directory = open_beneath(top.as_fd(), path, libc::O_RDONLY | libc::O_DIRECTORY)?;
    let mut entries = Vec::new();
    for entry in Dir::from_fd(directory.try_clone()?)?.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let (kind, set_id) = match (entry.file_type(), set_ids) {
            (Some(Type::File), SetIds::Refused) | (None, _) => {
                let Some(found) = present(
                    fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(io::Error::from),
                )?
                else {
                    continue;
                };
                let kind = kind(found.st_mode)?;
                let bits = found.st_mode & (libc::S_ISUID | libc::S_ISGID);
                (kind, kind == Type::File && bits != 0 && set_ids == SetIds::Refused)
            }
            (Some(kind), _) => (kind, false),
        };
        entries.push(Entry { name: name.to_bytes().to_vec(), kind, set_id });
    }
    Ok(entries)
}

fn kind(mode: libc::mode_t) -> io::Result<Type> {
    match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => Ok(Type::File),
        SFlag::S_IFDIR => Ok(Type::Directory),
        SFlag::S_IFLNK => Ok(Type::Symlink),
        SFlag::S_IFSOCK => Ok(Type::Socket),
        SFlag::S_IFIFO => Ok(Type::Fifo),
        SFlag::S_IFCHR => Ok(Type::CharacterDevice),
        SFlag::S_IFBLK => Ok(Type::BlockDevice),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// What was looked at, if it is still there.
fn present<T>(looked: io::Result<T>) -> io::Result<Option<T>> {
    match looked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        looked => looked.map(Some),
    }
}

fn unseen(path: &Path, source: io::Error) -> WalkError {
    WalkError::Unseen { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn tree(directories: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(root.path().join(directories)).expect("directories");
        root
    }

    #[test]
    fn sockets_and_git_files_are_found_at_any_depth() {
        let root = tree("a/b/.git");
        let _socket = UnixListener::bind(root.path().join("a/b/s.sock")).expect("a socket");
        fs::write(root.path().join("a/.git"), "gitdir: elsewhere\n").expect("a file");
        let found = walk(root.path(), SetIds::Refused).expect("seen");
        assert_eq!(found, Found { sockets: vec!["a/b/s.sock".into()], git_files: vec!["a/.git".into()] });
    }

    #[test]
    fn a_directory_that_is_deeper_than_a_path_can_say_is_refused() {
        let root = tree("");
        let name = "d".repeat(250);
        let mut directory = OwnedFd::from(fs::File::open(root.path()).expect("open"));
        for _ in 0..20 {
            nix::sys::stat::mkdirat(&directory, name.as_str(), Mode::S_IRWXU).expect("a directory");
            directory = open_beneath(directory.as_fd(), Path::new(&name), libc::O_RDONLY).expect("open");
        }
        let error = walk(root.path(), SetIds::Refused).expect_err("refused");
        assert!(
            matches!(&error, WalkError::Unseen { source, .. } if source.raw_os_error() == Some(libc::ENAMETOOLONG))
        );
        assert!(error.hint().starts_with("move "), "{}", error.hint());
    }

    #[test]
    fn more_files_than_are_looked_at_are_refused() {
        let root = tree("a/b/c");
        assert_eq!(walk_up_to(root.path(), SetIds::Refused, 3).expect("seen"), Found::default());
        let error = walk_up_to(root.path(), SetIds::Refused, 2).expect_err("refused");
        assert!(error.to_string().ends_with(" has more than 2 files"), "{error}");
    }

    #[test]
    fn a_file_with_the_rights_of_its_owner_is_refused_and_a_directory_is_not() {
        let root = tree("a");
        let tool = root.path().join("a/\u{1b}tool");
        fs::write(&tool, "").expect("a file");
        fs::set_permissions(root.path().join("a"), fs::Permissions::from_mode(0o2755)).expect("a mode");
        for mode in [0o4755, 0o2755] {
            fs::set_permissions(&tool, fs::Permissions::from_mode(mode)).expect("a mode");
            let error = walk(root.path(), SetIds::Refused).expect_err("refused");
            assert!(matches!(&error, WalkError::SetId(path) if *path == tool));
            assert!(error.hint().starts_with("chmod u-s,g-s ") && error.hint().ends_with(r"a/\u{1b}tool"));
            assert_eq!(walk(root.path(), SetIds::Accepted).expect("seen"), Found::default());
        }
        fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("a mode");
        assert_eq!(walk(root.path(), SetIds::Refused).expect("seen"), Found::default());
    }
}
