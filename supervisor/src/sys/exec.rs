//! The one command of `supervisor run`: started as we were started ourselves, in a process group of its own.

use std::ffi::{CString, OsString, c_char};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;

use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::Pid;

use super::signals::Inherited;

/// Why the command does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error("cannot use the command line")]
    Words(#[source] io::Error),
    #[error("cannot make a process")]
    Fork(#[source] io::Error),
    #[error("cannot prepare the process of {program}")]
    Prepare {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot run {program}")]
    Exec {
        program: String,
        #[source]
        source: io::Error,
    },
}

/// Whether our process group has the terminal that standard input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Terminal {
    /// It is in the foreground there.
    Ours,
    /// There is none, or it is someone else's now.
    NotOurs,
}

impl Terminal {
    /// As it is now.
    pub(crate) fn now() -> Self {
        match nix::unistd::tcgetpgrp(stdin()) {
            Ok(group) if group == nix::unistd::getpgrp() => Self::Ours,
            Ok(_) | Err(_) => Self::NotOurs,
        }
    }
}

/// Puts this process group into the foreground of our terminal.
pub(crate) fn hand_terminal_to(group: i32) -> io::Result<()> {
    let _quiet = BackgroundWrites::allow()?;
    Ok(nix::unistd::tcsetpgrp(stdin(), Pid::from_raw(group))?)
}

fn stdin() -> BorrowedFd<'static> {
    // SAFETY: the number is only asked about; where nothing is open under it, the question fails.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// While it lives, the terminal neither stops nor signals us for what we do to it from the background.
pub(crate) struct BackgroundWrites(SigSet);

impl BackgroundWrites {
    /// Blocks SIGTTOU.
    pub(crate) fn allow() -> io::Result<Self> {
        let (mut set, mut before) = (SigSet::empty(), SigSet::empty());
        set.add(Signal::SIGTTOU);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before))?;
        Ok(Self(before))
    }
}

impl Drop for BackgroundWrites {
    fn drop(&mut self) {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.0), None);
    }
}

/// Everything that the child needs, laid out before the fork.
struct Prepared<'a> {
    argv: Vec<*const c_char>,
    inherited: &'a Inherited,
    terminal: Terminal,
    parent: libc::pid_t,
    report: OwnedFd,
}

#[derive(Clone, Copy)]
#[repr(u8)]
enum Step {
    Prepare = 1,
    Exec = 2,
}

/// Bytes of a report: the step, and its errno.
const REPORT_BYTES: usize = 5;

/// Starts the command, found along PATH, with our descriptors, environment and directory; returns its pid, which is also the
/// number of its process group. The caller reaps it, also that of a failed exec.
pub(crate) fn start(words: &[OsString], inherited: &Inherited, terminal: Terminal) -> Result<i32, ExecError> {
    let name = || words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let strings: Vec<CString> = words
        .iter()
        .map(|word| CString::new(word.as_bytes()))
        .collect::<Result<_, _>>()
        .map_err(|error| ExecError::Words(error.into()))?;
    let (report, child_report) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| ExecError::Fork(error.into()))?;
    let end = std::iter::once(std::ptr::null());
    let prepared = Prepared {
        argv: strings.iter().map(|text| text.as_ptr()).chain(end).collect(),
        inherited,
        terminal,
        parent: nix::unistd::getpid().as_raw(),
        report: child_report,
    };
    let pid = fork(&prepared).map_err(ExecError::Fork)?;
    drop(prepared);
    let mut bytes = [0; REPORT_BYTES];
    let mut report = std::fs::File::from(report);
    // Waited for without a limit: there is nothing else to do before the command runs.
    let read = loop {
        match report.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other,
        }
    };
    let [step, errno @ ..] = bytes;
    let source = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
    match read {
        Ok(0) => Ok(pid),
        Ok(_) if step == Step::Exec as u8 => Err(ExecError::Exec { program: name(), source }),
        Ok(_) => Err(ExecError::Prepare { program: name(), source }),
        Err(source) => Err(ExecError::Prepare { program: name(), source }),
    }
}

