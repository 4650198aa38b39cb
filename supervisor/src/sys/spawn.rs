//! Making the process of a daemon: fork, drop every right it does not need, exec.
//!
//! Everything is prepared before the fork. The child calls only what is async-signal-safe, and reports a failure
//! through a pipe that a successful exec closes; so "never ran" and "ran and exited early" are told apart.

use std::ffi::{CString, OsStr, OsString, c_char, c_int, c_uint};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::pipe2;

use super::fence::{self, Failed, Fence};
use super::image;
use super::report::{self, Ended, REPORT_BYTES};

/// First descriptor that is handed over.
const FIRST_FD: RawFd = 3;
/// Open files that a daemon may have, where our own limit allows as many.
const OPEN_FILES: libc::rlim_t = 65_536;
/// Digits of the longest pid, and its end.
const PID_ROOM: usize = 12;
/// How long a child may take from the fork to the exec.
const EXEC_TIMEOUT: Duration = Duration::from_secs(5);

/// The program to run and everything it gets.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    /// The program.
    pub(crate) program: &'a Path,
    /// Its name in the process list.
    pub(crate) name: &'a str,
    /// Arguments after the name.
    pub(crate) arguments: &'a [OsString],
    /// The whole environment, without the variables of the hand-over.
    pub(crate) environment: &'a [(&'a str, OsString)],
    /// Descriptors to hand over, with their names.
    pub(crate) descriptors: &'a [(String, BorrowedFd<'a>)],
    /// The uid and gid to run as, where they are not ours.
    pub(crate) uid: Option<u32>,
    /// What it is confined to.
    pub(crate) fence: Fence,
}

/// A process that runs the program.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// It can execute nothing any more.
    pub(crate) executes_once: bool,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("cannot {what}")]
    Prepare {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot fork")]
    Fork(#[source] io::Error),
    #[error("cannot {step}")]
    Child {
        step: Step,
        #[source]
        source: io::Error,
    },
}

/// What the child was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    Session = 1,
    Descriptors,
    Groups,
    Identity,
    Capabilities,
    Privileges,
    Limits,
    DeathSignal,
    Domain,
    Calls,
    Exec,
}

impl Step {
    /// The step of that number; no step has 0.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        [
            Self::Session,
            Self::Descriptors,
            Self::Groups,
            Self::Identity,
            Self::Capabilities,
            Self::Privileges,
            Self::Limits,
            Self::DeathSignal,
            Self::Domain,
            Self::Calls,
            Self::Exec,
        ]
        .into_iter()
        .find(|step| *step as u8 == number)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => "make a session",
            Self::Descriptors => "hand over the descriptors",
            Self::Groups => "drop the supplementary groups",
            Self::Identity => "change to the uid of the daemon",
            Self::Capabilities => "drop the capabilities",
            Self::Privileges => "set no_new_privs",
            Self::Limits => "set the resource limits",
            Self::DeathSignal => "tie its life to ours",
            Self::Domain => "enter its Landlock domain",
            Self::Calls => "put up the filter of its system calls",
            Self::Exec => "execute the program",
        })
    }
}

/// What the child needs, laid out before the fork.
struct Prepared {
    program: OwnedFd,
    path: CString,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    listen_pid: *mut c_char,
    null: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    report: OwnedFd,
    handed: Vec<OwnedFd>,
    uid: Option<u32>,
    parent: libc::pid_t,
    files: libc::rlimit,
    last_capability: c_int,
    image: Image,
}

/// Which file is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Image {
    /// The program itself, which its uid cannot read.
    Itself,
    /// A copy that can only be executed.
    Copy,
}

