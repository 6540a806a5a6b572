"""The recorder: the one writer of a running job's record.

It holds the record in memory, writes it when something changed and not too often, beats, reads
the ABORT marker into it, and writes the end. It decides nothing about the job.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from pv_lib.agent.transcript import Transcript, Verdict
from pv_lib.jobs import job
from pv_lib.jobs.job import Record, State
from pv_lib.jobs.store import Runs
from pv_lib.runner.interrupt import Interrupt
from pv_lib.system import files
from pv_lib.system.journal import Journal

_SAVE_SECONDS = 0.5  # how often activity and the like may be written
_RETRY_SECONDS = 1.0


class FolderGone(Exception):
    """Somebody deleted the job's run folder: nothing can be recorded any more."""


class Recorder:
    """Keeps `record` current on the disk; `run` is the job's run folder.

    `heartbeat` is in seconds, `clock` gives Unix time.
    """

    def __init__(
        self,
        record: Record,
        runs: Runs,
        journal: Journal,
        interrupt: Interrupt,
        heartbeat: float,
        clock: Callable[[], float],
    ) -> None:
        self.record = record
        self._runs = runs
        self.run = runs.folder(record.job_id)
        self._journal = journal
        self._interrupt = interrupt
        self._heartbeat = heartbeat
        self._clock = clock
        self._next_beat = 0.0
        self._next_save = 0.0

    def begin(self) -> None:
        """The record is running and durable before anything is started."""
        if self.record.state is State.CREATED:
            self.record = job.advance(self.record, State.RUNNING, self._now())
        self.change(phase="preparing")
        self.save(durable=True)

    def change(self, **changes: Any) -> None:
        """Set fields of the record, to be written soon; None leaves a field as it is."""
        news = {k: v for k, v in changes.items() if v is not None and getattr(self.record, k) != v}
        if news:
            self.record = self.record.with_(**news, updated_at=self._now())
            self._next_save = min(self._next_save, time.monotonic() + _SAVE_SECONDS)

    def save(self, *, durable: bool = False) -> None:
        """Write the record now. Raises FolderGone; OSError only if `durable`, else it retries."""
        self._next_save = float("inf")
        try:
            self._runs.write(self.record, durable=durable)
        except (FileNotFoundError, NotADirectoryError):
            raise FolderGone from None
        except OSError as error:
            if durable:
                raise
            self._next_save = time.monotonic() + _RETRY_SECONDS
            self._interrupt.report("cannot write its record", error.strerror)

    def show(self, **changes: Any) -> None:
        """Set fields and write them now, if the run folder is still there."""
        self.change(**changes)
        with contextlib.suppress(FolderGone):
            self.save()

    def beat(self, seen: Transcript) -> None:
        """In each round: the heartbeat and the transcript's facts. Raises FolderGone."""
        now = time.monotonic()
        self.change(thread_id=seen.thread_id, usage=seen.usage, activity=seen.activity)
        if now >= self._next_beat:
            self._next_beat = now + self._heartbeat
            self.change(heartbeat_at=self._now())
            self._next_save = now
        if now >= self._next_save:
            self.save()

    def abort_asked(self) -> bool:
        """Whether the job has an ABORT marker; its time is in the record then.

        Raises FolderGone.
        """
        mark = self._runs.abort_mark(self.record.job_id)
        if mark is None:
            if not self.run.exists():
                raise FolderGone
            return False
        self.change(abort_requested_at=mark.asked_at)
        return True

    def finish(self, verdict: Verdict, exit_code: int | None, seen: Transcript) -> None:
        """Write the terminal record durably, however long the disk is full.

        The last message goes first, where the agent left none. Raises Left.
        """
        self.change(thread_id=seen.thread_id, usage=seen.usage)
        self.record = job.advance(
            self.record,
            verdict.state,
            self._now(),
            reason=verdict.reason,
            error=verdict.error,
            exit_code=exit_code,
            activity=None,
            phase=None,
            heartbeat_at=self._now(),
        )
        while not self._finished(seen.message):
            pass
        reason = ": ".join(filter(None, (verdict.reason, verdict.error)))
        self._journal.info(f"job {self.record.job_id}: {verdict.state.value} ({reason})")

    def _finished(self, message: str | None) -> bool:
        """Whether the end is written, or never can be; waits where another try may help."""
        try:
            self._keep_message(message)
            self.save(durable=True)
        except (FolderGone, FileNotFoundError, NotADirectoryError):
            return True
        except OSError as error:
            if error.errno in files.TRANSIENT:
                self._interrupt.wait_to_retry("cannot record its end", error.strerror)
                return False
            why = f"its end could not be recorded ({error})"  # a folder in the file's place
            self._journal.error(f"job {self.record.job_id}: {why}")
        return True

    def _keep_message(self, message: str | None) -> None:
        path = self.run / "last-message.md"
        if message and not (path.exists() and path.stat().st_size):
            files.write(path, message.encode("utf-8", "replace"))

    def _now(self) -> str:
        return job.stamp(self._clock())
