#!/usr/bin/env bash
# The story, seen from the host: starts the bottle, plays the person who decides, and checks what arrived outside.
set -euo pipefail
demo=$PWD
world=$DEMO_WORLD
bin=$BOTTLECAP_BIN_DIR
unset GIT_CONFIG_GLOBAL

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || title() { printf '\n%s\n' "$*"; }
note() { printf '   %s\n' "$*"; }
host() { printf 'host$   %s\n' "$*"; }
fail() {
    printf '\nFAILED: %s\n' "$*" >&2
    for log in "$world/api.log" "$world/sshd.txt"; do tail -n 5 "$log" >&2 || true; done
    exit 1
}

mkdir -p "$world/home" "$world/state" "$world/bottle" "$world/work"
fill() {
    sed -e "s|@WORLD@|$world|; s|@VENV@|$DEMO_VENV|; s|@DEMO@|$demo|; s|@USER@|$(id -un)|" \
        -e "s|@HOSTKEY@|$(cut -d' ' -f1,2 "$world/host_key.pub")|" "$demo/$1" >"$world/bottle/$1"
}
for file in bottle.yaml routes.yaml repos.yaml; do fill "$file"; done
export DEMO_API_TOKEN=demo-secret-held-outside

title 'A bottle is described by three files'
host 'cat bottle/routes.yaml'
cat "$world/bottle/routes.yaml"
host 'bottlecap check bottle/bottle.yaml'
"$bin/bottlecap" check "$world/bottle/bottle.yaml" || fail 'the demo bottle does not check'

title 'The agent starts in it'
host 'bottlecap run --bottle bottle/bottle.yaml --mount work -- bash agent.sh'
"$bin/bottlecap" run --bottle "$world/bottle/bottle.yaml" --mount "$world/work" -- \
    bash "$demo/agent.sh" "$DEMO_VENV/bin/python" "$demo/ask.py" "$(id -un)" </dev/null &
bottle=$!

# The person outside: sees the request when it arrives, looks at it, decides.
id=
for _ in $(seq 600); do
    kill -0 "$bottle" 2>/dev/null || break
    id=$("$bin/bottlecap" requests list --json 2>/dev/null | grep -o '"id":"[^"]*"' | head -n1 | cut -d'"' -f4) || true
    [ -z "$id" ] || break
    read -r -t 0.1 <> <(:) || true
done
if [ -z "$id" ]; then
    wait "$bottle" || fail 'the agent ended before it asked for anything'
    fail 'the agent never asked'
fi

title 'Outside the bottle, a person looks at the request and approves it'
host 'bottlecap requests list'
"$bin/bottlecap" requests list
token=$("$bin/bottlecap" requests show "$id" --json | grep -o '"token":"[^"]*"' | head -n1 | cut -d'"' -f4)
host "bottlecap requests approve $id --token $token     # the token stands for exactly this change"
"$bin/bottlecap" requests approve "$id" --token "$token" || fail 'the approval could not be applied'

code=0
wait "$bottle" || code=$?
[ "$code" -eq 0 ] || fail "the agent's script ended with $code"

title 'What arrived outside'
host 'git log --all (at the git host)'
git -C "$world/git/acme/web.git" log --all --oneline --decorate
git -C "$world/git/acme/web.git" rev-parse -q --verify refs/heads/agent/greeting >/dev/null || fail 'the clean push is not upstream'
if git -C "$world/git/acme/web.git" grep -q 'PRIVATE KEY' $(git -C "$world/git/acme/web.git" rev-list --all); then
    fail 'a private key reached the git host'
fi
note 'The clean commit is there; the commit with the private key never was.'
grep -q '"authenticated":true.*"path":"/v1/hello"' "$world/api.log" || fail 'the API did not see the injected credential'
note 'The API saw the injected credential on /v1/hello.'
if grep -q 'DELETE' "$world/api.log"; then fail 'a refused request reached the API'; fi
note 'The refused requests never left: the API has no trace of them.'

title 'Nothing is left'
host "pgrep -f bottlecap/bottles; find state -type f"
if pgrep -af "$world/state/bottlecap/bottles"; then fail 'something of the bottle still runs'; fi
if find "$world/state" -type f | grep .; then fail 'the bottle left files behind'; fi
note 'The bottle had no name, so its daemons, its certificate authority and its state ended with the command.'
printf '\nEvery step did what it says.\n'
