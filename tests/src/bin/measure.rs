//! Prints what the bundle costs, as Markdown tables: sizes, memory when idle, time to readiness, time to a grant.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;
use tests::{Binaries, Bundle};

/// How many starts the median is taken of.
const STARTS: usize = 20;
/// How many grants the median is taken of.
const GRANTS: usize = 9;
/// How many an agent may ask for at once.
const BURST: usize = 3;

fn main() -> Result<()> {
    let mut out = std::io::stdout();
    let binaries = Binaries::find()?;

    writeln!(out, "| program | size |\n|---|---:|")?;
    for name in ["supervisor", "egress", "git-gate", "supervise", "bottlecap"] {
        let size =
            std::fs::metadata(binaries.program(name)).with_context(|| format!("no program {name}"))?.len();
        writeln!(out, "| {name} | {} MB |", tenths(size, 1_000_000))?;
    }

    let mut times = Vec::new();
    for _ in 0..STARTS {
        let mut bundle = Bundle::builder()?.launch()?;
        times.push(bundle.await_ready()?);
        bundle.stop()?;
    }
    times.sort();

    let bundle = Bundle::builder()?.start()?;
    writeln!(out, "\n| idle process | resident (VmRSS) | own share (PSS) |\n|---|---:|---:|")?;
    let mut total = (0, 0);
    for name in ["supervisor", "egress", "git-gate", "supervise"] {
        let pid = if name == "supervisor" { bundle.supervisor.pid() } else { bundle.pid(name)? };
        let resident = kibibytes(&format!("/proc/{pid}/status"), "VmRSS:")?;
        let share = kibibytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")?;
        total = (total.0 + resident, total.1 + share);
        let place = if name == "supervisor" { "supervisor (PID 1)" } else { name };
        writeln!(out, "| {place} | {} MB | {} MB |", tenths(resident, 1024), tenths(share, 1024))?;
    }
    writeln!(out, "| **the bundle** | {} MB | {} MB |", tenths(total.0, 1024), tenths(total.1, 1024))?;

    let millis = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    writeln!(out, "\n| from start to READY=1 of the whole bundle | {STARTS} starts |\n|---|---:|")?;
    writeln!(out, "| fastest | {} |", millis(times[0]))?;
    writeln!(out, "| median | {} |", millis((times[STARTS / 2 - 1] + times[STARTS / 2]) / 2))?;
    writeln!(out, "| slowest | {} |", millis(times[STARTS - 1]))?;
    writeln!(out, "\nEach start is one of a new bottle: it makes the certificate authority too.")?;

    let mut granted = granted()?;
    granted.sort();
    writeln!(
        out,
        "\n| from `requests approve --token` to the first request that passes | {GRANTS} grants |\n|---|---:|"
    )?;
    writeln!(out, "| median | {} |", millis(granted[GRANTS / 2]))?;
    writeln!(out, "| slowest | {} |", millis(granted[GRANTS - 1]))?;
    Ok(())
}

/// From the start of the host's command, over the reload that it waits for, until egress judges a request as allowed.
fn granted() -> Result<Vec<Duration>> {
    let mut taken = Vec::new();
    while taken.len() < GRANTS {
        let bundle = Bundle::builder()?.start()?;
        for number in 0..BURST {
            let host = format!("h{number}.example.com");
            let filed = bundle.tool("propose_route", &json!({"host": host, "reason": "to measure"}))?;
            let id = filed["id"].as_str().with_context(|| filed.to_string())?;
            let token = bundle.token(id, &[])?;
            let begun = Instant::now();
            bundle.bottlecap(&["requests", "approve", id, "--token", &token])?;
            while bundle.outcome(&format!("https://{host}/"))? != "allow" {}
            taken.push(begun.elapsed());
        }
    }
    Ok(taken)
}

/// A field of a /proc file that is given in kB.
fn kibibytes(path: &str, field: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path} (needs root)"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .with_context(|| format!("no {field} in {path}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A number in units of `unit`, with one decimal.
fn tenths(value: u64, unit: u64) -> String {
    let tenths = (value * 10 + unit / 2) / unit;
    format!("{}.{}", tenths / 10, tenths % 10)
}
