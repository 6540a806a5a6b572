"""Live logs: many sockets, one thread.

A request's thread answers the headers and hands its socket over. New bytes of a log are read
once, framed once, and sent to each follower that can take them; one that cannot is caught up
later from the file by its own offset: it costs no more than the piece that waits for it, delays
nobody, and is let go when it has taken nothing for a minute. Nothing here
parses requests or knows where logs come from: it is asked by job id.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from pv_lib import files, logfile
from pv_lib.errors import Invalid
from pv_lib.index import Index
from pv_lib.job import Record
from pv_lib.journal import Journal
from pv_lib.limits import SEND_SECONDS

TICK = 0.02  # seconds between two looks at a followed log
KEEP_ALIVE = 10.0  # seconds of silence after which a comment is sent
_CHUNK = 1 << 16  # bytes of log per read
_FRAMES = 1 << 17  # bytes of events after which a follower has enough for now
_LINE_END = re.compile(rb"\r\n|\n|\r")
_RECONNECT = b"retry: 1000\n: the server is stopping, come back\n\n"


@dataclass(eq=False)
class _Follower:
    """One client. `offset` is the log's byte behind the last line it was sent or has pending."""

    sock: socket.socket
    job_id: str
    offset: int
    strip: bool  # of terminal escapes
    done: Callable[[], None]  # called once, when it has been dropped
    pending: memoryview = field(default_factory=lambda: memoryview(b""))
    ended: bool = False
    last_sent: float = 0.0


@dataclass
class _Feed:
    """One followed job: its log, once there is one, and who follows."""

    job_id: str
    path: Path
    log: FileIO | None = None
    followers: set[_Follower] = field(default_factory=set)
    troubled: bool = False  # said once that it cannot be read


