#!/usr/bin/env bash
# The world outside the bottle: an HTTPS API, a documentation site and a git host, on loopback of a private network namespace.
# Runs as root in that namespace, then plays story.sh as the user who called (DEMO_USER=name), or as a user that exists only here
# (DEMO_USER=name:uid), which shows the bottle without root.
set -euo pipefail
cd "$(dirname "$0")"

world=$(mktemp -d /tmp/bottlecap-demo.XXXXXX)
children=()
finish() {
    local code=$?
    for pid in "${children[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${children[@]}"; do wait "$pid" 2>/dev/null || true; done
    rm -rf "$world"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Names and addresses of this story alone.
ip link set lo up
ip address add 192.0.2.10/32 dev lo
ip address add 192.0.2.11/32 dev lo
echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start
cat /etc/hosts - >"$world/hosts" <<'HOSTS'
192.0.2.10 api.acme.test docs.acme.test
192.0.2.11 git.acme.test
HOSTS
mount --bind "$world/hosts" /etc/hosts
mount -t tmpfs -o mode=0755 run /run
mkdir -p /run/sshd

demo=$PWD
case $DEMO_USER in
*:*)
    uid=${DEMO_USER#*:} DEMO_USER=${DEMO_USER%:*}
    cat /etc/passwd - >"$world/passwd" <<<"$DEMO_USER:x:$uid:$uid::$world/home:/bin/sh"
    cat /etc/group - >"$world/group" <<<"$DEMO_USER:x:$uid:"
    mount --bind "$world/passwd" /etc/passwd
    mount --bind "$world/group" /etc/group
    # The checkout may lie where that user cannot look.
    mkdir "$world/tools"
    cp -a "$demo" "$world/tools/demo"
    cp -a "$DEMO_VENV" "$world/tools/venv"
    mkdir "$world/tools/bin"
    for name in bottlecap supervisor egress git-gate supervise; do cp "$BOTTLECAP_BIN_DIR/$name" "$world/tools/bin/"; done
    api=$BOTTLECAP_BIN_DIR/echo-api
    demo=$world/tools/demo DEMO_VENV=$world/tools/venv BOTTLECAP_BIN_DIR=$world/tools/bin
    ;;
*) api=$BOTTLECAP_BIN_DIR/echo-api ;;
esac
export DEMO_VENV BOTTLECAP_BIN_DIR

# The API and the documentation site are one program that says what it received.
exec 4< <(exec "$api" --listen 192.0.2.10:443 --name api.acme.test --name docs.acme.test \
    --token demo-secret-held-outside --ca-out "$world/upstream-ca.pem")
children+=($!)
read -r _ <&4 # it says where it listens
cat <&4 >"$world/api.log" &
children+=($!)

# The git host: OpenSSH, one bare repository with one commit.
ssh-keygen -q -t ed25519 -N '' -C git.acme.test -f "$world/host_key"
ssh-keygen -q -t ed25519 -N '' -C agent-demo -f "$world/identity"
git init -q --bare -b main "$world/git/acme/web.git"
git init -q -b main "$world/seed"
echo '# web' >"$world/seed/README.md"
git -C "$world/seed" add README.md
git -C "$world/seed" -c user.name=Dana -c user.email=dana@acme.test commit -q -m 'Say what this is'
git -C "$world/seed" push -q "$world/git/acme/web.git" main
cat >"$world/git-command" <<COMMAND
#!/bin/sh
# What a login may run: git, below one directory.
eval "set -- \$SSH_ORIGINAL_COMMAND"
case \$1 in
git-upload-pack | git-receive-pack) exec git "\${1#git-}" "$world/git\$2" ;;
esac
exit 1
COMMAND
chmod 755 "$world/git-command"
echo "restrict,command=\"$world/git-command\" $(cat "$world/identity.pub")" >"$world/authorized_keys"
cat >"$world/sshd_config" <<SSHD
ListenAddress 192.0.2.11:22
HostKey $world/host_key
AuthorizedKeysFile $world/authorized_keys
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
SSHD
chown -R "$DEMO_USER": "$world"
# sshd says on its standard error when it listens: that line is the event the story waits for.
mkfifo "$world/sshd.log"
exec 5<>"$world/sshd.log"
/usr/sbin/sshd -D -e -f "$world/sshd_config" 2>&5 &
children+=($!)
grep -q -m1 'Server listening' <&5
cat <&5 >"$world/sshd.txt" &
children+=($!)

export DEMO_WORLD=$world
runuser -u "$DEMO_USER" -- env HOME="$world/home" XDG_STATE_HOME="$world/state" XDG_RUNTIME_DIR= bash -c 'cd "$1" && exec bash story.sh' story "$demo"
