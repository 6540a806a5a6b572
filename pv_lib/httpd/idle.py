"""Idle connections: those that wait for their client, oldest first, so that one can be evicted.

A connection is idle while the next step is the client's: it has to send a request, the rest of one,
or read an answer. Nothing here opens or closes a socket.
"""

from __future__ import annotations

import contextlib
from typing import Protocol


class Evictable(Protocol):
    """A connection that another thread can evict."""

    def evict(self, how: int) -> None:
        """Stop waiting for the client; `how` is the side of the socket to shut down."""


class IdleConnections:
    """The idle connections; safe to use from any thread.

    No lock: each step is one atomic dict operation, and the thread that removes an entry owns it.
    """

    def __init__(self) -> None:
        self._newcomers: dict[Evictable, int] = {}  # no request has passed the gate yet
        self._accepted: dict[Evictable, int] = {}

    def add(self, connection: Evictable, *, accepted: bool, how: int) -> None:
        """`connection` waits from now on; `how` is passed to its `evict`.

        `accepted` says whether a request of this connection has passed the gate.
        """
        (self._accepted if accepted else self._newcomers)[connection] = how

    def remove(self, connection: Evictable) -> None:
        """`connection` no longer waits; it may have been taken by `pop_oldest`."""
        if self._accepted.pop(connection, None) is None:
            self._newcomers.pop(connection, None)

    def pop_oldest(self) -> tuple[Evictable, int] | None:
        """Remove the connection that has waited longest; None when no connection is idle.

        Newcomers, on which no request has passed the gate, go first unless they are the minority:
        otherwise accepted clients that stay connected could hold all places but one forever.
        """
        newcomers_first = len(self._newcomers) >= len(self._accepted)
        both = (self._newcomers, self._accepted)
        for waiting in both if newcomers_first else reversed(both):
            while waiting:
                # Another thread may remove the entry or change the dict between these steps.
                with contextlib.suppress(StopIteration, KeyError, RuntimeError):
                    connection = next(iter(waiting))
                    return connection, waiting.pop(connection)
        return None
