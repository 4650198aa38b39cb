//! `bottlecap-corpus`: hostile wire cases as data, played against any HTTP proxy.

mod case;
mod run;

use std::{
    io::Write,
    net::{SocketAddr, ToSocketAddrs},
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;

use crate::{
    case::Case,
    run::{Origin, Outcome, play},
};

/// Exit code for wrong usage (sysexits.h, EX_USAGE).
const EXIT_USAGE: u8 = 64;

/// Play hostile wire cases against an HTTP proxy.
///
/// The proxy should allow everything on the origin, so that what it refuses it refuses for the form. The origin is this program itself: it
/// listens on --origin and counts who comes. Exit code 0 when every case passed, 1 when one failed, 64 for wrong usage.
#[derive(Parser)]
#[command(
    name = "bottlecap-corpus",
    version,
    after_help = "Example:\n  bottlecap-corpus --proxy http://127.0.0.1:9099 --origin 127.0.0.2:8443"
)]
struct Cli {
    /// The proxy, as http://HOST:PORT.
    #[arg(long, value_name = "URL")]
    proxy: String,
    /// Where our origin listens; the cases aim at it under this name.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    origin: SocketAddr,
    /// Only the cases whose id or class contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// One JSON object per case, instead of a table.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to tell when the terminal is gone.
            let _printed = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            let _printed = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<bool> {
    let proxy = proxy_address(&cli.proxy)?;
    let (origin, bound) = Origin::listen(cli.origin)
        .with_context(|| format!("cannot listen on {} as the origin", cli.origin))?;
    let wanted = |case: &Case| {
        cli.only.as_deref().is_none_or(|text| case.id.contains(text) || case.class.contains(text))
    };
    let cases: Vec<Case> = Case::all()?.into_iter().filter(wanted).collect();
    anyhow::ensure!(!cases.is_empty(), "no case matches --only");
    let mut out = std::io::stdout().lock();
    let mut failed = 0_usize;
    for case in &cases {
        let outcome = play(&case.aimed_at(&bound.to_string()), proxy, &origin);
        failed += usize::from(!outcome.passed);
        write_outcome(&mut out, cli.json, case, &outcome)?;
    }
    if !cli.json {
        writeln!(out, "{} passed, {failed} failed", cases.len() - failed)?;
    }
    Ok(failed == 0)
}

fn write_outcome(out: &mut impl Write, json: bool, case: &Case, outcome: &Outcome) -> anyhow::Result<()> {
    if json {
        writeln!(out, "{}", serde_json::to_string(outcome)?)?;
    } else {
        let mark = if outcome.passed { "ok  " } else { "FAIL" };
        writeln!(out, "{mark} {:<34} {}  [{}]", outcome.id, outcome.seen, case.reference)?;
    }
    Ok(())
}

fn proxy_address(url: &str) -> anyhow::Result<SocketAddr> {
    url.strip_prefix("http://")
        .map(|rest| rest.trim_end_matches('/'))
        .with_context(|| format!("--proxy: found `{url}`, expected http://HOST:PORT"))?
        .to_socket_addrs()
        .with_context(|| format!("--proxy: cannot resolve `{url}`"))?
        .next()
        .with_context(|| format!("--proxy: `{url}` has no address"))
}
