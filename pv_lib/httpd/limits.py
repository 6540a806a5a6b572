"""Limits and quotas: how much clients may use at most, and how much they use now.

Each number is defined here once; `connection`, `server` and `api` apply it and the status shows
it. Nothing here refuses a client, waits or closes a socket.
"""

from __future__ import annotations

import resource
import threading
from collections import Counter
from typing import Any

MAX_HEAD = 32 << 10  # bytes of request line and headers
IDLE_SECONDS = 30.0  # a kept connection without a request
HEAD_SECONDS = 10.0  # from a request's first byte to its blank line
BODY_SECONDS = 60.0  # from the blank line to the body's last byte
SEND_SECONDS = 60.0  # for an answer, and one second more for each SEND_RATE bytes of it
SEND_RATE = 64 << 10
KEEP_ALIVE = 10.0  # seconds of silence after which a stream gets a comment
MAX_CONNECTIONS = 256  # each has a thread while it lasts
_BODIES = 64 << 20  # bytes of large request bodies in memory
SMALL_BODY = 64 << 10  # bytes; a body up to this size takes no quota
_STREAMS = 10_240  # half of them for one address; all clients behind a proxy share one
_OTHER_FILES = 512  # open files reserved for connections, jobs and logs


class Quota:
    """A quota on one resource: `most` in all, `each` for one client. Safe from any thread."""

    def __init__(self, most: int, each: int | None = None) -> None:
        self.most = most
        self.each = most if each is None else each
        self._lock = threading.Lock()  # guards writes of now, refused and _by_client
        self.now = 0  # the amount in use
        self.refused = 0  # how many requests for it were refused
        self._by_client: Counter[str] = Counter()

    def take(self, amount: int = 1, client: str = "") -> bool:
        """Take `amount`; if that would exceed the quota, take nothing and return False."""
        with self._lock:
            by_client = self._by_client[client] + amount
            if self.now + amount > self.most or by_client > self.each:
                return False
            self.now += amount
            self._by_client[client] = by_client
            return True

    def refuse(self) -> None:
        """Count one refusal."""
        with self._lock:
            self.refused += 1

    def release(self, amount: int = 1, client: str = "") -> None:
        """Give `amount` back."""
        with self._lock:
            self.now -= amount
            self._by_client[client] -= amount
            if self._by_client[client] <= 0:
                del self._by_client[client]

    def shown(self) -> dict[str, int]:
        """The quota as the status shows it."""
        plain = {"now": self.now, "most": self.most, "refused": self.refused}
        return plain if self.each == self.most else {**plain, "most_per_client": self.each}


class Limits:
    """The quotas of one server. `max_body` is the largest request body, in bytes."""

    def __init__(self, max_body: int) -> None:
        self.max_body = max_body
        files = _open_files()
        self.connections = Quota(max(1, min(MAX_CONNECTIONS, files // 4)))
        self.bodies = Quota(max(_BODIES, max_body))
        streams = max(4, min(_STREAMS, files - _OTHER_FILES))
        self.streams = Quota(streams, streams // 2)

    def shown(self) -> dict[str, Any]:
        """The limits as the status shows them."""
        return {
            "connections": self.connections.shown(),
            "streams": self.streams.shown(),
            "body_bytes": self.bodies.shown(),
            "largest_body_bytes": self.max_body,
            "largest_head_bytes": MAX_HEAD,
            "head_seconds": HEAD_SECONDS,
            "body_seconds": BODY_SECONDS,
            "idle_seconds": IDLE_SECONDS,
            "send_seconds": SEND_SECONDS,
        }


def _open_files() -> int:
    """How many open files this process may have, after the soft limit was raised as needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    wanted = _STREAMS + _OTHER_FILES
    reachable = wanted if hard == endless else min(hard, wanted)
    if soft != endless and soft < reachable:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
        soft = reachable
    return wanted if soft == endless else soft
