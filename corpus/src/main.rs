//! `bottlecap-corpus`: hostile wire cases as data, played against any HTTP proxy.

mod case;
mod exchange;
mod h2;
mod identity;
mod judge;
mod lend;
#[cfg(test)]
mod naive;
mod origin;
mod play;
mod request;
mod sys;
mod template;

use std::{
    io::Write,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use clap::Parser;

use crate::{
    case::Case,
    exchange::{Door, Setting},
    identity::{Identity, Trust},
    origin::Origin,
    play::{Outcome, Play},
};

/// Exit code for wrong usage (sysexits.h, EX_USAGE).
const EXIT_USAGE: u8 = 64;

/// Play hostile wire cases against an HTTP proxy.
///
/// The proxy must allow GET and POST below /allowed/ on the origin, over http and https, and nothing else; and it must
/// trust origin-ca.pem for the origin's TLS. The origin is this program itself: it listens on --origin and takes down
/// what comes. Exit code 0 when every case passed, 1 when one failed, 64 for wrong usage.
#[derive(Debug, Parser)]
#[command(
    name = "bottlecap-corpus",
    version,
    after_help = "Example:\n  bottlecap-corpus --origin-dir origin --prepare    # then start the proxy, trusting origin/origin-ca.pem\n  \
                  bottlecap-corpus --proxy http://127.0.0.1:9099 --ca ca.pem --origin 127.0.0.1:8443 --origin-dir origin"
)]
struct Cli {
    /// The proxy, as http://HOST:PORT.
    #[arg(long, value_name = "URL", required_unless_present_any = ["prepare", "list", "through"])]
    proxy: Option<String>,
    /// The certificate authority that the proxy signs with; without it any certificate will do.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Where our origin listens; with several, as many cases are played at once.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    origin: Vec<SocketAddr>,
    /// What the cases call the origin; the proxy must resolve it to the address of --origin.
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    name: String,
    /// The directory with the origin's certificate authority, origin-ca.pem.
    #[arg(long, value_name = "DIR")]
    origin_dir: Option<PathBuf>,
    /// Take the connections to the proxy from whoever lends them on this socket, from inside a bottle, instead of making them here.
    /// Says on a line where the origins are, and begins when a line comes on standard input.
    #[arg(long, value_name = "SOCKET", conflicts_with = "proxy")]
    through: Option<PathBuf>,
    /// Make connections to --proxy for whoever asks on this socket, and do nothing else.
    #[arg(long, value_name = "SOCKET", requires = "proxy")]
    lend: Option<PathBuf>,
    /// Only make the certificate authority in --origin-dir.
    #[arg(long, requires = "origin_dir")]
    prepare: bool,
    /// Only say which cases there are.
    #[arg(long)]
    list: bool,
    /// Only the cases whose id or class contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// One JSON object for each play, instead of a table.
    #[arg(long)]
    json: bool,
    /// Only the account by class, as rows of a Markdown table.
    #[arg(long, conflicts_with = "json")]
    summary: bool,
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
    let ip = cli.origin.first().context("there is no --origin")?.ip();
    if let (true, Some(directory)) = (cli.prepare, &cli.origin_dir) {
        identity::prepare(directory, &cli.name, ip)?;
        return Ok(true);
    }
    if let Some(socket) = &cli.lend {
        let proxy = proxy_address(cli.proxy.as_deref().unwrap_or_default())?;
        let lent =
            std::os::unix::net::UnixListener::bind(socket).and_then(|socket| lend::lend(&socket, proxy));
        lent.with_context(|| format!("cannot lend on {}", socket.display()))?;
        return Ok(true);
    }
    let wanted = |case: &Case| {
        cli.only.as_deref().is_none_or(|text| case.id.contains(text) || case.class.contains(text))
    };
    let cases: Vec<Case> = Case::all()?.into_iter().filter(wanted).collect();
    anyhow::ensure!(!cases.is_empty(), "no case matches --only");
    let mut out = std::io::stdout().lock();
    if cli.list {
        for case in &cases {
            let over: Vec<_> = case.over.iter().map(ToString::to_string).collect();
            writeln!(out, "{:<44} {:<24} {}", case.id, case.class, over.join(", "))?;
        }
        return Ok(true);
    }
    let identity = Identity::new(cli.origin_dir.as_deref(), &cli.name, ip)?;
    let origins = cli
        .origin
        .iter()
        .map(|address| {
            Origin::listen(*address, &identity.server).with_context(|| format!("cannot listen on {address}"))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let proxy = match &cli.through {
        None => Door::Own(proxy_address(cli.proxy.as_deref().unwrap_or_default())?),
        Some(socket) => {
            let places: Vec<_> = origins.iter().map(|origin| origin.address).collect();
            writeln!(out, "{}", serde_json::json!({ "origins": places }))?;
            out.flush()?;
            std::io::stdin().read_line(&mut String::new())?;
            Door::Lent(socket.clone())
        }
    };
    let trust = Trust::new(cli.ca.as_deref(), &identity)?;
    let setting = Setting { proxy, identity, trust, host: cli.name.clone() };
    let plays: Vec<Play<'_>> = cases.iter().flat_map(Play::of).collect();
    let outcomes = play::all(&setting, &origins, &plays);
    let failed = outcomes.iter().filter(|outcome| !outcome.passed).count();
    if cli.summary {
        summary(&mut out, &outcomes)?;
    } else {
        for outcome in &outcomes {
            write_outcome(&mut out, cli.json, outcome)?;
        }
    }
    if !cli.json {
        let (cases, plays) = (cases.len(), outcomes.len());
        writeln!(out, "{cases} cases, {plays} plays: {} passed, {failed} failed", plays - failed)?;
    }
    Ok(failed == 0)
}

fn write_outcome(out: &mut impl Write, json: bool, outcome: &Outcome<'_>) -> anyhow::Result<()> {
    if json {
        writeln!(out, "{}", serde_json::to_string(outcome)?)?;
    } else {
        let mark = if outcome.passed { "ok  " } else { "FAIL" };
        let over = outcome.over.to_string();
        writeln!(out, "{mark} {:<44} {over:<10} {}  [{}]", outcome.id, outcome.seen, outcome.reference)?;
    }
    Ok(())
}

fn summary(out: &mut impl Write, outcomes: &[Outcome<'_>]) -> anyhow::Result<()> {
    let mut classes = std::collections::BTreeMap::<_, (usize, usize)>::new();
    for outcome in outcomes {
        let (passed, all) = classes.entry(outcome.class).or_default();
        *all += 1;
        *passed += usize::from(outcome.passed);
    }
    for (class, (passed, all)) in classes {
        writeln!(out, "| {class} | {passed}/{all} |")?;
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
