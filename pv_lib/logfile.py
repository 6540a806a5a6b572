"""Reading a log from its end: where the last lines begin, and a file handle placed there.

Costs what it returns, however large the log is. Writing logs is the runner's, following them
`follow`'s.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_BLOCK = 1 << 16


def open_log(path: Path) -> BinaryIO:
    """Open the log without following a link. Raises OSError."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0)


def tail_start(log: BinaryIO, lines: int) -> tuple[int, int]:
    """The offset where the last `lines` lines begin, and the log's size, both in bytes.

    A last line without its newline counts as a line.
    """
    fd = log.fileno()
    size = os.fstat(fd).st_size
    if not size:
        return 0, 0
    wanted = lines + (os.pread(fd, 1, size - 1) == b"\n")
    end = size
    while end > 0:
        start = max(0, end - _BLOCK)
        block = os.pread(fd, end - start, start)
        found = block.count(b"\n")
        if found >= wanted:
            place = len(block)
            for _ in range(wanted):
                place = block.rindex(b"\n", 0, place)
            return start + place + 1, size
        wanted -= found
        end = start
    return 0, size
