//! A bottle that runs is attacked where its agent sits: from the agent's own network, against the egress that serves it.
//!
//! That egress gets routes to the doctor's origins, which say themselves when they end, and loses them again. It trusts the origins by
//! the authority that the bottle was started with.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

use super::player::{Cast, LENDING, Running, place};
use super::{AUTHORITY, ORIGINS, Outcome, Seen, cannot_prepare, program, route};
use crate::backend::Kind;
use crate::backend::docker::compose;
use crate::backend::docker::engine::Engine;
use crate::fault::{Attempted, Fault};
use crate::manifest::Name;
use crate::plan::LISTENERS;
use crate::requests::{Desk, Selection};
use crate::state::{Directories, Record};
use crate::sys::namespaces::Network;

/// How long the routes hold when nobody is left to take them out.
const AT_MOST: SignedDuration = SignedDuration::from_mins(15);
const INSTEAD: &str = "--fresh attacks one that is made for it";

/// Plays the corpus from inside the bottle of that record.
pub(super) fn play(record: &Record, directories: &Directories, only: Option<&str>) -> Result<Outcome, Fault> {
    let name: Name = record.name.parse().refusing(|| "a bottle's record is damaged".to_owned())?;
    let home = directories.home(&name);
    if !home.doctor().join(AUTHORITY).exists() {
        return Err(Fault::refused(format!("the bottle {name} was started without the wire corpus at hand"))
            .with_hint(format!("stop and start it; or {INSTEAD}")));
    }
    // From here on a signal ends the play, and what was done for it is undone.
    let signals = hold_signals().failing(|| "cannot hold signals".to_owned())?;
    let seats = Seats::find(record, &name)?;
    let stage = tempfile::Builder::new().prefix("bottlecap-doctor-").tempdir().failing(cannot_prepare)?;
    let cast = Cast {
        program: program()?,
        origin: home.doctor(),
        socket: stage.path().join("dial.sock"),
        ca: home.root().join("var/lib/sidecars/egress/ca/ca.pem"),
    };
    let mut player = cast.player(only, ORIGINS.map(|_| 0));
    place(&mut player, seats.origins);
    let mut player = Running::start(&mut player)?;
    let ports = player.ports(Some(&signals))?;
    let mut lender = cast.lender(seats.egress);
    place(&mut lender, Some(seats.agent));
    let mut lender = Running::start(&mut lender)?;
    if lender.line(Some(&signals))? != LENDING {
        return Err(Fault::failed(format!("nothing can be sent from inside the bottle {name}")));
    }
    let desk = Desk::find(&Selection { bottle: Some(name), ..Selection::default() }, directories)?;
    let until = Timestamp::now().checked_add(AT_MOST).failing(cannot_prepare)?;
    let routes =
        ["http", "https"].into_iter().flat_map(|scheme| ports.iter().map(move |port| (scheme, *port)));
    let routes = routes.map(|(scheme, port)| route(scheme, port, Some(until))).collect();
    let guests = desk.invite(routes).map_err(|fault| fault.with_hint(INSTEAD))?;
    let mut outcome = Outcome::of(Seen { name: Some(record.name.clone()), backend: record.backend });
    let played = player.play(&mut outcome, Some(&signals));
    guests.leave()?;
    played.map(|()| outcome)
}

fn hold_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::new(&set)?)
}

/// Where the parts of a play are.
struct Seats {
    /// The agent's network.
    agent: Network,
    /// Where egress is in it.
    egress: SocketAddr,
    /// The network that egress dials from, where it is not this process' own.
    origins: Option<Network>,
}

impl Seats {
    fn find(record: &Record, name: &Name) -> Result<Seats, Fault> {
        let told = || format!("cannot go into the network of the bottle {name}");
        let port = LISTENERS[0].1;
        match record.backend {
            Kind::Sandbox => {
                let agent = agent(record.pid).failing(told)?;
                Ok(Seats { agent, egress: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), origins: None })
            }
            Kind::Docker => {
                let engine = Engine::find()?;
                let address = format!(
                    "{{{{(index .NetworkSettings.Networks {:?}).IPAddress}}}}",
                    compose::sealed(name)
                );
                let format = format!("{{{{.State.Pid}}}} {address}");
                let (agent, bundle) = (compose::agent(name), compose::sidecars(name));
                let said = engine.run(["container", "inspect", "--format", &format, &agent, &bundle])?;
                let mut found = said.lines().filter_map(|line| {
                    let (pid, address) = line.split_once(' ')?;
                    Some((pid.parse::<i32>().ok()?, address.parse::<IpAddr>().ok()?))
                });
                let (Some((agent, _)), Some((bundle, address))) = (found.next(), found.next()) else {
                    return Err(Fault::failed(told()));
                };
                Ok(Seats {
                    agent: Network::of(agent).failing(told)?,
                    egress: SocketAddr::new(address, port),
                    origins: Some(Network::of(bundle).failing(told)?),
                })
            }
        }
    }
}

/// The network of the command of the sandbox that `holder` holds: that of the first process which may be looked into below the
/// bottle's init, which is below the wall.
fn agent(holder: i32) -> io::Result<Network> {
    let wall = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|words| words.split(|byte| *byte == 0).nth(1) == Some(b"__wall"))
    };
    let below = |pids: Vec<i32>| -> io::Result<Vec<i32>> {
        Ok(pids.into_iter().map(children).collect::<io::Result<Vec<_>>>()?.concat())
    };
    let walls = children(holder)?.into_iter().filter(wall).collect();
    let mut outcome = Err(io::Error::other("its command does not run"));
    for pid in below(below(walls)?)? {
        outcome = Network::of(pid);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn children(of: i32) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended meanwhile.
        let stat = fs::read_to_string(Path::new("/proc").join(&name).join("stat")).unwrap_or_default();
        // Behind its name, which may have anything in it: the state, and the parent.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if parent == Some(of) {
            found.push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_children_of_a_process_are_found() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(children(std::process::id() as i32).unwrap().contains(&pid));
        assert_eq!(children(pid).unwrap(), [0; 0]);
        // Not apart from us: it would be our own network that is attacked.
        assert!(Network::of(pid).is_err());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
