//! The sockets between daemons that have something to tell each other.
//!
//! A pair of them is made once, and both ends stay open here: when one daemon ends, the other sees no end of file, and the next
//! process of the one that ended gets the same end, with what was sent to it meanwhile.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crate::daemon::Daemon;
use crate::sys::sockets;

/// Who talks with whom.
const PAIRS: [(Daemon, Daemon); 2] =
    [(Daemon::Egress, Daemon::Supervise), (Daemon::GitGate, Daemon::Supervise)];

/// What the name of such a descriptor begins with; the name of the other daemon follows.
const PREFIX: &str = "peer.";

/// One end: whose it is, who has the other, and the socket.
#[derive(Debug)]
struct End {
    owner: Daemon,
    other: Daemon,
    socket: OwnedFd,
}

/// The ends of all pairs.
#[derive(Debug)]
pub(crate) struct Peers(Vec<End>);

impl Peers {
    /// Makes the pairs of which both daemons are selected.
    pub(crate) fn open(selected: &[Daemon]) -> io::Result<Self> {
        let mut ends = Vec::new();
        for (one, two) in
            PAIRS.into_iter().filter(|(one, two)| selected.contains(one) && selected.contains(two))
        {
            let (first, second) = sockets::packet_pair()?;
            ends.push(End { owner: one, other: two, socket: first });
            ends.push(End { owner: two, other: one, socket: second });
        }
        Ok(Self(ends))
    }

    /// The ends of one daemon, with the names that it gets them by.
    pub(crate) fn of(&self, daemon: Daemon) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        let own = self.0.iter().filter(move |end| end.owner == daemon);
        own.map(|end| (format!("{PREFIX}{}", end.other), end.socket.as_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(peers: &Peers, daemon: Daemon) -> Vec<String> {
        peers.of(daemon).map(|(name, _)| name).collect()
    }

    #[test]
    fn each_daemon_gets_the_ends_that_lead_to_its_peers() {
        let peers = Peers::open(&Daemon::ALL).unwrap();
        assert_eq!(names(&peers, Daemon::Egress), ["peer.supervise"]);
        assert_eq!(names(&peers, Daemon::GitGate), ["peer.supervise"]);
        assert_eq!(names(&peers, Daemon::Supervise), ["peer.egress", "peer.git-gate"]);
    }

    #[test]
    fn a_daemon_whose_peer_is_not_selected_gets_no_end() {
        let peers = Peers::open(&[Daemon::Egress, Daemon::GitGate]).unwrap();
        assert!(Daemon::ALL.iter().all(|daemon| names(&peers, *daemon).is_empty()));
    }
}
