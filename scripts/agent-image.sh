#!/usr/bin/env bash
# Builds the image of the agent's container with Docker and prints its tag.
#
#     TAG=bottlecap-agent:latest  BASE_IMAGE=debian:bookworm-slim  scripts/agent-image.sh
#
# Without BASE_IMAGE the base is made from this machine's Debian packages, and Node and Claude Code come from npm on this machine:
# no image registry is needed.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

tag=${TAG:-bottlecap-agent:latest}
bash scripts/docker-up.sh "${DOCKERD_PIDFILE:-/run/bottlecap-dockerd.pid}"
bash scripts/need.sh node22
# Node is linked to the C++ library; the agent may have use for ssh's programs, as for its keygen.
base=${BASE_IMAGE:-$(bash scripts/base-image.sh libstdc++6 openssh-client)}

# Hard links where that is possible: the programs are some hundred megabytes.
context=$(mktemp -d -p "$(target_dir)")
trap 'rm -rf "$context"' EXIT
cp -al "$(target_dir)/clients/node_modules" "$context/node_modules" 2>/dev/null \
    || cp -a "$(target_dir)/clients/node_modules" "$context/node_modules"
say "docker build $tag (base $base)"
docker_build --pull=false -f Dockerfile.agent --build-arg BASE_IMAGE="$base" -t "$tag" "$context"
printf '%s\n' "$tag"
