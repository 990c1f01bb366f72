#!/usr/bin/env bash
# Runs two replicas behind nginx with deploy/nginx.conf on this machine and checks what is promised of it: streams come
# through piece by piece, a conversation stays with its replica, and a replica that goes away costs nobody a request.
# Needs nginx, curl, and a built `zamba`. Usage: deploy/test-nginx.sh [path of zamba]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
zamba=$(realpath "${1:-$here/../target/debug/zamba}")
work=$(mktemp -d)
pids=()

finish() {
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT

fail() {
    echo "FAILED: $*"
    exit 1
}

replica() {
    "$zamba" serve -m "$work/model" --model-name tiny --port "$1" --threads 1 --cache-size 16MiB --ctx 512 --grace 20 \
        >"$work/$1.out" 2>"$work/$1.err" &
    pids+=($!)
}

await() {
    for _ in $(seq 200); do
        curl -sf -o "$work/null" "http://127.0.0.1:$1/health" && return
        sleep 0.1
    done
    fail "nothing answers at port $1"
}

front=http://127.0.0.1:18080
ask() {
    curl -s -o "$work/answer" -w '%{http_code}' "$front/v1/completions" -H 'Content-Type: application/json' \
        -H "X-Session: $1" -d "{\"model\":\"tiny\",\"prompt\":[1,2,3],\"max_tokens\":$2,\"temperature\":0}"
}

# Which replicas have answered requests since the given line of the log.
replicas() {
    tail -n "+$(($1 + 1))" "$work/access.log" | sed -n 's/.*upstream=\([^ ]*\).*/\1/p' | sort | uniq -c
}

lines() {
    wc -l <"$work/access.log"
}

"$zamba" init --config tiny --out "$work/model" --seed 1 >"$work/init.out" 2>&1
replica 18081
first=${pids[0]}
replica 18082
await 18081
await 18082
touch "$work/access.log"
nginx -p "$work/" -c "$here/nginx.conf" -g 'daemon off;' 2>"$work/nginx.err" &
pids+=($!)
await 18080

echo "1. Forty requests of one conversation"
at=$(lines)
for _ in $(seq 40); do [ "$(ask one 4)" = 200 ] || fail "a request: $(cat "$work/answer")"; done
sleep 0.2
replicas "$at"
[ "$(replicas "$at" | wc -l)" = 1 ] || fail "the conversation moved"

echo "2. Sixty conversations"
at=$(lines)
for i in $(seq 60); do [ "$(ask "many-$i" 2)" = 200 ] || fail "a request: $(cat "$work/answer")"; done
sleep 0.2
replicas "$at"
[ "$(replicas "$at" | wc -l)" = 2 ] || fail "one replica does all the work"

echo "3. A stream comes piece by piece"
curl -sN "$front/v1/completions" -H 'Content-Type: application/json' \
    -d '{"model":"tiny","prompt":[1,2,3],"max_tokens":400,"stream":true,"temperature":0,"logit_bias":{"2":-100}}' |
    while read -r line; do
        case $line in data:*) date +%s%N ;; esac
    done >"$work/times"
pieces=$(sort -u "$work/times" | wc -l)
spread=$((($(tail -1 "$work/times") - $(head -1 "$work/times")) / 1000000))
echo "   $(wc -l <"$work/times") events over $spread ms"
[ "$pieces" -gt 100 ] && [ "$spread" -gt 20 ] || fail "the stream came in one piece"

echo "4. One replica is told to end while both are busy"
at=$(lines)
for i in $(seq 200); do
    ask "moving-$i" 8
    echo
done >"$work/codes" &
load=$!
sleep 0.5
kill -TERM "$first"
wait "$first" && ended=0 || ended=$?
wait "$load"
sleep 0.2
replicas "$at"
echo "   answers: $(sort "$work/codes" | uniq -c | tr -s ' ' | tr '\n' ';') replica ended with $ended"
[ "$(sort -u "$work/codes")" = 200 ] || fail "somebody got no answer"
[ "$ended" = 0 ] || fail "the replica ended with $ended: $(tail -3 "$work/18081.err")"
[ "$(ask one 4)" = 200 ] || fail "the conversation of the replica that has gone: $(cat "$work/answer")"

echo "5. Numbers of requests go through"
id=$(curl -s -D - -o "$work/null" "$front/health" | tr -d '\r' | sed -n 's/^x-request-id: //Ip')
grep -q "id=$id" "$work/18082.err" || fail "no $id in the log of the replica"
echo "All is as promised."
