//! `supervise`: the daemon, and the operator's commands that talk to it.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use supervise::cli::{Cli, Log};
use supervise::{activation, commands, daemon};
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Usage or configuration.
const USAGE: u8 = 64;
/// It failed for good.
const FAILED: u8 = 70;

fn main() -> ExitCode {
    let hardened = supervise::harden();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            let code = if message.use_stderr() { USAGE } else { 0 };
            // When the terminal is gone there is nobody to tell.
            let _ = message.print();
            return ExitCode::from(code);
        }
    };
    let (outcome, code) = match &cli.command {
        Some(command) => {
            let outcome = commands::run(&cli.places, &cli.daemon, command).and_then(print);
            let code = if outcome.as_ref().is_err_and(commands::is_refused) { USAGE } else { FAILED };
            (outcome, code)
        }
        None if cli.daemon.check => (commands::check(&cli.places, &cli.daemon).and_then(print), USAGE),
        None => (hardened.context("cannot harden the process").and_then(|()| start(&cli)), FAILED),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            if let Some(hint) = commands::hint(&error) {
                let _ = writeln!(io::stderr(), "hint: {hint}");
            }
            ExitCode::from(code)
        }
    }
}

fn start(cli: &Cli) -> anyhow::Result<()> {
    let passed = activation::take("supervise")?;
    log(cli.daemon.log);
    daemon::run(&cli.places, &cli.daemon, passed)
}

/// Our own events; of the libraries what somebody has to look at, which a call that a stop cuts off is not.
fn log(form: Log) {
    let targets = Targets::new()
        .with_target("supervise", Level::INFO)
        .with_target("rmcp::service", LevelFilter::OFF)
        .with_default(Level::WARN);
    let registry = tracing_subscriber::registry().with(targets);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_target(false);
    match form {
        Log::Json => registry.with(layer.json().flatten_event(true)).init(),
        Log::Text => registry.with(layer.with_ansi(false)).init(),
    }
}

fn print(text: String) -> anyhow::Result<()> {
    io::stdout().write_all(text.as_bytes()).context("cannot print")
}
