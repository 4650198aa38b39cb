//! A program as a file that can be executed and not read. The kernel makes a process of such a file undumpable at its exec: from its
//! first instruction on, only root may look into it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;

/// Execute for everybody, read and write for nobody.
const EXECUTE_ONLY: u32 = 0o111;
/// Read for the group or for others.
const READ_BY_OTHERS: u32 = 0o044;

/// Whether the process of that uid cannot read the file by its mode alone.
pub(crate) fn is_unreadable(program: &File, uid: u32) -> io::Result<bool> {
    let found = program.metadata()?;
    Ok(found.mode() & READ_BY_OTHERS == 0 && found.uid() != uid)
}

/// A copy in memory of the program, sealed, that can only be executed.
pub(crate) fn execute_only(program: &mut File, name: &str) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag, and make every such file executable.
    let memory = memfd_create(name, flags | MFdFlags::from_bits_retain(libc::MFD_EXEC))
        .or_else(|_| memfd_create(name, flags))?;
    let mut copy = File::from(memory);
    io::copy(program, &mut copy)?;
    copy.set_permissions(std::fs::Permissions::from_mode(EXECUTE_ONLY))?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    // A file that is open for writing cannot be executed.
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok(open(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}
