#!/usr/bin/env bash
# `supervisor run` beside tini, catatonit and s6 as PID 1 of a PID namespace, in one run. Prints a table. Needs root.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

bash scripts/need.sh rust cc inits >&2
binaries=$(bash scripts/binaries.sh supervisor)
program=$(cargo bench --locked -p supervisor --bench init --no-run --message-format=json 2>/dev/null \
    | sed -n 's/.*"executable":"\([^"]*init-[^"]*\)".*/\1/p')
as_root env BENCH_SUPERVISOR="$binaries/supervisor" "$program"
