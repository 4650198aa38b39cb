#!/usr/bin/env bash
# The benchmarks of every crate that has some. Arguments go to criterion, for example a filter.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

bash scripts/need.sh rust cc
# Only those crates: the others' tests ask for features that a release refuses.
packages=()
for directory in */benches; do
    # Not those of criterion; they have scripts of their own.
    case "$directory" in
        supervisor/benches | egress/benches) ;;
        *) packages+=(-p "$(dirname "$directory")") ;;
    esac
done
cargo bench --locked "${packages[@]}" --bench '*' -- "$@"
cargo run --locked --quiet --release -p policy --example decide_histogram
bash scripts/bench-init.sh

# Programs beside programs; a filter for criterion means something else.
if [ $# -eq 0 ]; then
    bash scripts/bench-egress.sh
    bash scripts/bench-attack.sh
    bash scripts/need.sh git sshd python
    cargo build --locked --release -p git-gate
    python3 scripts/bench-git.py "${CARGO_TARGET_DIR:-target}/release/git-gate"
fi
