//! Signals: the handlers only record, and a pipe wakes the loop.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::signal::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::{flag, low_level};

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

/// The recorder.
#[derive(Debug)]
pub(crate) struct Signals {
    wake: UnixStream,
    hangup: Arc<AtomicBool>,
    unhealthy: Arc<AtomicBool>,
    stop: Arc<AtomicUsize>,
}

impl Signals {
    /// Installs the handlers.
    pub(crate) fn install() -> io::Result<Self> {
        let (wake, write) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let signals = Self { wake, hangup: Arc::default(), unhealthy: Arc::default(), stop: Arc::default() };
        flag::register(SIGHUP, Arc::clone(&signals.hangup))?;
        flag::register(SIGUSR1, Arc::clone(&signals.unhealthy))?;
        for (number, code) in [(SIGTERM, 15), (SIGINT, 2), (SIGQUIT, 3)] {
            flag::register_usize(number, Arc::clone(&signals.stop), code)?;
        }
        // The record is made first, the wake-up second: handlers of one signal run in this order.
        for number in [SIGHUP, SIGUSR1, SIGTERM, SIGINT, SIGQUIT, SIGCHLD] {
            low_level::pipe::register(number, write.try_clone()?)?;
        }
        Ok(signals)
    }

    /// Readable when something was recorded, or a child changed.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Empties the pipe and takes the record.
    pub(crate) fn take(&mut self) -> Caught {
        Caught {
            stop: self.take_stop(),
            hangup: self.hangup.swap(false, Ordering::SeqCst),
            unhealthy: self.unhealthy.swap(false, Ordering::SeqCst),
        }
    }

    /// Empties the pipe and takes only the record of a stop; the others wait for [`Self::take`].
    pub(crate) fn take_stop(&mut self) -> Option<i32> {
        let mut bytes = [0; 64];
        while matches!(self.wake.read(&mut bytes), Ok(count) if count > 0) {}
        let stop = self.stop.swap(0, Ordering::SeqCst);
        i32::try_from(stop).ok().filter(|number| *number != 0)
    }
}
