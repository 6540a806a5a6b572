"""What the server says for the journal: one line an event, nothing that could spoil a terminal.

Owns the format, and what cannot be done at present (`Notes`), which the status shows too; what is
worth saying is decided where it happens.
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
    """Whether stderr leads to journald, which takes `<3>` prefixes as priorities.

    JOURNAL_STREAM says where it led when systemd started us or a parent of ours.
    """
    with contextlib.suppress(OSError):
        info = os.fstat(2)
        return environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"
    return False


def plain(text: str) -> str:
    """The text as one line that no terminal can be spoilt by."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Journal:
    """Writes lines to a stream. `priorities` puts journald's prefixes before them."""

    def __init__(self, stream: TextIO | None = None, *, priorities: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._priorities = priorities
        self._lock = threading.Lock()  # one line at a time

    def info(self, text: str) -> None:
        """Something that happened as it should."""
        self._write(6, text)

    def warn(self, text: str) -> None:
        """Something a person should look at when there is time."""
        self._write(4, text)

    def error(self, text: str) -> None:
        """Something that did not work."""
        self._write(3, text)

    def _write(self, priority: int, text: str) -> None:
        prefix = f"<{priority}>" if self._priorities else ""
        line = plain(text)
        with self._lock:
            try:
                self._stream.write(f"{prefix}{line}\n")
                self._stream.flush()
            except (OSError, ValueError):
                return  # nobody reads; work goes on


class Notes:
    """What cannot be done at present, found anew at each poll.

    Each is said once in the journal; all of them stand in the file at `path`, for the status.
    """

    def __init__(self, journal: Journal, path: Path) -> None:
        self._journal = journal
        self._path = path
        self._now: set[str] = set()
        self._told: set[str] | None = None  # what an earlier server has left stands in the file

    def clear(self) -> None:
        """A new poll begins."""
        self._now.clear()

    def add(self, text: str) -> None:
        """One sentence for a person."""
        self._now.add(text)

    def tell(self) -> None:
        """Say what is new."""
        if self._now == self._told:
            return
        for text in sorted(self._now - (self._told or set())):
            self._journal.error(text)
        self._told = set(self._now)
        with contextlib.suppress(OSError):
            text = "".join(f"{note}\n" for note in sorted(self._now))
            files.write(self._path, text.encode("utf-8", "replace"))
