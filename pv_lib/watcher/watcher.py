"""The polling thread: see what is in the inbox, claim when a slot is free, give each job a runner.

It never waits for an agent or for what belongs to a running job; that has the runner's thread. It
is the one writer of records that are still `created`. One watcher per runs root, by a held lock.
Whatever a crash left behind is met again here: see `_recover`, `_is_ours` and `_meet`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pv_lib.agent.launcher import Trace
from pv_lib.errors import BadRecord
from pv_lib.inbox.intake import Intake
from pv_lib.inbox.prompt import Prompt
from pv_lib.jobs import job
from pv_lib.jobs.index import Index
from pv_lib.jobs.job import Record, State
from pv_lib.runner.runner import Runner, Services
from pv_lib.system import space
from pv_lib.system.journal import Notes
from pv_lib.system.notify import ALIVE_SECONDS
from pv_lib.watcher import leftovers
from pv_lib.watcher.lock import WatcherLock

_SETTLE_INTERVALS = 1.5  # poll intervals a dropped file must hold still
_MOST_CLOSED = 20  # folders that the notes name
_SEARCH_SECONDS = 60.0  # how often every live record is held against the inbox


@dataclass(frozen=True)
class _Waiting:
    """A job in the queue, and where its prompt is; claimed already where a server died then."""

    record: Record
    path: Path


class Watcher:
    """Owns the queue of one runs root, from `acquire` on.

    `alive` is called as long as it gets on with its work, at least every ALIVE_SECONDS.
    """

    def __init__(
        self, services: Services, intake: Intake, index: Index, alive: Callable[[], None]
    ) -> None:
        self._services = services
        self._intake = intake
        self._index = index
        self._wakes: queue.SimpleQueue[Path | str | None] = queue.SimpleQueue()
        self._waiting: dict[str, _Waiting] = {}
        self._missing: set[str] = set()  # queued jobs whose file the last scan did not find
        self._notes = Notes(services.journal, services.runs.watcher_notes)
        self._hurried = False  # whether the last poll had no time for every settled drop
        self._next_search = 0.0  # when to look for queued records without a file
        self._changed = threading.Condition()  # guards the four below; told when a job ends
        self._stopping = False
        self._active: dict[str, Runner] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._busy: dict[str, str] = {}  # folder without git -> the job in it
        self._lock = WatcherLock(services.runs, services.clock, alive)

    def acquire(self) -> None:
        """Become the one watcher of this runs root. Raises WatcherHeld naming the holder."""
        self._lock.acquire()

    def wake(self, hint: Path | str | None = None) -> None:
        """Look now: at this inbox file, at this job's ABORT, or (None) whether a slot is free."""
        self._wakes.put(hint)

    def run(self) -> None:
        """The thread: adopt, then poll until `stop`."""
        recovered = False
        next_poll = 0.0
        while not self._is_stopping():
            try:
                self._lock.beat()
                if not recovered:
                    self._recover()
                    recovered = True
                if time.monotonic() >= next_poll:
                    self._poll()
                    next_poll = time.monotonic() + self._pause()
                self._dispatch()
            except OSError as error:
                self._notes.add(f"the watcher cannot work: {error}")
                next_poll = time.monotonic() + self._services.config.poll_interval_seconds
            self._notes.tell()
            self._await_wake(min(next_poll, time.monotonic() + ALIVE_SECONDS / 2))

    def _pause(self) -> float:
        """Seconds until the next poll."""
        interval = self._services.config.poll_interval_seconds
        return 0 if self._hurried else interval / (4 if self._services.inbox.unsettled else 1)

    def stop(self) -> None:
        """Claim nothing more and let go of every job; their agents go on."""
        with self._changed:
            self._stopping = True
            runners = list(self._active.values())
            threads = list(self._threads.values())
        self.wake()
        for runner in runners:
            runner.leave()
        for thread in threads:
            thread.join(timeout=1)

    def abort_running(self) -> list[str]:
        """Ask every running job to end, and start nothing more; their ids."""
        with self._changed:
            self._stopping = True
            ids = sorted(self._active)
        self.wake()
        for job_id in ids:
            with contextlib.suppress(OSError):
                self._services.runs.mark_abort(job_id, State.RUNNING, self._services.clock())
        return ids

    def idle(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the last running job to end; whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._active, timeout)

    def _is_stopping(self) -> bool:
        with self._changed:
            return self._stopping

    def _is_active(self, job_id: str) -> bool:
        with self._changed:
            return job_id in self._active

    def _recover(self) -> None:
        """What an earlier server left: running jobs first, so that their logs go on at once.

        Nothing is dispatched before this is through: a folder with a living agent is busy.
        """
        while not self._index.is_complete(ALIVE_SECONDS / 2):
            self._lock.beat()
            if self._is_stopping():
                return
        scanned = self._services.inbox.scan()
        prompts = {p.job_id: p for p in sorted(scanned, key=lambda p: p.claimed) if p.job_id}
        for record in self._index.living():
            if record.state is not State.RUNNING or self._is_active(record.job_id):
                continue
            prompt = prompts.get(record.job_id)
            if (
                self._services.launcher.trace(self._services.runs.folder(record.job_id))
                is not Trace.NEVER
            ):
                self._start(record, prompt.path if prompt else None)
            else:
                path = (
                    prompt.path
                    if prompt
                    else self._services.inbox.place(record.inbox_path, record.job_id)
                )
                self._waiting[record.job_id] = _Waiting(record, path)
        self._meet_claimed(scanned)
        with contextlib.suppress(RuntimeError):  # no thread to spare: the next start clears up
            clear = functools.partial(leftovers.clear, self._services, self._is_active)
            threading.Thread(target=clear, name="clear", daemon=True).start()

    def _meet_claimed(self, prompts: list[Prompt]) -> None:
        """Claimed files that nobody is at work on: a crash, or an archive that did not succeed."""
        for prompt in prompts:
            job_id = prompt.job_id or ""
            if prompt.claimed and job_id not in self._waiting and not self._is_active(job_id):
                self._try(self._meet, prompt)

    def _await_wake(self, until: float) -> None:
        """Sleep until the next poll, or act on what woke us."""
        with contextlib.suppress(queue.Empty):
            hint = self._wakes.get(timeout=max(0.0, until - time.monotonic()))
            while True:
                if isinstance(hint, Path):
                    prompt = self._services.inbox.look_at(hint)
                    if prompt and not prompt.claimed and self._is_ours(prompt):
                        self._try(self._meet, prompt)
                    elif prompt is None:  # deleted this quickly: its record must not stay behind
                        self._next_search = 0.0
                elif hint is not None and hint in self._waiting:
                    self._try_job(self._heed_abort, self._waiting[hint])
                hint = self._wakes.get_nowait()

    def _poll(self) -> None:
        self._notes.clear()
        self._lock.keep()
        began = time.monotonic()
        scanned = self._services.inbox.scan(thorough=bool(self._missing))  # moved, perhaps
        for folder in self._services.inbox.closed()[:_MOST_CLOSED]:
            self._notes.add(f"{folder} cannot be read: what is in it is not seen")
        self._meet_claimed(scanned)
        drops: list[Prompt] = []
        for prompt in scanned:
            self._lock.beat()
            if not prompt.claimed and self._is_ours(prompt):
                self._try(self._meet, prompt)
            elif not prompt.claimed:
                drops.append(prompt)
        self._take_settled(drops, began)
        self._search()
        self._miss({prompt.path for prompt in scanned})
        for waiting in list(self._waiting.values()):
            self._try_job(self._heed_abort, waiting)

    def _take_settled(self, drops: list[Prompt], began: float) -> None:
        """Make jobs of them until the poll has lasted an interval; the next one goes on."""
        interval = self._services.config.poll_interval_seconds
        clock = (time.monotonic(), self._services.clock())
        end = max(began + interval, clock[0] + interval / 2)
        self._hurried = taken = False
        for prompt in self._services.inbox.settled(drops, *clock, _SETTLE_INTERVALS * interval):
            taken = self._try(self._take, prompt) or taken
            if time.monotonic() >= end:
                self._hurried = taken  # nothing to hurry for where none can be moved
                return

    def _try(self, step: Callable[[Prompt], None], prompt: Prompt) -> bool:
        """Whether it went well. One file that cannot be read or moved must not hold up others."""
        try:
            step(prompt)
            return True
        except FileNotFoundError:
            pass  # gone between the scan and now
        except OSError as error:
            self._notes.add(f"{prompt.path} cannot be taken: {error.strerror}")
        return False

    def _try_job(self, step: Callable[[_Waiting], None], waiting: _Waiting) -> None:
        """One job that cannot be handled must not hold up the others."""
        self._lock.beat()  # thousands may be withdrawn at once
        try:
            step(waiting)
        except FileNotFoundError:
            return  # withdrawn or moved just now: the next poll tells
        except OSError as error:
            self._notes.add(f"job {waiting.record.job_id} must wait: {error}")

    def _take(self, prompt: Prompt) -> None:
        self._enqueue(*self._intake.take(prompt))

    def _is_ours(self, prompt: Prompt) -> bool:
        """Whether an unclaimed file is a queued one; else somebody dropped it.

        Everything that only looks like ours is a drop: a copy of a live job's file, an ended
        job's file put back, a name that happens to end in 32 hex digits.
        """
        job_id = prompt.job_id
        if job_id is None or self._is_active(job_id):
            return False
        known = self._waiting.get(job_id)
        if known:
            return known.path == prompt.path or not self._services.inbox.holds(known.path)
        try:
            record = self._services.runs.read(job_id)
        except (BadRecord, OSError):
            record = None
        if record is None:
            return self._intake.carries_own_block(prompt)
        if record.state.terminal:  # a crash between record and archive, of one never started
            return record.started_at is None and record.reason != "withdrawn"
        return record.state is State.CREATED

    def _meet(self, prompt: Prompt) -> None:
        """A file of ours: queue it, or clear up what a crash left of it.

        record      file      what happened                          what is done
        none        queued    crash between file and record          rebuild, queue
        none        claimed   its run folder was deleted             end the agent, archive
        garbage     claimed   somebody else wrote into it            rebuild, adopt
        created     queued    the usual                              queue
        created     claimed   crash between claim and start          queue, claimed already
        terminal    any       crash between record and archive       archive
        """
        job_id = prompt.job_id or ""
        known = self._waiting.get(job_id)
        if known:
            if known.path != prompt.path:
                self._waiting[job_id] = _Waiting(self._moved(known.record, prompt), prompt.path)
            return
        folder = self._services.runs.folder(job_id)
        if prompt.claimed and not folder.exists():
            self._start(Record(job_id, repo=prompt.repo), prompt.path)
            return
        started = prompt.claimed and self._services.launcher.trace(folder) is not Trace.NEVER
        record = self._record_of(prompt, started)
        if started:
            if record.state is State.CREATED:
                now = job.stamp(self._services.clock())
                record = job.advance(record, State.RUNNING, now)
            if not record.state.terminal:
                self._start(record, prompt.path)
                return
        if record.state is State.CREATED:
            record = self._moved(record, prompt)  # perhaps before we saw it the first time
        self._enqueue(record, prompt.path)

    def _record_of(self, prompt: Prompt, started: bool) -> Record:
        job_id = prompt.job_id or ""
        try:
            record = self._services.runs.read(job_id)
        except BadRecord as error:
            self._services.journal.warn(f"{error.detail}; making it anew from {prompt.path}")
            self._services.runs.record_path(job_id).unlink(missing_ok=True)
            record = None
        return record or self._intake.rebuild(prompt, started=started)

    def _moved(self, record: Record, prompt: Prompt) -> Record:
        """The record of a queued file that a person moved: the folders are the truth."""
        if (record.repo, record.branch) == (prompt.repo, prompt.branch):
            return record
        where = {**job.split_repo(prompt.repo), "branch": prompt.branch}
        moved = record.with_(
            **where,
            branch_name=prompt.branch,
            inbox_path=str(prompt.path),
            updated_at=job.stamp(self._services.clock()),
        )
        self._services.runs.write(moved)
        return moved

    def _enqueue(self, record: Record, path: Path) -> None:
        if record.state.terminal:
            self._services.inbox.archive(path, record.state)
            self._services.journal.info(_ended_line(record))
        else:
            self._waiting[record.job_id] = _Waiting(record, path)

    def _search(self) -> None:
        """Now and then: queued records whose file went before anybody saw it."""
        if self._hurried or time.monotonic() < self._next_search:
            return
        self._next_search = time.monotonic() + _SEARCH_SECONDS
        for record in self._index.living():
            known = record.job_id in self._waiting or self._is_active(record.job_id)
            if record.state is State.CREATED and not known:
                self._waiting[record.job_id] = _Waiting(
                    record, self._services.inbox.place(record.inbox_path, record.job_id)
                )

    def _miss(self, seen: set[Path]) -> None:
        """A queued file that two polls in a row did not find was withdrawn."""
        holds = self._services.inbox.holds
        gone = {k for k, w in self._waiting.items() if w.path not in seen and not holds(w.path)}
        for job_id in gone & self._missing:
            self._try_job(self._withdraw, self._waiting[job_id])
        self._missing = gone

    def _withdraw(self, waiting: _Waiting) -> None:
        why = "its prompt was removed from the inbox before it was started"
        self._end(waiting.record, "withdrawn", why)

    def _heed_abort(self, waiting: _Waiting) -> None:
        mark = self._services.runs.abort_mark(waiting.record.job_id)
        if mark is not None:
            record = waiting.record.with_(abort_requested_at=mark.asked_at)
            self._end(record, "abort_requested", None)
            self._services.inbox.archive(waiting.path, State.ABORTED)

    def _end(self, record: Record, reason: str, error: str | None) -> None:
        now = job.stamp(self._services.clock())
        ended = job.advance(record, State.ABORTED, now, reason=reason, error=error)
        with contextlib.suppress(FileNotFoundError):  # the run folder was deleted: so be it
            self._services.runs.write(ended)
        del self._waiting[record.job_id]
        self._services.journal.info(_ended_line(ended))

    def _dispatch(self) -> None:
        """Claim and start what may start: slots, room on the disk, one job in a plain folder."""
        if not self._waiting or self._is_full() or not self._has_room():
            return
        passed: set[str] = set()  # folders a job must wait for; none behind it may overtake
        exclusive = functools.cache(self._services.repos.exclusive)  # thousands may wait for one
        for waiting in sorted(self._waiting.values(), key=lambda w: job.queue_order(w.record)):
            folder = exclusive(waiting.record.repo or "")
            if self._is_full():
                return
            with self._changed:
                if folder is not None and folder in self._busy:
                    passed.add(folder)
            if folder not in passed:
                self._try_job(self._claim, waiting)

    def _is_full(self) -> bool:
        with self._changed:
            return self._stopping or len(self._active) >= self._services.config.max_running

    def _claim(self, waiting: _Waiting) -> None:
        record = waiting.record
        path = self._services.inbox.claim(waiting.path)
        del self._waiting[record.job_id]
        if not self._services.runs.record_path(record.job_id).exists():
            self._services.runs.create(record)  # somebody deleted the run folder of a queued job
        self._start(record, path)

    def _start(self, record: Record, path: Path | None) -> None:
        runner = Runner(self._services, record, path)
        folder = self._services.repos.exclusive(record.repo or "")
        name = f"job-{record.job_id[-8:]}"
        thread = threading.Thread(
            target=self._see_through, args=(record.job_id, runner), name=name, daemon=True
        )
        with self._changed:
            if self._stopping:
                return  # claimed and not started: the next server starts it
            self._active[record.job_id] = runner
            self._threads[record.job_id] = thread
            if folder is not None:
                self._busy[folder] = record.job_id
        try:
            thread.start()
        except RuntimeError as error:  # the next poll meets its claimed file
            self._let_go(record.job_id)
            raise OSError(errno.EAGAIN, "the system allows no further thread") from error

    def _see_through(self, job_id: str, runner: Runner) -> None:
        try:
            runner.run()
        finally:
            self._let_go(job_id)
            self.wake()

    def _let_go(self, job_id: str) -> None:
        with self._changed:
            del self._active[job_id], self._threads[job_id]
            self._busy = {k: v for k, v in self._busy.items() if v != job_id}
            self._changed.notify_all()

    def _has_room(self) -> bool:
        limit = self._services.config.min_free_bytes
        for root in (self._services.runs.root, self._services.workspace.root):
            if space.free_bytes(root) < limit:
                self._notes.add(f"no job starts: {root} is below PV_MIN_FREE_BYTES={limit}")
                return False
        return True


def _ended_line(record: Record) -> str:
    reason = ": ".join(filter(None, (record.reason, record.error)))
    return f"job {record.job_id}: {record.state.value} ({reason})"
