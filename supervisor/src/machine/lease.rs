//! The address that a server of the network lends: asked for at the start, and kept by a process of its own.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use super::dhcp::message::{Answer, LONGEST};
use super::dhcp::{Action, Client, Lease, Loss};
use super::say;
use crate::sys::{machine as kernel, monotonic, netlink};

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// How long a start waits for an address.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// From the end of the process that keeps the lease to its next start.
const RESTART_AFTER: Duration = Duration::from_secs(1);

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("no server on the network gave an address within {} s", .0.as_secs())]
    Nobody(Duration),
    #[error("cannot {what}")]
    Step {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

fn step<T, E: Into<io::Error>>(outcome: Result<T, E>, what: &'static str) -> Result<T, LeaseError> {
    outcome.map_err(|source| LeaseError::Step { what, source: source.into() })
}

/// What becomes of the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// This lease holds from now on.
    Has(Lease),
    /// There is no address until the next one is given.
    Lost(Loss),
}

/// An interface and its client.
#[derive(Debug)]
struct Session {
    interface: String,
    socket: UdpSocket,
    client: Client,
}

impl Session {
    /// Opens the socket; the interface is up.
    fn open(interface: &str) -> Result<Self, LeaseError> {
        let hardware = step(kernel::hardware_address(interface), "read the address of the hardware")?;
        let socket = step(kernel::socket_of(interface, CLIENT_PORT), "open the port of DHCP")?;
        Ok(Self { interface: interface.to_owned(), socket, client: Client::new(hardware, monotonic()) })
    }

    /// The first lease, within this time.
    fn acquire(&mut self, patience: Duration) -> Result<Lease, LeaseError> {
        let until = monotonic() + patience;
        loop {
            match self.next(Some(until))? {
                Some(Change::Has(lease)) => return Ok(lease),
                Some(Change::Lost(_)) => {}
                None => return Err(LeaseError::Nobody(patience)),
            }
        }
    }

    /// Waits until the lease changes or the time is over.
    fn next(&mut self, until: Option<Duration>) -> Result<Option<Change>, LeaseError> {
        let mut buffer = [0; LONGEST + 1];
        loop {
            let now = monotonic();
            if until.is_some_and(|until| now >= until) {
                return Ok(None);
            }
            let actions = self.client.on_time(now, step(kernel::random_number(), "get a random number")?);
            if let Some(change) = self.carry_out(actions) {
                return Ok(Some(change));
            }
            let due = self.client.due().into_iter().chain(until).min();
            // A whole millisecond more, as zero would be no time-out. A lease without end has none: a message alone wakes us.
            let wait = due.map(|due| due.saturating_sub(monotonic()) + Duration::from_millis(1));
            step(self.socket.set_read_timeout(wait), "set a time-out")?;
            let answer = match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) if from.port() == SERVER_PORT => Answer::decode(&buffer[..length]),
                Ok(_) => None,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => None,
                Err(_) => {
                    kernel::pause(RESTART_AFTER);
                    None
                }
            };
            let actions = answer.map(|answer| self.client.on_answer(monotonic(), &answer));
            if let Some(change) = self.carry_out(actions.unwrap_or_default()) {
                return Ok(Some(change));
            }
        }
    }

    fn carry_out(&self, actions: Vec<Action>) -> Option<Change> {
        let mut change = None;
        for action in actions {
            match action {
                Action::Send(question, to) => {
                    let to = (to.unwrap_or(Ipv4Addr::BROADCAST), SERVER_PORT);
                    // What cannot be sent now is sent again in time.
                    let _ = self.socket.send_to(&question.encode(), to);
                }
                Action::Take(lease) => change = Some(Change::Has(lease)),
                Action::Lose(loss) => change = Some(Change::Lost(loss)),
            }
        }
        change
    }
}

/// An address in use, and the client that keeps it.
#[derive(Debug)]
pub(super) struct Kept {
    session: Session,
    lease: Lease,
    since: Duration,
    /// Where the resolvers are written to, unless the command line names them.
    resolvers: Option<File>,
}

