"""Named locks between the threads of one server: what git must not do twice at once.

Two jobs of one repository must not add work trees or fetch one branch at the same time. Other
processes are git's own business: its lock files keep them apart.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from pv_lib.git.command import Git
from pv_lib.git.repos import git_folders, is_git


class Locks:
    """One lock per key, made on first use."""

    def __init__(self) -> None:
        self._guard = threading.Lock()  # guards _locks
        self._locks: dict[str, threading.Lock] = {}

    @contextlib.contextmanager
    def hold(self, key: str, git: Git) -> Iterator[None]:
        """Hold the lock of `key`. While it waits it polls `git.tick`, which may raise."""
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        while not lock.acquire(timeout=0.1):
            git.tick()
        try:
            yield
        finally:
            lock.release()


def key_of(repository: Path) -> str:
    """The key of a repository: the same for every path that leads to it."""
    return os.path.realpath(git_folders(repository)[1] if is_git(repository) else repository)
