"""A FIFO cache: a bounded mapping whose oldest entry is evicted first. Knows no job."""

from __future__ import annotations

import contextlib
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class FifoCache(Generic[K, V]):
    """At most `most` entries; safe to use from any thread. No lock: each step is atomic."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """The cached value, or None."""
        return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        """Add the entry, evicting the oldest ones where the cache is full."""
        while len(self._values) >= self._most:
            # Another thread may evict the same entry or change the dict between these steps.
            with contextlib.suppress(StopIteration, KeyError, RuntimeError):
                del self._values[next(iter(self._values))]
        self._values[key] = value

    def drop(self, key: K) -> None:
        """Remove the entry if there is one."""
        self._values.pop(key, None)
