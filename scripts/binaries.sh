#!/usr/bin/env bash
# Builds static programs and prints the directory they are in: the same files run on any Linux of this architecture, and in
# an image without a matching C library. Without arguments those that make bottlecap.
#
#     PROFILE=dist|release|dev scripts/binaries.sh [PACKAGE...]
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

profile=${PROFILE:-dist}
packages=("$@")
[ $# -gt 0 ] || packages=(supervisor egress git-gate supervise bottlecap bottlecap-corpus)
bash scripts/need.sh rust cc
host=$(rustc -vV | sed -n 's/^host: //p')
say "building static binaries, profile $profile"
# Naming the target keeps +crt-static away from build scripts and procedural macros, which cannot be linked that way.
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" cargo build --locked --profile "$profile" --target "$host" \
    "${packages[@]/#/--package=}" --bins >&2

directory=$profile
[ "$profile" = dev ] && directory=debug
printf '%s\n' "$(target_dir)/$host/$directory"
