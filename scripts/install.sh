#!/usr/bin/env bash
# Installs the five programs under PREFIX: all in lib/bottlecap, where bottlecap finds its daemons beside itself, and a
# link to bottlecap in bin. With --remove takes exactly that away again.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

prefix=${PREFIX:-/usr/local}
programs=(bottlecap supervisor egress git-gate supervise)

into() {
    if [ -w "$prefix" ]; then "$@"; else as_root "$@"; fi
}

if [ "${1:-}" = --remove ]; then
    say "removing bottlecap from $prefix"
    into rm -f "$prefix/bin/bottlecap" "${programs[@]/#/$prefix/lib/bottlecap/}"
    [ ! -d "$prefix/lib/bottlecap" ] || into rmdir --ignore-fail-on-non-empty "$prefix/lib/bottlecap"
    exit 0
fi

binaries=$(bash scripts/binaries.sh)
say "installing into $prefix/lib/bottlecap"
[ -d "$prefix" ] || mkdir -p "$prefix" 2>/dev/null || as_root mkdir -p "$prefix"
into install -d "$prefix/bin" "$prefix/lib/bottlecap"
for program in "${programs[@]}"; do
    into install -m 0755 "$binaries/$program" "$prefix/lib/bottlecap/$program"
done
into ln -sfn ../lib/bottlecap/bottlecap "$prefix/bin/bottlecap"
"$prefix/bin/bottlecap" --version
