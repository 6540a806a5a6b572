"""The archive: the same bytes for the same commit, and a stamp."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import needs
import pytest
from harness import TREE
from needs import need


def tree_copy(target: Path) -> Path:
    """A commit of this tree's files in a fresh repository."""
    needs.git()
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


def refusal(tree: Path) -> str:
    """What build.sh says when it refuses; it leaves no archive then."""
    done = subprocess.run(
        ["sh", str(tree / "build.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and not (tree / "dist" / "pv.pyz").exists()
    return done.stderr


@pytest.mark.parametrize("modules", ["pv_lib/new", "pv_lib/new/deep"])
def test_a_folder_of_modules_that_is_no_package_is_named(tmp_path: Path, modules: str) -> None:
    tree = tree_copy(tmp_path / "tree")
    (tree / modules).mkdir(parents=True)
    (tree / modules / "__init__.py").touch()
    (tree / modules / "module.py").touch()
    (tree / "pv_lib/new/__init__.py").unlink(missing_ok=True)
    assert refusal(tree).startswith("pack: pv_lib/new has modules but no __init__.py")


def test_a_room_inside_a_room_is_packed(tmp_path: Path) -> None:
    tree = tree_copy(tmp_path / "tree")
    (tree / "pv_lib/jobs/deep").mkdir()
    (tree / "pv_lib/jobs/deep/__init__.py").touch()
    build(tree)
    with zipfile.ZipFile(tree / "dist/pv.pyz") as archive:
        assert "pv_lib/jobs/deep/__init__.py" in archive.namelist()


def test_a_room_that_the_packer_passes_over_is_named(tmp_path: Path) -> None:
    tree = tree_copy(tmp_path / "tree")
    text = (tree / "ops/pack.py").read_text()
    changed = text.replace("CODE.rglob(", "CODE.glob(")
    assert changed != text
    (tree / "ops/pack.py").write_text(changed)
    assert refusal(tree).startswith("pack: the archive lacks pv_lib/agent")


def test_the_packer_makes_a_build_dirty(tmp_path: Path) -> None:
    tree = tree_copy(tmp_path / "tree")
    with (tree / "ops/pack.py").open("a") as file:
        file.write("\n")
    build(tree)
    assert version(tree).endswith("-dirty\n")


def test_an_installed_package_would_hold_every_room() -> None:
    found = re.search(r'include = \["pv_lib\*"\]', (TREE / "pyproject.toml").read_text())
    assert found, "pyproject.toml finds the packages by their names"
    rooms = {path.parent for path in (TREE / "pv_lib").rglob("*.py")}
    below = [path.relative_to(TREE).as_posix().replace("/", ".") for path in rooms]
    need("yes" if find_spec("setuptools") else None, "setuptools", "pip install setuptools")
    code = "import setuptools; print(*setuptools.find_packages(include=['pv_lib*']))"
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=TREE, capture_output=True, text=True, check=True)
    packages = done.stdout.split()
    assert sorted(packages) == sorted(below)
