#!/usr/bin/env bash
# Stops the Docker engine that scripts/docker-up.sh started, by its pid; does nothing when that one started none.
#
#     scripts/docker-down.sh [PIDFILE]
set -euo pipefail
. "$(dirname "$0")/lib.sh"

pidfile=${1:-/run/bottlecap-dockerd.pid}
[ -s "$pidfile" ] || exit 0
pid=$(cat "$pidfile")
if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
    say "stopping dockerd ($pid)"
    as_root kill -TERM "$pid"
    tail --pid="$pid" -f /dev/null
fi
as_root rm -f "$pidfile"
