//! Signals: the handlers only record, in the order of arrival, and the record wakes the loop.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;

/// What was recorded since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caught {
    /// SIGHUP came.
    pub(crate) hangup: bool,
    /// SIGUSR1 came.
    pub(crate) unhealthy: bool,
    /// SIGTERM, SIGINT or SIGQUIT came; the number of the last one.
    pub(crate) stop: Option<i32>,
}

/// The record as the bundle reads it.
#[derive(Debug)]
pub(crate) struct Signals {
    recorder: Recorder,
    caught: Caught,
}

impl Signals {
    /// Installs the handlers.
    pub(crate) fn install() -> io::Result<Self> {
        let numbers =
            [libc::SIGHUP, libc::SIGUSR1, libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGCHLD];
        Ok(Self { recorder: Recorder::install(numbers)?, caught: Caught::default() })
    }

    /// Readable when something was recorded, or a child changed.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.recorder.fd()
    }

    /// Empties the record and takes it.
    pub(crate) fn take(&mut self) -> Caught {
        self.read();
        std::mem::take(&mut self.caught)
    }

    /// Empties the record and takes only that of a stop; the others wait for [`Self::take`].
    pub(crate) fn take_stop(&mut self) -> Option<i32> {
        self.read();
        self.caught.stop.take()
    }

    fn read(&mut self) {
        for number in self.recorder.take() {
            match number {
                libc::SIGHUP => self.caught.hangup = true,
                libc::SIGUSR1 => self.caught.unhealthy = true,
                libc::SIGTERM | libc::SIGINT | libc::SIGQUIT => self.caught.stop = Some(number),
                _ => {}
            }
        }
    }
}

/// Records signals, and nothing else.
#[derive(Debug)]
pub(crate) struct Recorder {
    record: Arc<std::fs::File>,
    writer: RawFd,
    child_noted: Arc<AtomicBool>,
}

/// The pipe as the handlers have it. They stay when the recorder is gone, and a pipe that nobody can read would raise SIGPIPE in
/// them, for ever where that is one of the signals that they record.
struct Ends {
    write: OwnedFd,
    _read: Arc<std::fs::File>,
}

impl Recorder {
    /// Installs a handler for each of these, and lets them come if they were blocked.
    pub(crate) fn install(numbers: impl IntoIterator<Item = i32>) -> io::Result<Self> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let (writer, read) = (write.as_raw_fd(), Arc::new(std::fs::File::from(read)));
        let ends = Arc::new(Ends { write, _read: Arc::clone(&read) });
        let child_noted = Arc::new(AtomicBool::new(false));
        // SAFETY: a zeroed set is a valid place for an empty one.
        let mut let_in: libc::sigset_t = unsafe { std::mem::zeroed() };
        for number in numbers {
            let (ends, noted) = (Arc::clone(&ends), Arc::clone(&child_noted));
            let action = move |info: &libc::siginfo_t| record(number, info, &ends, &noted);
            if is_fault(number) {
                // A handler that the runtime has here would be called too, and would end us at the second one sent.
                set_default(number);
            }
            // SAFETY: the action only makes async-signal-safe calls, and neither allocates nor locks.
            unsafe { signal_hook_registry::register_unchecked(number, action)? };
            // SAFETY: a valid set; a number that does not exist only fails.
            unsafe { libc::sigaddset(&raw mut let_in, number) };
        }
        // SAFETY: a valid set, and no place for the old one is asked for.
        if unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, &raw const let_in, std::ptr::null_mut()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { record: read, writer, child_noted })
    }

    /// Readable when something was recorded.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.record.as_fd()
    }

    /// The descriptors that must stay open.
    pub(crate) fn descriptors(&self) -> [RawFd; 2] {
        [self.record.as_raw_fd(), self.writer]
    }

    /// Empties the record: the numbers, oldest first. Of SIGCHLD there is at most one.
    pub(crate) fn take(&mut self) -> Vec<i32> {
        let (mut numbers, mut bytes) = (Vec::new(), [0; 256]);
        while let Ok(count @ 1..) = (&*self.record).read(&mut bytes) {
            numbers.extend(bytes[..count].iter().map(|number| i32::from(*number)));
        }
        // After the reading: noted and not in the pipe would silence every later one. Who was noted in between is found by
        // the reaping, which always follows.
        self.child_noted.store(false, Ordering::SeqCst);
        numbers
    }
}

/// Runs inside a signal handler.
fn record(number: i32, info: &libc::siginfo_t, ends: &Ends, child_noted: &AtomicBool) {
    if is_fault(number) && info.si_code > 0 {
        // Not sent but caused: the instruction is repeated, and ends us as it must.
        set_default(number);
        return;
    }
    // Thousands of children that end at once must not crowd out the other signals.
    if number == libc::SIGCHLD && child_noted.swap(true, Ordering::SeqCst) {
        return;
    }
    let byte = u8::try_from(number).unwrap_or(0);
    // SAFETY: one byte of this frame to a descriptor that the closure owns; errno is put back for the code that was
    // interrupted. A full pipe loses a signal of which 65,536 are waiting.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(ends.write.as_raw_fd(), (&raw const byte).cast(), 1);
        *libc::__errno_location() = errno;
    }
}

/// Whether the processor raises it too.
const fn is_fault(number: i32) -> bool {
    matches!(
        number,
        libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGTRAP | libc::SIGSYS
    )
}

fn set_default(number: i32) {
    // SAFETY: SIG_DFL is a valid disposition, and signal is async-signal-safe.
    unsafe { libc::signal(number, libc::SIG_DFL) };
}

/// Bit n - 1 is set when signal n was ignored before the first line of this program ran.
static IGNORED: AtomicU64 = AtomicU64::new(0);

/// Highest signal number.
const LAST_SIGNAL: i32 = 64;

/// Runs before the runtime, which changes what it finds: it ignores SIGPIPE.
extern "C" fn note_ignored() {
    let mut ignored = 0;
    for number in 1..=LAST_SIGNAL {
        // SAFETY: a zeroed sigaction is valid, and a null new action only asks.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(number, std::ptr::null(), &raw mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
            {
                ignored |= 1 << (number - 1);
            }
        }
    }
    IGNORED.store(ignored, Ordering::Relaxed);
}

// SAFETY: the section holds pointers to functions that take nothing they need; ours touches one atomic of its own.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = note_ignored;

/// How whoever started us wanted signals to be, for the program that we start in our place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    ignored: u64,
    blocked: SigSet,
}

impl Inherited {
    /// To be asked before a [`Recorder`] is installed.
    pub(crate) fn now() -> io::Result<Self> {
        Ok(Self { ignored: IGNORED.load(Ordering::Relaxed), blocked: SigSet::thread_get_mask()? })
    }

    /// Puts everything back as it was.
    ///
    /// # Safety
    /// Only in a freshly forked child that goes on to execute a program: the handlers here are lost.
    pub(crate) unsafe fn restore(&self) {
        for number in 1..=LAST_SIGNAL {
            let ignored = self.ignored & (1 << (number - 1)) != 0;
            let action = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
            // SAFETY: both are valid dispositions; numbers that cannot be set only fail.
            unsafe { libc::signal(number, action) };
        }
        // SAFETY: a valid set.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, self.blocked.as_ref(), std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_that_outlives_its_recorder_does_not_call_itself() {
        drop(Recorder::install([libc::SIGPIPE, libc::SIGWINCH]).unwrap());
        // SAFETY: a signal that does nothing but to be recorded.
        assert_eq!(unsafe { libc::raise(libc::SIGWINCH) }, 0);
    }
}
