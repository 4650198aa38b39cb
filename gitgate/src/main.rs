//! git-gate: the daemon, the scanner, and, under other names, git's hook and what it takes for ssh.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use clap::error::ErrorKind;
use gitgate::cli::{Cli, Command, Log, Serve};
use gitgate::daemon::{Failure, Signals};
use gitgate::scanning::Outcome;
use gitgate::{activation, control, courier, daemon, door, hook, plain, scanning, sys};
use tracing_subscriber::EnvFilter;

const FOUND: u8 = 1;
const USAGE: u8 = 64;
const BROKEN: u8 = 70;

fn main() -> ExitCode {
    if let Err(error) = sys::harden() {
        return report(&Failure::Broken(anyhow::Error::from(error).context("cannot shut the process off")));
    }
    if let Err(error) = sys::isolate_libgit2() {
        return report(&Failure::Broken(anyhow::Error::from(error).context("cannot set libgit2 up")));
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    match std::path::Path::new(&name).file_name().and_then(|n| n.to_str()) {
        Some("pre-receive") => hook::run(),
        Some("ssh") => courier::run(arguments),
        Some("askpass") => door::askpass(arguments),
        _ if arguments.next().is_some_and(|first| first == "--plain") => plain::run(),
        _ => start().unwrap_or_else(|failure| report(&failure)),
    }
}

fn start() -> Result<ExitCode, Failure> {
    let sockets = activation::inherited(&["git-gate", "git-gate-http"])
        .context("cannot take the sockets of the supervisor");
    let sockets = sockets.map_err(Failure::Broken)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start the runtime").map_err(Failure::Broken)?;
    let signals = {
        let _inside = runtime.enter();
        Signals::catch().context("cannot catch signals").map_err(Failure::Broken)?
    };
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return Ok(ExitCode::from(if asked { 0 } else { USAGE }));
        }
    };
    match cli.command {
        Some(Command::Scan(options)) => match scanning::run(&options)? {
            Outcome::Clean => Ok(ExitCode::SUCCESS),
            Outcome::Found => Ok(ExitCode::from(FOUND)),
        },
        Some(Command::Status(options)) => {
            control::show(&options)?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            log(&cli.serve);
            runtime.block_on(daemon::run(&cli.serve, sockets, signals))?;
            runtime.shutdown_background();
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What is logged unless the environment says otherwise. Upstream has a say in what russh logs below that.
const DEFAULT_FILTER: &str = "info,russh=error";

fn log(options: &Serve) {
    let filter = EnvFilter::try_from_env("BOTTLECAP_LOG_FILTER");
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match options.log {
        Log::Json => log.json().init(),
        Log::Text => log.init(),
    }
}

#[allow(clippy::print_stderr)]
fn report(failure: &Failure) -> ExitCode {
    let (error, hint, code) = match failure {
        Failure::Configuration(error) => (error, None, USAGE),
        Failure::Advised(error, hint) => (error, Some(hint), USAGE),
        Failure::Broken(error) => (error, None, BROKEN),
    };
    eprintln!("error: {error:#}");
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code)
}
