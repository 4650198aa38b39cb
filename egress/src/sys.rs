//! The system calls that the standard library has no safe form for.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use tokio::io::unix::AsyncFd;

/// Descriptors that we ask for: more than all connections that there may be need, see `room`.
const DESCRIPTORS: u64 = 32 * 1024;
/// Descriptors that are kept from the bottle, for [what must go on](with_reserve) when it has taken all others.
const RESERVED: u64 = 8;
/// Where the reserve begins, once there is one.
static RESERVE: AtomicU64 = AtomicU64::new(u64::MAX);
/// Where inherited descriptors begin, by sd_listen_fds(3).
const LISTEN_FDS_START: RawFd = 3;

/// Makes this process unreadable to its siblings and unable to gain privileges, lets it have enough descriptors and a reserve of
/// them, and has a hang-up pass until its handler is there.
pub fn harden() -> io::Result<()> {
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::prctl::set_no_new_privs()?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let usual = soft.max(hard.min(DESCRIPTORS)).min(hard.saturating_sub(RESERVED));
    setrlimit(Resource::RLIMIT_NOFILE, usual, hard)?;
    RESERVE.store(usual, Ordering::Relaxed);
    // SAFETY: SIG_IGN installs no handler of ours, so nothing can run in signal context.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) }?;
    Ok(())
}

/// Does `work`, for which the reserve is open.
pub(crate) fn with_reserve<T>(work: impl FnOnce() -> T) -> T {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    struct Open(u64, u64);
    impl Drop for Open {
        fn drop(&mut self) {
            // It lowers what this process may have, which is always allowed.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, self.0, self.1);
        }
    }
    let usual = RESERVE.load(Ordering::Relaxed);
    if usual == u64::MAX {
        return work();
    }
    let _one_at_a_time = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let _open = getrlimit(Resource::RLIMIT_NOFILE).ok().and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, usual + RESERVED, hard).ok()?;
        Some(Open(usual, hard))
    });
    work()
}

/// Whether a descriptor was taken from the reserve, which the bottle may not keep.
pub(crate) fn is_of_reserve(descriptor: &impl AsRawFd) -> bool {
    u64::try_from(descriptor.as_raw_fd()).is_ok_and(|number| number >= RESERVE.load(Ordering::Relaxed))
}

/// Whether there was no descriptor left.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMFILE)
}

/// Lets an IPv6 socket take connections to addresses that are not ours. For IPv4 there is a safe form.
pub(crate) fn set_ipv6_transparent(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1)
}

/// Has a listener give a connection only once its client has sent something, or has been silent for about a second (tcp(7)).
pub(crate) fn set_defer_accept(socket: &impl AsFd) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 1)
}

fn set_option(
    socket: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed and so open; the option's value is an int that outlives the call, with its length.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The descriptors that were handed to this process with their names, marked close-on-exec. Call once, before any thread exists.
pub(crate) fn take_listen_fds() -> io::Result<Vec<(String, OwnedFd)>> {
    let pid = take_env("LISTEN_PID");
    let count = take_env("LISTEN_FDS");
    let names = take_env("LISTEN_FDNAMES");
    let text = |value: Option<OsString>| value.and_then(|value| value.into_string().ok());
    if text(pid).and_then(|pid| pid.parse::<u32>().ok()) != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count: RawFd = text(count).and_then(|count| count.parse().ok()).unwrap_or(0);
    let names = text(names).unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let mut taken = Vec::new();
    for raw in LISTEN_FDS_START..LISTEN_FDS_START.saturating_add(count) {
        // SAFETY: sd_listen_fds(3) gives the descriptors 3..3+LISTEN_FDS to the process named by LISTEN_PID, which is us;
        // the variables are removed above, so they are taken once, and a descriptor that is not open fails the next line.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        if let Err(error) = fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
            std::mem::forget(fd);
            return Err(error.into());
        }
        taken
            .push((names.next().filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned()), fd));
    }
    Ok(taken)
}

/// Takes a variable out of the environment and wipes its bytes where the kernel put them. Call before any thread exists.
pub(crate) fn take_env(name: &str) -> Option<OsString> {
    let c_name = CString::new(name).ok()?;
    // SAFETY: no other thread exists, so nothing changes the environment while the pointer is in use; `getenv` answers with
    // null or a NUL-terminated string that lies in writable memory of this process (the initial block or libc's heap).
    let value = unsafe {
        let start = libc::getenv(c_name.as_ptr());
        if start.is_null() {
            return None;
        }
        let length = libc::strlen(start);
        let bytes = std::slice::from_raw_parts_mut(start.cast::<u8>(), length);
        let value = bytes.to_vec();
        zeroize::Zeroize::zeroize(bytes);
        value
    };
    #[allow(clippy::disallowed_methods)]
    // SAFETY: no other thread exists, so no one reads the environment at the same time.
    unsafe {
        std::env::remove_var(name);
    }
    Some(OsString::from_vec(value))
}

/// The names of all variables of the environment that are UTF-8.
pub(crate) fn env_names() -> Vec<String> {
    std::env::vars_os().filter_map(|(name, _)| String::from_utf8(name.as_bytes().to_vec()).ok()).collect()
}

/// A descriptor whose readiness can be waited for.
pub(crate) fn poll(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: what is registered owns its descriptor and keeps it open and the same until it is taken off again.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// The whole content of a descriptor that was handed over, from its beginning.
pub(crate) fn read_whole(fd: OwnedFd, limit: u64) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::from(fd);
    file.rewind()?;
    let size = file.metadata()?.len();
    if size > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}