fn fork(prepared: &Prepared<'_>) -> io::Result<i32> {
    // A handler of ours must not run in the child: it would write into our own record.
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: this process has one thread, and the child only makes system calls on prepared memory.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: we are the child, right after the fork.
        unsafe { child(prepared) }
    }
    let error = io::Error::last_os_error();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    if pid < 0 { Err(error) } else { Ok(pid) }
}

/// # Safety
/// Only in a freshly forked child of a process with one thread. Nothing here allocates, locks or returns.
unsafe fn child(prepared: &Prepared<'_>) -> ! {
    // SAFETY: system calls on numbers, and on memory that `prepared` owns.
    unsafe {
        let failed = become_command(prepared);
        let errno = (*libc::__errno_location()).to_ne_bytes();
        let report: [u8; REPORT_BYTES] = [failed as u8, errno[0], errno[1], errno[2], errno[3]];
        libc::write(prepared.report.as_raw_fd(), report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

/// # Safety
/// As [`child`].
unsafe fn become_command(prepared: &Prepared<'_>) -> Step {
    // SAFETY: see above. execvp searches PATH on its own stack.
    unsafe {
        if libc::setpgid(0, 0) < 0 {
            return Step::Prepare;
        }
        // Every signal is blocked here, so that the terminal does not stop us for this.
        if prepared.terminal == Terminal::Ours && libc::tcsetpgrp(0, libc::getpid()) < 0 {
            return Step::Prepare;
        }
        // An init that is gone forwards nothing: what it started ends with it, as the kernel does it for PID 1.
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) < 0
            || libc::getppid() != prepared.parent
        {
            return Step::Prepare;
        }
        prepared.inherited.restore();
        libc::execvp(prepared.argv[0], prepared.argv.as_ptr());
        Step::Exec
    }
}

/// Sends a signal to one child that is not reaped yet, or to its whole process group.
pub(crate) fn send(target: Target, number: i32) -> io::Result<()> {
    let pid = match target {
        Target::Process(pid) => pid,
        Target::Group(pid) => -pid,
    };
    // SAFETY: no memory is passed.
    if unsafe { libc::kill(pid, number) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// One process.
    Process(i32),
    /// Everything in the process group of that number.
    Group(i32),
}

/// Stops this process until someone continues it.
pub(crate) fn suspend_self() {
    // SAFETY: no memory is passed. For PID 1 the kernel ignores it.
    unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
}

/// Whether this child is stopped and was not when this was asked before.
pub(crate) fn has_stopped(pid: i32) -> bool {
    let Ok(id) = libc::id_t::try_from(pid) else { return false };
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is a valid place for a siginfo_t; it stays zero where nothing is to tell.
    unsafe {
        let flags = libc::WSTOPPED | libc::WNOHANG;
        libc::waitid(libc::P_PID, id, info.as_mut_ptr(), flags) == 0 && info.assume_init().si_pid() == pid
    }
}

/// Asks the kernel to send us this signal when the process that started us ends.
pub(crate) fn on_parent_death(number: i32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, number, 0, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets go of what belongs to the command alone: the directory, standard output, and every further descriptor but these.
/// Who waits for the end of a pipe must not wait for us, and no file system stays busy.
pub(crate) fn let_go(kept: [RawFd; 2]) {
    let _ = nix::unistd::chdir("/");
    if let Ok(null) =
        nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
    {
        // Standard input stays while it is the terminal that we hand back and forth.
        let first = if nix::unistd::tcgetpgrp(stdin()).is_ok() { 1 } else { 0 };
        for number in first..=1 {
            // SAFETY: two numbers, of which the first is open.
            unsafe { libc::dup2(null.as_raw_fd(), number) };
        }
    }
    let mut kept = kept.map(|number| libc::c_uint::try_from(number).unwrap_or(0));
    kept.sort_unstable();
    let mut from = 3;
    for number in kept.into_iter().chain([libc::c_uint::MAX]) {
        if from < number {
            let last = if number == libc::c_uint::MAX { number } else { number - 1 };
            // SAFETY: nobody in this process owns one of these; kernels before 5.9 lack the call and keep them open.
            unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) };
        }
        from = number.saturating_add(1);
    }
}
