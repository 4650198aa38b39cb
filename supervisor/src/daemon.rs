//! The three daemons of the bundle: their names, ports, uids and program arguments.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::cli::LogFormat;

/// One of the daemons that the supervisor knows. The order is the start order; a stop goes backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Daemon {
    /// The HTTP proxy.
    Egress,
    /// The git front.
    GitGate,
    /// The MCP server and the queue of proposals.
    Supervise,
}

/// A daemon name that does not exist.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("unknown daemon `{0}`, expected one of egress, git-gate, supervise")]
pub(crate) struct UnknownDaemon(pub(crate) String);

/// Where everything lies; derived once from the command line.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// The root that the paths of the bundle are below.
    pub(crate) root: PathBuf,
    /// The sockets and status files.
    pub(crate) run: PathBuf,
    /// The directory of the daemons' programs.
    pub(crate) bin: PathBuf,
}

impl Paths {
    /// The directory that holds the journals and the CA.
    pub(crate) fn state(&self) -> PathBuf {
        self.root.join("var/lib/sidecars")
    }

    /// The directory of the CA of this bottle.
    pub(crate) fn ca(&self) -> PathBuf {
        self.state().join("egress/ca")
    }

    /// The directory of the bare mirrors.
    pub(crate) fn mirrors(&self) -> PathBuf {
        self.root.join("git")
    }

    /// The directory that secret files lie in or below.
    pub(crate) fn all_secrets(&self) -> PathBuf {
        self.root.join("run/secrets")
    }

    /// The directory of the secret files of `daemon`: one of its own as soon as any daemon has one, and else the same for all.
    pub(crate) fn secrets(&self, daemon: Daemon) -> PathBuf {
        let all = self.all_secrets();
        if Daemon::ALL.iter().any(|other| all.join(other.name()).is_dir()) {
            all.join(daemon.name())
        } else {
            all
        }
    }

    /// The directory that `daemon` has for its sockets and its status, and that it alone writes to.
    pub(crate) fn run_of(&self, daemon: Daemon) -> PathBuf {
        self.run.join(daemon.name())
    }

    /// The directory of the journal of `daemon`.
    pub(crate) fn journal(&self, daemon: Daemon) -> PathBuf {
        self.state().join("audit").join(daemon.name())
    }

    /// The program of `daemon`.
    pub(crate) fn program(&self, daemon: Daemon) -> PathBuf {
        self.bin.join(daemon.name())
    }
}

/// A socket that a daemon is handed, by its name in LISTEN_FDNAMES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketName {
    pub(crate) daemon: Daemon,
    pub(crate) spoken: Spoken,
}

/// What is spoken on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// What the daemon is there for.
    Own,
    /// To egress: TLS and HTTP of clients that were led here on the port that they meant.
    Direct,
    /// To egress: the same, redirected from other ports.
    Redirected,
    /// To egress: DNS, over UDP and TCP.
    Names,
}

impl SocketName {
    const ALL: [Self; 6] = {
        const fn of(daemon: Daemon, spoken: Spoken) -> SocketName {
            SocketName { daemon, spoken }
        }
        [
            of(Daemon::Egress, Spoken::Own),
            of(Daemon::Egress, Spoken::Direct),
            of(Daemon::Egress, Spoken::Redirected),
            of(Daemon::Egress, Spoken::Names),
            of(Daemon::GitGate, Spoken::Own),
            of(Daemon::Supervise, Spoken::Own),
        ]
    };

    /// The socket of that name.
    pub(crate) fn parse(name: &str) -> Result<Self, UnknownDaemon> {
        let named = Self::ALL.into_iter().find(|socket| socket.text() == name);
        named.ok_or_else(|| UnknownDaemon(name.to_owned()))
    }

    /// The name.
    pub(crate) const fn text(self) -> &'static str {
        match self.spoken {
            Spoken::Own => self.daemon.name(),
            Spoken::Direct => "egress-direct",
            Spoken::Redirected => "egress-transparent",
            Spoken::Names => "egress-dns",
        }
    }

    /// The port it is on where none is named.
    pub(crate) const fn port(self) -> u16 {
        match self.spoken {
            Spoken::Own => self.daemon.port(),
            Spoken::Direct => 443,
            Spoken::Redirected => 9098,
            Spoken::Names => 53,
        }
    }
}

impl fmt::Display for SocketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Daemon {
    /// Every daemon in start order.
    pub(crate) const ALL: [Self; 3] = [Self::Egress, Self::GitGate, Self::Supervise];

    /// The daemon of that name.
    pub(crate) fn parse(name: &str) -> Result<Self, UnknownDaemon> {
        Self::ALL
            .into_iter()
            .find(|daemon| daemon.name() == name)
            .ok_or_else(|| UnknownDaemon(name.to_owned()))
    }

