"""The values that were asked for last, so many of them. Knows nothing of what they are."""

from __future__ import annotations

import contextlib
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Kept(Generic[K, V]):
    """At most `most` values, of which the first comer goes first; from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """The value, while it is kept."""
        return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep it."""
        while len(self._values) >= self._most:
            with contextlib.suppress(StopIteration, KeyError, RuntimeError):  # others do the same
                del self._values[next(iter(self._values))]
        self._values[key] = value

    def drop(self, key: K) -> None:
        """Keep it no longer."""
        self._values.pop(key, None)
