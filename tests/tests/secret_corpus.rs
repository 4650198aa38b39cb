//! The scanner on files made anew for each run, by a generator that knows nothing of its rules.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use tests::secret_corpus::{Size, Tool, generate, score, write};
use tests::{Binaries, TempRoot};

/// The seed stands in what a failure says, so that the set can be had again.
fn measured(seed: u64, git_gate: std::path::PathBuf) -> tests::secret_corpus::Score {
    let root = TempRoot::new().unwrap();
    let directory = root.path("set");
    let samples = generate(seed, Size { positives: 400, negatives: 400 });
    write(&directory, seed, &samples).unwrap();
    score(&Tool::GitGate(git_gate), &directory, &samples).unwrap()
}

#[test]
fn a_set_that_nobody_has_seen_meets_the_targets() {
    let seed = fastrand::u64(..);
    let score = measured(seed, Binaries::find().unwrap().program("git-gate"));
    let (precision, recall) = (score.precision(), score.recall());
    assert!(precision >= 0.98, "precision {precision} with seed {seed}: {:?}", score.false_alarms);
    assert!(recall >= 0.95, "recall {recall} with seed {seed}: {:?}", score.missed);
}

#[test]
fn a_scanner_that_finds_nothing_does_not_meet_them() {
    let root = TempRoot::new().unwrap();
    root.write("blind", "#!/bin/sh\nexit 0\n").unwrap();
    let blind = root.path("blind");
    assert!(Command::new("chmod").arg("+x").arg(&blind).status().unwrap().success());
    assert!(measured(1, blind).recall() < 0.95);
}
