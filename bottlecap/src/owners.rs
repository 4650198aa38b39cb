//! A directory of the host for a bottle that root starts: its owner, on disk, is the bottle's user, inside.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::pipe;

use crate::sys::mounts::{Attributes, Inode, clone_tree, map_owners, restrict};
use crate::sys::process::fork_single_threaded;

/// The user that a bottle runs as when root starts it; never 0, and nobody else's.
pub const BOTTLE_USER: u32 = 64100;

/// A detached mount of `path`, if it still is `wanted`, in which files of its owner are the bottle user's, and files that
/// the bottle user makes become the owner's.
///
/// Call it while this process has one thread.
pub fn mapped_tree(path: &Path, wanted: Inode, owner: (u32, u32)) -> io::Result<OwnedFd> {
    let tree = found(path, wanted)?;
    let map = user_namespace(owner)?;
    map_owners(tree.as_fd(), map.as_fd(), Attributes::BASE)?;
    Ok(tree)
}

/// A detached read-only mount of `path`, if it still is `wanted`.
pub fn plain_tree(path: &Path, wanted: Inode, attributes: Attributes) -> io::Result<OwnedFd> {
    let tree = found(path, wanted)?;
    restrict(tree.as_fd(), attributes)?;
    Ok(tree)
}

fn found(path: &Path, wanted: Inode) -> io::Result<OwnedFd> {
    let tree = clone_tree(path)?;
    if Inode::of(&tree)? == wanted { Ok(tree) } else { Err(io::Error::from_raw_os_error(libc::ESTALE)) }
}

/// A user namespace that maps `owner` to the bottle's user. A process lives in it until it is open here.
fn user_namespace((user, group): (u32, u32)) -> io::Result<OwnedFd> {
    let (ready_read, ready_write) = pipe()?;
    let (done_read, done_write) = pipe()?;
    let Some(child) = fork_single_threaded()? else {
        drop((ready_read, done_write));
        std::process::exit(wait_inside(ready_write, done_read));
    };
    drop((ready_write, done_read));
    let opened = (|| {
        let mut told = [0];
        fs::File::from(ready_read).read_exact(&mut told)?;
        let process = Path::new("/proc").join(child.to_string());
        fs::write(process.join("uid_map"), format!("{user} {BOTTLE_USER} 1"))?;
        fs::write(process.join("gid_map"), format!("{group} {BOTTLE_USER} 1"))?;
        Ok(OwnedFd::from(fs::File::open(process.join("ns/user"))?))
    })();
    drop(done_write);
    waitpid(child, None)?;
    opened
}

fn wait_inside(ready: OwnedFd, done: OwnedFd) -> i32 {
    let entered = unshare(CloneFlags::CLONE_NEWUSER).is_ok();
    let told = entered && fs::File::from(ready).write_all(&[1]).is_ok();
    let _ = fs::File::from(done).read(&mut [0]);
    i32::from(!told)
}
