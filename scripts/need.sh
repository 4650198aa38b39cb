#!/usr/bin/env bash
# Installs what is missing of the things named, and says what it does; what is there already is left alone.
#
#     scripts/need.sh rust cc git sshd curl python docker mmdebstrap inits qemu kernel cargo-deny
set -euo pipefail
. "$(dirname "$0")/lib.sh"

apt_refreshed=no

# apt PACKAGE...: installs them, with one `apt-get update` for the whole run.
apt() {
    have apt-get || fail "cannot install: $*" "this machine has no apt; install the equivalent of these packages and try again"
    if [ "$apt_refreshed" = no ]; then
        say "apt-get update"
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update </dev/null
        apt_refreshed=yes
    fi
    say "apt-get install $*"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" </dev/null >&2
}

# need COMMAND PACKAGE...: the packages, when the command is absent.
need() {
    local command=$1
    shift
    have "$command" || apt "$@"
}

need_rust() {
    local wanted
    wanted=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' "$ROOT/rust-toolchain.toml")
    if ! have cargo && ! have rustup; then
        need curl curl ca-certificates
        say "installing Rust $wanted with rustup, under ${CARGO_HOME:-$HOME/.cargo}"
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs \
            | sh -s -- -y --no-modify-path --profile minimal --default-toolchain "$wanted" -c rustfmt -c clippy >&2
        return
    fi
    if have rustup; then
        local installed
        installed=$(rustup toolchain list | sed 's/ .*//')
        if ! printf '%s\n' "$installed" | grep -q "^$wanted-"; then
            say "rustup: adding toolchain $wanted"
            rustup toolchain install "$wanted" --profile minimal --component rustfmt --component clippy >&2
        else
            local components
            components=$(rustup component list --toolchain "$wanted" --installed)
            for component in rustfmt clippy; do
                case "$components" in
                    *"$component"*) ;;
                    *) say "rustup: adding $component"; rustup component add --toolchain "$wanted" "$component" >&2 ;;
                esac
            done
        fi
        return
    fi
    # A cargo that is not rustup's ignores rust-toolchain.toml: take it if it is new enough.
    local minimum version
    minimum=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    version=$(cargo --version | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$minimum" "$version" | sort -V | head -n1)" != "$minimum" ]; then
        fail "cargo $version is older than $minimum" "remove it and run again: rustup then installs Rust $wanted"
    fi
}

# Programs for the tests with real clients, in a directory of their own beside what cargo builds.
clients=$(target_dir)/clients

need_pyclients() {
    if ! "$clients/py/bin/python" -c "import requests, httpx, h2, aiohttp, websockets, jsonschema" 2>/dev/null; then
        [ -x /usr/bin/python3 ] && /usr/bin/python3 -c "import ensurepip" 2>/dev/null || apt python3 python3-venv
        say "pip install requests httpx aiohttp websockets jsonschema, under $clients/py"
        /usr/bin/python3 -m venv "$clients/py"
        "$clients/py/bin/pip" install --quiet --disable-pip-version-check requests 'httpx[http2]' aiohttp 'websockets>=15' jsonschema
    fi
}

need_node22() {
    if ! "$clients/node_modules/.bin/node" --version 2>/dev/null | grep -q '^v22' || [ ! -e "$clients/node_modules/.bin/claude" ]; then
        need npm npm
        say "npm install node@22 @anthropic-ai/claude-code, under $clients"
        mkdir -p "$clients"
        npm install --silent --no-audit --no-fund --prefix "$clients" node@22 @anthropic-ai/claude-code >&2
    fi
}

# MCP clients that others wrote: the official conformance suite, the inspector, Python's own, and Codex.
need_mcpclients() {
    if ! "$clients/mcp/bin/python" -c "import mcp" 2>/dev/null; then
        [ -x /usr/bin/python3 ] && /usr/bin/python3 -c "import ensurepip" 2>/dev/null || apt python3 python3-venv
        say "pip install mcp, under $clients/mcp"
        /usr/bin/python3 -m venv "$clients/mcp"
        "$clients/mcp/bin/pip" install --quiet --disable-pip-version-check mcp
    fi
    local program
    for program in node conformance mcp-inspector codex; do
        if [ ! -e "$clients/mcp/node_modules/.bin/$program" ]; then
            need npm npm
            say "npm install node@22, MCP's conformance suite and inspector, and Codex, under $clients/mcp"
            npm install --silent --no-audit --no-fund --prefix "$clients/mcp" \
                node@22 @modelcontextprotocol/conformance@0.2.0-alpha.12 @modelcontextprotocol/inspector @openai/codex >&2
            break
        fi
    done
}

for thing in "$@"; do
    case "$thing" in
        rust) need_rust ;;
        cc) need cc gcc libc6-dev; need make make ;;
        cxx) need g++ g++ ;;
        curl) need curl curl ca-certificates ;;
        git) need git git ;;
        lfs) need git-lfs git-lfs ;;
        ssh) need ssh openssh-client ;;
        sshd) need sshd openssh-server; need ssh openssh-client ;;
        python) need python3 python3 ;;
        openssl) need openssl openssl ;;
        venv) [ -x /usr/bin/python3 ] && /usr/bin/python3 -c "import ensurepip" 2>/dev/null || apt python3 python3-venv ;;
        ip) need ip iproute2 ;;
        pyclients) need_pyclients ;;
        node22) need_node22 ;;
        mcpclients) need_mcpclients ;;
        nft) need nft nftables ;;
        h2load) need h2load nghttp2-client ;;
        inits) need tini tini; need dumb-init dumb-init; need catatonit catatonit; need s6-svscan s6 ;;
        qemu) need qemu-system-x86_64 qemu-system-x86; need mkfs.ext4 e2fsprogs ;;
        kernel) need depmod kmod; need dpkg-deb dpkg ;;
        mmdebstrap) need mmdebstrap mmdebstrap debian-archive-keyring ;;
        docker)
            # A client without an engine is not enough; an engine that answers may be another machine's.
            if [ -z "$(docker_cli)" ] || { ! have dockerd && ! (docker info) >/dev/null 2>&1; }; then apt docker.io; fi
            need iptables iptables
            ;;
        tmux) need tmux tmux ;;
        keyring)
            need secret-tool libsecret-tools
            need gnome-keyring-daemon gnome-keyring
            need dbus-run-session dbus-daemon
            ;;
        strace) need strace strace ;;
        llvm)
            # The version that the compiler has: others do not read what it counts.
            version=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
            need "llvm-profdata-$version" "llvm-$version"
            ;;
        squid)
            # Wanted as a program: the service that comes with the package stays off.
            if ! [ -x /usr/lib/squid/security_file_certgen ]; then
                if have systemctl; then as_root systemctl mask --runtime --quiet squid.service || true; fi
                apt squid-openssl
            fi
            ;;
        compose)
            if ! (docker compose version) >/dev/null 2>&1 && ! have docker-compose; then apt docker-compose; fi
            ;;
        cargo-deny)
            if ! have cargo-deny; then
                say "cargo install --locked cargo-deny (once, about three minutes)"
                (cd "$ROOT" && env -u RUSTFLAGS cargo install --locked --quiet cargo-deny)
            fi
            ;;
        *) fail "unknown thing: $thing" "rust cc cxx curl git ssh sshd python openssl venv ip nft h2load pyclients node22 mcpclients inits qemu kernel mmdebstrap docker compose squid tmux keyring strace llvm cargo-deny" ;;
    esac
done
