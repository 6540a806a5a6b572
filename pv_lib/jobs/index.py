"""The index: what the runs folder holds, kept in memory, so that a question costs what it returns.

A cache, never the truth. Of an ended job only what it is looked for by is held (some hundred
bytes), its record is read when it is asked for; of a living one the record. The writers of this
process tell of each record (`Runs.written`); what other hands write or delete is found by `look`,
four times a second. A lock is never held while the disk is asked. Nothing here decides what becomes
of a job, or writes.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pv_lib.errors import BadRecord, Busy, ValetError
from pv_lib.jobs import job
from pv_lib.jobs.cache import FifoCache
from pv_lib.jobs.job import JOB_ID, Facets, Record, State
from pv_lib.jobs.store import RECORD_LIMIT, Runs
from pv_lib.system import files

_LOOK_SECONDS = 0.25
_REST, _LONGEST_REST = 20, 1.5  # between two looks: so many times a look, and seconds at most
_COMPLETE_SECONDS = 10.0  # how long a question waits for the first look's end
_PAGE = 256  # ids that are taken at once
_RECORDS = 2048  # of ended jobs, that were asked for last
CHANGES = 1024  # that followers can still be told of
_BATCH = 1024  # records of the first look that are taken in at once
_UNKNOWN = "unknown"
Signature = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Living:
    """A job whose record may still change; without a record `problem` says why.

    `signature` is that of its job.json (inode, mtime in ns, size), None when a writer has told of
    the record and nobody has looked since.
    """

    signature: Signature | None
    record: Record | None
    problem: str | None = None


class Index:
    """The memory over one runs folder. `start` before the first question."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.version = 0  # goes up with each change
        self._lock = threading.Lock()  # guards all below; the disk is never asked under it
        self._facets: dict[str, Facets | None] = {}  # of every known job; None: no record to show
        self._living: dict[str, _Living] = {}
        self._bare: set[str] = set()  # folders that have no record yet
        self._sorted: dict[tuple[str, str] | None, list[str]] = {None: []}  # ids, oldest first
        self._shared: dict[Facets, Facets] = {}  # one of each, however many jobs have it
        self._marks: dict[str, str] = {}  # idempotency's key half -> job id
        self._counts = {state.value: 0 for state in State}
        # The number of the last change; no later server will use the same numbers.
        self.told = int(time.time() * 1000)
        self._changes: deque[tuple[str, Record | None]] = deque(maxlen=CHANGES)
        self._places: dict[str, int] | None = {}  # in the queue; None when they must be found anew
        self._recent: FifoCache[str, Record] = FifoCache(_RECORDS)
        self._folder_mtime = 0  # only looks know of it
        self._complete = threading.Event()  # the first look is through
        runs.written = self._note

    def start(self, complain: Callable[[str], None] = lambda text: None) -> None:
        """Start the thread that looks at the disk; it tells `complain` of a defect of ours."""
        threading.Thread(target=self._run, args=(complain,), name="index", daemon=True).start()

    def get(self, job_id: str) -> Record | None:
        """The job's record; None without one. A living one is looked at on the disk."""
        return self._recent.get(job_id) or self._look_at(job_id)

    def known(self, job_id: str) -> Record | None:
        """The record as far as is known now; the disk is asked for what is not in memory."""
        living = self._living.get(job_id)
        if living:
            return living.record
        return self._recent.get(job_id) or self._look_at(job_id)

    def has(self, job_id: str) -> bool:
        """Whether there is such a job, whether its record can be read now or not."""
        return job_id in self._facets

    def is_complete(self, seconds: float) -> bool:
        """Whether the first look is through; waits up to `seconds` for that."""
        return self._complete.wait(seconds)

    def living(self) -> list[Record]:
        """Every record that is not terminal, oldest first; waits for the first look's end."""
        self._complete.wait()
        with self._lock:
            found = [entry.record for _, entry in sorted(self._living.items())]
        return [record for record in found if record]

    def running(self) -> list[Record]:
        """As far as is known now, the jobs that run."""
        with self._lock:
            living = [
                self._living.get(job_id) for job_id in self._ids("state", State.RUNNING.value)
            ]
        return [entry.record for entry in living if entry and entry.record]

    def newest_first(self, before: str | None = None, **wanted: str | None) -> Iterator[Record]:
        """The records from the newest on, or from the one before the id `before` on.

        `wanted` are `state`, `repo` (owner/name, or name) and `branch`, None for any. Raises Busy
        when the first look takes too long for a filter.
        """
        facets = {name: value for name, value in wanted.items() if value is not None}
        if facets:
            self._await_complete()
        while ids := self._page(before, facets):
            for job_id in reversed(ids):
                record = self.known(job_id)
                if record and set(facets.items()) <= _keys(job.facets(record)):
                    yield record
            before = ids[0]

    def counts(self) -> dict[str, int]:
        """How many jobs are known in each state, zeros too."""
        with self._lock:
            return dict(self._counts)

    def problems(self) -> list[str]:
        """One sentence for each folder whose record cannot be read, and for a first look."""
        with self._lock:
            found = [entry.problem for _, entry in sorted(self._living.items()) if entry.problem]
            unread = len(self._sorted[None]) - len(self._facets)
        if not self._complete.is_set():
            found.append(f"{unread} records are still being read: the counts lack them so far")
        return found

    def places(self) -> dict[str, int]:
        """The place in the queue of each job that waits; 1 is next."""
        with self._lock:
            if self._places is None:
                living = (self._living.get(key) for key in self._ids("state", State.CREATED.value))
                waiting = [entry.record for entry in living if entry and entry.record]
                waiting.sort(key=job.queue_order)
                self._places = {record.job_id: place for place, record in enumerate(waiting, 1)}
            return self._places

    def marked(self, key: str) -> Record | None:
        """The job that was submitted with this half of an idempotency mark."""
        self._await_complete()
        job_id = self._marks.get(key)
        return self.get(job_id) if job_id else None

    @property
    def remembered(self) -> int:
        """How many of the last changes are known."""
        return len(self._changes)

    def changes(self, after: int) -> list[tuple[str, Record | None]] | None:
        """What changed behind the change number `after`: ids and records (None: it is gone).

        None where that lies further back than is remembered.
        """
        with self._lock:
            behind = self.told - after
            if not 0 <= behind <= len(self._changes):
                return None
            return list(self._changes)[len(self._changes) - behind :]

    def look(self) -> None:
        """Find what other hands did. Only one thread may look."""
        try:
            mtime = os.stat(self.runs.root).st_mtime_ns
            if mtime != self._folder_mtime:
                self._look_around()
                self._folder_mtime = mtime if files.settled(mtime, time.time_ns()) else 0
        except FileNotFoundError:  # the folder itself is gone: the status says so
            self._folder_mtime = 0
            for job_id in list(self._facets):
                self._look_at(job_id)
        # Running ones last: else one that ended while we looked would still count as running
        # beside the one that took its place.
        with self._lock:
            running = list(self._ids("state", State.RUNNING.value))
            others = self._living.keys() - set(running)
            bare = list(self._bare)
        for job_id in [*others, *bare, *running]:
            self._look_at(job_id)
        with self._lock:
            joined = set(self._ids("state", State.RUNNING.value)) - set(running)
        for job_id in joined:
            self._look_at(job_id)

    def _run(self, complain: Callable[[str], None]) -> None:
        told = ""
        while True:
            began = time.monotonic()
            try:
                self.look()
                self._complete.set()
            except OSError:
                pass  # no descriptor, no rights: the next look may have them
            except Exception as error:  # noqa: BLE001 - the top of a thread: it looks again
                text = f"the index cannot look at the runs: unexpected {error!r}"
                if text != told:
                    complain(text)
                told = text
            time.sleep(min(_LONGEST_REST, max(_LOOK_SECONDS, _REST * (time.monotonic() - began))))

    def _await_complete(self) -> None:
        if not self._complete.wait(_COMPLETE_SECONDS):
            raise Busy("the records of all jobs are still being read: try again in a second")

    def _ids(self, facet: str, value: str) -> list[str]:
        return self._sorted.get((facet, value), [])

    def _page(self, before: str | None, wanted: dict[str, str]) -> list[str]:
        """The newest ids that fit, oldest first: at least one where there is one."""
        with self._lock:
            lists = [self._ids(name, value) for name, value in wanted.items()]
            ids = min(lists, key=len) if lists else self._sorted[None]
            end = len(ids) if before is None else bisect.bisect_left(ids, before)
            found: list[str] = []
            while end and not found:
                start = max(0, end - _PAGE)
                found, end = ids[start:end], start
                if len(lists) > 1:
                    found = [job_id for job_id in found if self._fits(job_id, wanted)]
            return found

    def _fits(self, job_id: str, wanted: dict[str, str]) -> bool:
        return set(wanted.items()) <= _keys(self._facets.get(job_id))

    def _look_around(self) -> None:
        """New and vanished folders."""
        names = set(os.listdir(self.runs.root))
        with self._lock:
            gone = self._facets.keys() - names
            self._bare &= names
            ids = sorted(filter(JOB_ID.fullmatch, names - self._facets.keys() - self._bare))
        for job_id in gone:  # or made since the list was
            self._look_at(job_id)
        if not self._complete.is_set():
            self._look_at_all(ids)
            return
        for job_id in ids:
            if self._look_at(job_id) is None and job_id not in self._facets:
                self._bare.add(job_id)

    def _look_at_all(self, ids: list[str]) -> None:
        """The first look, newest first; `ids` are sorted. They can be listed from now on."""
        with self._lock:
            self._sorted[None] = sorted({*ids, *self._sorted[None]})
        for end in range(len(ids), 0, -_BATCH):
            batch = ids[max(0, end - _BATCH) : end]
            facets = [self._glance(job_id) for job_id in batch]
            with self._lock:
                self._keep_ended(batch, facets)
            for job_id, known in zip(batch, facets, strict=True):
                if known is None and self._look_at(job_id) is None and job_id not in self._facets:
                    with self._lock:
                        self._bare.add(job_id)
                        _take_out(self._sorted[None], job_id)

    def _glance(self, job_id: str) -> Facets | None:
        """The facets of an ended job; None for a job that needs a longer look."""
        with contextlib.suppress(ValetError, OSError):
            data = files.read_regular(self.runs.file(job_id, "job.json"), RECORD_LIMIT)
            facets = job.glance(data, job_id)
            return facets if facets.state.terminal else None
        return None

    def _keep_ended(self, ids: list[str], facets: list[Facets | None]) -> None:
        """Many at once, `ids` sorted; of those that are known already the writers told more."""
        lists: dict[tuple[str, str], list[str]] = {}
        for job_id, known in zip(ids, facets, strict=True):
            if known is not None and job_id not in self._facets:
                self._facets[job_id] = self._share(known, job_id)
                self._counts[known.state.value] += 1
                for key in _keys(known):
                    lists.setdefault(key, []).append(job_id)
        for key, more in lists.items():
            there = self._sorted.setdefault(key, [])
            there[:0] = more
            if len(there) > len(more) and there[len(more)] < more[-1]:
                there.sort()
        self.version += 1

    def _look_at(self, job_id: str) -> Record | None:
        """Bring one job up to date with the disk, unless a writer was faster; its record."""
        self.runs.folder(job_id)  # raises for what is no id
        before = self._known(job_id)
        path = self.runs.file(job_id, "job.json")
        try:
            info = os.lstat(path)
            signature = (info.st_ino, info.st_mtime_ns, info.st_size)
            living = before[1]
            if living and living.signature == signature:
                return living.record
            entry = _Living(signature, self.runs.read(job_id))
        except (FileNotFoundError, NotADirectoryError):
            entry = _Living(None, None)
        except BadRecord as error:
            entry = _Living(signature, None, error.detail)
        except OSError as error:  # no signature: it is read again at the next look
            last = before[1].record if before[1] else None
            entry = _Living((0, 0, 0), last, f"job {job_id}: {error}")
        with self._lock:
            if self._known(job_id) != before:
                return self._told(job_id, entry.record)
            if entry.record or entry.problem:
                self._keep(job_id, entry)
            elif before[0] is not _UNKNOWN:
                self._take_away(job_id)
                self._bare.add(job_id)  # perhaps the folder is still there
        return entry.record

    def _known(self, job_id: str) -> tuple[Facets | str | None, _Living | None]:
        return self._facets.get(job_id, _UNKNOWN), self._living.get(job_id)

    def _told(self, job_id: str, otherwise: Record | None) -> Record | None:
        living = self._living.get(job_id)
        return living.record if living else self._recent.get(job_id) or otherwise

    def _note(self, record: Record) -> None:
        """A writer of this process has put the record on the disk."""
        with self._lock:
            self._keep(record.job_id, _Living(None, record), written=True)

    def _keep(self, job_id: str, entry: _Living, *, written: bool = False) -> None:
        known = self._living.get(job_id)
        record = entry.record
        facets = self._share(job.facets(record), job_id) if record else None
        news = self._file(job_id, facets)
        if known is not None and (known.record, known.problem) != (record, entry.problem):
            news = True
        if record and record.state.terminal:
            self._living.pop(job_id, None)
            self._recent.put(job_id, record)
        else:
            self._living[job_id] = entry
            self._recent.drop(job_id)
        if news and record:
            self._tell(job_id, record, written=written)
        elif news:  # it cannot be read now; it is not gone for that
            self.version += 1
            self._places = None

    def _file(self, job_id: str, facets: Facets | None) -> bool:
        """Where it is found from now on; whether that is news."""
        self._bare.discard(job_id)
        if job_id not in self._facets:
            _put_in(self._sorted[None], job_id)
        elif facets == self._facets[job_id]:
            return False
        before = self._facets.get(job_id)
        self._facets[job_id] = facets
        for key in _keys(before) - _keys(facets):
            _take_out(self._sorted[key], job_id)
        for key in _keys(facets) - _keys(before):
            _put_in(self._sorted.setdefault(key, []), job_id)
        for known, change in ((before, -1), (facets, 1)):
            if known:
                self._counts[known.state.value] += change
                if known.state is State.CREATED:
                    self._places = None
        return True

    def _share(self, facets: Facets, job_id: str) -> Facets:
        """One object for all jobs with these; the mark, which no other has, goes its own way."""
        if facets.mark:
            key = facets.mark.partition(".")[0]
            if self._marks.get(key) not in self._facets:
                self._marks[key] = job_id
            facets = facets._replace(mark=None)
        return self._shared.setdefault(facets, facets)

    def _take_away(self, job_id: str) -> None:
        self._file(job_id, None)
        del self._facets[job_id]
        _take_out(self._sorted[None], job_id)
        self._living.pop(job_id, None)
        self._recent.drop(job_id)
        self._tell(job_id, None)

    def _tell(self, job_id: str, record: Record | None, *, written: bool = False) -> None:
        self.version += 1
        if record is None or record.state is State.CREATED:
            self._places = None
        if written or self._complete.is_set():
            self._changes.append((job_id, record))
            self.told += 1


def _keys(facets: Facets | None) -> set[tuple[str, str]]:
    """What a job with these is filed under."""
    if facets is None:
        return set()
    found = {("state", facets.state.value)}
    for name, value in (("repo", facets.repo), ("repo", facets.repo_name)):
        if value is not None:
            found.add((name, value))
    if facets.branch is not None:
        found.add(("branch", facets.branch))
    return found


def _put_in(ids: list[str], job_id: str) -> None:
    place = bisect.bisect_left(ids, job_id)
    if ids[place : place + 1] != [job_id]:
        ids.insert(place, job_id)


def _take_out(ids: list[str], job_id: str) -> None:
    place = bisect.bisect_left(ids, job_id)
    if ids[place : place + 1] == [job_id]:
        del ids[place]