/// Runs the command. The caller reaps the process, also that of a failed exec.
pub(crate) fn spawn(command: &mut Command<'_>) -> Result<Child, SpawnError> {
    let prepare = |what| move |source: io::Error| SpawnError::Prepare { what, source };
    let above = FIRST_FD + RawFd::try_from(command.descriptors.len()).unwrap_or(RawFd::MAX / 2);
    let (program, image) = image(command).map_err(prepare("open the program"))?;
    let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|error| prepare("open /dev/null")(error.into()))?;
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|error| prepare("make a pipe")(error.into()));
    let (stdout, child_stdout) = pipe()?;
    let (stderr, child_stderr) = pipe()?;
    let (report, child_report) = super::sockets::packet_pair().map_err(prepare("make a pipe"))?;
    for fd in [&stdout, &stderr] {
        super::set_nonblocking(fd).map_err(prepare("make a pipe"))?;
    }
    // Sources lie above all targets, so that no dup2 in the child overwrites one that is still needed.
    let raise = |fd: BorrowedFd<'_>| raised(fd, above).map_err(prepare("duplicate a descriptor"));

    let name = c_string(command.name).map_err(prepare("use the program name"))?;
    let path = c_string(command.program).map_err(prepare("use the program name"))?;
    let arguments: Vec<CString> = command
        .arguments
        .iter()
        .map(c_string)
        .collect::<Result<_, _>>()
        .map_err(prepare("use the arguments"))?;
    let environment = environment(command).map_err(prepare("use the environment"))?;
    // The child writes its own pid behind the equals sign; zeros end the string.
    let mut listen_pid: Vec<c_char> = b"LISTEN_PID=".iter().map(|byte| *byte as c_char).collect();
    let digits = listen_pid.len();
    listen_pid.resize(digits + PID_ROOM, 0);
    let listen_pid = listen_pid.as_mut_ptr();

    let ends = std::iter::once(std::ptr::null());
    let argv =
        std::iter::once(&name).chain(&arguments).map(|text| text.as_ptr()).chain(ends.clone()).collect();
    let pid_entry = (!command.descriptors.is_empty()).then_some(listen_pid.cast_const());
    let envp = environment.iter().map(|text| text.as_ptr()).chain(pid_entry).chain(ends).collect();
    let prepared = Prepared {
        program: raise(AsFd::as_fd(&program))?,
        path,
        argv,
        envp,
        listen_pid: listen_pid.wrapping_add(digits),
        null: raise(AsFd::as_fd(&null))?,
        stdout: raise(AsFd::as_fd(&child_stdout))?,
        stderr: raise(AsFd::as_fd(&child_stderr))?,
        report: raise(AsFd::as_fd(&child_report))?,
        handed: command.descriptors.iter().map(|(_, fd)| raise(*fd)).collect::<Result<_, _>>()?,
        uid: command.uid,
        parent: nix::unistd::getpid().as_raw(),
        files: open_files().map_err(prepare("read the resource limits"))?,
        last_capability: last_capability(),
        image,
    };
    let pid = fork(&prepared, &mut command.fence).map_err(SpawnError::Fork)?;
    drop((prepared, child_report, child_stdout, child_stderr));
    match report::follow(&report, EXEC_TIMEOUT) {
        Ended::Executed { once } => Ok(Child { pid, stdout, stderr, executes_once: once }),
        Ended::Failed(step, source) => {
            // One that is late must not run after all; the pid is its own until it is reaped.
            super::kill_child(pid);
            Err(SpawnError::Child { step, source })
        }
    }
}

/// What to execute: the program if the uid of the process cannot read it, and else a copy that nobody can read.
fn image(command: &Command<'_>) -> io::Result<(OwnedFd, Image)> {
    let uid = command.uid.unwrap_or_else(|| nix::unistd::geteuid().as_raw());
    let program = nix::fcntl::open(command.program, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    if image::is_unreadable(&std::fs::File::from(program.try_clone()?), uid)? {
        return Ok((program, Image::Itself));
    }
    let mut file = std::fs::File::open(command.program)?;
    Ok((image::execute_only(&mut file, command.name)?, Image::Copy))
}

fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    Ok(CString::new(text.as_ref().as_bytes())?)
}

fn environment(command: &Command<'_>) -> io::Result<Vec<CString>> {
    let pair = |name: &str, value: &OsStr| {
        let mut text = OsString::from(name);
        text.push("=");
        text.push(value);
        c_string(text)
    };
    let mut all = Vec::with_capacity(command.environment.len() + 2);
    for (name, value) in command.environment {
        all.push(pair(name, value)?);
    }
    if !command.descriptors.is_empty() {
        let names: Vec<&str> = command.descriptors.iter().map(|(name, _)| name.as_str()).collect();
        all.push(pair("LISTEN_FDS", OsStr::new(&names.len().to_string()))?);
        all.push(pair("LISTEN_FDNAMES", OsStr::new(&names.join(":")))?);
    }
    Ok(all)
}

fn raised(fd: BorrowedFd<'_>, above: RawFd) -> io::Result<OwnedFd> {
    let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(above))?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn open_files() -> io::Result<libc::rlimit> {
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    let limit = hard.min(OPEN_FILES);
    Ok(libc::rlimit { rlim_cur: limit, rlim_max: limit })
}

fn last_capability() -> c_int {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    text.trim().parse().unwrap_or(63)
}

fn fork(prepared: &Prepared, fence: &mut Fence) -> io::Result<i32> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    // A handler of ours must not run in the child: it would write into our own wake-up pipe.
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: this process has one thread, and the child only makes system calls on prepared memory.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: we are the child, right after the fork.
        unsafe { child(prepared, fence) }
    }
    let error = io::Error::last_os_error();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    if pid < 0 { Err(error) } else { Ok(pid) }
}

/// # Safety
/// Only in a freshly forked child of a process with one thread. Nothing here allocates, locks or returns.
unsafe fn child(prepared: &Prepared, fence: &mut Fence) -> ! {
    // SAFETY: system calls on descriptors that `prepared` owns and memory that it points to.
    let failed = unsafe { become_daemon(prepared, fence) };
    // SAFETY: errno of this thread; the report is a plain array; _exit runs no destructors of the parent's copies.
    unsafe {
        let errno = (*libc::__errno_location()).to_ne_bytes();
        let report: [u8; REPORT_BYTES] = [failed as u8, errno[0], errno[1], errno[2], errno[3]];
        libc::write(prepared.report.as_raw_fd(), report.as_ptr().cast(), report.len());
        libc::_exit(127)
    }
}

