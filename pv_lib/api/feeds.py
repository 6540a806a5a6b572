"""What live streams carry, as server-sent events: a log's lines, the changes of all records.

Each is a `Feed` of `httpd.follow`. No socket and no follower is known here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import deque
from collections.abc import Callable
from io import FileIO
from itertools import islice
from typing import Any

from pv_lib.api.view import Views
from pv_lib.errors import Invalid
from pv_lib.httpd.follow import END, Forgotten, Place
from pv_lib.jobs import logfile
from pv_lib.jobs.catalogue import CHANGES
from pv_lib.jobs.index import Index
from pv_lib.jobs.job import Record
from pv_lib.system import files

_CHUNK = 1 << 16  # bytes of log at once
_FRAMES = 1 << 17  # bytes of events at once, roughly
_LINE_END = re.compile(rb"\r\n|\n|\r")


class LogFeed:
    """A job's log, one event a line; `strip` leaves terminal escapes out."""

    def __init__(self, index: Index, job_id: str, *, strip: bool) -> None:
        self._index = index
        self._job_id = job_id
        self._strip = strip
        self._log: FileIO | None = None
        self._size = 0
        self._record: Record | None = None
        self._over = False

    def look(self) -> None:
        """Read the state before the size, so that what was written before the end is included."""
        self._record = self._index.peek(self._job_id)
        self._over = (
            self._record.state.terminal if self._record else not self._index.has(self._job_id)
        )
        if self._log is None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, Invalid):
                self._log = files.open_regular(self._index.runs.file(self._job_id, "job.log"))
        if self._log is not None:
            self._size = os.fstat(self._log.fileno()).st_size

    def frames(self, place: Place) -> tuple[bytes, Place]:
        """The next lines; after the last one of an ended job, the event `end`."""
        size = min(_CHUNK, self._size - place.offset)
        if self._log is None or size <= 0:
            return self._end(place) if self._over else (b"", place)
        data = os.pread(self._log.fileno(), size, place.offset)
        final = self._over and place.offset + len(data) >= self._size
        lines = split_lines(data, final=final)
        if not lines:
            return self._piece(data, place) if len(data) == _CHUNK else (b"", place)
        start, inside = place
        out = bytearray()
        for line, end in lines:
            if len(out) > _FRAMES:
                break
            begin = b"" if inside else b"data: "
            out += b"%b%b\nid: %d\n\n" % (begin, self._text(line), start + end)
            place, inside = Place(start + end), False
        return bytes(out), place

    def _piece(self, data: bytes, place: Place) -> tuple[bytes, Place]:
        """A part of a line that is longer than a chunk."""
        data = data[: logfile.whole(data)].removesuffix(b"\r")  # may be half of a CR LF
        begin = b"" if place.inside else b"data: "
        return begin + self._text(data), Place(place.offset + len(data), inside=True)

    def _text(self, line: bytes) -> bytes:
        if self._strip:
            return logfile.strip(line).encode()
        return line if line.isascii() else line.decode("utf-8", "replace").encode()

    def _end(self, place: Place) -> tuple[bytes, Place]:
        """How the job ended; a job whose folder was deleted has no state."""
        plain: dict[str, Any] = {"state": None, "reason": "deleted", "error": "the job was deleted"}
        if self._record is not None:
            record = self._record
            plain = {"state": record.state.value, "reason": record.reason, "error": record.error}
            plain["exit_code"] = record.exit_code
        close = b"\nid: %d\n\n" % place.offset if place.inside else b""
        text = json.dumps(plain, ensure_ascii=False).encode("utf-8", "replace")
        return b"%bevent: end\ndata: %b\n\n" % (close, text), END

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()


class ChangeFeed:
    """Every change of a record: event `job` with the record, `gone` with the id of a deleted one.

    A place's offset is the sequence number of the last change that was sent.
    """

    def __init__(self, index: Index, views: Views, clock: Callable[[], float]) -> None:
        self._index = index
        self._views = views
        self._clock = clock
        self._sequence = index.sequence - index.remembered
        self._ring: deque[bytes] = deque(maxlen=CHANGES)  # the last is event number _sequence

    def look(self) -> None:
        """Encode what is new, once."""
        news = self._index.changes(self._sequence)
        if news is None:  # too many changes at once: their followers have to start again
            self._ring.clear()
            self._sequence = self._index.sequence
            return
        for job_id, record in news:
            self._sequence += 1
            if record is None:
                name, shown = b"gone", json.dumps({"job_id": job_id}).encode()
            else:
                place = self._index.positions().get(job_id)
                name, shown = b"job", self._views.encode(record, place, self._clock())
            self._ring.append(b"event: %b\ndata: %b\nid: %d\n\n" % (name, shown, self._sequence))

    def frames(self, place: Place) -> tuple[bytes, Place]:
        """The next changes."""
        behind, known = self._sequence - place.offset, len(self._ring)
        if not 0 <= behind <= known:
            raise Forgotten
        out, offset = bytearray(), place.offset
        for event in islice(self._ring, known - behind, None):
            if len(out) > _FRAMES:
                break
            out += event
            offset += 1
        return bytes(out), Place(offset)

    def close(self) -> None:
        """Do nothing: nothing is open."""


def split_lines(data: bytes, *, final: bool) -> list[tuple[bytes, int]]:
    """The complete lines of `data`, each with the offset behind its end.

    Lines end at CR LF, LF and CR only. A CR at the very end may be half a CR LF, and bytes
    behind the last end half a line: both wait for more unless `final`.
    """
    lines = []
    start = 0
    for match in _LINE_END.finditer(data):
        if match.end() == len(data) and match[0] == b"\r" and not final:
            break
        lines.append((data[start : match.start()], match.end()))
        start = match.end()
    if final and start < len(data):
        lines.append((data[start:], len(data)))
    return lines
