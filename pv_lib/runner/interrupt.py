"""The interruptible wait of one runner's thread: other threads end it or cut it short.

Every wait of a runner is made here, so that the server can stop at any time. Knows nothing of
records or agents.
"""

from __future__ import annotations

import threading

from pv_lib.system.journal import Journal

_RETRY_SECONDS = 1.0


class Left(Exception):
    """The server stops: the agent goes on, and the next server adopts it."""


class Interrupt:
    """Waits for one job's runner, and reports what the runner waits for."""

    def __init__(self, job_id: str, journal: Journal) -> None:
        self._job_id = job_id
        self._journal = journal
        self._reported = ""  # the last report, so that it is not repeated every second
        self._woken = threading.Event()
        self._leaving = threading.Event()

    def leave(self) -> None:
        """End this wait and every later one with Left. For any thread."""
        self._leaving.set()
        self._woken.set()

    def wake(self) -> None:
        """End this wait, or the next one, at once. For any thread."""
        self._woken.set()

    @property
    def leaving(self) -> bool:
        """Whether `leave` was called."""
        return self._leaving.is_set()

    def check(self) -> None:
        """Raise Left if `leave` was called."""
        if self.leaving:
            raise Left

    def wait(self, seconds: float) -> None:
        """Wait for `seconds` or until `wake`. Raises Left when the server stops."""
        self._woken.wait(seconds)
        self._woken.clear()
        self.check()

    def wait_to_retry(self, what: str, why: object) -> None:
        """Report the failure and wait a second. Raises Left when the server stops."""
        self.report(what, why)
        self.wait(_RETRY_SECONDS)

    def report(self, what: str, why: object) -> None:
        """Write to the journal that the job `what`, because of `why`; not twice in a row."""
        text = f"job {self._job_id} {what} ({why}); trying again"
        if text != self._reported:
            self._journal.error(text)
            self._reported = text