    /// The daemons named in a comma-separated list; an empty list means all of them.
    pub(crate) fn parse_list(list: &str) -> Result<Vec<Self>, UnknownDaemon> {
        let mut chosen = list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(Self::parse)
            .collect::<Result<Vec<_>, _>>()?;
        if chosen.is_empty() {
            chosen.extend(Self::ALL);
        }
        chosen.sort_unstable();
        chosen.dedup();
        Ok(chosen)
    }

    /// The name of the daemon, of its program and of its listening sockets.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::GitGate => "git-gate",
            Self::Supervise => "supervise",
        }
    }

    /// The port that a bottle finds it on.
    pub(crate) const fn port(self) -> u16 {
        match self {
            Self::Egress => 9099,
            Self::GitGate => 9418,
            Self::Supervise => 9100,
        }
    }

    /// Other ports that a bottle finds it on: git-gate speaks git:// and smart HTTP on both of its own.
    pub(crate) const fn more_ports(self) -> &'static [u16] {
        match self {
            Self::GitGate => &[9420],
            Self::Egress | Self::Supervise => &[],
        }
    }

    /// The fixed uid (and gid) it runs as when the supervisor is root.
    pub(crate) const fn uid(self) -> u32 {
        match self {
            Self::Egress => 64101,
            Self::GitGate => 64102,
            Self::Supervise => 64103,
        }
    }

    /// What it leaves in its directory that others look for in the directory above.
    pub(crate) const fn published(self) -> &'static [&'static str] {
        match self {
            Self::Egress => &["egress.status.json", "egress.sock"],
            Self::GitGate => &["git-gate.sock"],
            Self::Supervise => &["supervise.sock"],
        }
    }

    /// Files of another that it looks for in its own directory.
    pub(crate) const fn consulted(self) -> &'static [(Self, &'static str)] {
        match self {
            Self::Egress | Self::GitGate => &[],
            Self::Supervise => &[(Self::Egress, "egress.status.json")],
        }
    }

    /// Whether SIGHUP makes it read its configuration again.
    pub(crate) const fn reloads(self) -> bool {
        match self {
            Self::Egress | Self::GitGate => true,
            Self::Supervise => false,
        }
    }

    /// The arguments of its program.
    pub(crate) fn arguments(self, paths: &Paths, log: LogFormat) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut flag = |name: &str, value: &Path| {
            arguments.push(OsString::from(name));
            arguments.push(value.as_os_str().to_owned());
        };
        match self {
            Self::Egress => {
                flag("--config", &paths.root.join("etc/egress"));
                flag("--ca-dir", &paths.ca());
                flag("--secrets-dir", &paths.secrets(self));
            }
            Self::GitGate => {
                flag("--config", &paths.root.join("etc/git-gate"));
                flag("--repo-dir", &paths.mirrors());
                flag("--secrets-dir", &paths.secrets(self));
            }
            Self::Supervise => flag("--config", &paths.root.join("etc/egress")),
        }
        flag("--run-dir", &paths.run_of(self));
        flag("--state-dir", &paths.state());
        flag("--log", Path::new(log.as_str()));
        arguments
    }

    /// The variable that names a file of certificate authorities for it.
    pub(crate) const fn authorities_variable(self) -> Option<&'static str> {
        match self {
            Self::Egress => Some("EGRESS_UPSTREAM_CA"),
            Self::GitGate => Some("BOTTLECAP_UPSTREAM_CA"),
            Self::Supervise => None,
        }
    }

    /// Variables of our own environment that are passed on to it, where set.
    pub(crate) const fn inherited_variables(self) -> &'static [&'static str] {
        match self {
            Self::Egress => &["LANG", "TZ", "EGRESS_UPSTREAM_CA", "EGRESS_UPSTREAM_PROXY"],
            Self::GitGate => &["LANG", "TZ", "BOTTLECAP_UPSTREAM_CA"],
            Self::Supervise => &["LANG", "TZ"],
        }
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_selects_every_daemon() {
        assert_eq!(Daemon::parse_list(" , "), Ok(Daemon::ALL.to_vec()));
    }

    #[test]
    fn a_list_is_put_into_start_order_without_duplicates() {
        assert_eq!(
            Daemon::parse_list("supervise, egress,egress"),
            Ok(vec![Daemon::Egress, Daemon::Supervise])
        );
    }

    #[test]
    fn an_unknown_name_says_what_is_allowed() {
        assert_eq!(
            Daemon::parse_list("egress,proxy").unwrap_err().to_string(),
            "unknown daemon `proxy`, expected one of egress, git-gate, supervise"
        );
    }

    #[test]
    fn the_arguments_follow_the_root() {
        let paths = Paths { root: "/r".into(), run: "/r/run/sidecars".into(), bin: "/bin".into() };
        let arguments = Daemon::Egress.arguments(&paths, LogFormat::Text);
        let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
        assert_eq!(
            words.join(" "),
            "--config /r/etc/egress --ca-dir /r/var/lib/sidecars/egress/ca --secrets-dir /r/run/secrets \
             --run-dir /r/run/sidecars/egress --state-dir /r/var/lib/sidecars --log text"
        );
    }
}
