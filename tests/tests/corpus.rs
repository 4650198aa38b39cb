//! The hostile wire cases against egress, with routes that allow what the corpus asks every proxy to allow.
#![allow(clippy::unwrap_used)]

use tests::Wire;

#[test]
fn egress_passes_every_case_of_the_wire_corpus() {
    let wire = Wire::start().unwrap();
    let outcome = wire.play(&[]).unwrap();
    let failures: Vec<_> = outcome.stdout.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert_eq!(failures, [""; 0], "{}", outcome.stderr);
    assert_eq!(outcome.code, 0, "{}{}", outcome.stdout, outcome.stderr);
}
