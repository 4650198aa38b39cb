#!/usr/bin/env bash
# What egress costs beside mitmdump and a minimal hudsucker program, and how fast the scanner is, as Markdown with the goals that are
# met and missed. Arguments choose rows by name; `--write` puts all of it into docs/measurements.md, in place of what it put there before.
#
# Built as it is shipped, the hudsucker program too; PROFILE=release is built sooner.
#
#     scripts/bench-egress.sh [--write] [keep-alive|connection|GiB|inspection|events|idle|scanner]...
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

document=docs/measurements.md
profile=${PROFILE:-dist}
heading='## egress and the scanner'
write=no
rows=()
for argument in "$@"; do
    if [ "$argument" = --write ]; then write=yes; else rows+=("$argument"); fi
done
[ "$write" = no ] || [ ${#rows[@]} -eq 0 ] || fail "--write writes all rows" "leave out: ${rows[*]}"

bash scripts/need.sh rust cc venv >&2
peers=$(target_dir)/peers
if [ -z "${EGRESS_BENCH_MITMDUMP:-}" ]; then
    if [ ! -x "$peers/mitmproxy/bin/mitmdump" ]; then
        say "pip install mitmproxy, under $peers/mitmproxy"
        /usr/bin/python3 -m venv "$peers/mitmproxy"
        "$peers/mitmproxy/bin/pip" install --quiet --disable-pip-version-check mitmproxy >&2
    fi
    EGRESS_BENCH_MITMDUMP=$peers/mitmproxy/bin/mitmdump
fi
if [ -z "${EGRESS_BENCH_HUDSUCKER:-}" ]; then
    say "building the hudsucker program"
    CARGO_TARGET_DIR=$peers/hudsucker cargo build --profile "$profile" --quiet --manifest-path egress/benches/peers/hudsucker/Cargo.toml >&2
    EGRESS_BENCH_HUDSUCKER=$peers/hudsucker/$profile/hudsucker-peer
fi
if [ -z "${EGRESS_BENCH_EGRESS:-}" ]; then
    EGRESS_BENCH_EGRESS=$(PROFILE=$profile bash scripts/binaries.sh egress)/egress
fi
export EGRESS_BENCH_EGRESS EGRESS_BENCH_MITMDUMP EGRESS_BENCH_HUDSUCKER
say "building the scanner and the benchmarks"
cargo bench --locked --quiet --profile "$profile" -p egress -p scan --bench proxy --bench stream --no-run >&2

# Each within so many seconds, so that a proxy that hangs does not hang this.
bounded() {
    timeout --kill-after=10 "$1" cargo bench --locked --quiet --profile "$profile" -p "$2" --bench "$3" -- "${@:4}" </dev/null ||
        printf '\nNot measured: `%s` failed, or took longer than %s s.\n' "${*:4}" "$1"
}

# wanted ROW: whether it was asked for.
wanted() { [ ${#rows[@]} -eq 0 ] || case " ${rows[*]} " in *" $1 "*) ;; *) false ;; esac; }

tables() {
    local beside=() row
    for row in keep-alive connection GiB; do
        if wanted "$row"; then beside+=("$row"); fi
    done
    if [ ${#beside[@]} -gt 0 ]; then bounded 240 egress proxy "${beside[@]}"; fi
    for row in inspection events; do
        if wanted "$row"; then bounded 50 egress proxy "$row"; fi
    done
    if wanted idle; then bounded 80 egress proxy idle; fi
    if wanted scanner; then
        printf '\nThe scanner and the scrubber, by `cargo bench -p scan --bench stream`, one thread:\n\n'
        bounded 120 scan stream
    fi
}

if [ "$write" = no ]; then
    tables
    exit
fi
section=$(mktemp)
trap 'rm -f "$section"' EXIT
{
    cat <<HEAD
$heading

Made by \`scripts/bench-egress.sh --write\` on $(date -u +%F), commit $(git rev-parse --short HEAD), profile \`$profile\`, $(nproc) processors, a load of
$(cut -d' ' -f1 /proc/loadavg) when it began. Processor time of the proxy's own process; the programs take turns, and the medians stand here. In brackets: how
many times what egress takes. egress judges each request, records it in a hash chain and exchanges a credential; hudsucker does none of
it. mitmdump has an addon that does the same as egress. The relay passes on bytes that it does not look at: it is the price of two
connections on this machine. No TLS session is resumed.

HEAD
    tables
} >"$section"
# What stands under the heading, up to the next one, is replaced; without one it is added at the end.
awk -v heading="$heading" -v section="$section" '
    function put() { while ((getline line < section) > 0) print line; done = 1 }
    $0 == heading { put(); skip = 1; next }
    skip && /^## / { print ""; skip = 0 }
    !skip { print }
    END { if (!done) { print ""; put() } }
' "$document" >"$document.new"
mv "$document.new" "$document"
say "written to $document"
