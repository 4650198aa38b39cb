//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  egress ca init --ca-dir ./ca
  egress --config ./etc --ca-dir ./ca --run-dir ./run --state-dir ./state --listen 127.0.0.1:9099
  curl --proxy http://127.0.0.1:9099 http://_egress.local/ca.pem
  egress explain POST https://api.example.com/v1 --routes ./etc/routes.yaml
  egress tail --run-dir ./run

Environment:
  EGRESS_UPSTREAM_CA     a PEM file with additional roots for upstream TLS
  EGRESS_UPSTREAM_PROXY  a parent proxy, http://[user:password@]host:port; it gets addresses that were
                         checked here, never names
  LISTEN_FDS, LISTEN_FDNAMES  sockets named `peer.supervise`, `egress`, `egress-direct`, `egress-transparent` and
                         `egress-dns`, and secrets named `secret.NAME`, that are handed over
  NOTIFY_SOCKET          where readiness is reported

Exit codes: 0 clean stop, 64 usage or configuration, 70 failed for good.
SIGHUP (or --watch) reads routes.yaml again; when it is no good, the old routes stay.";

/// The only way out of a bottle: a proxy that judges every request by routes.yaml.
#[derive(Debug, Parser)]
#[command(name = "egress", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// Another task than serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub settings: Settings,
}

/// A task other than serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the latest refusals, and then every request as it ends.
    Tail {
        /// Print the latest refusals alone.
        #[arg(long)]
        no_follow: bool,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Say what would happen to a request, without sending it: exit 0 when it would go out, 1 when it would be refused.
    Explain {
        /// Its method.
        method: String,
        /// Its URL.
        url: String,
        /// Judge by this file, not by the routes of the running egress.
        #[arg(long, value_name = "FILE")]
        routes: Option<PathBuf>,
        /// A header of it, `name: value`; may be repeated.
        #[arg(long = "header", short = 'H', value_name = "HEADER")]
        headers: Vec<String>,
        /// One JSON object.
        #[arg(long)]
        json: bool,
    },
    /// The bottle's certificate authority.
    Ca {
        /// What to do with it.
        #[command(subcommand)]
        command: CaCommand,
    },
}

/// What to do with the certificate authority.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make ca.pem and ca-key.pem in --ca-dir, valid for two years, and print the SHA-256 fingerprint.
    Init {
        /// Leave a complete, valid pair as it is.
        #[arg(long, env = "BOTTLECAP_IF_ABSENT")]
        if_absent: bool,
    },
}

/// How to serve.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// The directory of routes.yaml.
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_CONFIG", default_value = "/etc/egress")]
    pub config: PathBuf,
    /// The directory of ca.pem and ca-key.pem.
    #[arg(
        long,
        value_name = "DIR",
        env = "BOTTLECAP_CA_DIR",
        default_value = "/var/lib/sidecars/egress/ca",
        global = true
    )]
    pub ca_dir: PathBuf,
    /// The directory of secrets as files.
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_SECRETS_DIR", default_value = "/run/secrets")]
    pub secrets_dir: PathBuf,
    /// Where to listen when no socket is handed over; may be repeated.
    #[arg(
        long,
        value_name = "ADDR",
        env = "BOTTLECAP_LISTEN",
        value_delimiter = ',',
        default_value = "127.0.0.1:9099"
    )]
    pub listen: Vec<SocketAddr>,
    /// Where TLS and HTTP of clients that ignore proxy variables arrive, on the very port that they mean; may be repeated.
    #[arg(long, value_name = "ADDR", env = "BOTTLECAP_DIRECT", value_delimiter = ',')]
    pub direct: Vec<SocketAddr>,
    /// Where connections arrive that were meant for other addresses (netfilter REDIRECT or TPROXY); may be repeated.
    #[arg(long, value_name = "ADDR", env = "BOTTLECAP_TRANSPARENT", value_delimiter = ',')]
    pub transparent: Vec<SocketAddr>,
    /// Where DNS is answered, over UDP and TCP: allowed names only, and nothing is passed on; may be repeated.
    #[arg(long, value_name = "ADDR", env = "BOTTLECAP_DNS", value_delimiter = ',')]
    pub dns: Vec<SocketAddr>,
    /// The address of every allowed name, one of each kind; by default the one that DNS is answered on.
    #[arg(long, value_name = "IP", env = "BOTTLECAP_DNS_ANSWER", value_delimiter = ',')]
    pub dns_answer: Vec<IpAddr>,
    /// Where egress.status.json is written and egress.sock is made.
    #[arg(
        long,
        value_name = "DIR",
        env = "BOTTLECAP_RUN_DIR",
        default_value = "/run/sidecars",
        global = true
    )]
    pub run_dir: PathBuf,
    /// Where the journal is kept.
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_STATE_DIR", default_value = "/var/lib/sidecars")]
    pub state_dir: PathBuf,
    /// Serve Prometheus metrics at http://ADDR/metrics. ADDR is a loopback address: no bottle reaches ours.
    #[arg(long, value_name = "ADDR", env = "BOTTLECAP_METRICS")]
    pub metrics: Option<SocketAddr>,
    /// Read the routes again when their directory changes, besides on SIGHUP and where Kubernetes swaps `..data`.
    #[arg(long, env = "BOTTLECAP_WATCH")]
    pub watch: bool,
    /// The form of the log on standard error.
    #[arg(long, value_name = "FORM", env = "BOTTLECAP_LOG", default_value = "text")]
    pub log: LogForm,
    /// Check routes.yaml, print what is wrong or what it allows, and exit 0 or 64.
    #[arg(long, env = "BOTTLECAP_CHECK")]
    pub check: bool,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogForm {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
