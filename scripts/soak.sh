#!/usr/bin/env bash
# The stories of `make test` with full counts (kills, reloads, big bodies), one at a time, on the release profile; then the
# property tests with many cases. Writes docs/soak.md: what ran how often, how long it took, and whether it held.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"
exec </dev/null

bash scripts/need.sh rust cc git curl sshd python venv ip mmdebstrap docker compose
pidfile=/run/bottlecap-dockerd-$$.pid
work=$(mktemp -d)
finish() {
    rm -rf "$work"
    bash scripts/docker-down.sh "$pidfile"
}
trap finish EXIT
bash scripts/docker-up.sh "$pidfile"

say "building"
cargo test --locked --release -p tests --no-run
export BOTTLECAP_SOAK=$work/rounds
: >"$BOTTLECAP_SOAK"

began=$SECONDS
failed=0
# With one thread the line of a test arrives when it has ended: the clock is ours.
while IFS= read -r line; do
    printf '%s\n' "$line"
    if [[ $line =~ ^test\ (.*)\ \.\.\.\ (ok|FAILED|ignored)$ ]]; then
        name=${BASH_REMATCH[1]} result=${BASH_REMATCH[2]}
        rounds=$(awk -F'\t' -v name="$name" '$1 == name { print $2 }' "$BOTTLECAP_SOAK" | tail -n1)
        printf '| %s | %s | %d s | %s |\n' "${name//_/ }" "${rounds:-1}" $((SECONDS - began)) "$result" >>"$work/rows"
        began=$SECONDS
    elif [[ $line == soak-failed ]]; then
        failed=1
    fi
done < <(cargo test --locked --release -p tests --no-fail-fast --test bundle --test docker -- --test-threads=1 2>&1 || echo soak-failed)

began=$SECONDS
result=ok
FUZZ_CASES=${FUZZ_CASES:-50000} bash scripts/fuzz.sh || { result=FAILED; failed=1; }
printf '| the property tests | %s | %d s | %s |\n' "${FUZZ_CASES:-50000}" $((SECONDS - began)) "$result" >>"$work/rows"

{
    printf '# Soak\n\n`make soak` on %s, commit %s' "$(date -u +%F)" "$(git rev-parse --short HEAD)"
    [ -z "$(git status --porcelain --untracked-files=no)" ] || printf ' with local changes'
    printf ', %s processors, Linux %s.\n\n| story | rounds | took | result |\n|---|---:|---:|---|\n' "$(nproc)" "$(uname -r | cut -d- -f1)"
    cat "$work/rows"
} >docs/soak.md
say "written to docs/soak.md"
exit "$failed"
