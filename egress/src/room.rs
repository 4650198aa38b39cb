//! How many connections may be open at once, by how many descriptors there are for them.

use nix::sys::resource::{Resource, getrlimit};
use tracing::warn;

use crate::upstream::DIALLED_AT_ONCE;

/// Descriptors of all that is not a connection: listeners, the journal, look-ups, those who watch.
const RESERVE: usize = 256;

/// The bounds of connections of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// From the bottle, with the tunnels in HTTP/2.
    pub(crate) from_bottle: usize,
    /// To upstream, over all routes, idle ones among them.
    pub(crate) upstream: usize,
}

impl Room {
    /// What is good for a bottle.
    pub(crate) const WHOLE: Room = Room { from_bottle: 12 * 1024, upstream: 4 * 1024 };
    /// With fewer, listeners alone would take most of them: a shortage of descriptors has to be waited out then.
    const LEAST: Room = Room { from_bottle: 64, upstream: 16 };

    /// What this process has descriptors for. Says so when that is less than is good.
    pub(crate) fn of_process() -> Room {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        let room = Room::within(usize::try_from(limit).unwrap_or(usize::MAX));
        if room != Room::WHOLE {
            let Room { from_bottle, upstream } = room;
            warn!(
                descriptors = limit,
                from_bottle, upstream, "the limit of open files is low: fewer connections may be open"
            );
        }
        room
    }

    /// Every connection has a descriptor when all of them are open, and every dial under way has all that it may use.
    fn within(descriptors: usize) -> Room {
        let Room { from_bottle, upstream } = Room::WHOLE;
        let wanted = from_bottle + DIALLED_AT_ONCE * upstream;
        let there_are = descriptors.saturating_sub(RESERVE).min(wanted);
        Room {
            from_bottle: (from_bottle * there_are / wanted).max(Room::LEAST.from_bottle),
            upstream: (upstream * there_are / wanted).max(Room::LEAST.upstream),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_may_be_open_has_descriptors() {
        for descriptors in 363..40_000 {
            let Room { from_bottle, upstream } = Room::within(descriptors);
            assert!(from_bottle + DIALLED_AT_ONCE * upstream + RESERVE <= descriptors, "{descriptors}");
        }
        assert_eq!(Room::within(20_736), Room::WHOLE);
        assert_eq!(Room::within(usize::MAX), Room::WHOLE);
        assert_eq!(Room::within(1024), Room { from_bottle: 460, upstream: 153 });
        assert_eq!(Room::within(0), Room::LEAST);
    }
}
