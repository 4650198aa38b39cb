#!/usr/bin/env bash
# The property tests of every crate that has some, with many more cases than `make test` gives them.
#
#     FUZZ_CASES=20000 scripts/fuzz.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

bash scripts/need.sh rust cc
packages=()
for manifest in */Cargo.toml; do
    if grep -q '^proptest' "$manifest"; then
        packages+=(-p "$(sed -n 's/^name *= *"\(.*\)"/\1/p' "$manifest" | head -n1)")
    fi
done
say "property tests, ${FUZZ_CASES:-20000} cases each: ${packages[*]//-p/}"
PROPTEST_CASES=${FUZZ_CASES:-20000} cargo test --locked --release "${packages[@]}"
