"""The index: an in-memory cache over the runs folder, so that a query costs what it returns.

It is never the truth. Writers of this process report each record to `note_write`; what other
processes write or delete is found by `look`, four times a second. No lock is held while the disk is
read. What is known is in the `catalogue`. Nothing here decides what becomes of a job, or writes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from pv_lib.errors import BadRecord, Busy, ValetError
from pv_lib.jobs import job
from pv_lib.jobs.catalogue import Catalogue, Change, Entry, keys
from pv_lib.jobs.job import JOB_ID, Facets, Record
from pv_lib.jobs.store import RECORD_LIMIT, Runs
from pv_lib.system import files

_LOOK_SECONDS = 0.25
_REST = 20  # the pause between two looks, as a multiple of the time that the last look took
_LONGEST_REST = 1.5  # seconds
_COMPLETE_SECONDS = 10.0  # how long a query waits for the end of the first look
_BATCH = 1024  # records of the first look that are added at once


class Index:
    """The index over one runs folder. Call `start` before the first query."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        # Milliseconds since 1970: no later server will use the same sequence numbers.
        self._catalogue = Catalogue(sequence=int(time.time() * 1000))
        self._folder_mtime = 0  # of the runs folder at the last look; only `look` uses it
        self._complete = threading.Event()  # the first look is over

    def start(self, complain: Callable[[str], None] = lambda text: None) -> None:
        """Start the thread that looks at the disk; it reports a defect to `complain`."""
        threading.Thread(target=self._run, args=(complain,), name="index", daemon=True).start()

    def note_write(self, record: Record) -> None:
        """Take in a record that this process has written."""
        self._catalogue.put_written(record)

    def get(self, job_id: str) -> Record | None:
        """The job's record; None without one. For a live job the disk is looked at."""
        return self._catalogue.recent(job_id) or self._look_at(job_id)

    def peek(self, job_id: str) -> Record | None:
        """The record as last seen; the disk is read only for what is not in memory."""
        entry = self._catalogue.entry(job_id)
        return entry.record if entry else self.get(job_id)

    def has(self, job_id: str) -> bool:
        """Whether there is such a job, whether its record can be read now or not."""
        return self._catalogue.has(job_id)

    def is_complete(self, seconds: float) -> bool:
        """Whether the first look is over; waits up to `seconds` for that."""
        return self._complete.wait(seconds)

    def living(self) -> list[Record]:
        """Every record that is not terminal, oldest first; waits for the end of the first look."""
        self._complete.wait()
        return self._catalogue.live()

    def running(self) -> list[Record]:
        """The records of the running jobs, as last seen."""
        return self._catalogue.running()

    def newest_first(self, before: str | None = None, **wanted: str | None) -> Iterator[Record]:
        """The records, newest first, from the one before the id `before` on.

        `wanted` are `state`, `repo` (owner/name, or name) and `branch`, None for any. Raises Busy
        when a filter has to wait too long for the first look.
        """
        facets = {name: value for name, value in wanted.items() if value is not None}
        if facets:
            self._await_complete()
        while ids := self._catalogue.page(before, facets):
            for job_id in reversed(ids):
                record = self.peek(job_id)
                if record and set(facets.items()) <= keys(job.facets(record)):
                    yield record
            before = ids[0]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state, with zeros."""
        return self._catalogue.counts()

    def problems(self) -> list[str]:
        """One sentence for each folder whose record cannot be read, and for an unfinished look."""
        found = self._catalogue.problems()
        if not self._complete.is_set():
            unread = self._catalogue.unread()
            found.append(f"{unread} records are still being read: the counts lack them so far")
        return found

    def positions(self) -> dict[str, int]:
        """The position in the queue of each waiting job; 1 is next."""
        return self._catalogue.positions()

    def marked(self, key: str) -> Record | None:
        """The job that was submitted with this half of an idempotency mark."""
        self._await_complete()
        job_id = self._catalogue.marked(key)
        return self.get(job_id) if job_id else None

    @property
    def version(self) -> int:
        """A number that is incremented with each change."""
        return self._catalogue.version

    @property
    def sequence(self) -> int:
        """The sequence number of the last change."""
        return self._catalogue.sequence

    @property
    def remembered(self) -> int:
        """How many of the last changes are remembered."""
        return self._catalogue.remembered

    def changes(self, after: int) -> list[Change] | None:
        """The changes after sequence number `after`; None if they are no longer remembered."""
        return self._catalogue.changes(after)

    def look(self) -> None:
        """Reconcile with the disk. Only one thread may look."""
        try:
            mtime = os.stat(self.runs.root).st_mtime_ns
            if mtime != self._folder_mtime:
                self._look_around()
                self._folder_mtime = mtime if files.settled(mtime, time.time_ns()) else 0
        except FileNotFoundError:  # the folder itself is gone: the status reports it
            self._folder_mtime = 0
            for job_id in self._catalogue.compare(frozenset())[0]:
                self._look_at(job_id)
        # Running jobs last: otherwise one that ended during this look would still count as running
        # together with the one that took its slot.
        running, others = self._catalogue.unsettled()
        for job_id in [*others, *running]:
            self._look_at(job_id)
        for job_id in set(self._catalogue.unsettled()[0]) - set(running):
            self._look_at(job_id)

    def _run(self, complain: Callable[[str], None]) -> None:
        last_complaint = ""
        while True:
            began = time.monotonic()
            try:
                self.look()
                self._catalogue.loading = False
                self._complete.set()
            except OSError:
                pass  # no descriptor, no permission: the next look may succeed
            except Exception as error:  # noqa: BLE001 - the top of a thread: it looks again
                text = f"the index cannot look at the runs: unexpected {error!r}"
                if text != last_complaint:
                    complain(text)
                last_complaint = text
            time.sleep(min(_LONGEST_REST, max(_LOOK_SECONDS, _REST * (time.monotonic() - began))))

    def _await_complete(self) -> None:
        if not self._complete.wait(_COMPLETE_SECONDS):
            raise Busy("the records of all jobs are still being read: try again in a second")

    def _look_around(self) -> None:
        """Find new and vanished folders."""
        gone, new = self._catalogue.compare(set(os.listdir(self.runs.root)))
        ids = sorted(filter(JOB_ID.fullmatch, new))
        for job_id in gone:  # or created after the folder was listed
            self._look_at(job_id)
        if not self._complete.is_set():
            self._first_look(ids)
            return
        for job_id in ids:
            if self._look_at(job_id) is None:
                self._catalogue.add_empty(job_id)

    def _first_look(self, ids: list[str]) -> None:
        """Read all records, newest first; `ids` are sorted. They can be listed at once."""
        self._catalogue.list_ids(ids)
        for end in range(len(ids), 0, -_BATCH):
            batch = ids[max(0, end - _BATCH) : end]
            facets = [self._glance(job_id) for job_id in batch]
            self._catalogue.add_ended(batch, facets)
            for job_id, known in zip(batch, facets, strict=True):
                if known is None and self._look_at(job_id) is None:
                    self._catalogue.add_empty(job_id)

    def _glance(self, job_id: str) -> Facets | None:
        """The facets of an ended job; None for a job whose whole record has to be read."""
        with contextlib.suppress(ValetError, OSError):
            data = files.read_regular(self.runs.file(job_id, "job.json"), RECORD_LIMIT)
            facets = job.glance(data, job_id)
            return facets if facets.state.terminal else None
        return None

    def _look_at(self, job_id: str) -> Record | None:
        """Reconcile one job with the disk, unless a writer was faster; returns its record."""
        self.runs.folder(job_id)  # raises NotFound for what cannot be an id
        before = self._catalogue.snapshot(job_id)
        path = self.runs.file(job_id, "job.json")
        try:
            info = os.lstat(path)
            signature = (info.st_ino, info.st_mtime_ns, info.st_size)
            known = before[1]
            if known and known.signature == signature:
                return known.record
            entry = Entry(signature, self.runs.read(job_id))
        except (FileNotFoundError, NotADirectoryError):
            entry = Entry(None, None)
        except BadRecord as error:
            entry = Entry(signature, None, error.detail)
        except OSError as error:  # no valid signature, so that it is read again at the next look
            last = before[1].record if before[1] else None
            entry = Entry((0, 0, 0), last, f"job {job_id}: {error}")
        return self._catalogue.update(job_id, before, entry)
