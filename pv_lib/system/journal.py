"""The server's log: one line per event, without control characters that a terminal would obey.

Owns the format of a line, and the list of present problems (`Notes`), which the status shows too.
What is logged is decided where it happens.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from pv_lib.system import files


def listens(environ: Mapping[str, str]) -> bool:
    """Whether stderr is connected to journald, which reads `<3>` prefixes as priorities.

    JOURNAL_STREAM identifies the stream that systemd set up for us or for a parent of ours.
    """
    with contextlib.suppress(OSError):
        info = os.fstat(2)
        return environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"
    return False


def plain(text: str) -> str:
    """The text as one line, with control characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Journal:
    """Writes lines to a stream, with journald's priority prefixes if `priorities`."""

    def __init__(self, stream: TextIO | None = None, *, priorities: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._priorities = priorities
        self._lock = threading.Lock()  # guards _stream: one line at a time

    def info(self, text: str) -> None:
        """Log a normal event."""
        self._write(6, text)

    def warn(self, text: str) -> None:
        """Log something that needs a person, but not now."""
        self._write(4, text)

    def error(self, text: str) -> None:
        """Log a failure."""
        self._write(3, text)

    def _write(self, priority: int, text: str) -> None:
        prefix = f"<{priority}>" if self._priorities else ""
        line = plain(text)
        with self._lock:
            try:
                self._stream.write(f"{prefix}{line}\n")
                self._stream.flush()
            except (OSError, ValueError):
                return  # the stream is closed: logging must not stop the work


class Notes:
    """The present problems, collected anew at each poll.

    Each is logged once; all of them are written to the file at `path`, for the status.
    """

    def __init__(self, journal: Journal, path: Path) -> None:
        self._journal = journal
        self._path = path
        self._now: set[str] = set()
        self._logged: set[str] | None = None  # None: the file may hold those of an earlier server

    def clear(self) -> None:
        """Begin a new poll."""
        self._now.clear()

    def add(self, text: str) -> None:
        """Add a problem: one sentence."""
        self._now.add(text)

    def publish(self) -> None:
        """Log the problems that are new, and write the file where the set has changed."""
        if self._now == self._logged:
            return
        for text in sorted(self._now - (self._logged or set())):
            self._journal.error(text)
        self._logged = set(self._now)
        with contextlib.suppress(OSError):
            text = "".join(f"{note}\n" for note in sorted(self._now))
            files.write(self._path, text.encode("utf-8", "replace"))
