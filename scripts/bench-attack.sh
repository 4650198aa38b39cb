#!/usr/bin/env bash
# What one client waits while another one of the same bottle attacks, as a Markdown table: three times, about a minute each.
#
#     scripts/bench-attack.sh [ROUNDS]
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

bash scripts/need.sh rust cc >&2
cargo build --locked --quiet --release -p tests --bin under-attack
for round in $(seq "${1:-3}"); do
    say "round $round"
    timeout 180 "$(target_dir)/release/under-attack"
done
