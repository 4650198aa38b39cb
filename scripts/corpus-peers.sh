#!/usr/bin/env bash
# The wire corpus against egress, mitmdump and squid, each told to allow the same: a Markdown table on standard output.
# Everything runs on loopback and in a temporary directory; the system's squid service is not used.
#
#     scripts/corpus-peers.sh [--only TEXT]
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$ROOT"

bash scripts/need.sh rust cc venv squid
say "building"
cargo build --locked --quiet -p bottlecap-corpus -p egress --bins
bin=$(target_dir)/debug
work=$(mktemp -d)
running=()
finish() {
    for pid in "${running[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT
chmod 755 "$work"

say "mitmproxy from PyPI, into a virtual environment of its own"
/usr/bin/python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet mitmproxy

# A port that nobody has now; good enough for a table.
free_port() { /usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
origins=() ports=()
for _ in 1 2 3 4; do
    port=$(free_port)
    ports+=("$port")
    origins+=(--origin "127.0.0.1:$port")
done
"$bin/bottlecap-corpus" --origin-dir "$work/origin" --prepare
"$bin/egress" ca init --ca-dir "$work/ca" >/dev/null

# await PORT: until somebody listens there.
await() {
    local tries=0
    until (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || fail "nothing listens on port $1" "see $work"
        read -r -t 0.1 <> <(:) || true
    done
}

# corpus NAME PORT [OPTION...]: plays it and keeps what came.
corpus() {
    local name=$1 port=$2
    shift 2
    say "playing against $name"
    "$bin/bottlecap-corpus" --proxy "http://127.0.0.1:$port" --origin-dir "$work/origin" "${origins[@]}" --json "$@" \
        >"$work/$name.jsonl" || [ $? -eq 1 ]
}

start_egress() {
    local scheme port
    mkdir -p "$work/egress/etc" "$work/egress/state" "$work/egress/run" "$work/egress/secrets"
    {
        echo "routes:"
        for scheme in http https; do
            for port in "${ports[@]}"; do
                printf '  - {host: localhost, scheme: %s, ports: [%s], allow_private: ["127.0.0.1:%s", "[::1]:%s"],\n' \
                    "$scheme" "$port" "$port" "$port"
                printf '     matches: [{paths: [{type: prefix, value: /allowed/}], methods: [GET, POST]}]}\n'
            done
        done
    } >"$work/egress/etc/routes.yaml"
    EGRESS_UPSTREAM_CA="$work/origin/origin-ca.pem" "$bin/egress" --config "$work/egress/etc" --ca-dir "$work/ca" \
        --run-dir "$work/egress/run" --state-dir "$work/egress/state" --secrets-dir "$work/egress/secrets" \
        --listen "127.0.0.1:$1" >"$work/egress/log" 2>&1 &
    running+=($!)
}

# mitmdump with the least that its users would write for the same policy, upstream dialled late, no raw TCP.
start_mitmdump() {
    mkdir -p "$work/mitm"
    cat >"$work/mitm/policy.py" <<PY
from mitmproxy import http

PORTS = {$(IFS=,; echo "${ports[*]}")}


def refuse(flow):
    flow.response = http.Response.make(403)


def http_connect(flow):
    if flow.request.host != "localhost" or flow.request.port not in PORTS:
        refuse(flow)


def request(flow):
    asked = flow.request
    path = asked.path.split("?")[0]
    there = asked.host == "localhost" and asked.port in PORTS
    if not (there and path.startswith("/allowed/") and asked.method in ("GET", "POST")):
        refuse(flow)
PY
    "$work/venv/bin/mitmdump" --quiet --listen-host 127.0.0.1 --listen-port "$1" --scripts "$work/mitm/policy.py" \
        --set confdir="$work/mitm" --set ssl_verify_upstream_trusted_ca="$work/origin/origin-ca.pem" \
        --set connection_strategy=lazy --set rawtcp=false >"$work/mitm/log" 2>&1 &
    running+=($!)
}

start_squid() {
    mkdir -p "$work/squid"
    cat "$work/ca/ca.pem" "$work/ca/ca-key.pem" >"$work/squid/ca.pem"
    /usr/lib/squid/security_file_certgen -c -s "$work/squid/db" -M 4MB >/dev/null
    cat >"$work/squid/squid.conf" <<CONF
http_port 127.0.0.1:$1 ssl-bump tls-cert=$work/squid/ca.pem generate-host-certificates=on dynamic_cert_mem_cache_size=4MB
sslcrtd_program /usr/lib/squid/security_file_certgen -s $work/squid/db -M 4MB
sslcrtd_children 4 startup=2
acl hello at_step SslBump1
ssl_bump peek hello
ssl_bump bump all
tls_outgoing_options cafile=$work/origin/origin-ca.pem
acl there dstdomain localhost
acl right_port port ${ports[*]}
acl tunnel method CONNECT
acl below urlpath_regex ^/allowed/
acl ways method GET POST
http_access deny !there
http_access deny !right_port
http_access allow tunnel
http_access deny !below
http_access deny !ways
http_access allow all
relaxed_header_parser off
cache deny all
access_log none
cache_log $work/squid/cache.log
pid_filename $work/squid/pid
coredump_dir $work/squid
shutdown_lifetime 1 second
CONF
    if [ "$(id -u)" -eq 0 ]; then chown -R proxy:proxy "$work/squid"; fi
    squid -N -f "$work/squid/squid.conf" >"$work/squid/log" 2>&1 &
    running+=($!)
}

for name in egress mitmdump squid; do
    port=$(free_port)
    "start_$name" "$port"
    await "$port"
    corpus "$name" "$port" "$@"
done

mitm_version=$("$work/venv/bin/mitmdump" --version | sed -n 's/^Mitmproxy: //p')
squid_version=$(squid -v | sed -n 's/^Squid Cache: Version //p')
/usr/bin/python3 - "$work" "mitmdump $mitm_version" "squid $squid_version" <<'PY'
import collections, json, sys

work, *peers = sys.argv[1:]
names = ["egress", "mitmdump", "squid"]
passed, count, cases = collections.Counter(), collections.Counter(), set()
for name in names:
    for line in open(f"{work}/{name}.jsonl"):
        play = json.loads(line)
        # Not compared: squid offers no HTTP/2 to clients, and a proxy that serves none withstands everything in it.
        if play["over"] == "h2":
            continue
        for row in (play["class"], "all"):
            passed[name, row] += play["passed"]
            count[row] += name == "egress"
        cases.add(play["id"])
rows = sorted(row for row in count if row != "all") + ["all"]
print(f"{len(cases)} cases, {count['all']} plays.\n")
print("| class | plays | egress | " + " | ".join(peers) + " |\n|---|---|---|---|---|")
for row in rows:
    cells = " | ".join(str(passed[name, row]) for name in names)
    print(f"| {row} | {count[row]} | {cells} |")
PY
