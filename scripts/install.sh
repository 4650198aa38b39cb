#!/usr/bin/env bash
# Installs the programs under PREFIX: all in lib/bottlecap, where bottlecap finds its daemons beside itself, and a
# link to bottlecap in bin; its manual pages, and what shells complete. With --remove takes exactly that away again.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

prefix=${PREFIX:-/usr/local}
programs=(bottlecap supervisor egress git-gate supervise bottlecap-corpus)
manual=share/man/man1
# SHELL=FILE below PREFIX
completions=(bash=share/bash-completion/completions/bottlecap zsh=share/zsh/site-functions/_bottlecap
    fish=share/fish/vendor_completions.d/bottlecap.fish)

into() {
    if [ -w "$prefix" ]; then "$@"; else as_root "$@"; fi
}

if [ "${1:-}" = --remove ]; then
    say "removing bottlecap from $prefix"
    into rm -f "$prefix/bin/bottlecap" "${programs[@]/#/$prefix/lib/bottlecap/}" "$prefix/$manual"/bottlecap{,-*}.1
    for completion in "${completions[@]}"; do into rm -f "$prefix/${completion#*=}"; done
    [ ! -d "$prefix/lib/bottlecap" ] || into rmdir --ignore-fail-on-non-empty "$prefix/lib/bottlecap"
    exit 0
fi

binaries=$(bash scripts/binaries.sh)
say "installing into $prefix/lib/bottlecap"
[ -d "$prefix" ] || mkdir -p "$prefix" 2>/dev/null || as_root mkdir -p "$prefix"
into install -d "$prefix/bin" "$prefix/lib/bottlecap"
for program in "${programs[@]}"; do
    # A daemon of a program that its user cannot read is closed to everybody but root, from its first instruction.
    mode=0711
    case $program in bottlecap | bottlecap-corpus) mode=0755 ;; esac
    into install -m "$mode" "$binaries/$program" "$prefix/lib/bottlecap/$program"
done
into ln -sfn ../lib/bottlecap/bottlecap "$prefix/bin/bottlecap"
generated=$(mktemp -d)
trap 'rm -r "$generated"' EXIT
"$prefix/bin/bottlecap" man "$generated"
into install -d "$prefix/$manual"
into install -m 0644 "$generated"/*.1 "$prefix/$manual"
for completion in "${completions[@]}"; do
    "$prefix/bin/bottlecap" completions "${completion%%=*}" >"$generated/completion"
    into install -D -m 0644 "$generated/completion" "$prefix/${completion#*=}"
done
"$prefix/bin/bottlecap" --version
