#!/bin/sh
# An agent for tests/chaos. The prompt is one line: token, number of lines, pause, exit status.
# The token goes to one file outside, so that runs can be counted.
read -r token lines pause status
echo "$token" >>"$CODEX_CHAOS_RUNS"
number=0
while [ "$number" -lt "$lines" ]; do
    number=$((number + 1))
    echo "$token: line $number of $lines, ünïcödé and some more to fill it"
done
sleep "$pause"
echo "$token: after the pause" >&2
sh -c 'echo "$0: from a child"; sleep 0.02' "$token" &
wait
sleep 0.3 & # left behind: the sweep ends it
echo "$token: exit $status"
exit "$status"
