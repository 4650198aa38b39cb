#!/usr/bin/env bash
# Puts a few small inputs of those that the fuzz targets found into fuzz/seeds, so that the next run begins where this one ended: of the
# inputs that together reach all that was reached, the largest of those below a bound, which reach most.
#
#     FUZZ_TARGETS="scrub dns" FUZZ_SEEDS=16 FUZZ_SEED_BYTES=300 scripts/fuzz-seeds.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT/fuzz"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --locked --release
programs=${CARGO_TARGET_DIR:-target}/$(rustc -vV | sed -n 's/^host: //p')/release
for name in ${FUZZ_TARGETS:-$(ls target/corpus)}; do
    mkdir "$work/small" "$work/least"
    find "target/corpus/$name" -type f -size -"${FUZZ_SEED_BYTES:-300}"c -exec cp -t "$work/small" {} +
    "$programs/$name" -set_cover_merge=1 "$work/least" "$work/small" 2>"$work/log" ||
        { cat "$work/log"; exit 1; }
    # Those that an earlier run put here have a hash for a name; what a person wrote has a word, and stays.
    find "seeds/$name" -type f -regextype posix-extended -regex '.*/[0-9a-f]{40}' -delete
    find "$work/least" -type f -printf '%s %p\n' | sort -k1,1nr -k2 | head -n "${FUZZ_SEEDS:-16}" | cut -d' ' -f2 |
        xargs --no-run-if-empty cp -t "seeds/$name"
    say "$name: $(find "seeds/$name" -type f | wc -l) seeds, $(du -cb "seeds/$name"/* | tail -n1 | cut -f1) bytes"
    rm -rf "$work/small" "$work/least"
done
