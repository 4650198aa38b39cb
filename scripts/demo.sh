#!/usr/bin/env bash
# `make demo`: builds what is missing, then plays examples/demo/story.sh on a network that exists only for it.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/lib.sh
scripts/need.sh rust cc curl git sshd ip venv

if [ -z "${BOTTLECAP_BIN_DIR:-}" ]; then
    say "building bottlecap (cargo build --release)"
    cargo build --release --locked --workspace --bins
    BOTTLECAP_BIN_DIR=${CARGO_TARGET_DIR:-$PWD/target}/release
fi

# The agent's MCP client is Python's own. Installed once; the story itself needs no network.
venv=$PWD/target/demo-venv
mkdir -p target
exec 9>target/demo-venv.lock
flock 9 # two demos at once install it once
if ! "$venv/bin/python" -c 'import mcp' 2>/dev/null; then
    say "installing the Python MCP client into target/demo-venv"
    /usr/bin/python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check mcp
fi
exec 9>&-

# A network and a mount namespace of our own: the stand-ins for the outside live on addresses that are reserved for documentation
# (RFC 5737), names come from a hosts file that only the story sees, and all of it is gone with the last process.
as_root unshare --net --mount --propagation private --fork --kill-child -- \
    env BOTTLECAP_BIN_DIR="$BOTTLECAP_BIN_DIR" DEMO_VENV="$venv" DEMO_USER="${DEMO_USER:-$(id -un)}" \
    bash examples/demo/outside.sh </dev/null
