"""Notifications to the service manager: ready, alive, the status line, stopping (sd_notify(3)).

Each is a datagram with lines of NAME=value; none is sent where NOTIFY_SOCKET is not set. When to
send which is decided elsewhere. WATCHDOG_PID is ignored: under runuser it names runuser, never us.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping

ALIVE_SECONDS = 5.0  # the longest time between calls of `alive`; the watchdog's period
_STATUS_SECONDS = 1.0  # how often the status line may change


class Notifier:
    """Notifies the service manager named in `environ`; `status` makes the status line."""

    def __init__(self, environ: Mapping[str, str], status: Callable[[], str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = status
        self._sent = ""
        self._next_check = self._due = 0.0

    def ready(self) -> None:
        """The server listens, or the watcher has started."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Shutdown has begun."""
        self._send("STOPPING=1\nSTATUS=stopping; running jobs go on")

    def alive(self) -> None:
        """Reset the watchdog when that is due, and send the status line when it has changed."""
        now = time.monotonic()
        if not self._address or now < self._next_check:
            return
        self._next_check = now + _STATUS_SECONDS
        status = self._status()
        if status != self._sent or now >= self._due:
            self._due = now + ALIVE_SECONDS
            self._sent = status
            self._send(f"WATCHDOG=1\nSTATUS={status}")

    def _send(self, text: str) -> None:
        """Send without blocking; a failure is ignored."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.setblocking(False)
            end.sendto(text.encode(), os.fsencode(self._address))
