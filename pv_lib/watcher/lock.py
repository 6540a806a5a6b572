"""The lock file of a runs root: it has one watcher at most, whose heartbeat is the file's mtime.

Knows no jobs and decides only who may watch.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable

from pv_lib.errors import WatcherHeld
from pv_lib.jobs import job
from pv_lib.jobs.store import Runs

_BEAT_SECONDS = 0.1  # the least time between two heartbeats


class WatcherLock:
    """The lock of one runs root, held from `acquire` on. Each beat calls `alive`."""

    def __init__(self, runs: Runs, clock: Callable[[], float], alive: Callable[[], None]) -> None:
        self._alive = alive
        self._runs = runs
        self._clock = clock
        self._fd = -1
        self._next_beat = 0.0

    def acquire(self) -> None:
        """Become the one watcher. Raises WatcherHeld naming the holder."""
        fd = os.open(self._runs.watcher_lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 200).decode("utf-8", "replace").strip() or "an unknown process"
            os.close(fd)
            why = f"another watcher owns {self._runs.root} ({holder}): stop it first"
            raise WatcherHeld(why) from None
        os.ftruncate(fd, 0)
        os.write(fd, f"pid {os.getpid()} since {job.stamp(self._clock())}\n".encode())
        self._fd = fd

    def keep(self) -> None:
        """At each poll: beat, and acquire the lock anew where somebody deleted its file."""
        self._next_beat = 0.0
        self.beat()
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._fd), os.stat(self._runs.watcher_lock)):
                return
        deleted = self._fd  # another watcher could lock a new file
        self.acquire()
        os.close(deleted)

    def beat(self) -> None:
        """Show progress; called between the steps of anything that may take long."""
        self._alive()  # first: a disk that takes no writes is no hang
        if time.monotonic() >= self._next_beat:
            os.utime(self._fd)
            self._next_beat = time.monotonic() + _BEAT_SECONDS
