#!/usr/bin/env bash
# How long a bottle takes from the command line to the first instruction of its command, and to its end, for each backend:
# the median of RUNS (default 5), beside `docker run` of the same image. Run it as root on a quiet machine.
#
#     BOTTLECAP_BIN_DIR=target/release  IMAGE=bottlecap-sidecars:latest  scripts/bench-start.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
bin=$(cd "${BOTTLECAP_BIN_DIR:?the directory of bottlecap and its daemons}" && pwd)
image=${IMAGE:-bottlecap-sidecars:latest}
runs=${RUNS:-5}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 711 "$stage"
mkdir "$stage/work" "$stage/state" "$stage/run"
chown 64300:64300 "$stage/work"
export XDG_STATE_HOME=$stage/state XDG_RUNTIME_DIR=$stage/run BOTTLECAP_SIDECARS_IMAGE=$image
cd "$stage/work"

# Milliseconds until the command says what the time is, and until everything is gone.
once() {
    local before after first
    before=$(date +%s%N)
    first=$("$@" date +%s%N | tr -d '\r')
    after=$(date +%s%N)
    printf '%s %s\n' $(((first - before) / 1000000)) $(((after - before) / 1000000))
}
median() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }
measure() {
    local label=$1
    shift
    for _ in $(seq "$runs"); do once "$@"; done >"$stage/figures"
    printf '%-10s first instruction %5s ms, whole %5s ms\n' "$label" \
        "$(cut -d' ' -f1 "$stage/figures" | median)" "$(cut -d' ' -f2 "$stage/figures" | median)"
}
measure sandbox "$bin/bottlecap" run --
measure docker "$bin/bottlecap" run --backend docker --image "$image" --
measure 'docker run' docker run --rm --entrypoint= "$image"
