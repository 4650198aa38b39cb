#!/usr/bin/env bash
# The benchmarks of every crate that has some. Arguments go to criterion, for example a filter.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

bash scripts/need.sh rust cc
cargo bench --locked --workspace --bench '*' -- "$@"
