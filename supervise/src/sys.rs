//! The calls that need `unsafe`, and what is done to the process before anything else.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;

/// Closes the process to others of its uid and keeps it from gaining privileges. The first thing in `main`.
///
/// # Errors
/// When the kernel refuses.
pub fn harden() -> nix::Result<()> {
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()
}

/// Takes over a descriptor that the parent passed, and keeps it from children.
pub(crate) fn adopt(fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: the caller read the number from LISTEN_FDS, which the parent set for this process alone; nothing else here owns it,
    // and it is asked for once, because the variables are removed with it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

/// Removes variables from the environment. Only `main` calls it, before there is another thread.
#[allow(clippy::disallowed_methods)]
pub(crate) fn forget(variables: &[&str]) {
    for variable in variables {
        // SAFETY: no other thread exists yet, so nobody reads the environment at the same time.
        unsafe { std::env::remove_var(variable) };
    }
}
