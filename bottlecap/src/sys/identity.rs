//! Capabilities, keyrings and what a process may be asked about.

use std::io;

use super::checked;

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
const SECURE_BITS_LOCKED: libc::c_ulong = 0b1010_1011;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilitySet {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Gives up every capability for good: bounding and ambient sets, the set-user-id rules of root, and what is held.
pub fn drop_capabilities() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: takes integers.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(error);
        }
    }
    // SAFETY: takes integers.
    checked(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) }.into())?;
    // SAFETY: takes integers.
    checked(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECURE_BITS_LOCKED, 0, 0, 0) }.into())?;
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let none = [CapabilitySet { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: header and the two sets of version 3 outlive the call.
    checked(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) })?;
    Ok(())
}

/// Leaves the caller's session keyring for a new, empty one.
pub fn new_session_keyring() -> io::Result<()> {
    let name: *const libc::c_char = std::ptr::null();
    // SAFETY: a null name asks for an anonymous keyring.
    match checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name) }) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other.map(drop),
    }
}
