#!/usr/bin/env bash
# What egress costs beside mitmdump and a minimal hudsucker program, as Markdown tables. Arguments choose rows by name.
#
#     scripts/bench-egress.sh [keep-alive|connection|GiB|events|idle]...
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

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
    CARGO_TARGET_DIR=$peers/hudsucker cargo build --release --quiet --manifest-path egress/benches/peers/hudsucker/Cargo.toml >&2
    EGRESS_BENCH_HUDSUCKER=$peers/hudsucker/release/hudsucker-peer
fi
export EGRESS_BENCH_MITMDUMP EGRESS_BENCH_HUDSUCKER
cargo bench --locked -p egress --bench proxy -- "$@"
