#!/bin/sh
# Builds dist/pv.pyz: the same bytes for the same commit and Python, wherever, whenever and by whom.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
commit=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
# Only what goes into the archive, and what makes it, can make a build dirty.
made_of="pv.py pv_lib ops/env ops/systemd ops/pack.py build.sh"
# shellcheck disable=SC2086  # a list of paths
if [ -n "$(git status --porcelain -- $made_of 2>/dev/null)" ]; then
    commit=$commit-dirty
fi
mkdir -p dist
# The hash seed, because bytecode lists the words of a set in the order of their hashes.
exec env -i PATH="$PATH" PYTHONHASHSEED=0 "$python" -s -S ops/pack.py "$commit" dist/pv.pyz
