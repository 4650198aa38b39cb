//! `bottlecap`: the command of the person outside the bottle.

use std::io::{self, Write};
use std::process::ExitCode;

use bottlecap::backend::docker::{guard, inner};
use bottlecap::cli::{Cli, Outcome};
use bottlecap::{doctor, fault, life, wall};
use clap::Parser;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // What this program re-executes itself as: never for people, and before anything else is set up.
    let mut words = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    match words.next().as_deref() {
        Some("__wall") => std::process::exit(wall::main()),
        Some("__guard") => std::process::exit(guard::main(&words.collect::<Vec<_>>())),
        Some("__stay") => std::process::exit(inner::stay()),
        Some("__signal") => std::process::exit(inner::signal(&words.next().unwrap_or_default())),
        Some("__agent") => std::process::exit(inner::become_command(std::env::args_os().skip(2).collect())),
        Some("__probe") => {
            let found = doctor::probe(&words.next().unwrap_or_default(), &mut io::stdout());
            return if found { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
        Some(life::HOLD) => {
            log();
            std::process::exit(life::hold());
        }
        Some(_) | None => {}
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed standard error is no reason to do something else.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(fault::USAGE) } else { ExitCode::SUCCESS };
        }
    };
    log();
    match cli.run(&mut io::stdout()) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        // Threads may still wait for the caller's input; nothing is lost with them.
        Ok(Outcome::Command(code)) => std::process::exit(code),
        Err(fault) => {
            let mut stderr = io::stderr().lock();
            let _ = writeln!(stderr, "error: {fault}");
            if let Some(hint) = fault.hint() {
                let _ = writeln!(stderr, "hint: {hint}");
            }
            ExitCode::from(fault.code())
        }
    }
}

fn log() {
    let filter = EnvFilter::try_from_env("BOTTLECAP_LOG_FILTER").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .without_time()
        .with_target(false)
        .init();
}
