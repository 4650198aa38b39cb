//! What only one process tree sees: the bundle's tree where its daemons may pass, and keys on a file system in memory.

use std::ffi::CString;
use std::io;

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fchown, write};
use zeroize::Zeroizing;

use super::checked;

/// A tree to be seen elsewhere, and keys to be placed in it. All memory is prepared before, for [`Mount::place`] runs between fork and exec.
pub struct Mount {
    /// The tree.
    pub root: CString,
    /// The directory that becomes it.
    pub seen: CString,
    /// Where the keys go.
    pub directory: CString,
    /// For whom.
    pub user: u32,
    /// The files and what is in them.
    pub files: Vec<(CString, Zeroizing<Vec<u8>>)>,
}

impl Mount {
    /// Goes into a mount namespace of its own and places the tree and the keys there. Allocates nothing.
    pub fn place(&self) -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, c"/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)?;
        mount(
            Some(self.root.as_c_str()),
            self.seen.as_c_str(),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let options = Some(c"mode=0700,size=4m,nr_inodes=1k");
        mount(Some(c"keys"), self.directory.as_c_str(), Some(c"tmpfs"), flags, options)?;
        self.give(&self.directory)?;
        for (path, key) in &self.files {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            let file = open(path.as_c_str(), flags, Mode::from_bits_truncate(0o600))?;
            let mut rest: &[u8] = key;
            while !rest.is_empty() {
                rest = &rest[write(&file, rest)?..];
            }
            fchown(&file, Some(Uid::from_raw(self.user)), Some(Gid::from_raw(self.user)))?;
        }
        Ok(())
    }

    fn give(&self, path: &CString) -> io::Result<()> {
        // SAFETY: a C string that outlives the call.
        checked(unsafe { libc::chown(path.as_ptr(), self.user, self.user) }.into())?;
        Ok(())
    }
}
