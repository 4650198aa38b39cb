//! The `egress` program: see the library.

use std::error::Error as StdError;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use egress::ca::{self, CertificateAuthority, Existing};
use egress::cli::{CaCommand, Cli, Command, LogForm, Settings};
use egress::explain::Outcome;
use egress::{activation, run, sys, tail};
use tikv_jemallocator::Jemalloc;
use tracing_subscriber::EnvFilter;

/// The system's own asks for memory anew with each piece of a long body, and searches for each buffer of more than a kilobyte.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// `egress explain`: the request would be refused.
const REFUSED: u8 = 1;
const USAGE: u8 = 64;
const FAILED: u8 = 70;

fn main() -> ExitCode {
    if let Err(error) = sys::harden() {
        return fail(&error, None, FAILED);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    match cli.command {
        Some(Command::Ca { command: CaCommand::Init { if_absent } }) => {
            init_authority(&cli.settings, if if_absent { Existing::Keep } else { Existing::Refuse })
        }
        Some(Command::Tail { no_follow, json }) => {
            let form = if json { tail::Form::Json } else { tail::Form::Text };
            match tail::tail(&cli.settings.run_dir, form, !no_follow, &mut io::stdout().lock()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&error, None, FAILED),
            }
        }
        Some(Command::Explain { method, url, routes, headers, json }) => {
            explain(&cli.settings, &method, &url, routes.as_deref(), &headers, json)
        }
        None if cli.settings.check => match run::check(&cli.settings) {
            Ok(summary) => say(&summary),
            Err(error) => fail(&error, error.hint(), error.exit_code()),
        },
        None => serve(&cli.settings),
    }
}

fn explain(
    settings: &Settings,
    method: &str,
    url: &str,
    routes: Option<&Path>,
    headers: &[String],
    json: bool,
) -> ExitCode {
    let explained = match routes {
        Some(file) => match run::explain(file, method, url, headers) {
            Ok(explanation) => explanation,
            Err(error) => return fail(&error, error.hint(), error.exit_code()),
        },
        None => match tail::explain(&settings.run_dir, method, url, headers) {
            Ok(explanation) => explanation,
            Err(error) => {
                let hint =
                    "--routes FILE judges by a file; --run-dir names where a running egress has its socket";
                return fail(&error, Some(hint.to_owned()), FAILED);
            }
        },
    };
    let text = if json {
        let json = serde_json::to_string(&explained).expect("an explanation always has a JSON form");
        tail::harmless_json(&json) + "\n"
    } else {
        tail::harmless_lines(&explained.text())
    };
    let said = say(&text);
    if explained.outcome == Outcome::Deny { ExitCode::from(REFUSED) } else { said }
}

fn init_authority(settings: &Settings, existing: Existing) -> ExitCode {
    match CertificateAuthority::init(&settings.ca_dir, existing) {
        Ok(authority) => say(&format!("sha256 {}\n", authority.fingerprint())),
        Err(error) => {
            let code =
                if matches!(error, ca::Error::Io { .. } | ca::Error::Make(_)) { FAILED } else { USAGE };
            fail(&error, error.hint(), code)
        }
    }
}

fn serve(settings: &Settings) -> ExitCode {
    let inheritance = match activation::take() {
        Ok(inheritance) => inheritance,
        Err(error) => return fail(&error, None, USAGE),
    };
    start_log(settings.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, None, FAILED),
    };
    let ended = runtime.block_on(run::run(settings, inheritance));
    // All that has to be written is. A look-up that hangs holds a thread of the runtime that cannot be ended.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, error.hint(), error.exit_code()),
    }
}

fn start_log(form: LogForm) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match form {
        LogForm::Json => log.json().flatten_event(true).init(),
        LogForm::Text => log.with_ansi(io::stderr().is_terminal()).init(),
    }
}

fn say(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, None, FAILED),
    }
}

fn fail(error: &dyn StdError, hint: Option<String>, code: u8) -> ExitCode {
    let mut text = format!("error: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    if let Some(hint) = hint {
        text.push_str(&format!("\nhint: {hint}"));
    }
    let _ = writeln!(io::stderr(), "{text}");
    ExitCode::from(code)
}
