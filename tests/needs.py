"""What some tests need from the machine: skipped with the command that helps, an error in CI."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import unittest
from collections.abc import Iterator
from pathlib import Path


def need(found: str | None, what: str, remedy: str) -> str:
    """`found`, or a skip that names the remedy; in CI a missing tool fails the run."""
    if found:
        return found
    if os.environ.get("CI"):
        raise AssertionError(f"{what} is missing in CI ({remedy})")
    raise unittest.SkipTest(f"needs {what}: {remedy}")


def git() -> str:
    """Where git is."""
    return need(shutil.which("git"), "git", "apt-get install git")


@contextlib.contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Let this process open so many, as far as its hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = hard == resource.RLIM_INFINITY or hard >= count
    need("yes" if enough else None, f"{count} open files", "raise the limit: ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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
