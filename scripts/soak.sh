#!/usr/bin/env bash
# The stories of `make test` with full counts (kills, reloads, big bodies), one at a time, on the release profile; then the
# property tests and the fuzz targets at length. Writes docs/soak.md: what ran how often, how long it took, and whether it held.
#
#     SOAK_PROFILE=dev SOAK_PARTS=stories make soak      # a shorter one; the table says so
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"
exec </dev/null

bash scripts/need.sh rust cc git curl sshd python venv ip mmdebstrap docker compose strace
pidfile=/run/bottlecap-dockerd-$$.pid
work=$(mktemp -d)
finish() {
    rm -rf "$work"
    bash scripts/docker-down.sh "$pidfile"
}
trap finish EXIT
bash scripts/docker-up.sh "$pidfile"

profile=${SOAK_PROFILE:-release}
parts=${SOAK_PARTS:-stories fuzz}
story_tests() { cargo test --locked --profile "$profile" -p tests --no-fail-fast --test bundle --test docker "$@"; }
say "building"
story_tests --no-run
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
done < <(story_tests -- --test-threads=1 2>&1 || echo soak-failed)

if [[ " $parts " == *" stories "* ]]; then
    began=$SECONDS
    result=ok
    export BOTTLECAP_ROUNDS=${BOTTLECAP_ROUNDS:-20} BOTTLECAP_REFS=${BOTTLECAP_REFS:-1000000}
    # Not the release profile: what these tests ask for is built for development.
    cargo test --locked -p git-gate --no-fail-fast --test faults --test upkeep || { result=FAILED; failed=1; }
    printf '| git-gate: killed in a push (each of three points), a million refs, readers while refs move | %s | %d s | %s |\n' \
        "$BOTTLECAP_ROUNDS" $((SECONDS - began)) "$result" >>"$work/rows"
    began=$SECONDS
    result=ok
    export EGRESS_RELOADS=${EGRESS_RELOADS:-1000}
    cargo test --locked -p egress --test claims reloads_under_load || { result=FAILED; failed=1; }
    printf '| egress: reloads under load, requests counted on both sides | %s | %d s | %s |\n' \
        "$EGRESS_RELOADS" $((SECONDS - began)) "$result" >>"$work/rows"
    began=$SECONDS
    result=ok
    export BOTTLECAP_KILLS=${BOTTLECAP_KILLS:-500}
    cargo test --locked -p supervise --test faults || { result=FAILED; failed=1; }
    printf '| supervise: killed at any step of a request | %s | %d s | %s |\n' "$BOTTLECAP_KILLS" $((SECONDS - began)) "$result" >>"$work/rows"
    began=$SECONDS
    result=ok
    cargo build --locked --workspace --bins && cargo test --locked -p tests --test decisions || { result=FAILED; failed=1; }
    printf '| bottlecap: killed at any step of an approval | %s | %d s | %s |\n' "$BOTTLECAP_KILLS" $((SECONDS - began)) "$result" >>"$work/rows"
fi

if [[ " $parts " == *" fuzz "* ]]; then
    began=$SECONDS
    result=ok
    FUZZ_CASES=${FUZZ_CASES:-50000} FUZZ_SECONDS=${FUZZ_SECONDS:-600} bash scripts/fuzz.sh || { result=FAILED; failed=1; }
    printf '| property tests, %s cases each, and fuzz targets, %s s each | 1 | %d s | %s |\n' \
        "${FUZZ_CASES:-50000}" "${FUZZ_SECONDS:-600}" $((SECONDS - began)) "$result" >>"$work/rows"
fi

{
    printf '# Soak\n\n`SOAK_PROFILE=%s SOAK_PARTS="%s" make soak` on %s, commit %s' "$profile" "$parts" "$(date -u +%F)" "$(git rev-parse --short HEAD)"
    [ -z "$(git status --porcelain --untracked-files=no)" ] || printf ' with local changes'
    printf ', %s processors, Linux %s.\n\n| story | rounds | took | result |\n|---|---:|---:|---|\n' "$(nproc)" "$(uname -r | cut -d- -f1)"
    cat "$work/rows"
} >docs/soak.md
say "written to docs/soak.md"
exit "$failed"
