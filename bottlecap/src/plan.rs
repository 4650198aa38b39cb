//! What the host hands to the wall process: everything it needs to know, as one JSON value.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::command::NotExecuted;
use crate::layout::Step;

/// Ports of the bundle inside, each with the name that its socket is handed over under.
pub const LISTENERS: [(&str, u16); 4] =
    [("egress", 9099), ("git-gate", 9418), ("git-gate", 9420), ("supervise", 9100)];

/// The address inside that DNS gives for every allowed name, for clients that ignore proxy variables.
pub const DIRECT_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// The same, for IPv6: one that is the bottle's own.
pub const DIRECT_V6: Ipv6Addr = Ipv6Addr::new(0xfd62, 0x6f74, 0x746c, 0x6563, 0, 0, 0, 1);
const DNS_PORT: u16 = 53;

/// A socket of the bundle inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    /// The name that it is handed over under.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// Where it is.
    pub address: SocketAddr,
}

/// What a socket takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Connections.
    Stream,
    /// Datagrams.
    Datagram,
}

/// Every socket of the bundle inside, in the order in which they are handed over. `direct` is where clients that ignore proxy
/// variables are served; where they are, there is DNS too.
#[must_use]
pub fn doors(direct: &[SocketAddr]) -> Vec<Door> {
    let door =
        |name, kind, address: IpAddr, port| Door { name, kind, address: SocketAddr::new(address, port) };
    let own =
        LISTENERS.into_iter().map(|(name, port)| door(name, Kind::Stream, Ipv4Addr::LOCALHOST.into(), port));
    let by_name = direct.iter().map(|at| door("egress-direct", Kind::Stream, at.ip(), at.port()));
    let addresses: BTreeSet<IpAddr> = direct.iter().map(SocketAddr::ip).collect();
    let names = addresses
        .into_iter()
        .flat_map(|ip| [Kind::Stream, Kind::Datagram].map(|kind| door("egress-dns", kind, ip, DNS_PORT)));
    own.chain(by_name).chain(names).collect()
}

/// A bottle to be built.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The user and group to become first, when started by root.
    pub user: Option<u32>,
    /// What the file system is made of.
    pub steps: Vec<Step>,
    /// Where the command starts.
    pub workdir: PathBuf,
    /// The command.
    pub command: Vec<OsString>,
    /// Its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// How it is connected.
    pub stdio: Stdio,
    /// Where clients that ignore proxy variables are served, if they are.
    pub direct: Vec<SocketAddr>,
    /// Walls that are left out, to show what each is for.
    #[cfg(feature = "test-walls")]
    pub without: Vec<Layer>,
}

/// How the command is connected to its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdio {
    /// By a terminal of the bottle's own.
    Terminal,
    /// By three pipes.
    Pipes,
}

/// One wall among those that stand behind each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// The daemons and their sockets.
    Bundle,
    /// The network namespace.
    Network,
    /// The system call filter.
    Seccomp,
    /// The second user and mount namespace.
    SecondNamespace,
    /// Giving up capabilities.
    Capabilities,
    /// No new privileges.
    NoNewPrivileges,
    /// A session keyring of its own.
    Keyring,
    /// Closing the caller's descriptors.
    Descriptors,
    /// A session and terminal of its own.
    Session,
    /// The allow-list of variables.
    Environment,
    /// Keeping git's configuration and hooks.
    Git,
    /// Hiding sockets in the working directory.
    Sockets,
    /// Mapping the owners of the working directory, when started by root.
    Owners,
    /// The limit that keeps the host's core handler away.
    Cores,
}

impl Plan {
    /// Whether a wall is built. In a release it always is.
    #[must_use]
    pub fn has(&self, layer: Layer) -> bool {
        #[cfg(feature = "test-walls")]
        return !self.without.contains(&layer);
        #[cfg(not(feature = "test-walls"))]
        {
            let _ = layer;
            true
        }
    }
}

/// What the wall says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromWall {
    /// It is in its namespaces, and its users have to be mapped.
    Apart,
    /// The sockets of [`doors`], in order, are beside this.
    Listening,
    /// The mounts stand; the caller's ends of the command's terminal or pipes are beside this.
    Built,
    /// The command cannot be executed.
    NotExecuted(NotExecuted),
    /// A wall cannot be built.
    Failed {
        /// What was attempted.
        attempt: String,
        /// The error of the system, if it was one.
        errno: Option<i32>,
        /// The error in words.
        error: String,
    },
}

/// What the wall is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToWall {
    /// Its users are mapped; directories of the host are beside this.
    Mapped,
    /// The daemons are ready.
    Go,
}
