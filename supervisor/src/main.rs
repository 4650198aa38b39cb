//! `supervisor`: PID 1 of the bundle. It opens the listening sockets, starts egress, git-gate and supervise with no
//! more rights than each needs, keeps them running, and stops them in order.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser as _;

mod address;
mod bundle;
mod cli;
mod client;
mod control;
mod daemon;
mod logs;
mod machine;
mod notify;
mod peers;
mod plan;
mod run;
mod secrets;
mod setup;
mod start;
mod sys;
mod walls;

const EXIT_USAGE: u8 = 64;
const EXIT_FAILED: u8 = 70;

fn main() -> ExitCode {
    // The init of one command passes its environment and its rights on as they are.
    if std::env::args_os().nth(1).is_some_and(|word| word == "run") {
        return run_one_command();
    }
    if machine::is_ours() {
        be_a_machine();
    }
    let hardened = sys::harden_self();
    // Before anything reads the environment, and before there is a second copy of it.
    let tokens = sys::environment::take(start::TOKEN_PREFIX);
    if let Err(error) = hardened {
        return fail(&format!("cannot protect this process: {error}"), None, EXIT_FAILED);
    }
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match &cli.command {
        Some(cli::Command::Run(_)) => fail("`run` takes its options behind it", None, EXIT_USAGE),
        Some(cli::Command::Ask(command)) => {
            let asked = cli.run_dir().map_err(client::ClientError::from);
            match asked.and_then(|run_dir| client::run(command, &run_dir, &mut io::stdout().lock())) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&bundle::chain(&error), error.hint(), error.exit_code()),
            }
        }
        None => match start::run(&cli, tokens) {
            Ok(code) => ExitCode::from(code),
            Err(error) => fail(&bundle::chain(&error), error.hint().as_deref(), error.exit_code()),
        },
    }
}

fn run_one_command() -> ExitCode {
    let outcome = match cli::Cli::try_parse() {
        Ok(cli::Cli { command: Some(cli::Command::Run(args)), .. }) => run::run(&args),
        Ok(_) => return fail("`run` needs a command", None, EXIT_USAGE),
        Err(error) => return usage(&error),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&bundle::chain(&error), None, error.exit_code()),
    }
}

/// The kernel's own words reach us as arguments too: none of them is for us.
fn be_a_machine() -> ! {
    let machine = match machine::prepare() {
        Ok(machine) => machine,
        Err(error) => machine::give_up(&error),
    };
    let tokens = sys::environment::take(start::TOKEN_PREFIX);
    let outcome = match (sys::harden_self(), cli::Cli::try_parse_from(machine.arguments())) {
        (Ok(()), Ok(cli)) => start::run(&cli, tokens).map_err(|error| {
            fail(&bundle::chain(&error), error.hint().as_deref(), error.exit_code());
            error.exit_code()
        }),
        (Err(error), _) => {
            fail(&format!("cannot protect this process: {error}"), None, EXIT_FAILED);
            Err(EXIT_FAILED)
        }
        (_, Err(error)) => {
            usage(&error);
            Err(EXIT_USAGE)
        }
    };
    machine.end(outcome.unwrap_or_else(|code| code))
}

fn usage(error: &clap::Error) -> ExitCode {
    let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
    let _ = error.print();
    ExitCode::from(code)
}

fn fail(message: &str, hint: Option<&str>, code: u8) -> ExitCode {
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "error: {message}");
    if let Some(hint) = hint {
        let _ = writeln!(stderr, "hint: {hint}");
    }
    ExitCode::from(code)
}
