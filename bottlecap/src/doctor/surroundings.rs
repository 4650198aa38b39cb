//! What a bottle stands on beside the kernel: the clock that certificates are judged by, an authority to make them, roots of trust, room
//! for its state, control groups, programs, and the engine that containers need. None of it is needed by every bottle, so none of it is a failure.

use std::path::Path;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use jiff::civil::date;
use nix::sys::statvfs::statvfs;

use super::{Finding, State};
use crate::backend::docker::engine::Engine;
use crate::bundle::programs;
use crate::manifest::Limits;
use crate::state::Directories;
use crate::{cgroup, host};

/// Below this much room a mirror or a journal may not fit.
const ROOM_MEBIBYTES: u64 = 1024;
const DAEMONS: [&str; 4] = ["supervisor", "egress", "git-gate", "supervise"];
/// What git-gate and the working copy need.
const GIT: &str = "git";

/// One finding for each.
pub(super) fn look(directories: &Directories) -> Vec<Finding> {
    let mut findings =
        vec![clock(Timestamp::now()), authority(), roots(), room(directories), groups(), daemons()];
    findings.extend([tool(GIT), engine()]);
    findings
}

fn line(good: bool, what: &str, note: &str) -> Finding {
    let (state, note) = if good { (State::Ok, "") } else { (State::Note, note) };
    Finding { state, what: what.to_owned(), note: note.to_owned() }
}

/// Makes an authority as each bottle gets one, and forgets it.
fn authority() -> Finding {
    let made = || -> Result<(), String> {
        let program = programs().map_err(|fault| fault.to_string())?.join("egress");
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut command = Command::new(&program);
        command
            .args(["ca", "init", "--ca-dir"])
            .arg(directory.path().join("ca"))
            .env_clear()
            .stdin(Stdio::null());
        let output = command.output().map_err(|error| format!("{}: {error}", program.display()))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    };
    let made = made();
    line(made.is_ok(), "a certificate authority can be made", &made.err().unwrap_or_default())
}

fn roots() -> Finding {
    line(
        !host::roots().is_empty(),
        "roots of trust of this host",
        "none: a bottle trusts its own authority alone",
    )
}

/// Whether a sandbox can keep every kind of limit.
fn groups() -> Finding {
    let all = Limits { memory: Some(1 << 30), processes: Some(64), cpu_thousandths: Some(1000), place: None };
    let kept = cgroup::check(&all, &cgroup::Host::of_process());
    line(
        kept.is_ok(),
        "control groups, for `limits`",
        &kept.err().map(|fault| fault.to_string()).unwrap_or_default(),
    )
}

/// A certificate that was made before its own beginning is believed by nobody.
fn clock(now: Timestamp) -> Finding {
    let built = date(2026, 11, 1).to_zoned(jiff::tz::TimeZone::UTC).map(|built| built.timestamp());
    let good = built.is_ok_and(|built| now >= built);
    line(
        good,
        "the clock",
        &format!("it says {now}, before this program was made: certificates will not be believed"),
    )
}

fn room(directories: &Directories) -> Finding {
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

fn daemons() -> Finding {
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

fn tool(name: &str) -> Finding {
    // Whatever it answers: it is there.
    let found = Command::new(name)
        .arg("-V")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    line(found.is_ok(), name, "not found; git repositories need it")
}

fn engine() -> Finding {
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
        assert!(
            clock(Timestamp::UNIX_EPOCH).to_string().starts_with("note     the clock: it says 1970-01-01")
        );
        assert_eq!(clock("2026-12-24T00:00:00Z".parse().expect("a time")).to_string(), "ok       the clock");
    }
}
