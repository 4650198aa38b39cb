//! Precision and recall of secret scanners on a set of files made for this run.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde_json::json;
use tests::secret_corpus::{Score, Size, Tool, generate, score, write};

/// Makes files with known secrets in them and files with none, and measures scanners on them.
///
/// Without --seed each run makes another set; the seed is printed, so that a run can be had again.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Example: secret-corpus --out /tmp/set --git-gate target/release/git-gate --detect-secrets venv/bin/detect-secrets"
)]
struct Options {
    /// The directory for the set, `files/` and `labels.json`; it must be empty or absent.
    #[arg(long)]
    out: PathBuf,
    /// The seed of the set.
    #[arg(long)]
    seed: Option<u64>,
    /// Files with a secret in them.
    #[arg(long, default_value_t = 1500)]
    positives: usize,
    /// Files with none.
    #[arg(long, default_value_t = 1500)]
    negatives: usize,
    /// The git-gate program to measure.
    #[arg(long)]
    git_gate: Option<PathBuf>,
    /// The detect-secrets program to measure.
    #[arg(long)]
    detect_secrets: Option<PathBuf>,
    /// The whole account as JSON, one line for each scanner.
    #[arg(long)]
    json: bool,
    /// Fails when git-gate's precision is below this.
    #[arg(long)]
    min_precision: Option<f64>,
    /// Fails when git-gate's recall is below this.
    #[arg(long)]
    min_recall: Option<f64>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty", options.out.display());
    }
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    let size = Size { positives: options.positives, negatives: options.negatives };
    let samples = generate(seed, size);
    write(&options.out, seed, &samples)?;
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{}", json!({"seed": seed, "positives": size.positives, "negatives": size.negatives}))?;
    } else {
        writeln!(out, "seed {seed}, {} files with a secret, {} without", size.positives, size.negatives)?;
    }
    let ours = options.git_gate.map(Tool::GitGate);
    let theirs = options.detect_secrets.map(Tool::DetectSecrets);
    for tool in [ours, theirs].into_iter().flatten() {
        let result =
            score(&tool, &options.out, &samples).with_context(|| format!("cannot measure {tool:?}"))?;
        if options.json {
            writeln!(out, "{}", result.to_json())?
        } else {
            print(&mut out, &result)?
        }
        if matches!(tool, Tool::GitGate(_)) {
            demand("precision", result.precision(), options.min_precision)?;
            demand("recall", result.recall(), options.min_recall)?;
        }
    }
    Ok(())
}

fn print(out: &mut impl std::io::Write, score: &Score) -> Result<()> {
    let (tool, precision, recall) = (score.tool, score.precision(), score.recall());
    writeln!(out, "{tool:16} precision {precision:.3}  recall {recall:.3}")?;
    writeln!(out, "    found {} of {}; {} wrong findings", score.found, score.secrets, score.wrong)?;
    for (family, count) in &score.missed {
        writeln!(out, "    missed {count:4}  {family}")?;
    }
    for ((kind, rule), count) in &score.false_alarms {
        writeln!(out, "    alarm  {count:4}  {kind} ({rule})")?;
    }
    Ok(())
}

fn demand(name: &str, value: f64, least: Option<f64>) -> Result<()> {
    match least {
        Some(least) if value < least => bail!("{name} is {value:.3}, and {least} was asked for"),
        _ => Ok(()),
    }
}
