"""The archive: same bytes for the same commit, a stamp, and the demo on every Python."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from harness import TREE, built, program
from needs import python


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


def without_codex(home: Path) -> dict[str, str]:
    """An environment in which `demo` finds no working Codex."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PV_", "CODEX_"))}
    places = [p for p in os.get_exec_path() if not Path(p, "codex").exists()]
    return {**kept, "HOME": str(home), "PATH": os.pathsep.join(places)}


@pytest.mark.parametrize("minor", ["3.10", "3.11", "3.12", "3.13"])
def test_the_demo_runs_on_every_python(minor: str, tmp_path: Path) -> None:
    argv = [python(minor), "-I", "-S", str(built()), "demo"]
    (tmp_path / "tmp").mkdir()
    environ = {**without_codex(tmp_path), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("demo: STAND-IN AGENT, no AI, because there is no codex")
    assert '  "state": "succeeded",' in lines
    assert "+++ b/DEMO.md" in lines
    assert done.stderr == "" and list((tmp_path / "tmp").iterdir()) == []


def test_the_demo_runs_from_the_tree_and_keeps_what_it_is_told_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    argv = [sys.executable, str(TREE / "pv.py"), "demo", "--keep", str(kept)]
    done = subprocess.run(argv, env=without_codex(tmp_path), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"+++ b/DEMO.md" in done.stdout
    assert len(list((kept / "runs").glob("*/job.json"))) == 1
    again = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "is not empty" in again.stderr


def test_wrong_usage_is_one_line_and_exit_2() -> None:
    for argv in ([], ["fly"], ["serve", "--fast"]):
        done = subprocess.run([*program(), *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("pv: ") and done.stderr.count("\n") == 1


def test_three_wrong_settings_are_named_together() -> None:
    with tempfile.TemporaryDirectory() as root:
        wrong = {"PV_BIND_PORT": "99999", "PV_WATCHER": "maybe", "PV_POLL_INTERVALL_SECONDS": "1"}
        environ = {"PATH": os.environ["PATH"], "PV_ROOT": root, **wrong}
        done = subprocess.run(
            [*program(), "serve"], env=environ, capture_output=True, text=True, check=False
        )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    for name in wrong:
        assert sum(name in line for line in lines) == 1
    assert "did you mean PV_POLL_INTERVAL_SECONDS?" in done.stderr


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environ = {"PATH": os.environ["PATH"], "PV_ROOT": str(tmp_path), "PV_BIND_PORT": port}
        done = subprocess.run(
            [*program(), "serve"], env=environ, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"PV_BIND_PORT={port} cannot be bound (Address already in use)" in done.stderr
