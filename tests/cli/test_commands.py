"""The commands as they are typed: the demo on every Python, wrong usage, wrong settings."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from harness import TREE, built, program
from needs import git, python


def without_codex(home: Path) -> dict[str, str]:
    """An environment in which `demo` finds no working Codex."""
    git()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PV_", "CODEX_"))}
    places = [p for p in os.get_exec_path() if not Path(p, "codex").exists()]
    return {**kept, "HOME": str(home), "PATH": os.pathsep.join(places)}


@pytest.mark.long
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


def test_a_version_that_cannot_be_written_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*program(), "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "pv: the system: No space left on device\n")
