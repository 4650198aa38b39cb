//! The command line.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Parser, Subcommand, ValueEnum};

use crate::address::{AddressError, BottleAddress, Listen};
use crate::daemon::{Daemon, Paths, UnknownDaemon};
use crate::run::RunArgs;

const AFTER_HELP: &str = "\
Signals: HUP reloads, USR1 restarts what is not healthy, TERM, INT and QUIT stop in order within 8 s.
Exit codes: 0 clean stop; 64 usage or configuration; 70 a daemon failed for good; 128+n stopped by signal n during start-up.

Examples:
  supervisor                                         PID 1 of the bundle's container
  supervisor --root ./bundle --bin-dir target/debug  an ordinary process with everything below ./bundle
  supervisor --bottle-addr 10.9.0.0/24 --check       show what would run, and where it would listen
  supervisor status --json                           ask a running supervisor
  supervisor run -- nginx -g 'daemon off;'           PID 1 of any other container";

/// Starts egress, git-gate and supervise, keeps them running, and stops them in order
#[derive(Debug, Parser)]
#[command(name = "supervisor", version, about, after_help = AFTER_HELP, subcommand_help_heading = "Commands (all but run: to a running supervisor)")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Root that the paths of the bundle are below
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_ROOT", default_value = "/", global = true)]
    root: PathBuf,

    /// Directory of the sockets and status files [default: ROOT/run/sidecars]
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_RUN_DIR", global = true)]
    run_dir: Option<PathBuf>,

    /// Directory of the daemons' programs [default: the directory of this program]
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_BIN_DIR")]
    bin_dir: Option<PathBuf>,

    /// Daemons to run, separated by commas [default: egress,git-gate,supervise]
    #[arg(long, value_name = "NAMES", env = "SIDECAR_DAEMONS", value_parser = names)]
    daemons: Option<Names>,

    /// Daemons whose final failure does not end the bundle, separated by commas
    #[arg(long, value_name = "NAMES", env = "BOTTLECAP_OPTIONAL", value_parser = names)]
    optional: Option<Names>,

    /// Where a daemon listens, such as egress=10.9.0.2:9099; repeatable. Also egress-direct, egress-transparent and egress-dns, for
    /// clients that ignore proxy variables; off by default
    #[arg(long, value_name = "NAME=ADDR", env = "BOTTLECAP_LISTEN", value_delimiter = ',', value_parser = listen)]
    pub(crate) listen: Vec<Listen>,

    /// Bottle-facing address, or the network that our one address lies in
    /// [default: the only outward address for PID 1, else 127.0.0.1]
    #[arg(long, value_name = "IP|CIDR", env = "BOTTLECAP_BOTTLE_ADDR", value_parser = bottle_address)]
    pub(crate) bottle_addr: Option<BottleAddress>,

    /// Descriptor to read secrets from until its end, as JSON lines {"daemon","name","value"} with base64 values
    #[arg(long, value_name = "N", env = "BOTTLECAP_SECRETS_FD", value_parser = descriptor)]
    pub(crate) secrets_fd: Option<i32>,

    /// Make the CA of this bottle first, if there is none
    #[arg(long, env = "BOTTLECAP_CA_INIT", value_parser = FalseyValueParser::new())]
    pub(crate) ca_init: bool,

    /// A file or directory that a daemon may read beside its own, such as git-gate=/home/me/keys; repeatable
    #[arg(long, value_name = "NAME=PATH", env = "BOTTLECAP_READABLE", value_delimiter = ',', value_parser = readable)]
    pub(crate) readable: Vec<Readable>,

    /// Form of the log lines
    #[arg(long, value_name = "FORM", env = "BOTTLECAP_LOG", default_value = "text")]
    pub(crate) log: LogFormat,

    /// Check the flags and the programs, print the plan and exit
    #[arg(long, env = "BOTTLECAP_CHECK", value_parser = FalseyValueParser::new())]
    pub(crate) check: bool,
}

/// What is asked for instead of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Ask(Ask),
    /// Run one command as its init: send signals on, reap orphans, exit as it exits
    Run(RunArgs),
}

