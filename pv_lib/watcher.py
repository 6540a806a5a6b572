"""The polling thread: see what is in the inbox, claim when a slot is free, give each job a runner.

It never waits for git, an agent or a fsync that belongs to a job; those have the runner's thread.
It is the one writer of records that are still `created`. One watcher per runs root, by a held
lock. Whatever a crash left behind is met again here: see `_meet`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pv_lib import job, process
from pv_lib.errors import BadRecord, WatcherHeld
from pv_lib.inbox import Prompt
from pv_lib.intake import Intake, free_bytes
from pv_lib.job import Record, State
from pv_lib.process import Trace
from pv_lib.runner import House, Runner
from pv_lib.store import Index

_SETTLE_INTERVALS = 1.5  # poll intervals a dropped file must hold still


@dataclass(frozen=True)
class _Waiting:
    """A job in the queue. `claimed`: a server died between claim and start."""

    record: Record
    path: Path
    claimed: bool


class Watcher:
    """Owns the queue of one runs root, from `acquire` on."""

    def __init__(self, house: House, intake: Intake, index: Index) -> None:
        self._house = house
        self._intake = intake
        self._index = index
        self._wakes: queue.SimpleQueue[Path | str | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._waiting: dict[str, _Waiting] = {}
        self._missing: set[str] = set()  # queued jobs whose file the last scan did not find
        self._complaints: set[str] = set()  # what has been said once
        self._active: dict[str, Runner] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._busy: dict[str, str] = {}  # checkout -> the job in it
        self._changed = threading.Condition()  # guards the three above; told when a job ends
        self._lock_fd = -1

    def acquire(self) -> None:
        """Become the one watcher of this runs root. Raises WatcherHeld naming the holder."""
        path = self._house.runs.watcher_lock
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 200).decode("utf-8", "replace").strip() or "an unknown process"
            os.close(fd)
            why = f"another watcher owns {self._house.runs.root} ({holder}): stop it first"
            raise WatcherHeld(why) from None
        os.ftruncate(fd, 0)
        now = job.stamp(self._house.clock())
        os.write(fd, f"pid {os.getpid()} since {now}\n".encode())
        self._lock_fd = fd

    def wake(self, hint: Path | str | None = None) -> None:
        """Look now: at this inbox file, at this job's ABORT, or (None) whether a slot is free."""
        self._wakes.put(hint)

    def run(self) -> None:
        """The thread: adopt, then poll until `stop`."""
        self._recover()
        next_poll = 0.0
        while not self._stop.is_set():
            try:
                if time.monotonic() >= next_poll:
                    self._poll()
                    interval = self._house.config.poll_interval_seconds
                    next_poll = time.monotonic() + interval / (4 if self._unsettled else 1)
                self._dispatch()
                self._await_wake(next_poll)
            except OSError as error:
                self._house.journal.error(f"watcher: {error}; trying again")
                self._stop.wait(self._house.config.poll_interval_seconds)

    def stop(self) -> None:
        """Claim nothing more and let go of every job; their agents go on."""
        self._stop.set()
        self.wake()
        with self._changed:
            runners = list(self._active.values())
            threads = list(self._threads.values())
        for runner in runners:
            runner.leave()
        for thread in threads:
            thread.join(timeout=1)

    def abort_running(self) -> list[str]:
        """Ask every running job to end, and claim nothing more; their ids."""
        self._stop.set()
        self.wake()
        with self._changed:
            ids = sorted(self._active)
        for job_id in ids:
            with contextlib.suppress(OSError):
                self._house.runs.mark_abort(job_id, State.RUNNING, self._house.clock())
        return ids

    def idle(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the last running job to end; whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._active, timeout)

    @property
    def _unsettled(self) -> bool:
        return self._house.inbox.unsettled

    def _recover(self) -> None:
        """What an earlier server left: running jobs first, so that their logs go on at once."""
        try:
            prompts = {p.job_id: p for p in self._house.inbox.scan() if p.job_id}
            for record in self._index.live():
                if record.state is not State.RUNNING:
                    continue
                prompt = prompts.get(record.job_id)
                path = prompt.path if prompt else None
                if process.trace(self._house.runs.folder(record.job_id)) is not Trace.NEVER:
                    self._start(record, path)
                elif path is not None:
                    self._waiting[record.job_id] = _Waiting(record, path, claimed=True)
                else:
                    self._start(record, None)
            for prompt in prompts.values():
                if prompt.claimed and prompt.job_id not in self._active:
                    self._try(self._meet, prompt)
        except OSError as error:
            self._house.journal.error(f"watcher: recovery is incomplete: {error}")

    def _await_wake(self, until: float) -> None:
        """Sleep until the next poll, or act on what woke us."""
        with contextlib.suppress(queue.Empty):
            hint = self._wakes.get(timeout=max(0.0, until - time.monotonic()))
            while True:
                if isinstance(hint, Path):
                    prompt = self._house.inbox.look_at(hint)
                    if prompt and prompt.job_id and not prompt.claimed:
                        self._try(self._meet, prompt)
                elif hint is not None and hint in self._waiting:
                    self._heed_abort(self._waiting[hint])
                hint = self._wakes.get_nowait()

    def _poll(self) -> None:
        os.utime(self._lock_fd)
        prompts = self._house.inbox.scan()
        seen = {prompt.job_id for prompt in prompts if prompt.job_id}
        for prompt in prompts:
            if prompt.job_id and not prompt.claimed:
                self._try(self._meet, prompt)
        still = _SETTLE_INTERVALS * self._house.config.poll_interval_seconds
        drops = (prompt for prompt in prompts if prompt.job_id is None)
        clock = (time.monotonic(), self._house.clock())
        for prompt in self._house.inbox.settled(drops, *clock, still):
            self._try(self._take, prompt)
        self._miss(seen)
        for waiting in list(self._waiting.values()):
            self._heed_abort(waiting)

    def _try(self, step: Callable[[Prompt], None], prompt: Prompt) -> None:
        """One file that cannot be read or moved must not hold up the others."""
        try:
            step(prompt)
        except FileNotFoundError:
            return  # gone between the scan and now
        except OSError as error:
            self._complain(f"{prompt.path} cannot be taken: {error.strerror}")

    def _take(self, prompt: Prompt) -> None:
        record, path = self._intake.take(prompt)
        self._enqueue(record, path, claimed=False)

    def _meet(self, prompt: Prompt) -> None:
        """A file that carries an id: queue it, or clear up what a crash left of it.

        record      file      what happened                          what is done
        none        queued    crash between drop and record          rebuild, queue
        none        claimed   its run folder was deleted             ends failed, `lost`
        created     queued    the usual                              queue
        created     claimed   crash between claim and start          queue, claimed already
        running     claimed   as above, or the agent lives           met by _recover
        any live    queued    a copy of a live job's file            a job of its own
        withdrawn   queued    a person put the file back             a job of its own
        terminal    any       crash between record and archive       archive
        """
        job_id = prompt.job_id or ""
        known = self._waiting.get(job_id)
        if known and (known.path == prompt.path or not known.path.exists()):
            self._waiting[job_id] = replace(known, path=prompt.path)
            return
        if known or job_id in self._active:
            self._take(prompt)
            return
        record = self._record_of(prompt)
        if record.state.terminal and record.reason != "withdrawn":
            self._put_away(prompt.path, record)
        elif record.state is State.CREATED:
            self._enqueue(record, prompt.path, claimed=prompt.claimed)
        elif not prompt.claimed:
            self._take(prompt)

    def _record_of(self, prompt: Prompt) -> Record:
        job_id = prompt.job_id or ""
        try:
            record = self._house.runs.read(job_id)
        except BadRecord as error:
            self._house.journal.warn(f"{error.detail}; making it anew from {prompt.path}")
            self._house.runs.record_path(job_id).unlink(missing_ok=True)
            record = None
        if record is not None:
            return record
        folder = self._house.runs.folder(job_id)
        if prompt.claimed and (not folder.exists() or process.trace(folder) is not Trace.NEVER):
            return self._lost(prompt)
        return self._intake.rebuild(prompt)

    def _lost(self, prompt: Prompt) -> Record:
        record = self._intake.rebuild(prompt)
        if not record.state.terminal:
            why = "its run folder was deleted while it ran: nobody can tell how it ended"
            now = job.stamp(self._house.clock())
            record = job.advance(record, State.FAILED, now, reason="lost", error=why)
            self._house.runs.write(record)
        return record

    def _enqueue(self, record: Record, path: Path, *, claimed: bool) -> None:
        if record.state.terminal:
            self._put_away(path, record)
            return
        self._waiting[record.job_id] = _Waiting(record, path, claimed)

    def _put_away(self, path: Path, record: Record) -> None:
        reason = ": ".join(filter(None, (record.reason, record.error)))
        self._house.journal.info(f"job {record.job_id}: {record.state.value} ({reason})")
        with contextlib.suppress(FileNotFoundError):
            self._house.inbox.archive(path, record.state)

    def _miss(self, seen: set[str]) -> None:
        """A queued file that two polls in a row did not find was withdrawn."""
        gone = {i for i, w in self._waiting.items() if i not in seen and not w.path.exists()}
        for job_id in gone & self._missing:
            waiting = self._waiting.pop(job_id)
            why = "its prompt was removed from the inbox before it was started"
            self._end(waiting.record, "withdrawn", why)
        self._missing = gone

    def _heed_abort(self, waiting: _Waiting) -> None:
        record = waiting.record
        mark = self._house.runs.abort_mark(record.job_id)
        if mark is None:
            return
        del self._waiting[record.job_id]
        self._end(record.with_(abort_requested_at=mark.asked_at), "abort_requested", None)
        with contextlib.suppress(FileNotFoundError):
            self._house.inbox.archive(waiting.path, State.ABORTED)

    def _end(self, record: Record, reason: str, error: str | None) -> None:
        now = job.stamp(self._house.clock())
        ended = job.advance(record, State.ABORTED, now, reason=reason, error=error)
        with contextlib.suppress(FileNotFoundError):  # the run folder was deleted: so be it
            self._house.runs.write(ended)
        self._house.journal.info(f"job {record.job_id}: aborted ({reason})")

    def _dispatch(self) -> None:
        """Claim and start what may start: slots, one job per checkout, room on the disk."""
        if self._stop.is_set() or not self._waiting or not self._has_room():
            return
        for waiting in sorted(self._waiting.values(), key=lambda w: job.queue_order(w.record)):
            with self._changed:
                if len(self._active) >= self._house.config.max_running:
                    return
                if self._house.repos.checkout_key(waiting.record.repo or "") in self._busy:
                    continue
            path = waiting.path
            if not waiting.claimed:
                try:
                    path = self._house.inbox.claim(path)
                except FileNotFoundError:  # withdrawn or moved just now: the next poll tells
                    continue
            del self._waiting[waiting.record.job_id]
            self._start(waiting.record, path)

    def _start(self, record: Record, path: Path | None) -> None:
        runner = Runner(self._house, record, path)
        checkout = self._house.repos.checkout_key(record.repo or "")
        name = f"job-{record.job_id[-8:]}"
        thread = threading.Thread(
            target=self._see_through, args=(record.job_id, runner), name=name, daemon=True
        )
        with self._changed:
            self._active[record.job_id] = runner
            self._threads[record.job_id] = thread
            self._busy[checkout] = record.job_id
        thread.start()

    def _see_through(self, job_id: str, runner: Runner) -> None:
        try:
            runner.run()
        finally:
            with self._changed:
                del self._active[job_id], self._threads[job_id]
                self._busy = {k: v for k, v in self._busy.items() if v != job_id}
                self._changed.notify_all()
            self.wake()

    def _has_room(self) -> bool:
        limit = self._house.config.min_free_bytes
        free = free_bytes(self._house.runs.root)
        what = f"no job starts: {self._house.runs.root} is below PV_MIN_FREE_BYTES={limit}"
        if free < limit:
            self._complain(what)
            return False
        self._complaints.discard(what)
        return True

    def _complain(self, text: str) -> None:
        """Say it once, not at every poll."""
        if text not in self._complaints:
            self._complaints.add(text)
            self._house.journal.error(text)
