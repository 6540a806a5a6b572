"""The watcher: one thread that looks into the inbox and starts jobs while slots are free.

Owns the loop: when to look, what a wake leads to, which drops have settled, which job is claimed
next, and the lock by which a runs root has one watcher. What a file and its record mean is decided
in `queue`; running jobs belong to `slots`. It never waits for an agent, or for anything that
belongs to a running job. One file or job that cannot be handled is noted and holds up no other.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import Empty, SimpleQueue

from pv_lib.inbox.intake import Intake
from pv_lib.inbox.prompt import Prompt
from pv_lib.jobs.index import Index
from pv_lib.runner.runner import Services
from pv_lib.system import space
from pv_lib.system.journal import Notes
from pv_lib.system.notify import ALIVE_SECONDS
from pv_lib.watcher import leftovers
from pv_lib.watcher.lock import WatcherLock
from pv_lib.watcher.queue import Queue, Waiting
from pv_lib.watcher.slots import Slots

_SETTLE_INTERVALS = 1.5  # poll intervals for which a dropped file must not change
_MOST_CLOSED = 20  # unreadable folders that the notes name
_SEARCH_SECONDS = 60.0  # between two comparisons of every created record with the queue


class Watcher:
    """The watcher of one runs root, from `acquire` on.

    `alive` is called at least every ALIVE_SECONDS as long as the loop makes progress.
    """

    def __init__(
        self, services: Services, intake: Intake, index: Index, alive: Callable[[], None]
    ) -> None:
        self._services = services
        self._config = services.config
        self._inbox = services.inbox
        self._index = index
        self._wakes: SimpleQueue[Path | str | None] = SimpleQueue()
        self._slots = Slots(services, self.wake)
        self._queue = Queue(services, intake, index, self._slots)
        self._notes = Notes(services.journal, services.runs.watcher_notes)
        self._hurried = False  # whether the last poll had no time for every settled drop
        self._next_search = 0.0  # when to look for created records without a file
        self._lock = WatcherLock(services.runs, services.clock, alive)

    def acquire(self) -> None:
        """Become the one watcher of this runs root. Raises WatcherHeld naming the holder."""
        self._lock.acquire()

    def wake(self, hint: Path | str | None = None) -> None:
        """Look now: at an inbox file, for a job's ABORT, or (None) for a free slot. Any thread."""
        self._wakes.put(hint)

    def stop(self) -> None:
        """Claim nothing more and leave every running job; their agents go on. Any thread."""
        self._slots.stop()

    def abort_running(self) -> list[str]:
        """Start nothing more and ask every running job to end; their ids. Any thread."""
        return self._slots.abort_all()

    def idle(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the last running job to end; whether it has."""
        return self._slots.idle(timeout)

    def run(self) -> None:
        """The thread: recover, then poll and dispatch until `stop`."""
        recovered = False
        next_poll = 0.0
        while not self._slots.is_stopping():
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
                next_poll = time.monotonic() + self._config.poll_interval_seconds
            self._notes.publish()
            self._await_wake(min(next_poll, time.monotonic() + ALIVE_SECONDS / 2))

    def _pause(self) -> float:
        """Seconds until the next poll."""
        interval = self._config.poll_interval_seconds
        return 0 if self._hurried else interval / (4 if self._inbox.unsettled else 1)

    def _recover(self) -> None:
        """Take over what an earlier server left: running jobs first, so that their logs go on.

        Nothing is dispatched before the end of this: a plain folder with a living agent must not
        get a second job. Claimed files come before the leftovers, which would remove the work tree
        of a job that has no run folder.
        """
        while not self._index.is_complete(ALIVE_SECONDS / 2):
            self._lock.beat()
            if self._slots.is_stopping():
                return
        prompts = self._inbox.scan()
        self._queue.recover(prompts)
        self._reconcile(prompt for prompt in prompts if prompt.claimed)
        with contextlib.suppress(RuntimeError):  # no thread to spare: the next start clears up
            clear = functools.partial(leftovers.clear, self._services, self._slots.is_active)
            threading.Thread(target=clear, name="clear", daemon=True).start()

    def _await_wake(self, until: float) -> None:
        """Wait for a wake until the time of the next poll, and serve all there are."""
        with contextlib.suppress(Empty):
            hint = self._wakes.get(timeout=max(0.0, until - time.monotonic()))
            while True:
                if isinstance(hint, Path):
                    self._look_at(hint)
                elif hint is not None:
                    self._heed_abort(hint)
                hint = self._wakes.get_nowait()

    def _look_at(self, path: Path) -> None:
        """A wake for an inbox file: queue its job at once; a drop waits for the next poll."""
        prompt = self._inbox.look_at(path)
        if prompt is None:  # removed already: its record is left for the search
            self._next_search = 0.0
        elif not prompt.claimed:
            self._try(self._queue.reconcile, prompt)

    def _heed_abort(self, job_id: str) -> None:
        """A wake for a job: one that waits is ended here, a running one by its runner."""
        waiting = self._queue.get(job_id)
        if waiting:
            self._try_job(self._queue.heed_abort, waiting)
        else:
            self._slots.wake(job_id)

    def _poll(self) -> None:
        """Look at the whole inbox, and at each waiting job's ABORT."""
        self._notes.clear()
        self._lock.keep()
        began = time.monotonic()
        prompts = self._inbox.scan(thorough=self._queue.has_missing)
        for folder in self._inbox.closed()[:_MOST_CLOSED]:
            self._notes.add(f"{folder} cannot be read: what is in it is not seen")
        self._take_settled(self._reconcile(prompts), began)
        if not self._hurried and time.monotonic() >= self._next_search:
            self._next_search = time.monotonic() + _SEARCH_SECONDS
            self._queue.search()
        for waiting in self._queue.withdrawn({prompt.path for prompt in prompts}):
            self._try_job(self._queue.withdraw, waiting)
        for waiting in self._queue.ordered():
            self._try_job(self._queue.heed_abort, waiting)

    def _reconcile(self, prompts: Iterable[Prompt]) -> list[Prompt]:
        """Reconcile every file with its record; the drops among them.

        Claimed files come first: a copy of one, with the queued name, is then known as a copy.
        """
        drops = []
        for prompt in sorted(prompts, key=lambda p: not p.claimed):
            self._lock.beat()
            if self._try(self._queue.reconcile, prompt):
                drops.append(prompt)
        return drops

    def _take_settled(self, drops: list[Prompt], began: float) -> None:
        """Make jobs of them until the poll has lasted an interval; the next one goes on."""
        interval = self._config.poll_interval_seconds
        clock = (time.monotonic(), self._services.clock())
        end = max(began + interval, clock[0] + interval / 2)
        self._hurried = taken = False
        for prompt in self._inbox.settled(drops, *clock, _SETTLE_INTERVALS * interval):
            taken = self._try(self._queue.take, prompt) or taken
            if time.monotonic() >= end:
                self._hurried = taken  # where none can be moved, hurry would change nothing
                return

    def _try(self, step: Callable[[Prompt], bool], prompt: Prompt) -> bool:
        """What the step says of a file; False where it failed."""
        try:
            return step(prompt)
        except FileNotFoundError:
            pass  # removed or moved since the scan
        except OSError as error:
            self._notes.add(f"{prompt.path} cannot be taken: {error.strerror}")
        return False

    def _try_job(self, step: Callable[[Waiting], None], waiting: Waiting) -> None:
        self._lock.beat()  # thousands may be withdrawn at once
        try:
            step(waiting)
        except FileNotFoundError:
            return  # removed or moved just now: the next poll finds out
        except OSError as error:
            self._notes.add(f"job {waiting.record.job_id} must wait: {error}")

    def _dispatch(self) -> None:
        """Claim and start jobs in the queue's order while a slot is free and the disks have room.

        A job whose plain folder is in use waits, and so do all behind it for the same folder.
        """
        if not self._queue or self._slots.is_full() or not self._has_room():
            return
        passed: set[str] = set()  # the plain folders that a job waits for
        exclusive = functools.cache(self._services.repos.exclusive)  # thousands may wait for one
        for job in self._queue.ordered():
            folder = exclusive(job.record.repo or "")
            if self._slots.is_full():
                return
            if folder is not None and self._slots.is_occupied(folder):
                passed.add(folder)
            if folder not in passed:
                self._try_job(self._start, job)

    def _start(self, waiting: Waiting) -> None:
        self._slots.start(waiting.record, self._queue.claim(waiting))

    def _has_room(self) -> bool:
        """Whether the disks of runs and work trees are above the floor; notes one that is not."""
        limit = self._config.min_free_bytes
        for root in (self._services.runs.root, self._services.workspace.root):
            if space.is_low(root, limit):
                self._notes.add(f"no job starts: {root} is below PV_MIN_FREE_BYTES={limit}")
                return False
        return True