/// What a running supervisor is asked.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Ask {
    /// Show what each daemon is doing
    Status {
        /// Print the answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Exit with 0 only when every daemon is ready
    Health,
    /// Reload the configuration and wait for the daemons to acknowledge it
    Reload {
        /// egress or git-gate [default: both]
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// Restart one daemon in place
    Restart {
        /// egress, git-gate or supervise
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Stop the bundle and wait until it is gone
    Stop,
    /// Show the last log lines
    Logs {
        /// Go on with new lines as they come
        #[arg(short, long)]
        follow: bool,
        /// egress, git-gate, supervise or supervisor [default: all]
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// JSON lines
    Json,
    /// `[name] text`
    Text,
}

impl LogFormat {
    /// The word for it on a command line.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
        }
    }
}

#[derive(Clone, Debug)]
struct Names(Vec<Daemon>);

fn names(text: &str) -> Result<Names, UnknownDaemon> {
    Daemon::parse_list(text).map(Names)
}

fn descriptor(text: &str) -> Result<i32, &'static str> {
    match text.parse() {
        Ok(number @ (0 | 3..)) => Ok(number),
        Ok(_) | Err(_) => Err("expected 0 (standard input) or a descriptor from 3 on"),
    }
}

/// A path that a daemon may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Readable {
    pub(crate) daemon: Daemon,
    pub(crate) path: PathBuf,
}

/// Why a permission to read is refused.
#[derive(Debug, thiserror::Error)]
enum ReadableError {
    #[error("`{0}` is not NAME=PATH with an absolute path, such as git-gate=/home/me/keys")]
    Form(String),
    #[error(transparent)]
    Daemon(#[from] UnknownDaemon),
}

fn readable(text: &str) -> Result<Readable, ReadableError> {
    let (name, path) = text
        .split_once('=')
        .filter(|(_, path)| path.starts_with('/'))
        .ok_or_else(|| ReadableError::Form(text.to_owned()))?;
    Ok(Readable { daemon: Daemon::parse(name)?, path: path.into() })
}

fn listen(text: &str) -> Result<Listen, AddressError> {
    text.parse()
}

fn bottle_address(text: &str) -> Result<BottleAddress, AddressError> {
    text.parse()
}

impl Cli {
    /// The selected daemons.
    pub(crate) fn daemons(&self) -> Vec<Daemon> {
        self.daemons.as_ref().map_or_else(|| Daemon::ALL.to_vec(), |names| names.0.clone())
    }

    /// Whether this daemon may fail for good without ending the bundle.
    pub(crate) fn is_optional(&self, daemon: Daemon) -> bool {
        self.optional.as_ref().is_some_and(|names| names.0.contains(&daemon))
    }

    /// The directory of the sockets.
    pub(crate) fn run_dir(&self) -> std::io::Result<PathBuf> {
        let chosen = self.run_dir.clone().unwrap_or_else(|| self.root.join("run/sidecars"));
        std::path::absolute(chosen)
    }

    /// Where everything lies.
    pub(crate) fn paths(&self) -> std::io::Result<Paths> {
        let bin = match &self.bin_dir {
            Some(directory) => std::path::absolute(directory)?,
            None => {
                let mut own = std::env::current_exe()?;
                own.pop();
                own
            }
        };
        Ok(Paths { root: std::path::absolute(&self.root)?, run: self.run_dir()?, bin })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        for argument in Cli::command().get_arguments().filter(|argument| argument.get_long().is_some()) {
            let long = argument.get_long().unwrap();
            if ["help", "version"].contains(&long) {
                continue;
            }
            let expected = match long {
                "daemons" => "SIDECAR_DAEMONS".to_owned(),
                other => format!("BOTTLECAP_{}", other.to_uppercase().replace('-', "_")),
            };
            assert_eq!(
                argument.get_env().and_then(|name| name.to_str()),
                Some(expected.as_str()),
                "--{long}"
            );
        }
    }

    #[test]
    fn the_run_directory_follows_the_root_and_applies_to_clients() {
        let cli = Cli::try_parse_from(["supervisor", "--root", "/r"]).unwrap();
        assert_eq!(cli.run_dir().unwrap(), PathBuf::from("/r/run/sidecars"));
        let cli = Cli::try_parse_from(["supervisor", "status", "--run-dir", "/x"]).unwrap();
        assert_eq!(cli.run_dir().unwrap(), PathBuf::from("/x"));
        assert_eq!(cli.command, Some(Command::Ask(Ask::Status { json: false })));
    }
}
