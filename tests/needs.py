"""What some tests need from the machine: skipped with the command that helps, an error in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def need(found: str | None, what: str, remedy: str) -> str:
    """`found`, or a skip that names the remedy; in CI a missing tool fails the run."""
    if found:
        return found
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing in CI ({remedy})")
    pytest.skip(f"needs {what}: {remedy}")


def real_codex() -> str:
    """Where the real Codex is."""
    return need(shutil.which("codex"), "the real Codex", "npm install -g @openai/codex")


def python(version: str) -> str:
    """The interpreter of one minor version, from PATH or from pyenv."""
    found = None
    roots = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = sorted(str(p) for p in roots.glob(f"versions/{version}.*/bin/python"))
    for candidate in [*candidates, shutil.which(f"python{version}")]:
        if candidate and _runs(candidate):
            found = candidate
    return need(found, f"Python {version}", f"pyenv install {version}")


def _runs(interpreter: str) -> bool:
    done = subprocess.run([interpreter, "-c", ""], capture_output=True, check=False)
    return done.returncode == 0
