"""The queue: the jobs that wait for a slot, and the files and records they are made of.

Owns the table that reconciles a file of the inbox with its record (`reconcile`), and the ends of a
job that waits: an abort, and a file that was removed. It is the one writer of records that are
still `created`. Only the watcher's thread uses it, so it has no lock. When to look, and what one
failure must not hold up, is the watcher's part: every method raises OSError.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pv_lib.agent.launcher import Trace
from pv_lib.errors import BadRecord
from pv_lib.inbox.intake import Intake
from pv_lib.inbox.prompt import Prompt
from pv_lib.jobs import job
from pv_lib.jobs.index import Index
from pv_lib.jobs.job import Record, State
from pv_lib.runner.runner import Services
from pv_lib.watcher.slots import Slots


@dataclass(frozen=True)
class Waiting:
    """A job in the queue, and where its prompt is: queued, or claimed before a crash."""

    record: Record
    path: Path


class Queue:
    """The waiting jobs of one runs root. Jobs whose agent was started before go to `slots`."""

    def __init__(self, services: Services, intake: Intake, index: Index, slots: Slots) -> None:
        self._services = services
        self._runs = services.runs
        self._inbox = services.inbox
        self._intake = intake
        self._index = index
        self._slots = slots
        self._waiting: dict[str, Waiting] = {}
        self._missing: set[str] = set()  # jobs whose file the last scan did not find

    def get(self, job_id: str) -> Waiting | None:
        """The waiting job with this id."""
        return self._waiting.get(job_id)

    def __len__(self) -> int:
        return len(self._waiting)

    def ordered(self) -> list[Waiting]:
        """The waiting jobs, the next to start first."""
        return sorted(self._waiting.values(), key=lambda w: job.queue_order(w.record))

    @property
    def has_missing(self) -> bool:
        """Whether the last scan missed a file: it may have been moved."""
        return bool(self._missing)

    def take(self, prompt: Prompt) -> bool:
        """Make a job of a dropped file and queue it. True, for it was done."""
        self._enqueue(*self._intake.take(prompt))
        return True

    def claim(self, waiting: Waiting) -> Path:
        """Take a job out of the queue to start it; where its claimed file is.

        Raises FileNotFoundError when its file was removed just now.
        """
        record = waiting.record
        path = self._inbox.claim(waiting.path)
        del self._waiting[record.job_id]
        if not self._runs.record_path(record.job_id).exists():
            self._runs.create(record)  # somebody deleted the run folder of a queued job
        return path

    def recover(self, prompts: Iterable[Prompt]) -> None:
        """Adopt or queue the jobs that an earlier server left running. `prompts` is a scan.

        They go by their records: a job whose claimed file is gone is adopted too.
        """
        found = {p.job_id: p for p in sorted(prompts, key=lambda p: p.claimed) if p.job_id}
        for record in self._index.living():
            if record.state is not State.RUNNING or self._slots.is_active(record.job_id):
                continue
            prompt = found.get(record.job_id)
            if self._services.launcher.trace(self._runs.folder(record.job_id)) is not Trace.NEVER:
                self._slots.start(record, prompt.path if prompt else None)
            else:
                path = prompt.path if prompt else self._expected_path(record)
                self._waiting[record.job_id] = Waiting(record, path)

    def reconcile(self, prompt: Prompt) -> bool:
        """Make a file of the inbox and its record agree; whether the file is a drop instead.

        A drop, a file that somebody put there, is no job's yet and left alone. `file` is what its
        name says, `record` the state in job.json, `agent` whether the job's agent was started.

        file     record        agent  what happened                      what is done
        no id                         somebody dropped it                a drop
        queued   has a runner         copy of a running job's file       a drop
        queued   waits here           found before                       nothing
        queued   waits, there         copy of a waiting job's file       a drop
        queued   waits, gone          somebody moved the file            follow it
        queued   none                 its block names no such job        a drop
        queued   none                 crash between file and record      rebuild, as below
        queued   running              copy of a running job's file       a drop
        queued   ended                put back: it ran or was withdrawn  a drop
        queued   ended                crash between record and archive   archive
        queued   created              the usual                          queue
        claimed  has a runner         the usual                          nothing
        claimed  waits                claimed before a crash             nothing
        claimed  no folder            its run folder was deleted         end the agent, archive
        claimed  none                 somebody deleted job.json          rebuild, as below
        claimed  ended                crash between record and archive   archive
        claimed  created       no     crash between claim and start      queue, claimed already
        claimed  running       no     crash while it was prepared        queue, claimed already
        claimed  created       yes    the record was rebuilt or lost     adopt
        claimed  running       yes    the server died                    adopt

        A job.json that is no record counts as none, and is replaced. Raises OSError when one of
        the two cannot be read or moved; the file is then no drop.
        """
        job_id = prompt.job_id
        if job_id is None:
            return True
        if not prompt.claimed:
            return self._reconcile_queued(prompt, job_id)
        if not self._slots.is_active(job_id) and job_id not in self._waiting:
            self._reconcile_claimed(prompt, job_id)
        return False

    def _reconcile_queued(self, prompt: Prompt, job_id: str) -> bool:
        """The rows of a queued file, from top to bottom; whether it is a drop."""
        if self._slots.is_active(job_id):
            return True
        waiting = self._waiting.get(job_id)
        if waiting:
            if waiting.path == prompt.path:
                return False
            if self._inbox.holds(waiting.path):
                return True
            self._waiting[job_id] = Waiting(self._moved(waiting.record, prompt), prompt.path)
            return False
        record, fault = self._read(job_id)
        if record is None:
            if not self._intake.carries_own_block(prompt):
                return True
            record = self._rebuild(prompt, fault, started=False)
        if record.state is State.RUNNING:
            return True
        if record.state.terminal and (record.started_at or record.reason == "withdrawn"):
            return True
        self._enqueue(self._moved(record, prompt), prompt.path)
        return False

    def _reconcile_claimed(self, prompt: Prompt, job_id: str) -> None:
        """The rows of a claimed file whose job has no runner and does not wait."""
        folder = self._runs.folder(job_id)
        if not folder.exists():  # its runner finds that out, ends the agent and archives
            self._slots.start(Record(job_id, repo=prompt.repo), prompt.path)
            return
        started = self._services.launcher.trace(folder) is not Trace.NEVER
        record, fault = self._read(job_id)
        if record is None:
            record = self._rebuild(prompt, fault, started=started)
        if record.state.terminal or not started:
            self._enqueue(self._moved(record, prompt), prompt.path)
            return
        if record.state is State.CREATED:
            record = job.advance(record, State.RUNNING, self._now())
        self._slots.start(record, prompt.path)

    def _read(self, job_id: str) -> tuple[Record | None, BadRecord | None]:
        """The job's record, else None and why its job.json is no record."""
        try:
            return self._runs.read(job_id), None
        except BadRecord as error:
            return None, error

    def _rebuild(self, prompt: Prompt, fault: BadRecord | None, *, started: bool) -> Record:
        if fault:
            self._services.journal.warn(f"{fault.detail}; making it anew from {prompt.path}")
            self._runs.record_path(prompt.job_id or "").unlink(missing_ok=True)
        return self._intake.rebuild(prompt, started=started)

    def _moved(self, record: Record, prompt: Prompt) -> Record:
        """The record by the file's folders, which a person may have changed while it waited."""
        where = (prompt.repo, prompt.branch)
        if record.state.terminal or (record.repo, record.branch) == where:
            return record
        moved = record.with_(
            **job.split_repo(prompt.repo),
            branch=prompt.branch,
            branch_name=prompt.branch,
            inbox_path=str(prompt.path),
            updated_at=self._now(),
        )
        self._runs.write(moved)
        return moved

    def _enqueue(self, record: Record, path: Path) -> None:
        if record.state.terminal:
            self._inbox.archive(path, record.state)
            self._services.journal.info(_ended_line(record))
        else:
            self._waiting[record.job_id] = Waiting(record, path)

    def search(self) -> None:
        """Add the created jobs whose file went before any scan saw it, so that they can end."""
        for record in self._index.living():
            known = record.job_id in self._waiting or self._slots.is_active(record.job_id)
            if record.state is State.CREATED and not known:
                self._waiting[record.job_id] = Waiting(record, self._expected_path(record))

    def withdrawn(self, seen: set[Path]) -> list[Waiting]:
        """The jobs whose file is gone, and was at the last call too. `seen` is what a scan found.

        A moved file may be found by the next scan only.
        """
        holds = self._inbox.holds
        gone = {k for k, w in self._waiting.items() if w.path not in seen and not holds(w.path)}
        before, self._missing = self._missing, gone
        return [self._waiting[job_id] for job_id in gone & before]

    def withdraw(self, waiting: Waiting) -> None:
        """End a job whose file is gone."""
        why = "its prompt was removed from the inbox before it was started"
        self._end(waiting.record, "withdrawn", why)

    def heed_abort(self, waiting: Waiting) -> None:
        """End a job that has an ABORT marker."""
        mark = self._runs.abort_mark(waiting.record.job_id)
        if mark is not None:
            record = waiting.record.with_(abort_requested_at=mark.asked_at)
            self._end(record, "abort_requested", None)
            self._inbox.archive(waiting.path, State.ABORTED)

    def _end(self, record: Record, reason: str, error: str | None) -> None:
        ended = job.advance(record, State.ABORTED, self._now(), reason=reason, error=error)
        with contextlib.suppress(FileNotFoundError):  # somebody deleted the run folder
            self._runs.write(ended)
        del self._waiting[record.job_id]
        self._services.journal.info(_ended_line(ended))

    def _expected_path(self, record: Record) -> Path:
        return self._inbox.place(record.inbox_path, record.job_id)

    def _now(self) -> str:
        return job.stamp(self._services.clock())


def _ended_line(record: Record) -> str:
    reason = ": ".join(filter(None, (record.reason, record.error)))
    return f"job {record.job_id}: {record.state.value} ({reason})"
