//! What a bottle stands on beside the kernel: the clock that certificates are judged by, room for its state, programs, and the
//! engine that containers need. None of it is needed by every bottle, so none of it is a failure.

use std::path::Path;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use jiff::civil::date;
use nix::sys::statvfs::statvfs;

use crate::backend::docker::engine::Engine;
use crate::bundle::programs;
use crate::state::Directories;

/// Below this much room a mirror or a journal may not fit.
const ROOM_MEBIBYTES: u64 = 1024;
const DAEMONS: [&str; 4] = ["supervisor", "egress", "git-gate", "supervise"];
/// What git-gate and the working copy need.
const TOOLS: [&str; 2] = ["git", "ssh"];

/// One line for each.
pub(super) fn look(directories: &Directories) -> Vec<String> {
    let mut lines = vec![clock(Timestamp::now()), room(directories), daemons()];
    lines.extend(TOOLS.map(tool));
    lines.push(engine());
    lines
}

fn line(good: bool, what: &str, note: &str) -> String {
    if good { format!("ok       {what}") } else { format!("note     {what}: {note}") }
}

/// A certificate that was made before its own beginning is believed by nobody.
fn clock(now: Timestamp) -> String {
    let built = date(2026, 11, 1).to_zoned(jiff::tz::TimeZone::UTC).map(|built| built.timestamp());
    let good = built.is_ok_and(|built| now >= built);
    line(
        good,
        "the clock",
        &format!("it says {now}, before this program was made: certificates will not be believed"),
    )
}

fn room(directories: &Directories) -> String {
    let place = directories.bottles.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let what = format!("room for state at {}", place.display());
    match statvfs(place) {
        Ok(found) => {
            let free = found.blocks_available() * found.fragment_size() / (1 << 20);
            line(free >= ROOM_MEBIBYTES, &what, &format!("{free} MiB are left"))
        }
        Err(errno) => line(false, &what, &errno.to_string()),
    }
}

fn daemons() -> String {
    let missing: Vec<&str> = match programs() {
        Ok(directory) => DAEMONS.into_iter().filter(|name| !directory.join(name).exists()).collect(),
        Err(_) => DAEMONS.to_vec(),
    };
    line(
        missing.is_empty(),
        "the daemons beside this program",
        &format!("{} are missing", missing.join(", ")),
    )
}

fn tool(name: &str) -> String {
    // Whatever it answers: it is there.
    let found = Command::new(name)
        .arg("-V")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    line(found.is_ok(), name, "not found; git repositories need it")
}

fn engine() -> String {
    match Engine::find() {
        Ok(engine) => {
            let bounds = [(engine.limits.memory, "memory"), (engine.limits.processes, "processes")];
            let missing: Vec<&str> =
                bounds.into_iter().filter(|(kept, _)| !kept).map(|(_, name)| name).collect();
            let note = format!("its control groups cannot bound {}", missing.join(" and "));
            line(missing.is_empty(), "Docker, for --backend docker", &note)
        }
        Err(fault) => line(false, "Docker, for --backend docker", &fault.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_before_this_program_is_told() {
        assert!(clock(Timestamp::UNIX_EPOCH).starts_with("note     the clock: it says 1970-01-01"));
        assert_eq!(clock("2026-12-24T00:00:00Z".parse().expect("a time")), "ok       the clock");
    }
}
