#!/usr/bin/env bash
# Prints docs/measurements.md: sizes, memory and start-up time of the bundle, on the dist profile.
#
#     scripts/measure.sh >docs/measurements.md
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

bash scripts/need.sh rust cc >&2
binaries=$(PROFILE=${PROFILE:-dist} bash scripts/binaries.sh)
cargo build --locked --quiet -p tests --bin measure >&2

cat <<HEAD
# Measurements

Made by \`scripts/measure.sh >docs/measurements.md\` on $(date -u +%F), commit $(git rev-parse --short HEAD), profile \`${PROFILE:-dist}\`, static binaries,
$(nproc) processors, Linux $(uname -r | cut -d- -f1).

HEAD
BOTTLECAP_BIN_DIR=$binaries "$(target_dir)/debug/measure"

cat <<MIDDLE

\`supervisor run\` beside other inits, in one run of \`scripts/bench-init.sh\`: medians of 20 starts, and of 5 times 3,000 orphans.

MIDDLE
bash scripts/bench-init.sh
