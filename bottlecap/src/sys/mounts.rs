//! The mount calls that hand out descriptors: open_tree, mount_setattr, move_mount.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{c_path, checked};

const EMPTY: &std::ffi::CStr = c"";

/// Attributes to add to a mount and all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes(u64);

impl Attributes {
    /// No set-user-id, no device files.
    pub const BASE: Attributes = Attributes(libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV);
    /// [`Attributes::BASE`], and nothing can be written.
    pub const READ_ONLY: Attributes = Attributes(Attributes::BASE.0 | libc::MOUNT_ATTR_RDONLY);
    /// For the one device file that is bound: no set-user-id, no programs, the node itself cannot be changed.
    pub const DEVICE: Attributes =
        Attributes(libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_RDONLY);
    /// Nothing can be written.
    pub const SEALED: Attributes = Attributes(libc::MOUNT_ATTR_RDONLY);
}

/// What a directory or file is, whatever its name: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Inode {
    /// The device.
    pub device: u64,
    /// The inode on it.
    pub inode: u64,
}

impl Inode {
    /// That of the file behind a descriptor.
    pub fn of(fd: impl AsFd) -> io::Result<Inode> {
        let file = File::from(fd.as_fd().try_clone_to_owned()?);
        Ok(Inode::from(&file.metadata()?))
    }
}

impl From<&std::fs::Metadata> for Inode {
    fn from(metadata: &std::fs::Metadata) -> Inode {
        Inode { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// A detached copy of the mount tree at `path` of the host. A symbolic link in the last place is not followed.
pub fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    open_tree(libc::AT_FDCWD, &path, libc::AT_SYMLINK_NOFOLLOW)
}

/// A detached copy of the mount tree at the file or directory that `fd` is.
pub fn clone_tree_of(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    open_tree(fd.as_raw_fd(), EMPTY, libc::AT_EMPTY_PATH)
}

fn open_tree(directory: libc::c_int, path: &std::ffi::CStr, extra: libc::c_int) -> io::Result<OwnedFd> {
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | (libc::AT_RECURSIVE | extra) as libc::c_uint;
    // SAFETY: `path` is a C string that outlives the call.
    let fd = checked(unsafe { libc::syscall(libc::SYS_open_tree, directory, path.as_ptr(), flags) })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Adds `attributes` to the mount that `tree` is and to those below it.
pub fn restrict(tree: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    set_attributes(tree, attributes.0, None, libc::AT_RECURSIVE)
}

/// Adds `attributes` to the one mount at `path`, not to those below it.
pub fn restrict_one(path: &Path, attributes: Attributes) -> io::Result<()> {
    let directory = super::descriptors::open_path(path)?;
    set_attributes(directory.as_fd(), attributes.0, None, 0)
}

/// Maps the owners in the detached `tree` by the user namespace `map`, and adds `attributes`.
pub fn map_owners(tree: BorrowedFd<'_>, map: BorrowedFd<'_>, attributes: Attributes) -> io::Result<()> {
    set_attributes(tree, attributes.0 | libc::MOUNT_ATTR_IDMAP, Some(map), libc::AT_RECURSIVE)
}

fn set_attributes(
    tree: BorrowedFd<'_>,
    set: u64,
    map: Option<BorrowedFd<'_>>,
    flags: libc::c_int,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: map.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = (libc::AT_EMPTY_PATH | flags) as libc::c_uint;
    // SAFETY: path and attributes outlive the call, and the size is that of the structure.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// Attaches the detached `tree` to the file or directory that `target` is.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are empty C strings; the descriptors are open for the whole call.
    checked(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            EMPTY.as_ptr(),
            target.as_raw_fd(),
            EMPTY.as_ptr(),
            flags,
        )
    })?;
    Ok(())
}
