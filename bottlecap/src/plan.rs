//! What the host hands to the wall process: everything it needs to know, as one JSON value.

use std::ffi::OsString;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::layout::Step;

/// Ports of the bundle inside, each with the name that its socket is handed over under.
pub const LISTENERS: [(&str, u16); 4] =
    [("egress", 9099), ("git-gate", 9418), ("git-gate", 9420), ("supervise", 9100)];

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
    /// The sockets of [`LISTENERS`], in order, are beside this.
    Listening,
    /// The mounts stand; the caller's ends of the command's terminal or pipes are beside this.
    Built,
    /// The command cannot be executed.
    NotExecuted(i32),
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
