//! Whether who connects is one of the daemons beside us. Without root they have our uid, and must not decide as an operator does.

use std::os::fd::AsFd;
use std::sync::LazyLock;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

/// Names the process below which our siblings are; set where the daemons share a uid.
const VARIABLE: &str = "BOTTLECAP_SUPERVISOR_PID";
/// Most steps from a process upwards that are looked at.
const STEPS: usize = 64;

static SUPERVISOR: LazyLock<Option<i32>> =
    LazyLock::new(|| std::env::var(VARIABLE).ok().and_then(|pid| pid.parse().ok()));

/// Whether the peer descends from our supervisor. Who cannot be told is taken for a sibling.
pub(crate) fn is_sibling(peer: Option<i32>, stream: impl AsFd) -> bool {
    let Some(supervisor) = *SUPERVISOR else { return false };
    let Some(peer) = peer else { return true };
    // The number means that process only as long as it lives, so that comes last.
    descends(peer, supervisor, parent_of) || has_ended(&stream)
}

/// False on kernels that cannot tell (before 6.5).
fn has_ended(stream: &impl AsFd) -> bool {
    match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(pidfd) => poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) != Ok(0),
        Err(error) => error != Errno::ENOPROTOOPT,
    }
}

fn descends(mut pid: i32, from: i32, parent_of: impl Fn(i32) -> Option<i32>) -> bool {
    for _ in 0..STEPS {
        match parent_of(pid) {
            None => return true,
            Some(0) => return false,
            Some(parent) if parent == from => return true,
            Some(parent) => pid = parent,
        }
    }
    true
}

fn parent_of(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = text.rsplit_once(") ")?;
    after_name.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_and_grandchildren_of_the_supervisor_are_siblings_and_others_are_not() {
        // 1 started 10, the supervisor; 10 started 20; 20 started 21; 1 started 30; 40 has no entry.
        let tree =
            |pid| [(1, 0), (10, 1), (20, 10), (21, 20), (30, 1)].into_iter().find(|(own, _)| *own == pid);
        let below = |pid| descends(pid, 10, |pid| tree(pid).map(|(_, parent)| parent));
        assert_eq!([20, 21, 30, 10, 1, 40].map(below), [true, true, false, false, false, true]);
    }

    #[test]
    fn our_own_descent_is_read_from_the_system() {
        let parent = nix::unistd::getppid().as_raw();
        assert!(descends(nix::unistd::getpid().as_raw(), parent, parent_of));
    }
}
