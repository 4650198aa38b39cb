//! The system calls. All `unsafe` code of this crate is in this module and those below it.

#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, compiler_fence};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

pub(crate) mod environment;
pub(crate) mod exec;
pub(crate) mod fence;
pub(crate) mod image;
pub(crate) mod landlock;
pub(crate) mod machine;
pub(crate) mod netlink;
mod report;
pub(crate) mod signals;
pub(crate) mod sockets;
pub(crate) mod spawn;

/// Nobody but root may look into this process, and no exec gives it new rights.
pub(crate) fn harden_self() -> io::Result<()> {
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    Ok(())
}

/// Orphans below us become our children, as they do for PID 1.
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

/// Overwrites the bytes so that the compiler cannot leave it out.
pub(crate) fn wipe(bytes: &mut [u8]) {
    for byte in bytes.iter_mut() {
        // SAFETY: `byte` is a valid, aligned, exclusive reference.
        unsafe { std::ptr::write_volatile(byte, 0) };
    }
    compiler_fence(Ordering::SeqCst);
}

/// Does something with files as this uid and gid, which then own what is made; nothing else of us changes.
pub(crate) fn as_owner<T>(uid: Option<u32>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(uid) = uid else { return act() };
    let own = nix::unistd::geteuid().as_raw();
    let become_owner = |uid: u32| {
        // SAFETY: plain numbers. The calls never fail by their result; the second one tells which uid is in force.
        unsafe {
            libc::setfsgid(uid);
            libc::setfsuid(uid);
            u32::try_from(libc::setfsuid(u32::MAX)).ok() == Some(uid)
        }
    };
    let (signal, parent) = (prctl::get_pdeathsig()?, nix::unistd::getppid());
    let outcome = if become_owner(uid) { act() } else { Err(io::ErrorKind::PermissionDenied.into()) };
    become_owner(own);
    keep_parent_death_signal(signal, parent)?;
    outcome
}

/// The kernel forgets what we are to get at our parent's end whenever we become somebody else, even for files alone.
fn keep_parent_death_signal(signal: Option<Signal>, parent: Pid) -> io::Result<()> {
    if let Some(signal) = signal {
        prctl::set_pdeathsig(signal)?;
        if nix::unistd::getppid() != parent {
            nix::sys::signal::raise(signal)?;
        }
    }
    Ok(())
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
}

/// The next child that has ended and is not reaped yet; it stays a zombie, so that its pid and group stay its own.
pub(crate) fn peek_ended_child() -> io::Result<Option<i32>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is a valid place for a siginfo_t.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags) };
    if result == 0 {
        // SAFETY: zero-initialised, and filled by the kernel when a child has ended.
        let pid = unsafe { info.assume_init().si_pid() };
        return Ok((pid != 0).then_some(pid));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
        error => Err(error),
    }
}

/// Reaps the child that [`peek_ended_child`] named.
pub(crate) fn reap(pid: i32) -> io::Result<Ended> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for an int.
    if unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(if libc::WIFSIGNALED(status) {
        Ended::Killed(libc::WTERMSIG(status))
    } else {
        Ended::Exited(libc::WEXITSTATUS(status))
    })
}

/// Opens a pidfd of a child that is not reaped yet.
pub(crate) fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed; the result is checked before it is owned.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to exactly the process of this pidfd.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    let info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo is allowed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, info, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends SIGKILL to the process group of a child that is not reaped yet.
pub(crate) fn kill_group(pid: i32) {
    // SAFETY: no memory is passed. An error means that the group is gone already.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
}

/// Sends SIGKILL to one child that is not reaped yet.
pub(crate) fn kill_child(pid: i32) {
    // SAFETY: as in `kill_group`.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Reaps this child of ours if it has ended, without waiting.
pub(crate) fn reap_if_ended(pid: i32) {
    // One that has not is reaped in its turn, and one that is no child any more was.
    let _ =
        nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
}

/// Sends SIGKILL to every process of our pid namespace. For PID 1 alone, which the kernel spares.
pub(crate) fn kill_everything_else() {
    // SAFETY: as in `kill_group`.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// The clock that [`std::time::Instant`] reads.
pub(crate) fn monotonic() -> std::time::Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(std::time::Duration::ZERO, Into::into)
}

/// The pids of our children, as /proc shows them.
pub(crate) fn children() -> Vec<i32> {
    let path = format!("/proc/self/task/{}/children", std::process::id());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Most steps from a process up to us that are looked at.
const KINSHIP_STEPS: usize = 64;

/// Whether this process descends from us, as /proc shows it; true also when that cannot be told.
pub(crate) fn is_below_us(mut pid: i32) -> bool {
    let own = std::process::id().cast_signed();
    for _ in 0..KINSHIP_STEPS {
        let Some(parent) = parent_of(pid) else { return true };
        match parent {
            0 => return false,
            parent if parent == own => return true,
            parent => pid = parent,
        }
    }
    true
}

fn parent_of(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = text.rsplit_once(") ")?;
    after_name.split(' ').nth(1)?.parse().ok()
}

/// Whether the process that made this connection is gone; false on kernels that cannot tell (before 6.5).
pub(crate) fn peer_has_ended(stream: &impl AsFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    match nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerPidfd) {
        Ok(pidfd) => poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) != Ok(0),
        Err(error) => error != nix::errno::Errno::ENOPROTOOPT,
    }
}

/// A sealed memory file that holds these bytes, readable from its start.
pub(crate) fn sealed_memory(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek as _, Write as _};

    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    use nix::sys::memfd::{MFdFlags, memfd_create};

    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}

/// The descriptor of that number, if it is open; it is closed at exec from now on.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD on a number that is not open only fails.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and was passed to this process to be owned by it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Reads and writes of this descriptor return instead of waiting.
pub(crate) fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The addresses of our interfaces.
pub(crate) fn local_addresses() -> io::Result<Vec<IpAddr>> {
    let mut found = Vec::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else { continue };
        if let Some(v4) = address.as_sockaddr_in() {
            found.push(IpAddr::V4(v4.ip()));
        } else if let Some(v6) = address.as_sockaddr_in6() {
            found.push(IpAddr::V6(v6.ip()));
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Files made while this lives get no more than the rights that the mask leaves; the old mask comes back at its end.
pub(crate) struct Umask(libc::mode_t);

impl Umask {
    /// Sets the mask.
    pub(crate) fn set(mask: libc::mode_t) -> Self {
        // SAFETY: umask has no failure and touches no memory.
        Self(unsafe { libc::umask(mask) })
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::umask(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn wiping_leaves_zeros() {
        let mut bytes = *b"secret";
        wipe(&mut bytes);
        assert_eq!(bytes, [0; 6]);
    }

    #[test]
    fn sealed_memory_can_be_read_and_not_changed() {
        let mut file = std::fs::File::from(sealed_memory("secret.A", b"hello").unwrap());
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn loopback_is_a_local_address() {
        assert!(local_addresses().unwrap().iter().any(IpAddr::is_loopback));
    }
}
