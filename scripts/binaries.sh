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
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
say "building static binaries, profile $profile"

# build FLAGS PACKAGE..., with an ASCII unit separator between flags, for one may hold a path.
build() {
    local flags="${RUSTFLAGS:-} -Ctarget-feature=+crt-static"
    flags=$(printf '%s' "$flags" | tr -s ' ' '\037')$1
    shift
    # Naming the target keeps +crt-static away from build scripts and procedural macros, which cannot be linked that way.
    CARGO_ENCODED_RUSTFLAGS=${flags#$'\037'} cargo build --locked --profile "$profile" --target "$host" "${@/#/--package=}" --bins >&2
}

# egress by itself, as the compiler is told which way requests go through it: docs/adr/0008-profile.md.
counts=$ROOT/egress/profile/llvm-$llvm.profdata
others=()
for package in "${packages[@]}"; do
    if [ "$package" != egress ] || [ "$profile" != dist ]; then
        others+=("$package")
    elif [ -f "$counts" ]; then
        # Under a name of its own, or cargo would not see that it is another one.
        copy=$(target_dir)/$(sha256sum "$counts" | cut -c -16).profdata
        mkdir -p "$(target_dir)"
        cp "$counts" "$copy"
        build $'\037'"-Cprofile-use=$copy" egress
    else
        say "egress is built without a profile: $counts is not there"
        others+=(egress)
    fi
done
[ ${#others[@]} -eq 0 ] || build "" "${others[@]}"

directory=$profile
[ "$profile" = dev ] && directory=debug
printf '%s\n' "$(target_dir)/$host/$directory"
