"""What systemd is told: ready, alive, the status line, stopping. Silent where nobody asks.

The protocol is sd_notify(3): lines of NAME=value in a datagram. What is told is decided elsewhere.
WATCHDOG_PID is not heeded: under runuser it names runuser, never us.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping

ALIVE_SECONDS = 5.0  # how often at least `alive` must be called, and how often it feeds
_STATUS_SECONDS = 1.0  # how often the status line may change


class Notifier:
    """Tells the service manager that `environ` names; `status` makes the line for people."""

    def __init__(self, environ: Mapping[str, str], status: Callable[[], str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = status
        self._told = ""
        self._next_look = self._due = 0.0

    def ready(self) -> None:
        """The port answers, or the watcher has begun."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1\nSTATUS=stopping; running jobs go on")

    def alive(self) -> None:
        """Work goes on: feed the watchdog when it is due, and tell a status that has changed."""
        now = time.monotonic()
        if not self._address or now < self._next_look:
            return
        self._next_look = now + _STATUS_SECONDS
        status = self._status()
        if status != self._told or now >= self._due:
            self._due = now + ALIVE_SECONDS
            self._told = status
            self._send(f"WATCHDOG=1\nSTATUS={status}")

    def _send(self, text: str) -> None:
        """Never wait for the manager, and never fail for it."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.setblocking(False)
            end.sendto(text.encode(), os.fsencode(self._address))
