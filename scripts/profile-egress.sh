#!/usr/bin/env bash
# Tells the compiler anew which way requests go through egress (docs/adr/0008-profile.md): builds an egress that counts, has the benchmarks
# send requests through it, and puts the counts into egress/profile/. About 20 minutes.
#
#     scripts/profile-egress.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

bash scripts/need.sh rust cc llvm >&2
host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
# A fixed place, because it is written into the program.
counts=$(target_dir)/counting/counts
rm -rf "$counts"

say "building the benchmark, and an egress that counts"
cargo bench --locked --quiet --profile release -p egress --bench proxy --no-run >&2
# The profile, the target and the features are those of scripts/binaries.sh: the names of functions depend on them.
CARGO_TARGET_DIR=$(target_dir)/counting CARGO_ENCODED_RUSTFLAGS="-Ctarget-feature=+crt-static"$'\037'"-Cprofile-generate=$counts" \
    cargo build --locked --quiet --profile dist --target "$host" --package egress --bins >&2

export EGRESS_BENCH_EGRESS=$(target_dir)/counting/$host/dist/egress
for row in keep-alive connection GiB inspection events; do
    say "counting: $row"
    timeout --kill-after=10 120 cargo bench --locked --quiet --profile release -p egress --bench proxy -- "$row" </dev/null >&2
done
mkdir -p egress/profile
rm -f egress/profile/llvm-*.profdata
"llvm-profdata-$llvm" merge --sparse --output "egress/profile/llvm-$llvm.profdata" "$counts"/*.profraw
say "written to egress/profile/llvm-$llvm.profdata"