/// Drops rights one by one and executes the program; returns the step that failed.
///
/// # Safety
/// As [`child`].
unsafe fn become_daemon(prepared: &Prepared, fence: &mut Fence) -> Step {
    // SAFETY: see above; every pointer handed to the kernel is into `prepared` or this frame.
    unsafe {
        reset_signals();
        if libc::setsid() < 0 {
            return Step::Session;
        }
        if !place_descriptors(prepared) {
            return Step::Descriptors;
        }
        if let Some(uid) = prepared.uid {
            // The bounding set can be cleared with CAP_SETPCAP alone, which a hardened container does not grant.
            for capability in 0..=prepared.last_capability {
                libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
            let none: *const libc::gid_t = std::ptr::null();
            if libc::syscall(libc::SYS_setgroups, 0, none) < 0 {
                return Step::Groups;
            }
            if libc::syscall(libc::SYS_setresgid, uid, uid, uid) < 0
                || libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0
            {
                return Step::Identity;
            }
        }
        if !drop_capabilities() {
            return Step::Capabilities;
        }
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 {
            return Step::Privileges;
        }
        libc::umask(0o077);
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core) < 0
            || libc::setrlimit(libc::RLIMIT_NOFILE, &raw const prepared.files) < 0
        {
            return Step::Limits;
        }
        // After the change of uid, which clears it. If we died before it was set, nobody would end the child.
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) < 0
            || libc::getppid() != prepared.parent
        {
            return Step::DeathSignal;
        }
        write_pid(prepared.listen_pid);
        libc::chdir(c"/".as_ptr());
        match fence::put_up(fence, prepared.report.as_raw_fd()) {
            Ok(()) => {}
            Err(Failed::Domain) => return Step::Domain,
            Err(Failed::Calls) => return Step::Calls,
        }
        let (argv, envp) = (prepared.argv.as_ptr(), prepared.envp.as_ptr());
        if prepared.image == Image::Itself {
            libc::execve(prepared.path.as_ptr(), argv, envp);
        }
        if prepared.image == Image::Copy || *libc::__errno_location() == libc::EACCES {
            // The copy has no path, and the daemon's uid may not walk every path; the opened file itself it may run.
            let empty = c"".as_ptr();
            libc::syscall(
                libc::SYS_execveat,
                prepared.program.as_raw_fd(),
                empty,
                argv,
                envp,
                libc::AT_EMPTY_PATH,
            );
        }
        Step::Exec
    }
}

/// # Safety
/// As [`child`].
unsafe fn reset_signals() {
    // SAFETY: the structures are plain data of this frame; numbers that cannot be set only fail.
    unsafe {
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        for number in 1..=64 {
            libc::sigaction(number, &raw const default, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// # Safety
/// As [`child`].
unsafe fn place_descriptors(prepared: &Prepared) -> bool {
    // SAFETY: dup2 and close_range on numbers; all sources are open and above all targets.
    unsafe {
        let places = [(&prepared.null, 0), (&prepared.stdout, 1), (&prepared.stderr, 2)];
        for (source, target) in places {
            if libc::dup2(source.as_raw_fd(), target) < 0 {
                return false;
            }
        }
        let mut target = FIRST_FD;
        for source in &prepared.handed {
            if libc::dup2(source.as_raw_fd(), target) < 0 {
                return false;
            }
            target += 1;
        }
        // Everything is CLOEXEC from its creation; this also catches what someone else left open. Old kernels lack it.
        libc::syscall(libc::SYS_close_range, target, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        true
    }
}

/// Lets go of all capabilities but these, a mask of the first 32.
pub(super) fn keep_capabilities(mask: u32) -> io::Result<()> {
    // SAFETY: plain system calls; this process does what its caller says.
    if unsafe { set_capabilities(mask) } { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// # Safety
/// As [`child`].
unsafe fn drop_capabilities() -> bool {
    // SAFETY: as for the caller.
    unsafe { set_capabilities(0) }
}

/// # Safety
/// As [`child`].
unsafe fn set_capabilities(mask: u32) -> bool {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    // Effective, permitted, inheritable; once for the first 32 and once for the others.
    let sets = [[mask, mask, 0_u32], [0; 3]];
    // SAFETY: header and data have the layout of capset(2), version 3.
    unsafe {
        // Kernels without ambient capabilities have none to clear.
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        libc::syscall(libc::SYS_capset, &raw const header, &raw const sets) == 0
    }
}

/// # Safety
/// `place` has room for [`PID_ROOM`] characters.
unsafe fn write_pid(place: *mut c_char) {
    // SAFETY: getpid has no failure.
    let mut pid = unsafe { libc::getpid() };
    let mut digits = [0_u8; PID_ROOM];
    let mut count = 0;
    while pid > 0 && count < PID_ROOM - 1 {
        digits[count] = b'0' + u8::try_from(pid % 10).unwrap_or(0);
        pid /= 10;
        count += 1;
    }
    for at in 0..count {
        // SAFETY: `at` is below PID_ROOM - 1, and the place was zeroed.
        unsafe { *place.add(at) = digits[count - 1 - at] as c_char };
    }
}
