"""The catalogue: what is known of every job, in memory, with an index for each facet.

It answers which ids match, how many jobs are in each state, where a job stands in the queue and
what changed last. Of an ended job it holds the facets (some hundred bytes), of a live one the
record. It is pure: no disk, no thread; `index` fills it.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Set
from dataclasses import dataclass

from pv_lib.jobs import job
from pv_lib.jobs.cache import FifoCache
from pv_lib.jobs.job import Facets, Record, State

CHANGES = 1024  # how many of the last changes are remembered
_PAGE = 256  # ids taken from a list at once
_RECENT = 2048  # records of ended jobs that are cached
_UNKNOWN = "unknown"
Signature = tuple[int, int, int]
Change = tuple[str, Record | None]  # the id, and the record; None: the job is gone


@dataclass(frozen=True, slots=True)
class Entry:
    """A job's record as last seen; if there is none, `problem` says why it cannot be read.

    `signature` is that of its job.json (inode, mtime in ns, size). It is None after a write by this
    process, until the file is looked at.
    """

    signature: Signature | None
    record: Record | None
    problem: str | None = None


class Catalogue:
    """All jobs of one runs folder. Safe to use from any thread.

    `sequence` is the number of the last change; start it above every number used before.
    """

    def __init__(self, sequence: int) -> None:
        # Guards every field below. Single dict look-ups are atomic and go without it.
        self._lock = threading.Lock()
        self.version = 0  # incremented with each change
        self.sequence = sequence
        self.loading = True  # until the first look is over; what it finds is no change
        self._facets: dict[str, Facets | None] = {}  # of every job; None: its record is unreadable
        self._live: dict[str, Entry] = {}  # the jobs that are not terminal, or unreadable
        self._empty: set[str] = set()  # folders that have no record yet
        self._sorted: dict[tuple[str, str] | None, list[str]] = {None: []}  # ids, oldest first
        self._shared: dict[Facets, Facets] = {}  # one object for all jobs with equal facets
        self._marked: dict[str, str] = {}  # the key half of an idempotency mark -> job id
        self._counts = {state.value: 0 for state in State}
        self._changes: deque[Change] = deque(maxlen=CHANGES)
        self._positions: dict[str, int] | None = {}  # in the queue; None: to be computed again
        self._recent: FifoCache[str, Record] = FifoCache(_RECENT)

    def entry(self, job_id: str) -> Entry | None:
        """The entry of a live or unreadable job."""
        return self._live.get(job_id)

    def recent(self, job_id: str) -> Record | None:
        """The record of an ended job, if it is cached."""
        return self._recent.get(job_id)

    def has(self, job_id: str) -> bool:
        """Whether there is such a job, readable or not."""
        return job_id in self._facets

    def live(self) -> list[Record]:
        """Every record that is not terminal, oldest first."""
        with self._lock:
            found = [entry.record for _, entry in sorted(self._live.items())]
        return [record for record in found if record]

    def running(self) -> list[Record]:
        """The records of the running jobs."""
        with self._lock:
            return self._records(State.RUNNING)

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state, with zeros."""
        with self._lock:
            return dict(self._counts)

    def problems(self) -> list[str]:
        """One sentence for each folder whose record cannot be read."""
        with self._lock:
            return [entry.problem for _, entry in sorted(self._live.items()) if entry.problem]

    def unread(self) -> int:
        """How many ids are listed but have not been read yet."""
        with self._lock:
            return len(self._sorted[None]) - len(self._facets)

    def positions(self) -> dict[str, int]:
        """The position in the queue of each waiting job; 1 is next."""
        with self._lock:
            if self._positions is None:
                waiting = sorted(self._records(State.CREATED), key=job.queue_order)
                self._positions = {record.job_id: n for n, record in enumerate(waiting, 1)}
            return self._positions

    def marked(self, key: str) -> str | None:
        """The id of the job that was submitted with this half of an idempotency mark."""
        return self._marked.get(key)

    @property
    def remembered(self) -> int:
        """How many of the last changes are remembered."""
        return len(self._changes)

    def changes(self, after: int) -> list[Change] | None:
        """The changes after sequence number `after`; None if they are no longer remembered."""
        with self._lock:
            behind = self.sequence - after
            if not 0 <= behind <= len(self._changes):
                return None
            return list(self._changes)[len(self._changes) - behind :]

    def page(self, before: str | None, wanted: dict[str, str]) -> list[str]:
        """The newest ids that match, oldest first: at least one if there is one."""
        with self._lock:
            lists = [self._ids(name, value) for name, value in wanted.items()]
            ids = min(lists, key=len) if lists else self._sorted[None]
            end = len(ids) if before is None else bisect.bisect_left(ids, before)
            found: list[str] = []
            while end and not found:
                start = max(0, end - _PAGE)
                found, end = ids[start:end], start
                if len(lists) > 1:
                    found = [i for i in found if set(wanted.items()) <= keys(self._facets.get(i))]
            return found

    def unsettled(self) -> tuple[list[str], list[str]]:
        """The ids whose files can change: the running ones, and all others."""
        with self._lock:
            running = list(self._ids("state", State.RUNNING.value))
            return running, [*(self._live.keys() - set(running)), *self._empty]

    def compare(self, folders: Set[str]) -> tuple[Set[str], Set[str]]:
        """The jobs that are not among the `folders`, and the folders that are not known."""
        with self._lock:
            self._empty &= folders
            return self._facets.keys() - folders, folders - self._facets.keys() - self._empty

    def snapshot(self, job_id: str) -> tuple[Facets | str | None, Entry | None]:
        """All that is known of a job, for `update` to compare with."""
        return self._facets.get(job_id, _UNKNOWN), self._live.get(job_id)

    def list_ids(self, ids: list[str]) -> None:
        """List jobs that are still to be read."""
        with self._lock:
            self._sorted[None] = sorted({*ids, *self._sorted[None]})

    def add_ended(self, ids: list[str], facets: list[Facets | None]) -> None:
        """Add many ended jobs, sorted by id. Those that a writer has added since are left alone."""
        lists: dict[tuple[str, str], list[str]] = {}
        with self._lock:
            for job_id, known in zip(ids, facets, strict=True):
                if known is not None and job_id not in self._facets:
                    self._facets[job_id] = self._share(known, job_id)
                    self._counts[known.state.value] += 1
                    for key in keys(known):
                        lists.setdefault(key, []).append(job_id)
            for key, more in lists.items():
                there = self._sorted.setdefault(key, [])
                there[:0] = more
                if len(there) > len(more) and there[len(more)] < more[-1]:
                    there.sort()
            self.version += 1

    def add_empty(self, job_id: str) -> None:
        """Remember a folder without a record, unless it has got one."""
        with self._lock:
            if job_id not in self._facets:
                self._empty.add(job_id)
                _remove(self._sorted[None], job_id)

    def put_written(self, record: Record) -> None:
        """Add or replace a record that this process has written."""
        with self._lock:
            self._put(record.job_id, Entry(None, record), written=True)

    def update(
        self, job_id: str, before: tuple[Facets | str | None, Entry | None], seen: Entry
    ) -> Record | None:
        """Add, replace or remove a job as `seen` on the disk; the record that holds now.

        If the job has changed since its snapshot `before`, the newer state is left as it is.
        """
        with self._lock:
            if self.snapshot(job_id) != before:
                entry = self._live.get(job_id)
                return entry.record if entry else self._recent.get(job_id) or seen.record
            if seen.record or seen.problem:
                self._put(job_id, seen)
            elif before[0] is not _UNKNOWN:
                self._delete(job_id)
                self._empty.add(job_id)  # the folder may still be there
        return seen.record

    def _ids(self, facet: str, value: str) -> list[str]:
        return self._sorted.get((facet, value), [])

    def _records(self, state: State) -> list[Record]:
        entries = (self._live.get(job_id) for job_id in self._ids("state", state.value))
        return [entry.record for entry in entries if entry and entry.record]

    def _put(self, job_id: str, entry: Entry, *, written: bool = False) -> None:
        known, record = self._live.get(job_id), entry.record
        facets = self._share(job.facets(record), job_id) if record else None
        changed = self._file(job_id, facets)
        if known is not None and (known.record, known.problem) != (record, entry.problem):
            changed = True
        if record and record.state.terminal:
            self._live.pop(job_id, None)
            self._recent.put(job_id, record)
        else:
            self._live[job_id] = entry
            self._recent.drop(job_id)
        if changed and record:
            self._add_change(job_id, record, written=written)
        elif changed:  # unreadable for now, which does not mean that it is gone
            self.version += 1
            self._positions = None

    def _delete(self, job_id: str) -> None:
        self._file(job_id, None)
        del self._facets[job_id]
        _remove(self._sorted[None], job_id)
        self._live.pop(job_id, None)
        self._recent.drop(job_id)
        self._add_change(job_id, None)

    def _file(self, job_id: str, facets: Facets | None) -> bool:
        """List the job under these facets and no others; whether that is a change."""
        self._empty.discard(job_id)
        if job_id not in self._facets:
            _insert(self._sorted[None], job_id)
        elif facets == self._facets[job_id]:
            return False
        before = self._facets.get(job_id)
        self._facets[job_id] = facets
        for key in keys(before) - keys(facets):
            _remove(self._sorted[key], job_id)
        for key in keys(facets) - keys(before):
            _insert(self._sorted.setdefault(key, []), job_id)
        for known, change in ((before, -1), (facets, 1)):
            if known:
                self._counts[known.state.value] += change
                if known.state is State.CREATED:
                    self._positions = None
        return True

    def _share(self, facets: Facets, job_id: str) -> Facets:
        """One object for equal facets. The mark, which is unique, is stored apart."""
        if facets.mark:
            key = facets.mark.partition(".")[0]
            if self._marked.get(key) not in self._facets:
                self._marked[key] = job_id
            facets = facets._replace(mark=None)
        return self._shared.setdefault(facets, facets)

    def _add_change(self, job_id: str, record: Record | None, *, written: bool = False) -> None:
        self.version += 1
        if record is None or record.state is State.CREATED:
            self._positions = None
        if written or not self.loading:
            self._changes.append((job_id, record))
            self.sequence += 1


def keys(facets: Facets | None) -> set[tuple[str, str]]:
    """The lists that a job with these facets is in."""
    if facets is None:
        return set()
    found = {("state", facets.state.value)}
    for name, value in (("repo", facets.repo), ("repo", facets.repo_name)):
        if value is not None:
            found.add((name, value))
    if facets.branch is not None:
        found.add(("branch", facets.branch))
    return found


def _insert(ids: list[str], job_id: str) -> None:
    at = bisect.bisect_left(ids, job_id)
    if ids[at : at + 1] != [job_id]:
        ids.insert(at, job_id)


def _remove(ids: list[str], job_id: str) -> None:
    at = bisect.bisect_left(ids, job_id)
    if ids[at : at + 1] == [job_id]:
        del ids[at]
