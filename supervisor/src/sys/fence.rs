//! The walls as the kernel takes them: made ready by the parent, put up by the child between its fork and its exec.

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use seccompiler::BpfProgram;

use super::report::REPORT_BYTES;
use crate::walls::calls::OWN_PID;

/// Whether a process may execute something else after its first program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Execs {
    /// As often as its files allow.
    Many,
    /// Never again, where the kernel can tell us of an exec.
    Once,
}

/// The walls of one child.
#[derive(Debug)]
pub(crate) struct Fence {
    /// The Landlock domain, if this kernel has one.
    pub(crate) domain: Option<OwnedFd>,
    /// The filter of system calls, if this kernel takes one.
    pub(crate) calls: Option<BpfProgram>,
    pub(crate) execs: Execs,
}

/// The part of a call's data that holds its number.
const NUMBER_AT: u32 = 0;
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const fn part(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Asks us about each exec. Calls of another architecture are ended by the other filter.
static ASK_US: [libc::sock_filter; 5] = [
    part(LOAD, 0, 0, NUMBER_AT),
    part(JUMP_IF_EQUAL, 2, 0, libc::SYS_execve as u32),
    part(JUMP_IF_EQUAL, 1, 0, libc::SYS_execveat as u32),
    part(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    part(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
];

/// Whether this kernel takes filters of system calls.
pub(crate) fn has_filters() -> bool {
    let none: *const libc::sock_fprog = std::ptr::null();
    // SAFETY: a null program is refused before it is read.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, none) };
    result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// What the child is doing when it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    Domain,
    Calls,
}

/// Puts the walls up, and tells the parent through `report`, with the listener of execs where there is one.
///
/// # Safety
/// Only in a freshly forked child of a process with one thread, with no_new_privs. Nothing here allocates, locks or unwinds.
pub(super) unsafe fn put_up(fence: &mut Fence, report: RawFd) -> Result<(), Failed> {
    // SAFETY: system calls on descriptors of the fence and on memory of the fence and this frame.
    unsafe {
        if let Some(domain) = &fence.domain
            && libc::syscall(libc::SYS_landlock_restrict_self, domain.as_raw_fd(), 0) < 0
        {
            return Err(Failed::Domain);
        }
        let Some(calls) = &mut fence.calls else {
            return tell(report, None);
        };
        // The other filter leaves no way to ask for one more.
        let listener = match fence.execs {
            Execs::Once => {
                install(ASK_US.as_ptr().cast_mut(), ASK_US.len(), libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)
            }
            Execs::Many => -1,
        };
        let listener = RawFd::try_from(listener).ok().filter(|fd| *fd >= 0);
        tell(report, listener)?;
        if let Some(fd) = listener {
            libc::close(fd);
        }
        let own = libc::getpid().unsigned_abs();
        for part in calls.iter_mut().filter(|part| part.code == JUMP_IF_EQUAL && part.k == OWN_PID) {
            part.k = own;
        }
        // The two structures are the kernel's one.
        if install(calls.as_mut_ptr().cast(), calls.len(), 0) < 0 {
            return Err(Failed::Calls);
        }
    }
    Ok(())
}

/// # Safety
/// `filter` points to `length` instructions.
unsafe fn install(filter: *mut libc::sock_filter, length: usize, flags: libc::c_ulong) -> libc::c_long {
    let program = libc::sock_fprog { len: u16::try_from(length).unwrap_or(0), filter };
    // SAFETY: the program is valid for the call, which copies it.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) }
}

/// # Safety
/// As [`put_up`].
unsafe fn tell(report: RawFd, listener: Option<RawFd>) -> Result<(), Failed> {
    let mut bytes = [0_u8; REPORT_BYTES];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // Room for one descriptor with its header, aligned as the header wants.
    let mut control = [0_u64; 4];
    // SAFETY: all pointers are into this frame, and the header lies within `control`.
    let sent = unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if let Some(fd) = listener {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
        }
        libc::sendmsg(report, &raw const message, libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(Failed::Calls) } else { Ok(()) }
}
