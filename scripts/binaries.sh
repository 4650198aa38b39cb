#!/usr/bin/env bash
# Builds the five programs for the machine and prints the directory they are in. Static, so that the same files run on
# any Linux of this architecture and in an image without a matching C library.
#
#     PROFILE=dist|release|dev scripts/binaries.sh
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

profile=${PROFILE:-dist}
bash scripts/need.sh rust cc
host=$(rustc -vV | sed -n 's/^host: //p')
say "building static binaries, profile $profile"
# Naming the target keeps +crt-static away from build scripts and procedural macros, which cannot be linked that way.
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" cargo build --locked --profile "$profile" --target "$host" \
    -p supervisor -p egress -p git-gate -p supervise -p bottlecap --bins ${WITH_PACKAGE:+-p "$WITH_PACKAGE"} >&2

directory=$profile
[ "$profile" = dev ] && directory=debug
printf '%s\n' "$(target_dir)/$host/$directory"
