//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use proposal::{Id, State, TTL_MAX, TTL_MIN};

const EXAMPLES: &str = "\
Examples:
  supervise --config /etc/egress --listen 127.0.0.1:9100    run the daemon
  supervise list --state pending                            what waits for a decision
  supervise reject 7c0e11aa22bb33cc --reason 'use the mirror instead'

What is approved here is put in force by the host: bottlecap requests approve ID";

/// The daemon through which an agent asks for access (MCP) and an operator answers (unix socket).
#[derive(Debug, Parser)]
#[command(name = "supervise", version, after_help = EXAMPLES)]
pub struct Cli {
    /// Where things are.
    #[command(flatten)]
    pub places: Places,
    /// Settings of the daemon.
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// What the operator wants; nothing: run the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Where things are.
#[derive(Debug, Clone, Args)]
pub struct Places {
    /// Directory of the sockets and status files
    #[arg(
        long,
        env = "BOTTLECAP_RUN_DIR",
        default_value = "/run/sidecars",
        value_name = "DIR",
        global = true
    )]
    pub run_dir: PathBuf,
    /// Directory of the journals
    #[arg(
        long,
        env = "BOTTLECAP_STATE_DIR",
        default_value = "/var/lib/sidecars",
        value_name = "DIR",
        global = true
    )]
    pub state_dir: PathBuf,
}

/// Settings of the daemon.
#[derive(Debug, Clone, Args)]
pub struct DaemonArgs {
    /// Directory of routes.yaml, which is only read, to report the current access
    #[arg(long, env = "BOTTLECAP_CONFIG", default_value = "/etc/egress", value_name = "DIR", global = true)]
    pub config: PathBuf,
    /// Address to listen on when no socket was passed (repeatable) [default: 127.0.0.1:9100]
    #[arg(long, env = "BOTTLECAP_LISTEN", value_name = "ADDR", value_delimiter = ',')]
    pub listen: Vec<SocketAddr>,
    /// Form of the log
    #[arg(long, env = "BOTTLECAP_LOG", value_enum, default_value_t = Log::Text)]
    pub log: Log,
    /// Check the routes and the journal, print a summary, and exit
    #[arg(long)]
    pub check: bool,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Log {
    /// JSON lines.
    Json,
    /// Lines for people.
    Text,
}

/// What the operator wants.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List requests, oldest first
    List {
        /// Those in this state alone: pending, withdrawn, expired, rejected, superseded, approved, applying, active, apply_failed,
        /// exhausted, revoked, ended
        #[arg(long, value_parser = state)]
        state: Option<State>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one request
    Show {
        /// The request
        #[arg(value_parser = Id::parse)]
        id: Id,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what a yes would change, in words and by example, and how much of what was refused lately would pass
    Diff {
        /// The request
        #[arg(value_parser = Id::parse)]
        id: Id,
        /// Directory of repos.yaml, for what is about a repository
        #[arg(long, default_value = "/etc/git-gate", value_name = "DIR")]
        repos: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Record a yes to something else than what was asked for; the host puts it in force with `bottlecap requests edit ID`
    Edit {
        /// The request
        #[arg(value_parser = Id::parse)]
        id: Id,
        /// What is granted, as JSON, as `show --json` prints it under `proposal`; `-` for standard input
        file: PathBuf,
        /// The host, where write access to a new one is given
        #[arg(long, value_name = "NAME")]
        host: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Record a yes; the host puts it in force with `bottlecap requests approve ID`
    Approve {
        /// The request
        #[arg(value_parser = Id::parse)]
        id: Id,
        /// The host, where write access to a new one is given
        #[arg(long, value_name = "NAME")]
        host: Option<String>,
        /// For how long, from now, instead of as long as was asked
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(i64::from(TTL_MIN)..=i64::from(TTL_MAX)))]
        ttl: Option<u32>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Record a no
    Reject {
        /// The request
        #[arg(value_parser = Id::parse)]
        id: Id,
        /// Why; the agent is told
        #[arg(long)]
        reason: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Record that an approval or a grant is taken back; the host takes the grant out with `bottlecap requests revoke ID`
    Revoke {
        /// The request
        #[arg(value_parser = Id::parse)]
        id: Id,
        /// Why; the agent is told
        #[arg(long)]
        reason: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take no more proposals, until `resume`
    Pause,
    /// Take proposals again
    Resume,
    /// Say how the desk stands
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print what waits, and then each request that changes
    Tail {
        /// Print JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Verify the hash chain of a journal
    VerifyLog {
        /// The journal [default: the daemon's own, under --state-dir]
        path: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Places {
    /// The operator socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(crate::operator::SOCKET)
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.state_dir.join("audit/supervise/journal.jsonl")
    }
}

fn state(text: &str) -> Result<State, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|_| "no state has that name".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
