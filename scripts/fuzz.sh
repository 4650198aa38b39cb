#!/usr/bin/env bash
# The property tests with many more cases than `make test` gives them, then the fuzz targets, each for a bounded time and with a log of its
# own in fuzz/target/logs. The last thing on standard output is a table of what each target did; an input that broke a claim fails the run
# when all of them have had their time.
#
#     FUZZ_SECONDS=60 FUZZ_CASES=20000 scripts/fuzz.sh
#     FUZZ_TARGETS="scrub dns" FUZZ_CASES=0 FUZZ_SECONDS=600 scripts/fuzz.sh      # these alone, and no property tests
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

bash scripts/need.sh rust cc cxx
cases=${FUZZ_CASES:-20000}
if [ "$cases" -gt 0 ]; then
    packages=()
    for manifest in */Cargo.toml; do
        if grep -q '^proptest' "$manifest"; then
            packages+=(-p "$(sed -n 's/^name *= *"\(.*\)"/\1/p' "$manifest" | head -n1)")
        fi
    done
    say "property tests, $cases cases each: ${packages[*]//-p/}"
    PROPTEST_CASES=$cases cargo test --locked --release "${packages[@]}"
fi

# A workspace of its own, with compiler flags of its own: cargo finds them from inside it.
cd fuzz
cargo build --locked --release
programs=${CARGO_TARGET_DIR:-target}/$(rustc -vV | sed -n 's/^host: //p')/release
mkdir -p target/artifacts target/logs
seconds=${FUZZ_SECONDS:-30}
rows=()
failed=0
for name in ${FUZZ_TARGETS:-$(basename -s .rs -a fuzz_targets/*.rs)}; do
    say "fuzzing $name for $seconds s"
    mkdir -p "target/corpus/$name"
    log=target/logs/$name.log
    result=none
    if ! "$programs/$name" -max_total_time="$seconds" -timeout=30 \
        -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="target/artifacts/$name-" \
        "target/corpus/$name" "seeds/$name" >"$log" 2>&1; then
        result="**see fuzz/$log**"
        failed=1
        tail -n 40 "$log"
    fi
    took=$(sed -n 's/^Done [0-9]* runs in \([0-9]*\) second.*/\1/p' "$log")
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    covered=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n1)
    rows+=("| \`$name\` | ${took:-–} | ${runs:-–} | ${covered:-–} | $result |")
done
printf '\n| target | seconds | executions | edges covered | findings |\n|---|---:|---:|---:|---|\n'
printf '%s\n' "${rows[@]}"
exit "$failed"
