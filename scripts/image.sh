#!/usr/bin/env bash
# Builds the bundle image with Docker and prints its tag.
#
#     PROFILE=dist|release|dev  TAG=bottlecap-sidecars:latest  BASE_IMAGE=debian:bookworm-slim  scripts/image.sh
#
# Without BASE_IMAGE the base is made from this machine's Debian packages: no registry is needed.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

tag=${TAG:-bottlecap-sidecars:latest}
programs=(supervisor egress git-gate supervise)
binaries=$(bash scripts/binaries.sh "${programs[@]}")
bash scripts/docker-up.sh "${DOCKERD_PIDFILE:-/run/bottlecap-dockerd.pid}"
base=${BASE_IMAGE:-$(bash scripts/base-image.sh)}

# The build context holds what the image needs and nothing else.
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
mkdir "$context/bin"
for program in "${programs[@]}"; do
    # A program that its daemon's user cannot read makes a process that nobody but root looks into, from its first instruction.
    install -m 0711 "$binaries/$program" "$context/bin/$program"
    [ "${PROFILE:-dist}" != dev ] || strip "$context/bin/$program"
done
say "docker build $tag (base $base)"
docker_build --pull=false -f Dockerfile.sidecars --build-arg BASE_IMAGE="$base" --build-arg BIN_STAGE=prebuilt \
    --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" -t "$tag" "$context"
printf '%s\n' "$tag"
