#!/usr/bin/env bash
# What the agent does, inside the bottle. Ends non-zero at the first step that is not as it should be.
set -euo pipefail
python=$1 ask=$2 user=$3

step() { printf '\n%s\n' "$*"; }
run() { printf 'bottle$ %s\n' "$*"; }
oneline() { tr -s ' \n' ' ' <<<"$1" && echo; }
fail() { printf 'FAILED (in the bottle): %s\n' "$*" >&2; exit 1; }

step '1. The bottle has a loopback interface and nothing else, and no credential'
run 'id -un; cut -d: -f1 /proc/net/dev'
id -un
interfaces=$(tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ')
echo "$interfaces"
[ "$interfaces" = lo ] || fail 'there is more than a loopback interface'
if env | grep -q demo-secret; then fail 'the credential is in the environment'; fi
run 'curl --noproxy "*" https://192.0.2.10/v1/hello'
if curl -sS --noproxy '*' --max-time 5 https://192.0.2.10/v1/hello; then fail 'the wall has a hole'; fi

step '2. What routes.yaml allows works, and the credential is put in outside'
run 'curl https://api.acme.test/v1/hello'
answer=$(curl -sS --fail-with-body https://api.acme.test/v1/hello)
oneline "$answer"
grep -q '"authenticated": true' <<<"$answer" || fail 'the API did not accept the injected credential'
run 'curl -H "Authorization: Bearer my-own" https://api.acme.test/v1/hello     # its own is taken out'
answer=$(curl -sS --fail-with-body -H 'Authorization: Bearer my-own' https://api.acme.test/v1/hello)
grep -q '"authenticated": true' <<<"$answer" || fail "the agent's own credential got through"
oneline "$answer"

step '3. What it does not allow is refused, with a reason the agent can read'
for request in '-X DELETE https://api.acme.test/v1/hello' 'https://api.acme.test/admin' 'https://docs.acme.test/guide'; do
    run "curl $request"
    # shellcheck disable=SC2086  # the words are meant to split
    code=$(curl -sS -o reply.json -w '%{http_code}' $request)
    cat reply.json
    echo
    [ "$code" = 403 ] || fail "expected 403, got $code"
done
rm -f reply.json

step '4. git clone, with no git credential in the bottle'
run "git clone ssh://$user@git.acme.test/acme/web.git"
git clone -q "ssh://$user@git.acme.test/acme/web.git" web
cd web
git config user.name agent
git config user.email agent@bottle.test
git log --oneline

step '5. A push with a private key in it is refused before upstream hears of it'
git switch -q -c agent/greeting
printf -- '-----BEGIN OPENSSH %s KEY-----\n%s\n-----END OPENSSH %s KEY-----\n' PRIVATE \
    "$(head -c 300 /dev/urandom | base64)" PRIVATE >deploy.key
git add deploy.key
git commit -q -m 'Add the deploy key'
git rm -q deploy.key
echo 'hello' >greeting.txt
git add greeting.txt
git commit -q -m 'Say hello (and take the key out again)'
run 'git push origin agent/greeting     # the key is only in the middle commit'
if git push origin agent/greeting; then fail 'the key went upstream'; fi

step '6. Without it, the push lands'
git reset -q --soft origin/main
git commit -q -m 'Say hello'
run 'git push origin agent/greeting'
git push origin agent/greeting

step '7. The agent asks for what it lacks, over MCP, and waits'
run 'ask.py docs.acme.test GET /guide'
"$python" -u "$ask" docs.acme.test GET /guide 'the API guide is there'

step '8. The same request as before now passes'
run 'curl https://docs.acme.test/guide'
oneline "$(curl -sS --fail-with-body https://docs.acme.test/guide)"
run 'curl -X POST https://docs.acme.test/guide     # only what was approved'
code=$(curl -sS -o /dev/null -w '%{http_code}' -X POST https://docs.acme.test/guide)
[ "$code" = 403 ] || fail "expected 403, got $code"
echo "$code"
