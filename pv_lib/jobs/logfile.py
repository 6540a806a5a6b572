"""Reads a job's log: from its end, from an offset, with or without terminal escapes.

The log is written by `runner.logwriter`; live streams of it are made by `api.feeds`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from io import FileIO

_BLOCK = 1 << 16
_PIECE = 1 << 18  # bytes of log cleaned at once
_LONGEST_ESCAPE = 4096  # bytes; one that is cut beyond this leaves its remains in the text
_ODD = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f-\xff]")
_CONTROL = re.compile(
    r"\x1b[\]PX^_][^\x07\x1b\x9c\r\n]*(?:\x07|\x1b\\|\x9c)"  # titles, links, clipboard
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b[ -/]*[0-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
_LONE_CR = re.compile(r"\r(?!\n)")


def tail_start(log: FileIO, lines: int) -> tuple[int, int]:
    """The offset where the last `lines` lines begin, and the log's size, both in bytes.

    A last line without its newline counts as a line.
    """
    fd = log.fileno()
    end = size = os.fstat(fd).st_size
    wanted = lines
    while end > 0:
        start = max(0, end - _BLOCK)
        block = os.pread(fd, end - start, start)
        wanted += end == size and block.endswith(b"\n")
        before, *ends = block.rsplit(b"\n", wanted)
        if len(ends) == wanted:
            return start + len(before) + 1, size
        wanted -= len(ends)
        end = start
    return 0, size


def piece(log: FileIO, offset: int, lines: int | None) -> tuple[int, int]:
    """Where the part from byte `offset` on begins and ends; it has at most `lines` lines."""
    fd = log.fileno()
    size = os.fstat(fd).st_size
    start = end = min(offset, size)
    if lines is None:
        return start, size
    while end < size:
        block = os.pread(fd, min(_BLOCK, size - end), end)
        found = block.count(b"\n")
        if found >= lines:
            place = -1
            for _ in range(lines):
                place = block.index(b"\n", place + 1)
            return start, end + place + 1
        lines -= found
        end += len(block)
    return start, size


def plain(log: FileIO, start: int, end: int) -> Iterator[bytes]:
    """The log from byte `start` to `end` as text that is safe on a terminal, a piece at a time.

    Escape sequences and control characters are removed, a lone CR ends a line as LF does, and
    invalid UTF-8 becomes U+FFFD.
    """
    fd = log.fileno()
    while start < end:
        data = os.pread(fd, min(_PIECE, end - start), start)
        if not data:
            return
        if start + len(data) < end:
            data = data[: whole(data)]
        start += len(data)
        yield _LONE_CR.sub("\n", strip(data)).encode() if _ODD.search(data) else data


def whole(data: bytes) -> int:
    """Where a piece can be cut: after its last line, or else before an incomplete sequence."""
    line = data.rfind(b"\n") + 1
    if line:
        return line
    escape = data.rfind(b"\x1b", len(data) - _LONGEST_ESCAPE)
    if escape > 0:
        return escape
    for back in range(1, min(4, len(data))):
        if data[-back] >= 0xC0:  # the first byte of a character that may be cut
            return len(data) - back
    return len(data)


def strip(text: bytes) -> str:
    """`text` without escape sequences and control characters, except tab, LF and CR."""
    return _CONTROL.sub("", text.decode("utf-8", "replace"))