class Followers:
    """The thread and its sockets. `start` before the first `add`, `stop` ends every stream."""

    def __init__(self, index: Index, journal: Journal) -> None:
        self._index = index
        self._journal = journal
        self._selector = selectors.DefaultSelector()
        self._arrivals: deque[_Follower] = deque()
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._feeds: dict[str, _Feed] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(
        self,
        sock: socket.socket,
        job_id: str,
        offset: int,
        *,
        strip: bool,
        done: Callable[[], None],
    ) -> None:
        """Follow the job's log from byte `offset` on; the socket is ours from here on.

        Its headers have been sent. `strip` leaves terminal escapes out; `done` is called when the
        socket has been closed. From any thread.
        """
        sock.setblocking(False)
        follower = _Follower(sock, job_id, offset, strip, done, last_sent=time.monotonic())
        self._arrivals.append(follower)
        self._wake()

    def stop(self) -> None:
        """End every stream with a hint to reconnect, and the thread."""
        self._stopping = True
        self._wake()
        self._thread.join(timeout=1)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_write.send(b"!")

    def _run(self) -> None:
        while not self._stopping:
            for key, events in self._selector.select(TICK if self._feeds else None):
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        self._wake_read.recv(4096)
                elif events & selectors.EVENT_WRITE:
                    self._catch_up(key.data)
                elif events & selectors.EVENT_READ:
                    self._hear(key.data)
            self._admit()
            for feed in list(self._feeds.values()):
                try:
                    self._serve(feed)
                except OSError as error:  # no descriptor, no folder: the next look may find it
                    self._complain(feed, error)
                except Exception as error:  # noqa: BLE001 - one log must not end all streams
                    self._complain(feed, error)
                    for follower in list(feed.followers):
                        self._drop(follower)
        self._admit()
        for feed in list(self._feeds.values()):
            for follower in list(feed.followers):
                with contextlib.suppress(OSError):
                    follower.sock.send(b"" if follower.pending else _RECONNECT)
                self._drop(follower)

    def _admit(self) -> None:
        while self._arrivals:
            follower = self._arrivals.popleft()
            feed = self._feeds.get(follower.job_id)
            if feed is None:
                path = self._index.runs.log_path(follower.job_id)
                feed = self._feeds[follower.job_id] = _Feed(follower.job_id, path)
            feed.followers.add(follower)
            self._selector.register(follower.sock, selectors.EVENT_READ, follower)

    def _serve(self, feed: _Feed) -> None:
        """Send what is new to everybody; end the streams when the job has ended."""
        record = self._index.get(feed.job_id)
        over = record is None or record.state.terminal  # asked before the read: nothing is missed
        if feed.log is None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, Invalid):
                feed.log = files.open_regular(feed.path)
        size = os.fstat(feed.log.fileno()).st_size if feed.log else 0
        frames: dict[tuple[int, bool], tuple[bytes, int]] = {}
        now = time.monotonic()
        for follower in list(feed.followers):
            if follower.pending:
                if now - follower.last_sent > SEND_SECONDS:
                    self._drop(follower)
                continue
            if follower.offset < size or (over and not follower.ended):
                self._advance(feed, follower, record if over else None, over, frames)
            elif now - follower.last_sent > KEEP_ALIVE:
                self._send(follower, memoryview(b": keep-alive\n\n"))

    def _complain(self, feed: _Feed, error: Exception) -> None:
        if not feed.troubled:
            self._journal.error(f"the log of job {feed.job_id} cannot be followed: {error}")
        feed.troubled = True

    def _advance(
        self,
        feed: _Feed,
        follower: _Follower,
        record: Record | None,
        over: bool,
        frames: dict[tuple[int, bool], tuple[bytes, int]],
    ) -> None:
        """The next frames for one follower; `frames` shares them with others at its offset."""
        start, strip = follower.offset, follower.strip
        if (start, strip) not in frames:
            frames[start, strip] = _frames(feed.log, start, strip=strip, final=over)
        data, follower.offset = frames[start, strip]
        if over and follower.offset == start and not data:
            follower.ended = True
            data = _end_frame(record)
        if data:
            self._send(follower, memoryview(data))

    def _catch_up(self, follower: _Follower) -> None:
        if follower.pending:
            self._send(follower, follower.pending)

    def _send(self, follower: _Follower, data: memoryview) -> None:
        try:
            sent = follower.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(follower)
            return
        follower.last_sent = time.monotonic()
        waited = bool(follower.pending)
        follower.pending = data[sent:]
        if follower.pending and not waited:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(follower.sock, both, follower)
        elif waited and not follower.pending:
            self._selector.modify(follower.sock, selectors.EVENT_READ, follower)
        if follower.ended and not follower.pending:
            self._drop(follower)

    def _hear(self, follower: _Follower) -> None:
        """A follower has nothing to say: bytes are ignored, an end is an end."""
        try:
            gone = not follower.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone:
            self._drop(follower)

    def _drop(self, follower: _Follower) -> None:
        feed = self._feeds.get(follower.job_id)
        if feed is None or follower not in feed.followers:
            return
        feed.followers.discard(follower)
        self._selector.unregister(follower.sock)
        with contextlib.suppress(OSError):
            follower.sock.shutdown(socket.SHUT_WR)
        follower.sock.close()
        follower.done()
        if not feed.followers:
            del self._feeds[follower.job_id]
            if feed.log:
                feed.log.close()


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


def _frames(log: FileIO | None, offset: int, *, strip: bool, final: bool) -> tuple[bytes, int]:
    """Events for the whole lines from `offset` on, a chunk's worth, and the offset behind them."""
    if log is None:
        return b"", offset
    size = _CHUNK
    while True:
        data = os.pread(log.fileno(), size, offset)
        at_end = len(data) < size
        lines = split_lines(data, final=final and at_end)
        if lines or at_end:
            break
        size *= 4  # a line longer than the chunk
    out, sent = bytearray(), 0
    for line, end in lines:
        if len(out) > _FRAMES:
            break
        text = logfile.strip(line) if strip else line.decode("utf-8", "replace")
        out += b"id: %d\ndata: %b\n\n" % (offset + end, text.encode())
        sent = end
    return bytes(out), offset + sent


def _end_frame(record: Record | None) -> bytes:
    """The last event: how the job ended; a job whose folder was deleted has no state."""
    plain: dict[str, Any] = {"state": None, "reason": "deleted", "error": "the job was deleted"}
    if record is not None:
        plain = {"state": record.state.value, "reason": record.reason, "error": record.error}
        plain["exit_code"] = record.exit_code
    return b"event: end\ndata: %b\n\n" % json.dumps(plain, ensure_ascii=False).encode(
        "utf-8", "replace"
    )
