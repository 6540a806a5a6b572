"""What the server says for the journal: one line an event, nothing that could spoil a terminal.

Owns the format alone; what is worth saying is decided where it happens.
"""

from __future__ import annotations

import sys
import threading
from typing import TextIO


class Journal:
    """Writes lines to a stream. `priorities` puts journald's `<3>` prefixes before them."""

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
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        with self._lock:
            try:
                self._stream.write(f"{prefix}{line}\n")
                self._stream.flush()
            except (OSError, ValueError):
                return  # nobody reads; work goes on
