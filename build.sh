#!/bin/sh
# Builds dist/pv.pyz: the same bytes for the same commit and Python, wherever, whenever and by whom.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
commit=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
# Only what goes into the archive, and what makes it, can make a build dirty.
if [ -n "$(git status --porcelain -- pv.py pv_lib ops/env ops/systemd build.sh 2>/dev/null)" ]; then
    commit=$commit-dirty
fi
mkdir -p dist
# The hash seed, because bytecode lists the words of a set in the order of their hashes.
exec env -i PATH="$PATH" PYTHONHASHSEED=0 "$python" -s -S - "$commit" dist/pv.pyz <<'PYTHON'
"""Pack pv.py and pv_lib. Order, times, modes and compression are fixed, so the bytes are too.

Beside each source lies its bytecode for this Python, which saves half of the start; any other
Python passes over it and compiles the source.
"""
import importlib.util
import marshal
import os
import pathlib
import re
import sys
import zipfile

commit, target = sys.argv[1], pathlib.Path(sys.argv[2])
sources = [pathlib.Path("pv.py"), *sorted(pathlib.Path("pv_lib").rglob("*.py"))]
brought = sorted(path for name in ("env", "systemd") for path in pathlib.Path("ops", name).iterdir())


def add(archive, name, data):
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    entry.external_attr = 0o100644 << 16
    archive.writestr(entry, data)


temp = target.with_name(".pv.pyz.tmp")
with temp.open("wb") as file:
    file.write(b"#!/usr/bin/env python3\n")
    # Stored, not deflated: zlib's output differs between its versions.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for source in sources:
            text = source.read_text("utf-8")
            if source.name == "stamp.py":
                text, found = re.subn(r'COMMIT = ".*"', f'COMMIT = "{commit}"', text)
                assert found == 1, "pv_lib/stamp.py has no COMMIT line"
            name = "__main__.py" if source.name == "pv.py" else source.as_posix()
            code = compile(text, name, "exec", dont_inherit=True)
            unchecked = importlib.util.MAGIC_NUMBER + b"\1\0\0\0" + bytes(8)
            add(archive, name, text.encode())
            add(archive, name + "c", unchecked + marshal.dumps(code))
        for path in brought:
            add(archive, path.as_posix(), path.read_bytes())
os.chmod(temp, 0o755)
temp.replace(target)
print(f"{target}: {target.stat().st_size} bytes, commit {commit}")
PYTHON