impl Kept {
    /// Asks for an address, and uses it.
    pub(super) fn acquire(
        interface: &str,
        resolvers: Option<File>,
        patience: Duration,
    ) -> Result<Self, LeaseError> {
        let mut session = Session::open(interface)?;
        let lease = session.acquire(patience)?;
        let kept = Self { session, lease, since: monotonic(), resolvers };
        kept.put(&kept.lease)?;
        let Lease { address, prefix, server, .. } = &kept.lease;
        say(&format!("{interface} has {address}/{prefix}, lent by {server}{}", term(kept.lease.seconds)));
        Ok(kept)
    }

    /// Starts the process that keeps it for as long as the machine runs.
    pub(super) fn keep(self) -> io::Result<()> {
        kernel::keep_doing(c"lease", RESTART_AFTER, move || {
            let outcome = self.follow(kernel::ask_for_restart);
            say(&format!(
                "error: the lease of {} is not kept: {}",
                self.session.interface,
                describe(&outcome)
            ));
        })
    }

    /// Renews the lease, and takes the address away when it is over. Ends when it cannot go on, or with another address than at the
    /// start: everything listens on that one, so that the machine has to start again.
    fn follow(&self, restart: impl FnOnce()) -> Result<(), LeaseError> {
        let Session { interface, socket, client } = &self.session;
        let socket = step(socket.try_clone(), "share a socket")?;
        let client = client.holding(self.lease.clone(), self.since);
        let mut session = Session { interface: interface.clone(), socket, client };
        let mut lost = false;
        loop {
            match session.next(None)? {
                Some(Change::Has(lease))
                    if (lease.address, lease.prefix) == (self.lease.address, self.lease.prefix) =>
                {
                    self.put(&lease)?;
                    if std::mem::take(&mut lost) {
                        say(&format!("{interface} has {} again{}", lease.address, term(lease.seconds)));
                    }
                }
                Some(Change::Has(lease)) => {
                    say(&format!(
                        "warning: {interface} is to have {} now: the machine starts again",
                        lease.address
                    ));
                    restart();
                    return Ok(());
                }
                Some(Change::Lost(loss)) => {
                    let Lease { address, prefix, .. } = self.lease;
                    step(netlink::take_address(interface, address, prefix), "take the address away")?;
                    let why = match loss {
                        Loss::Refused => "the server took it back",
                        Loss::Expired => "nobody renewed it",
                    };
                    say(&format!("warning: {interface} lost {address}: {why}"));
                    lost = true;
                }
                None => {}
            }
        }
    }

    /// The kernel takes the address away when the time is over, whatever becomes of us.
    fn put(&self, lease: &Lease) -> Result<(), LeaseError> {
        let interface = &self.session.interface;
        step(netlink::put_address(interface, lease.address, lease.prefix, lease.seconds), "set the address")?;
        if let Some(router) = lease.router {
            let onlink = !lease.is_neighbour(router);
            step(netlink::put_gateway(interface, router, onlink), "set the route to the gateway")?;
        }
        if let Some(mtu) = lease.mtu
            && let Err(error) = kernel::set_mtu(interface, mtu)
        {
            say(&format!("warning: {interface} cannot have packets of {mtu} bytes: {error}"));
        }
        if let Some(file) = &self.resolvers {
            let mut text = String::new();
            for resolver in &lease.resolvers {
                let _ = writeln!(text, "nameserver {resolver}");
            }
            // In place: the daemons may read this very file, and no other in its stead.
            let written = file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0));
            step(written, "write down who resolves names")?;
        }
        Ok(())
    }
}

fn term(seconds: u32) -> String {
    if seconds == u32::MAX { String::new() } else { format!(" for {seconds} s") }
}

fn describe(outcome: &Result<(), LeaseError>) -> String {
    match outcome {
        Ok(()) => "the address changed".to_owned(),
        Err(error) => crate::bundle::chain(error),
    }
}

#[cfg(test)]
mod tests;
