#!/usr/bin/env bash
# The fuzz targets, each for a bounded time, and the property tests with many more cases than `make test` gives them.
#
#     FUZZ_SECONDS=60 FUZZ_CASES=20000 scripts/fuzz.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

bash scripts/need.sh rust cc cxx
packages=()
for manifest in */Cargo.toml; do
    if grep -q '^proptest' "$manifest"; then
        packages+=(-p "$(sed -n 's/^name *= *"\(.*\)"/\1/p' "$manifest" | head -n1)")
    fi
done
say "property tests, ${FUZZ_CASES:-20000} cases each: ${packages[*]//-p/}"
PROPTEST_CASES=${FUZZ_CASES:-20000} cargo test --locked --release "${packages[@]}"

# A workspace of its own, with compiler flags of its own: cargo finds them from inside it.
cd fuzz
cargo build --locked --release
for target in fuzz_targets/*.rs; do
    name=$(basename "$target" .rs)
    say "fuzzing $name for ${FUZZ_SECONDS:-30} s"
    mkdir -p "target/corpus/$name" target/artifacts
    cargo run --quiet --locked --release --bin "$name" -- -max_total_time="${FUZZ_SECONDS:-30}" -timeout=10 \
        -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix=target/artifacts/ "target/corpus/$name" "seeds/$name"
done
