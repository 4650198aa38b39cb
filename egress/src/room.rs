//! How much may be open at once: connections, by how many descriptors there are for them, and decoders, by how much memory.

use std::fs;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};
use tracing::warn;

use crate::upstream::DIALLED_AT_ONCE;

/// Descriptors of all that is not a connection: listeners, the journal, look-ups, those who watch.
const RESERVE: usize = 256;

/// The memory of all decoders together, and what of this process' memory it is where there is little of that.
const DECODING: usize = 256 << 20;
const DECODING_PART: usize = 4;
/// With less, no window as large as they may be could be searched in both of the ways that a body is read.
const DECODING_LEAST: usize = 32 << 20;

/// The bounds of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// From the bottle, with the tunnels in HTTP/2.
    pub(crate) from_bottle: usize,
    /// To upstream, over all routes, idle ones among them.
    pub(crate) upstream: usize,
    /// Bytes for all decoders.
    pub(crate) decoding: usize,
}

impl Room {
    /// What is good for a bottle.
    pub(crate) const WHOLE: Room = Room { from_bottle: 12 * 1024, upstream: 4 * 1024, decoding: DECODING };
    /// With fewer, listeners alone would take most of them: a shortage of descriptors has to be waited out then.
    const LEAST: Room = Room { from_bottle: 64, upstream: 16, decoding: DECODING_LEAST };

    /// What this process has descriptors and memory for. Says so when that is less than is good.
    pub(crate) fn of_process() -> Room {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
        let memory = memory();
        let room = Room::within(usize::try_from(limit).unwrap_or(usize::MAX), memory);
        let Room { from_bottle, upstream, decoding } = room;
        if (from_bottle, upstream) != (Room::WHOLE.from_bottle, Room::WHOLE.upstream) {
            warn!(
                descriptors = limit,
                from_bottle, upstream, "the limit of open files is low: fewer connections may be open"
            );
        }
        if decoding != Room::WHOLE.decoding {
            warn!(memory, decoding, "there is little memory: less may be decoded at once");
        }
        room
    }

    /// Every connection has a descriptor when all of them are open, and every dial under way has all that it may use.
    fn within(descriptors: usize, memory: usize) -> Room {
        let Room { from_bottle, upstream, decoding } = Room::WHOLE;
        let wanted = from_bottle + DIALLED_AT_ONCE * upstream;
        let there_are = descriptors.saturating_sub(RESERVE).min(wanted);
        Room {
            from_bottle: (from_bottle * there_are / wanted).max(Room::LEAST.from_bottle),
            upstream: (upstream * there_are / wanted).max(Room::LEAST.upstream),
            decoding: (memory / DECODING_PART).clamp(Room::LEAST.decoding, decoding),
        }
    }
}

/// The memory that this process may have: that of the machine, or of a group that it is in (cgroup v2).
fn memory() -> usize {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let machine = of_machine(&read(Path::new("/proc/meminfo"))).unwrap_or(usize::MAX);
    let groups = read(Path::new("/proc/self/cgroup"));
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let limits = Path::new(group).ancestors().map(|group| read(&root.join(group).join("memory.max")));
    // Absent where nothing is limited, or `max`.
    limits.filter_map(|limit| limit.trim().parse().ok()).fold(machine, usize::min)
}

fn of_machine(meminfo: &str) -> Option<usize> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix(" kB")?.parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_may_be_open_has_descriptors() {
        let within = |descriptors| Room::within(descriptors, usize::MAX);
        for descriptors in 363..40_000 {
            let Room { from_bottle, upstream, .. } = within(descriptors);
            assert!(from_bottle + DIALLED_AT_ONCE * upstream + RESERVE <= descriptors, "{descriptors}");
        }
        assert_eq!(within(20_736), Room::WHOLE);
        assert_eq!(within(usize::MAX), Room::WHOLE);
        assert_eq!(within(1024), Room { from_bottle: 460, upstream: 153, ..Room::WHOLE });
        assert_eq!(Room::within(0, 0), Room::LEAST);
    }

    #[test]
    fn decoders_have_a_quarter_of_the_memory_and_no_more_than_is_good() {
        let decoding = |memory: usize| Room::within(usize::MAX, memory).decoding;
        assert_eq!([64 << 20, 512 << 20, 8 << 30].map(decoding), [32 << 20, 128 << 20, 256 << 20]);
        assert_eq!(of_machine("MemTotal:       24683912 kB\nMemFree: 1 kB\n"), Some(24_683_912 * 1024));
        assert_eq!(of_machine(""), None);
        assert!(memory() > 0);
    }
}
