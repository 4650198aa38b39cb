//! What a child tells us between its fork and its exec, and our leave for that one exec.
//!
//! The child's end closes at exec. Before it, the child sends at most two messages: that its walls stand, with the listener of its
//! execs where the kernel has them, and the step that failed.

use std::io::{self, IoSliceMut};
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::spawn::Step;

/// The step that failed, and its error number.
pub(super) const REPORT_BYTES: usize = 5;
/// Receives the notification of a call; from linux/seccomp.h.
const NOTIF_RECV: libc::c_ulong = 0xC050_2100;
/// Answers it.
const NOTIF_SEND: libc::c_ulong = 0xC018_2101;
const _: () =
    assert!(size_of::<libc::seccomp_notif>() == 0x50 && size_of::<libc::seccomp_notif_resp>() == 0x18);

/// How the way to the exec ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// The program runs; `once` when no further exec is possible in it.
    Executed { once: bool },
    /// A step failed.
    Failed(Step, io::Error),
}

/// Follows the child until its program runs. Its end of the channel closes at exec or when it ends; only a program on a file system that
/// hangs, or a child that someone stopped, keeps it open, and must not keep us.
pub(super) fn follow(report: &OwnedFd, patience: Duration) -> Ended {
    let until = Instant::now() + patience;
    let mut listener = None;
    loop {
        match wait(report, listener.as_ref(), until) {
            Ok((false, false)) => return Ended::Failed(Step::Exec, io::ErrorKind::TimedOut.into()),
            // The channel first: an exec that asks after the channel has closed is not the first one.
            Ok((true, _)) => match receive(report) {
                Ok(Message::End) => return Ended::Executed { once: listener.is_some() },
                Ok(Message::Walls(fd)) => listener = fd,
                Ok(Message::Failure(step, error)) => return Ended::Failed(step, error),
                Err(error) => return Ended::Failed(Step::Exec, error),
            },
            Ok((false, true)) => {
                if let Some(fd) = &listener
                    && let Err(error) = let_pass(fd, report)
                {
                    return Ended::Failed(Step::Exec, error);
                }
            }
            Err(error) => return Ended::Failed(Step::Exec, error),
        }
    }
}

enum Message {
    End,
    Walls(Option<OwnedFd>),
    Failure(Step, io::Error),
}

/// Whether the channel and the listener have something.
fn wait(report: &OwnedFd, listener: Option<&OwnedFd>, until: Instant) -> io::Result<(bool, bool)> {
    loop {
        let left = PollTimeout::try_from(until.saturating_duration_since(Instant::now()));
        let watched = std::iter::once(report).chain(listener);
        let mut fds: Vec<PollFd<'_>> = watched.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut fds, left.unwrap_or(PollTimeout::ZERO)) {
            Ok(_) => {
                let any = |at: usize| fds.get(at).is_some_and(|fd| fd.any().unwrap_or(true));
                return Ok((any(0), any(1)));
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn receive(report: &OwnedFd) -> io::Result<Message> {
    let mut bytes = [0; REPORT_BYTES];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut control = nix::cmsg_space!(RawFd);
    let message =
        recvmsg::<()>(report.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut listener = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            // SAFETY: fresh descriptors that the kernel put into this process for us.
            listener = fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).next();
        }
    }
    if message.bytes == 0 {
        return Ok(Message::End);
    }
    let [step, errno @ ..] = bytes;
    Ok(match Step::from_number(step) {
        None => Message::Walls(listener),
        Some(step) => Message::Failure(step, io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
    })
}

/// Lets the exec pass that the child waits in, unless it has had its own already.
fn let_pass(listener: &OwnedFd, report: &OwnedFd) -> io::Result<()> {
    // SAFETY: plain data, for which all zeros are a value; the kernel wants them.
    let mut asked: libc::seccomp_notif = unsafe { zeroed() };
    // SAFETY: `asked` is a valid place for what this request writes.
    if unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, &raw mut asked) } < 0 {
        return gone_is_no_error();
    }
    if wait(report, None, Instant::now())?.0 {
        return Ok(());
    }
    let answer = libc::seccomp_notif_resp {
        id: asked.id,
        val: 0,
        error: 0,
        flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    };
    // SAFETY: `answer` is what this request reads.
    if unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, &raw const answer) } < 0 {
        return gone_is_no_error();
    }
    Ok(())
}

/// A child that ended meanwhile closes the channel, which tells the rest.
fn gone_is_no_error() -> io::Result<()> {
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::sockets::packet_pair;

    fn told(message: &[u8], close: bool) -> Result<bool, (Step, io::ErrorKind)> {
        let (ours, theirs) = packet_pair().unwrap();
        if !message.is_empty() {
            nix::unistd::write(&theirs, message).unwrap();
        }
        let theirs = (!close).then_some(theirs);
        let ended = follow(&ours, Duration::from_millis(1));
        drop(theirs);
        match ended {
            Ended::Executed { once } => Ok(once),
            Ended::Failed(step, error) => Err((step, error.kind())),
        }
    }

    #[test]
    fn a_child_that_neither_executes_nor_ends_is_not_waited_for_without_end() {
        assert_eq!(told(&[], false), Err((Step::Exec, io::ErrorKind::TimedOut)));
    }

    #[test]
    fn a_report_names_the_step_and_the_error() {
        let [a, b, c, d] = libc::ENOENT.to_ne_bytes();
        assert_eq!(
            told(&[Step::Groups as u8, a, b, c, d], true),
            Err((Step::Groups, io::ErrorKind::NotFound))
        );
    }

    #[test]
    fn a_channel_that_closes_is_an_exec() {
        assert_eq!(told(&[0; REPORT_BYTES], true), Ok(false));
    }
}
