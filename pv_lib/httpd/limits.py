"""What clients may take of the server at most, and how much of it they have now.

The numbers stand here once; `server` and `api` keep to them and the status shows them. Nothing
here refuses, waits or closes.
"""

from __future__ import annotations

import contextlib
import resource
import threading
from collections import Counter
from typing import Any, Protocol

MAX_HEAD = 32 << 10  # bytes of request line and headers
IDLE_SECONDS = 30.0  # a keep-alive connection without a request
HEAD_SECONDS = 10.0  # from a request's first byte to its blank line
BODY_SECONDS = 60.0  # from the blank line to the body's last byte
SEND_SECONDS = 60.0  # a write to a client that does not read, and a second per SEND_RATE bytes
SEND_RATE = 64 << 10
KEEP_ALIVE = 10.0  # seconds of silence after which a stream gets a comment
MAX_CONNECTIONS = 256  # each has a thread while it lasts
_BODIES = 64 << 20  # bytes of large request bodies in memory
SMALL_BODY = 64 << 10  # up to here a body does not count
_STREAMS = 10_240  # half of them for one client's address; behind a proxy that is everybody's
_OTHER_FILES = 512  # open files kept for connections, jobs and logs


class Gauge:
    """How much of one thing is taken: `most` in all, `each` by one client. From any thread."""

    def __init__(self, most: int, each: int | None = None) -> None:
        self.most = most
        self.each = most if each is None else each
        self.now = 0
        self.refused = 0  # how many were turned away
        self._lock = threading.Lock()  # guards all but the limits
        self._by_client: Counter[str] = Counter()

    def enter(self, amount: int = 1, client: str = "") -> bool:
        """Take `amount`; False, and nothing taken, where that would be too much."""
        with self._lock:
            theirs = self._by_client[client] + amount
            if self.now + amount > self.most or theirs > self.each:
                return False
            self.now += amount
            self._by_client[client] = theirs
            return True

    def refuse(self) -> None:
        """Count one that was turned away."""
        with self._lock:
            self.refused += 1

    def leave(self, amount: int = 1, client: str = "") -> None:
        """Give `amount` back."""
        with self._lock:
            self.now -= amount
            self._by_client[client] -= amount
            if self._by_client[client] <= 0:
                del self._by_client[client]

    def shown(self) -> dict[str, int]:
        """For the status."""
        plain = {"now": self.now, "most": self.most, "refused": self.refused}
        return plain if self.each == self.most else {**plain, "most_per_client": self.each}


class GivesWay(Protocol):
    """Whoever can be told to wait no longer for its client."""

    def give_way(self, how: int) -> None:
        """End the wait."""


class Patience:
    """Those who wait for their clients, oldest first; from any thread.

    Without a lock: each step is one operation of a dict, and whoever takes an entry out has it.
    """

    def __init__(self) -> None:
        self._strangers: dict[GivesWay, int] = {}  # never let in before
        self._known: dict[GivesWay, int] = {}

    def begin(self, who: GivesWay, *, known: bool, how: int) -> None:
        """`who` waits from now on; `how` goes to its `give_way`."""
        (self._known if known else self._strangers)[who] = how

    def end(self, who: GivesWay) -> None:
        """`who` waits no longer."""
        if self._known.pop(who, None) is None:
            self._strangers.pop(who, None)

    def oldest(self) -> tuple[GivesWay, int] | None:
        """Take out who has waited longest: of the strangers, unless they are the fewer.

        Else clients that were let in once and stay could hold all places but one for good.
        """
        strangers_first = len(self._strangers) >= len(self._known)
        both = (self._strangers, self._known)
        for waiting in both if strangers_first else reversed(both):
            while waiting:
                with contextlib.suppress(StopIteration, KeyError, RuntimeError):  # gone just now
                    who = next(iter(waiting))
                    return who, waiting.pop(who)
        return None


class Limits:
    """The gauges of one server. `max_body` is the largest body of one request, in bytes."""

    def __init__(self, max_body: int) -> None:
        self.max_body = max_body
        files = _open_files()
        self.connections = Gauge(max(1, min(MAX_CONNECTIONS, files // 4)))
        self.bodies = Gauge(max(_BODIES, max_body))
        streams = max(4, min(_STREAMS, files - _OTHER_FILES))
        self.streams = Gauge(streams, streams // 2)

    def taken(self) -> tuple[int, ...]:
        """What clients have now and what they were refused, to see whether it has changed."""
        gauges = (self.connections, self.streams, self.bodies)
        return tuple(number for gauge in gauges for number in (gauge.now, gauge.refused))

    def shown(self) -> dict[str, Any]:
        """For the status."""
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
    """How many files this process may have open, once that is raised as far as is needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    wanted = _STREAMS + _OTHER_FILES
    reachable = wanted if hard == endless else min(hard, wanted)
    if soft != endless and soft < reachable:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
        soft = reachable
    return wanted if soft == endless else soft
