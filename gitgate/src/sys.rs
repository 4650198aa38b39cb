//! System calls.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

/// Shuts the process off: not dumpable, no new privileges, no core file.
pub fn harden() -> io::Result<()> {
    // SAFETY: prctl with these options takes plain integers and touches no memory of ours.
    let dumpable = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    check(dumpable)?;
    // SAFETY: as above.
    let privileges = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    check(privileges)?;
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is a valid rlimit that lives through the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) })
}

/// Keeps libgit2 from reading the configuration of the machine or of a user. Only before any thread exists.
pub fn isolate_libgit2() -> Result<(), git2::Error> {
    use git2::ConfigLevel::{Global, ProgramData, System, XDG};
    for level in [ProgramData, System, XDG, Global] {
        // SAFETY: the process has one thread, as the caller promises, and no repository is open.
        unsafe { git2::opts::set_search_path(level, "")? };
    }
    Ok(())
}

/// Lets the command inherit a descriptor under its own number; nothing else does, because it stays
/// close-on-exec in this process.
pub(crate) fn inherit(command: &mut Command, fd: OwnedFd) -> RawFd {
    let number = fd.as_raw_fd();
    let clear = move || {
        // SAFETY: `fd` is owned by this closure and open; fcntl is async-signal-safe.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) })
    };
    // SAFETY: the closure allocates nothing and calls fcntl only.
    unsafe { command.pre_exec(clear) };
    number
}

/// Ends the command when the thread that started it ends, as all do when this process is killed.
pub(crate) fn end_with_us(command: &mut Command) {
    let ask = || {
        // SAFETY: prctl with this option takes plain integers and is async-signal-safe.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM, 0, 0, 0) })
    };
    // SAFETY: the closure allocates nothing and calls prctl only.
    unsafe { command.pre_exec(ask) };
}

/// Bounds the memory of its own that each process of the command may have. Files that are mapped to be read do not count.
pub(crate) fn bound_memory(command: &mut Command, bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    let bound = move || {
        // SAFETY: `limit` is a valid rlimit that lives through the call; setrlimit is async-signal-safe.
        check(unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) })
    };
    // SAFETY: the closure allocates nothing and calls setrlimit only.
    unsafe { command.pre_exec(bound) };
}

/// Bounds the processor time that each process of the command may use.
pub(crate) fn bound_processor(command: &mut Command, time: Duration) {
    let limit = libc::rlimit { rlim_cur: time.as_secs(), rlim_max: time.as_secs() };
    let bound = move || {
        // SAFETY: `limit` is a valid rlimit that lives through the call; setrlimit is async-signal-safe.
        check(unsafe { libc::setrlimit(libc::RLIMIT_CPU, &raw const limit) })
    };
    // SAFETY: the closure allocates nothing and calls setrlimit only.
    unsafe { command.pre_exec(bound) };
}

/// Lets the command in no more than a Landlock ruleset allows.
pub(crate) fn confine(command: &mut Command, ruleset: OwnedFd) {
    let enter = move || {
        // SAFETY: the ruleset is owned by this closure and open; the call takes plain integers, and is async-signal-safe.
        let entered = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
        if entered < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure allocates nothing and makes one system call.
    unsafe { command.pre_exec(enter) };
}

/// Where in what the kernel tells of a TCP connection (`struct tcp_info`) the bytes stand that the other side took, and how much of it
/// is asked for.
const TAKEN_AT: usize = 120;
const TCP_INFO_BYTES: usize = 128;

/// How many bytes the other side of a TCP connection has taken.
pub(crate) fn taken_bytes(socket: &OwnedFd) -> io::Result<u64> {
    Ok(u64::from_ne_bytes(tcp_info(socket, TAKEN_AT)?))
}

/// How many bytes were written to a TCP connection, whether they arrived or not.
pub(crate) fn sent_bytes(socket: &OwnedFd) -> io::Result<u64> {
    let mut waiting: libc::c_int = 0;
    // SAFETY: `waiting` is an int that lives through the call, which writes one.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut waiting) })?;
    Ok(taken_bytes(socket)?.saturating_add(u64::try_from(waiting).unwrap_or(0)))
}

fn tcp_info<const N: usize>(socket: &OwnedFd, at: usize) -> io::Result<[u8; N]> {
    let mut info = [0_u8; TCP_INFO_BYTES];
    let mut length = TCP_INFO_BYTES as libc::socklen_t;
    let place = info.as_mut_ptr().cast();
    // SAFETY: the kernel writes at most `length` bytes to `info`, which lives through the call.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, place, &raw mut length)
    })?;
    let told = usize::try_from(length).unwrap_or(0).min(info.len());
    info[..told]
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .ok_or_else(|| io::Error::other("too little is told"))
}

/// Takes a descriptor that the parent left open under a number, and makes it close-on-exec.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl on any number is defined; a wrong one gives EBADF.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open (checked above) and, by the protocol of the caller, nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The variables of sd_listen_fds(3).
pub(crate) struct ListenVariables {
    pub(crate) pid: Option<String>,
    pub(crate) fds: Option<String>,
    pub(crate) names: Option<String>,
}

/// Reads the variables of sd_listen_fds(3) and removes them. Only before any thread exists.
#[allow(clippy::disallowed_methods)]
pub(crate) fn take_listen_variables() -> ListenVariables {
    let take = |name: &str| {
        let value = std::env::var(name).ok();
        // SAFETY: the process has one thread, as the caller promises.
        unsafe { std::env::remove_var(name) };
        value
    };
    ListenVariables { pid: take("LISTEN_PID"), fds: take("LISTEN_FDS"), names: take("LISTEN_FDNAMES") }
}

/// Microseconds of the monotonic clock, for `MONOTONIC_USEC`.
pub(crate) fn monotonic_usec() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec that lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_command_has_the_bound_and_so_have_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sh -c 'ulimit -d; ulimit -Hd; ulimit -t; ulimit -Ht'"]);
        bound_memory(&mut command, 2 << 30);
        bound_processor(&mut command, Duration::from_secs(900));
        let output = command.output().expect("sh runs");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "2097152\n2097152\n900\n900\n");
    }

    #[test]
    fn what_was_written_to_a_connection_is_counted() {
        use std::io::{Read as _, Write as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let mut near =
            std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let mut far = listener.accept().expect("accepted").0;
        let socket = OwnedFd::from(near.try_clone().expect("another descriptor"));
        let (sent, taken) = (sent_bytes(&socket).expect("told"), taken_bytes(&socket).expect("told"));
        near.write_all(&[7; 5000]).expect("written");
        assert_eq!(sent_bytes(&socket).expect("told") - sent, 5000);
        far.read_exact(&mut [0; 5000]).expect("read");
        while taken_bytes(&socket).expect("told") - taken < 5000 {
            std::thread::yield_now();
        }
    }
}
