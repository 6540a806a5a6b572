"""The archive: the same bytes for the same commit, and a stamp."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from harness import TREE


def tree_copy(target: Path) -> Path:
    """A commit of this tree's files in a fresh repository."""
    target.mkdir(parents=True)
    for name in ("pv.py", "build.sh"):
        shutil.copy(TREE / name, target)
    shutil.copytree(TREE / "pv_lib", target / "pv_lib", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copytree(TREE / "ops", target / "ops")
    git = ["git", "-C", str(target), "-c", "user.name=T", "-c", "user.email=t@localhost"]
    moment = {"GIT_AUTHOR_DATE": "2020-01-01T00:00Z", "GIT_COMMITTER_DATE": "2020-01-01T00:00Z"}
    (target / ".gitignore").write_text("/dist/\n__pycache__/\n")
    for argv in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *argv], env={**os.environ, **moment}, check=True)
    return target


def build(tree: Path, **environ: str) -> str:
    subprocess.run(
        ["sh", str(tree / "build.sh")], env={**os.environ, **environ}, check=True, cwd="/"
    )
    return hashlib.sha256((tree / "dist" / "pv.pyz").read_bytes()).hexdigest()


def test_the_same_commit_gives_the_same_bytes(tmp_path: Path) -> None:
    first = build(tree_copy(tmp_path / "one"), TZ="UTC")
    other = tree_copy(tmp_path / "some" / "where else")
    for path in other.rglob("*.py"):
        path.chmod(0o600)
        os.utime(path, (1, 1))
    mask = os.umask(0o077)
    try:
        assert build(other, TZ="Pacific/Kiritimati") == first
    finally:
        os.umask(mask)
    assert build(other) == first


def test_the_stamp_tells_commit_and_dirt(tmp_path: Path) -> None:
    tree = tree_copy(tmp_path / "tree")
    build(tree)
    clean = version(tree)
    head = ["git", "-C", str(tree), "rev-parse", "--short=12", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    assert clean == f"Prompt Valet 0.1.0+{commit}\n"
    with (tree / "pv.py").open("a") as file:
        file.write("\n")
    build(tree)
    assert version(tree) == f"Prompt Valet 0.1.0+{commit}-dirty\n"


def version(tree: Path) -> str:
    argv = [sys.executable, "-I", "-S", str(tree / "dist" / "pv.pyz"), "--version"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
