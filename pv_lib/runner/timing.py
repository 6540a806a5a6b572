"""How long one job may take, and how far its ending has come: which signal is due when.

Knows nothing of why a job is ended, and signals nothing itself.
"""

from __future__ import annotations

import signal
import time

from pv_lib.jobs import job
from pv_lib.jobs.job import Record


class Timing:
    """The time of one job. `limit` is the most that any job may take in seconds, 0 for no limit;
    `now` is Unix time. Inside, seconds are monotonic.
    """

    def __init__(self, record: Record, limit: float, now: float) -> None:
        limits = [limit, record.timeout_seconds or 0]
        self.timeout = min((limit for limit in limits if limit > 0), default=0.0)
        began = job.seconds_of(record.started_at)
        age = max(0.0, now - began) if began else 0.0
        self._started = time.monotonic() - age
        self._turn_ended: float | None = None
        self._asked: float | None = None
        self._steps = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]

    @property
    def timed_out(self) -> bool:
        """Whether the job has taken longer than it may."""
        return bool(self.timeout) and time.monotonic() - self._started > self.timeout

    def is_behind_turn(self, *, ended: bool, grace: float) -> bool:
        """Whether the process is still there `grace` seconds after its turn has `ended`.

        Asked in each round: a turn that starts after another one ended stops the count.
        """
        if not ended:
            self._turn_ended = None
            return False
        now = time.monotonic()
        if self._turn_ended is None:
            self._turn_ended = now
        return now - self._turn_ended > grace

    def due(self, grace: float) -> signal.Signals | None:
        """The next signal, once: SIGINT at once, SIGTERM halfway, SIGKILL at the end of `grace`."""
        now = time.monotonic()
        if self._asked is None:
            self._asked = now
        if not self._steps or now - self._asked < (0.0, grace / 2, grace)[3 - len(self._steps)]:
            return None
        return self._steps.pop(0)
