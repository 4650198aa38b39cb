//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  git-gate --config /etc/git-gate --repo-dir /git --listen 127.0.0.1:9418
  git-gate --config ./gate --check
  git-gate status
  git-gate --plain --base-path /srv/git --export-all --reuseaddr
  git-gate scan --json . origin/main..HEAD

Exit codes: 0 clean, 1 the scan found something, 64 usage or configuration, 70 failed for good.";

/// Serves git repositories to a bottle: reads are fresh, pushes are scanned and forwarded.
///
/// Each socket speaks git:// and smart HTTP. With --plain as its first argument, git-gate serves ordinary
/// repositories as git-daemon(1) does; `git-gate --plain --help` lists those flags.
#[derive(Debug, Parser)]
#[command(name = "git-gate", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Another thing to do than serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: Serve,
}

/// What git-gate does beside serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look for secrets in files, or in the git objects of a range.
    Scan(Scan),
    /// What a running git-gate serves, and how fresh it is.
    Status(Status),
}

/// How to serve.
#[derive(Debug, Args)]
pub struct Serve {
    /// Directory with repos.yaml.
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_CONFIG", default_value = "/etc/git-gate")]
    pub config: PathBuf,
    /// Directory of the mirrors.
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_REPO_DIR", default_value = "/git")]
    pub repo_dir: PathBuf,
    /// Address to listen on, for git:// and smart HTTP; repeatable. Not used with sockets from a supervisor.
    #[arg(
        long,
        value_name = "ADDR",
        env = "BOTTLECAP_LISTEN",
        value_delimiter = ',',
        default_values = ["127.0.0.1:9418", "127.0.0.1:9420"]
    )]
    pub listen: Vec<SocketAddr>,
    /// Directory of sockets.
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_RUN_DIR", default_value = "/run/sidecars")]
    pub run_dir: PathBuf,
    /// Directory of what is kept; the journal is below it at audit/git-gate/journal.jsonl.
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_STATE_DIR", default_value = "/var/lib/sidecars")]
    pub state_dir: PathBuf,
    /// Directory of secrets.
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_SECRETS_DIR", default_value = "/run/secrets")]
    pub secrets_dir: PathBuf,
    /// PEM file of certificate authorities for https upstreams, in place of the system's.
    #[arg(long, value_name = "FILE", env = "BOTTLECAP_UPSTREAM_CA")]
    pub upstream_ca: Option<PathBuf>,
    /// Serve Prometheus metrics here. An address that a bottle can reach is refused.
    #[arg(long, value_name = "ADDR", env = "BOTTLECAP_METRICS")]
    pub metrics: Option<SocketAddr>,
    /// Form of the log on standard error.
    #[arg(long, value_name = "FORM", env = "BOTTLECAP_LOG", default_value = "text")]
    pub log: Log,
    /// Check the configuration, print a summary or what is wrong, and exit.
    #[arg(long, env = "BOTTLECAP_CHECK")]
    pub check: bool,
    /// Allow file:// upstreams: directories of this machine.
    #[arg(long, env = "BOTTLECAP_ALLOW_LOCAL_UPSTREAM")]
    pub allow_local_upstream: bool,
}

/// What to ask a running git-gate.
#[derive(Debug, Args)]
pub struct Status {
    /// Directory of sockets.
    #[arg(long, value_name = "DIR", env = "BOTTLECAP_RUN_DIR", default_value = "/run/sidecars")]
    pub run_dir: PathBuf,
    /// The answer as it came, one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Log {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What to scan.
#[derive(Debug, Args)]
pub struct Scan {
    /// One JSON object for each finding.
    #[arg(long)]
    pub json: bool,
    /// More rules, in gitleaks' form.
    #[arg(long, value_name = "FILE")]
    pub rules: Option<PathBuf>,
    /// A file, a directory, or a git repository.
    #[arg(value_name = "PATH|REPO")]
    pub path: PathBuf,
    /// Commits, as in `git log`: A..B, or one revision and all before it. In a hook, what a push brings is seen too, and an
    /// A of zeros, as hooks have it of a new ref, leaves out what some ref leads to already.
    #[arg(value_name = "RANGE")]
    pub range: Option<String>,
}
