"""How long one job may take, and how far its ending has come: which signal is due when.

Knows nothing of why a job is ended.
"""

from __future__ import annotations

import signal
import time

from pv_lib.agent import process
from pv_lib.agent.process import Agent
from pv_lib.jobs import job
from pv_lib.jobs.job import Record


class Timing:
    """One job's time. `most` is the longest that any job may take in seconds, 0 without a limit;
    `now` is Unix time. Inside, seconds are monotonic.
    """

    def __init__(self, record: Record, most: float, now: float) -> None:
        limits = [most, record.timeout_seconds or 0]
        self.timeout = min((limit for limit in limits if limit > 0), default=0.0)
        began = job.seconds_of(record.started_at)
        age = max(0.0, now - began) if began else 0.0
        self._started = time.monotonic() - age
        self._turn_seen: float | None = None
        self._asked: float | None = None
        self._steps = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]

    @property
    def timed_out(self) -> bool:
        """Whether the job has taken longer than it may."""
        return bool(self.timeout) and time.monotonic() - self._started > self.timeout

    def turn_over(self, grace: float) -> bool:
        """Whether the turn has been finished for `grace` seconds with the process still there."""
        now = time.monotonic()
        self._turn_seen = self._turn_seen or now
        return now - self._turn_seen > grace

    def push(self, agent: Agent, job_id: str, grace: float) -> None:
        """The next signal when it is due: SIGINT at once, SIGTERM halfway, SIGKILL at the end."""
        now = time.monotonic()
        self._asked = self._asked or now
        due = (0.0, grace / 2, grace)[3 - len(self._steps)] if self._steps else float("inf")
        if now - self._asked < due:
            return
        step = self._steps.pop(0)
        agent.signal(step)
        if step is signal.SIGKILL:
            process.end_carriers(job_id, 0)
        else:
            agent.signal(signal.SIGCONT)
