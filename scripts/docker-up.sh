#!/usr/bin/env bash
# Makes sure that a Docker engine answers. One that runs already is used and left alone; otherwise the distribution's is
# installed and started, and its pid written to the file named by the first argument, for scripts/docker-down.sh.
#
#     scripts/docker-up.sh [PIDFILE]
set -euo pipefail
. "$(dirname "$0")/lib.sh"

pidfile=${1:-/run/bottlecap-dockerd.pid}
START_SECONDS=60

answers() { (docker info) >/dev/null 2>&1; }

if answers; then exit 0; fi
bash "$ROOT/scripts/need.sh" docker
# Installing the package starts the service where there is an init system to start it.
if [ -d /run/systemd/system ]; then as_root systemctl start docker || true; fi
if answers; then exit 0; fi

# Where nothing has mounted control groups (a bare tmpfs, an empty directory), runc cannot start a container. The unified
# hierarchy if no controller is taken by a version 1 mount, else each controller by itself.
mount_cgroups() {
    if grep -qE ' /sys/fs/cgroup(/[a-z_,]+)? cgroup2? ' /proc/mounts; then return; fi
    if awk 'NR > 1 && $2 != 0 { taken = 1 } END { exit taken }' /proc/cgroups; then
        say "mounting the unified cgroup hierarchy"
        as_root mount -t cgroup2 cgroup2 /sys/fs/cgroup
        return
    fi
    say "mounting the cgroup controllers"
    mountpoint -q /sys/fs/cgroup || as_root mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    for controller in $(awk '$4 == 1 { print $1 }' /proc/cgroups); do
        as_root mkdir -p "/sys/fs/cgroup/$controller"
        as_root mount -t cgroup -o "$controller" cgroup "/sys/fs/cgroup/$controller" || as_root rmdir "/sys/fs/cgroup/$controller"
    done
}
mount_cgroups

# Some kernels have only one of the two iptables back ends; dockerd needs the one that works.
arguments=()
if ! as_root iptables -t nat -L -n >/dev/null 2>&1; then
    if have iptables-legacy && as_root iptables-legacy -t nat -L -n >/dev/null 2>&1; then
        say "iptables: this kernel has no nf_tables; choosing the legacy back end"
        as_root update-alternatives --set iptables /usr/sbin/iptables-legacy >/dev/null
    else
        say "iptables does not work here; containers will have no way out"
        arguments+=(--iptables=false)
    fi
fi

log=${pidfile%.pid}.log
say "starting dockerd (log: $log)"
as_root mkdir -p "$(dirname "$pidfile")"
as_root bash -c 'log=$1; shift; exec setsid --fork "$@" >"$log" 2>&1 </dev/null' - "$log" \
    dockerd --pidfile "$pidfile" "${arguments[@]}"

deadline=$((SECONDS + START_SECONDS))
until answers; do
    if [ "$SECONDS" -ge "$deadline" ]; then
        tail -n 20 "$log" >&2 || true
        fail "dockerd did not answer within $START_SECONDS s" "read $log"
    fi
    sleep 0.3
done
