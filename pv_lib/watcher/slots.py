"""The slots: the running jobs, each with a runner in a thread of its own.

Owns how many jobs may run, the rule that a plain folder (a repository without git) has one job at
a time, and how running jobs are woken, left and aborted. Chooses no job and reads no record.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pv_lib.jobs.job import Record, State
from pv_lib.runner.runner import Runner, Services


@dataclass(frozen=True)
class _Slot:
    """One running job; `folder` is the plain folder that it occupies, None with git."""

    runner: Runner
    thread: threading.Thread
    folder: str | None


class Slots:
    """The running jobs of one server.

    `notify` is called in any thread: after each job, and once nothing more may start.
    """

    def __init__(self, services: Services, notify: Callable[[], None]) -> None:
        self._services = services
        self._notify = notify
        self._changed = threading.Condition()  # guards the two below; notified when a job ends
        self._stopping = False  # set once: nothing more is started
        self._slots: dict[str, _Slot] = {}  # by job id

    def is_stopping(self) -> bool:
        """Whether `stop` or `abort_all` was called."""
        with self._changed:
            return self._stopping

    def is_active(self, job_id: str) -> bool:
        """Whether the job has a runner."""
        with self._changed:
            return job_id in self._slots

    def is_full(self) -> bool:
        """Whether no further job may start now."""
        with self._changed:
            return self._stopping or len(self._slots) >= self._services.config.max_running

    def is_occupied(self, folder: str) -> bool:
        """Whether a running job works in this plain folder."""
        with self._changed:
            return any(slot.folder == folder for slot in self._slots.values())

    def start(self, record: Record, prompt: Path | None) -> None:
        """Give the job a runner; `prompt` is its claimed file, None where that is gone.

        Does nothing while the server stops: the next one starts the job. Raises OSError (EAGAIN)
        when the system allows no further thread. A job that an earlier server started gets a
        runner even where all slots are taken.
        """
        job_id = record.job_id
        runner = Runner(self._services, record, prompt)
        thread = threading.Thread(
            target=self._run, args=(job_id, runner), name=f"job-{job_id[-8:]}", daemon=True
        )
        folder = self._services.repos.exclusive(record.repo or "")
        with self._changed:  # held over the start: the job may end, or the server stop, at once
            if self._stopping:
                return
            try:
                thread.start()
            except RuntimeError as error:
                raise OSError(errno.EAGAIN, "the system allows no further thread") from error
            self._slots[job_id] = _Slot(runner, thread, folder)

    def wake(self, job_id: str) -> None:
        """Let the job's runner look for an ABORT now; nothing where it has none."""
        with self._changed:
            slot = self._slots.get(job_id)
        if slot:
            slot.runner.wake()

    def stop(self) -> None:
        """Start nothing more and leave every running job; their agents go on."""
        with self._changed:
            self._stopping = True
            slots = list(self._slots.values())
        self._notify()
        for slot in slots:
            slot.runner.leave()
        for slot in slots:
            slot.thread.join(timeout=1)

    def abort_all(self) -> list[str]:
        """Start nothing more and ask every running job to end; their ids."""
        with self._changed:
            self._stopping = True
            ids = sorted(self._slots)
        self._notify()
        for job_id in ids:
            with contextlib.suppress(OSError):
                self._services.runs.mark_abort(job_id, State.RUNNING, self._services.clock())
            self.wake(job_id)
        return ids

    def idle(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the last running job to end; whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._slots, timeout)

    def _run(self, job_id: str, runner: Runner) -> None:
        try:
            runner.run()
        finally:
            with self._changed:
                del self._slots[job_id]
                self._changed.notify_all()
            self._notify()
