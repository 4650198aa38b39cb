# Shared by the scripts here; sourced, never run. bash, `set -euo pipefail` in the caller.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ROOT
export HOME="${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}"

# cargo from a rustup that put itself into the home directory without touching this shell's PATH.
if [ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ]; then
    case ":$PATH:" in
        *":${CARGO_HOME:-$HOME/.cargo}/bin:"*) ;;
        *) PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH" ;;
    esac
fi
# Debian keeps sshd, iptables and dockerd where an ordinary user's PATH does not look.
case ":$PATH:" in
    *:/usr/sbin:*) ;;
    *) PATH="$PATH:/usr/sbin:/sbin" ;;
esac
export PATH

say() { printf '==> %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf 'hint: %s\n' "$@" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command as root: directly, or through sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo -- "$@"
    else
        fail "this step needs root: $*" "install sudo, or run it as root"
    fi
}

# Where cargo puts what it builds.
target_dir() { printf '%s' "${CARGO_TARGET_DIR:-$ROOT/target}"; }

# The docker client: the distribution's before a newer one in PATH, which may lack its build plugin.
docker_cli() {
    if [ -n "${BOTTLECAP_DOCKER:-}" ]; then
        printf '%s' "$BOTTLECAP_DOCKER"
    elif [ -x /usr/bin/docker ]; then
        printf /usr/bin/docker
    else
        # As a program: `docker` is also a function here.
        type -P docker || true
    fi
}

# docker as the user who is running, or as root when the socket belongs to root.
docker() {
    local cli
    cli=$(docker_cli)
    [ -n "$cli" ] || return 127
    if [ "$(id -u)" -eq 0 ] || [ -w "${DOCKER_SOCKET:-/var/run/docker.sock}" ] || [ -n "${DOCKER_HOST:-}" ]; then
        DOCKER_BUILDKIT=1 "$cli" "$@"
    else
        as_root env DOCKER_BUILDKIT=1 "$cli" "$@"
    fi
}

# `docker build`, with its own progress on a terminal and in silence elsewhere.
docker_build() {
    if [ -t 2 ]; then docker build "$@" >&2; else docker build --quiet "$@" >/dev/null; fi
}
