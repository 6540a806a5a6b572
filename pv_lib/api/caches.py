"""Two caches of whole responses: log tails and job lists that are asked for again and again.

Each is kept because a figure of ops/performance.md falls below its bar without it; its class says
which. Nothing here makes a response.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from pv_lib.httpd.wire import Response
from pv_lib.jobs.cache import FifoCache

_TAILS = 256
_TAIL_BYTES = 1 << 16  # of one response
_LISTS = 32
_LIST_BYTES = 1 << 17  # of one response
_LIST_SECONDS = 0.25  # as long as the index may miss what another process writes
_SETTLED_SECONDS = 0.05  # a file changed more recently may change again within a tick of its mtime
_Signature = tuple[int, int, int]  # inode, mtime in ns, size
_Query = tuple[tuple[str, Any], ...]  # the parameters' names and values


class Tail(NamedTuple):
    """What was asked for: the last `lines` lines of the log at `path`, escapes as `ansi` says."""

    path: str
    lines: int
    ansi: str


class TailCache:
    """The tails that were asked for last, valid while the log has the same inode, mtime and size.

    Without it `log, last 200 lines` falls from 2.7 times the bare handler to 0.4; the bar is 1.5.
    """

    def __init__(self) -> None:
        self._entries: FifoCache[Tail, tuple[_Signature, Response]] = FifoCache(_TAILS)

    def get(self, tail: Tail) -> Response | None:
        """The response, if it is cached and the log has not changed."""
        entry = self._entries.get(tail)
        if entry is None:
            return None
        try:
            signature = _signature(os.stat(tail.path, follow_symlinks=False))
        except OSError:
            return None
        return entry[1] if signature == entry[0] else None

    def put(self, tail: Tail, info: os.stat_result, response: Response, now: float) -> None:
        """Cache the response if it is small and the log, as `info` has it, has settled by `now`."""
        if len(response.body) <= _TAIL_BYTES and now - info.st_mtime > _SETTLED_SECONDS:
            self._entries.put(tail, (_signature(info), response))


class ListCache:
    """The pages of jobs that were asked for last, valid for a moment while no job changes.

    Without it `list by repo` takes 6.6 times as long over 100,000 runs as over 100, where few jobs
    match; the bar is 3.
    """

    def __init__(self) -> None:
        self._entries: FifoCache[_Query, tuple[int, float, Response]] = FifoCache(_LISTS)

    def get(self, query: _Query, version: int, now: float) -> Response | None:
        """The response, if it was made from this `version` of the index a moment before `now`."""
        entry = self._entries.get(query)
        if entry is None or entry[0] != version:
            return None
        return entry[2] if entry[1] <= now < entry[1] + _LIST_SECONDS else None

    def put(self, query: _Query, version: int, now: float, response: Response) -> None:
        """Cache the response if it is small; `version` and `now` are from before it was made."""
        if len(response.body) < _LIST_BYTES:
            self._entries.put(query, (version, now, response))


def _signature(info: os.stat_result) -> _Signature:
    return info.st_ino, info.st_mtime_ns, info.st_size
