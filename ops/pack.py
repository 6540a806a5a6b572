"""The packer: writes pv.py, pv_lib and what ops ships into one archive, as build.sh asks.

Order, times, modes and compression are fixed, so the same sources give the same bytes. Beside each
source lies its bytecode for this Python, which saves half of the start; any other Python ignores it
and compiles the source. `pack.py COMMIT TARGET`, from the root of the tree.
"""

from __future__ import annotations

import importlib.util
import marshal
import re
import sys
import zipfile
from pathlib import Path

CODE = Path("pv_lib")
SHIPPED = ("env", "systemd")  # of ops
_UNCHECKED = importlib.util.MAGIC_NUMBER + b"\1\0\0\0" + bytes(8)  # PEP 552: trust the bytecode


def sources() -> list[Path]:
    """All modules, at every depth; SystemExit names the folder that is not a package."""
    found = sorted(CODE.rglob("*.py"))
    for folder in sorted({above for path in found for above in path.parents[:-1]}):
        if not (folder / "__init__.py").is_file():
            sys.exit(f"pack: {folder} has modules but no __init__.py: add one that names them")
    return [Path("pv.py"), *found]


def write(target: Path, commit: str) -> None:
    """Write the archive to `target`, stamped with `commit`."""
    with target.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        # Stored, not deflated: zlib's output differs between its versions.
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for source in sources():
                _add_module(archive, source, commit)
            for path in sorted(p for name in SHIPPED for p in Path("ops", name).iterdir()):
                _add(archive, path.as_posix(), path.read_bytes())


def check(target: Path) -> None:
    """Exit with a sentence if a room of the tree is not in the archive."""
    with zipfile.ZipFile(target) as archive:
        packed = {name.split("/")[1] for name in archive.namelist() if name.count("/") > 1}
    for room in sorted(path.name for path in CODE.iterdir() if any(path.glob("*.py"))):
        if room not in packed:
            sys.exit(f"pack: the archive lacks {CODE}/{room}: see sources() in ops/pack.py")


def _add_module(archive: zipfile.ZipFile, source: Path, commit: str) -> None:
    text = source.read_text("utf-8")
    if source == CODE / "stamp.py":
        text, found = re.subn(r'COMMIT = ".*"', f'COMMIT = "{commit}"', text)
        if found != 1:
            sys.exit(f"pack: {source} must have one line COMMIT = …")
    name = "__main__.py" if source.name == "pv.py" else source.as_posix()
    code = compile(text, name, "exec", dont_inherit=True)
    _add(archive, name, text.encode())
    _add(archive, name + "c", _UNCHECKED + marshal.dumps(code))


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    entry.external_attr = 0o100644 << 16
    archive.writestr(entry, data)


def main(commit: str, target: Path) -> None:
    """Put a whole archive in the place of `target`, or leave that as it is."""
    temp = target.with_name(f".{target.name}.tmp")
    write(temp, commit)
    check(temp)
    temp.chmod(0o755)
    temp.replace(target)
    print(f"{target}: {target.stat().st_size} bytes, commit {commit}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
