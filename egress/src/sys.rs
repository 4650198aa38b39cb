//! The system calls that the standard library has no safe form for.
#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use tokio::io::unix::AsyncFd;

/// Descriptors that we ask for: two for each connection of the bottle, and some.
const DESCRIPTORS: u64 = 32 * 1024;
/// Where inherited descriptors begin, by sd_listen_fds(3).
const LISTEN_FDS_START: RawFd = 3;

/// Makes this process unreadable to its siblings and unable to gain privileges, lets it have enough descriptors, and has a
/// hang-up pass until its handler is there.
pub fn harden() -> io::Result<()> {
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::prctl::set_no_new_privs()?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(DESCRIPTORS)), hard)?;
    // SAFETY: SIG_IGN installs no handler of ours, so nothing can run in signal context.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) }?;
    Ok(())
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
