//! Processes: forking where it is safe, waiting by descriptor, and setting a child up before it runs.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::unistd::{ForkResult, Pid};

use super::checked;

/// Forks. `None` in the child.
///
/// Call it only while this process has one thread: the child goes on with all of Rust.
#[allow(clippy::disallowed_methods)]
pub fn fork_single_threaded() -> io::Result<Option<Pid>> {
    // SAFETY: with one thread no lock can be held by a thread that the child does not have.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// A descriptor that becomes readable when `pid` ends.
pub fn watch(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes integers.
    let fd = checked(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sends `signal` to the process that `pidfd` is, and to no other that got its number since.
pub fn signal(pidfd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let information: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null information asks for the ordinary one.
    checked(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as libc::c_int, information, 0)
    })?;
    Ok(())
}

/// Takes away everything that a fresh program should not inherit: blocked signals and handlers.
pub fn reset_signals() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: the default disposition runs no code of ours.
        unsafe { sigaction(signal, &default) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Keeps core files and core handlers of the host away: a limit of 1 is the kernel's word for "no handler either".
pub fn no_core_dumps() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: reads a structure that outlives the call.
    checked(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const limit) }.into())?;
    Ok(())
}

/// A program to be executed with `environment` and nothing else.
#[derive(Debug)]
pub struct Image {
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Image {
    /// `arguments` with the program's name first; `environment` of `NAME=value`.
    #[must_use]
    pub fn new(arguments: Vec<CString>, environment: Vec<CString>) -> Image {
        Image { arguments, environment }
    }

    /// Becomes the program at `path`.
    pub fn execute(&self, path: &CStr) -> io::Result<Infallible> {
        Ok(nix::unistd::execve(path, &self.arguments, &self.environment)?)
    }
}

/// What `prepare` adds to a command, run in the child before exec: descriptors at fixed numbers, its own session, a
/// signal when the parent thread ends, ordinary signals; all other descriptors close at exec.
#[derive(Debug)]
pub struct Setup {
    /// The descriptors, from number 3 on.
    pub descriptors: Vec<OwnedFd>,
    /// What the child gets when the calling thread ends.
    pub on_parent_death: Signal,
    /// Whether foreign descriptors are closed.
    pub close_others: bool,
}

/// Adds `setup` to `command`; its descriptors have numbers above those that they get ([`super::descriptors::duplicate_above`]).
/// `extra` runs last in the child; it may only make system calls on what was prepared
/// before.
pub fn prepare<F>(command: &mut Command, setup: Setup, mut extra: F)
where
    F: FnMut() -> io::Result<()> + Send + Sync + 'static,
{
    let parent = nix::unistd::getpid();
    let places = occupied(3 + setup.descriptors.len() as libc::c_int);
    let body = move || {
        let _held_until_exec = &places;
        nix::sys::prctl::set_pdeathsig(setup.on_parent_death)?;
        if nix::unistd::getppid() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        nix::unistd::setsid()?;
        reset_signals()?;
        if setup.close_others {
            super::descriptors::close_on_exec_from(3)?;
        }
        for (place, fd) in setup.descriptors.iter().enumerate() {
            // SAFETY: only borrowed for the call; the owner lives in the closure.
            let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
            super::descriptors::duplicate_to(fd, 3 + place as libc::c_int)?;
        }
        extra()
    };
    // SAFETY: between fork and exec the closure makes system calls on memory that was prepared before, and allocates
    // nothing.
    unsafe { command.pre_exec(body) };
}

/// Descriptors that fill the numbers below `end`, so that nothing which the standard library opens for the spawn itself
/// has a number that the child is to use.
fn occupied(end: libc::c_int) -> Vec<OwnedFd> {
    let mut places = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        let fd = OwnedFd::from(file);
        if fd.as_raw_fd() >= end {
            break;
        }
        places.push(fd);
    }
    places
}

/// A program to be executed with `LISTEN_PID` in its environment naming the process that executes it.
///
/// For use in the child between fork and exec: it allocates nothing.
#[derive(Debug)]
pub struct ListeningImage {
    path: CString,
    _arguments: Vec<CString>,
    _environment: Vec<CString>,
    argument_pointers: Vec<usize>,
    environment_pointers: Vec<usize>,
    listen_pid: Vec<u8>,
}

const LISTEN_PID: &[u8] = b"LISTEN_PID=";
const LISTEN_PID_DIGITS: usize = 10;

impl ListeningImage {
    /// `arguments` with the program's name first; `environment` of `NAME=value` without `LISTEN_PID`.
    #[must_use]
    pub fn new(path: CString, arguments: Vec<CString>, environment: Vec<CString>) -> ListeningImage {
        let mut listen_pid = LISTEN_PID.to_vec();
        listen_pid.resize(LISTEN_PID.len() + LISTEN_PID_DIGITS + 1, 0);
        let mut argument_pointers: Vec<usize> = arguments.iter().map(|text| text.as_ptr() as usize).collect();
        argument_pointers.push(0);
        let mut environment_pointers: Vec<usize> =
            environment.iter().map(|text| text.as_ptr() as usize).collect();
        environment_pointers.push(listen_pid.as_ptr() as usize);
        environment_pointers.push(0);
        ListeningImage {
            path,
            _arguments: arguments,
            _environment: environment,
            argument_pointers,
            environment_pointers,
            listen_pid,
        }
    }

    /// Becomes the program.
    pub fn execute(&mut self) -> io::Error {
        let pid = nix::unistd::getpid().as_raw();
        let digits = pid.checked_ilog10().unwrap_or(0) as usize + 1;
        let mut rest = pid;
        for place in (0..digits).rev() {
            self.listen_pid[LISTEN_PID.len() + place] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        // SAFETY: the pointers are to C strings that this value owns and never moves (their bytes are on the heap), and
        // both lists end with a null.
        unsafe {
            libc::execve(
                self.path.as_ptr(),
                self.argument_pointers.as_ptr().cast(),
                self.environment_pointers.as_ptr().cast(),
            )
        };
        io::Error::last_os_error()
    }
}
