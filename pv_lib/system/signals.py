"""The signals that end the process, as bytes in a pipe that the main thread reads.

The interpreter itself writes them there, in whichever thread the system interrupts; a main thread
that waits for a lock would not see a signal that another thread got. What a signal leads to is
decided by the reader.
"""

from __future__ import annotations

import os
import select
import signal


class Signals:
    """SIGTERM, SIGINT and SIGHUP, caught from here on. One per process, in the main thread.

    The handler also resets SIGINT for the agents: where a shell started the server in the
    background, they would inherit an ignored SIGINT, and an abort would do nothing.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._write)

    def put(self, number: int) -> None:
        """Add one, as if signal `number` had come. Any thread."""
        os.write(self._write, bytes([number]))

    def get(self) -> int:
        """Wait for the next one; its number."""
        return os.read(self._read, 1)[0]

    def empty(self) -> bool:
        """Whether there is none to get."""
        return not select.select([self._read], [], [], 0)[0]
