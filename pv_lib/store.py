"""The runs folder: one folder a job, its record and files, and the index over all of them.

`Runs` is the disk: paths, whole reads, whole writes. `Index` is a cache over it, never the
truth: terminal records are read once, live ones when their file changes, new and vanished folders
when the runs folder's mtime changes. Nothing here decides what becomes of a job.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pv_lib import files, job
from pv_lib.errors import BadRecord, Invalid, NotFound, TooLarge, ValetError
from pv_lib.job import JOB_ID, Record, State

RECORD_LIMIT = 4 << 20
_PAGE = 256  # ids that are taken from the index at once
_SETTLE_NS = 50_000_000  # a folder changed this recently may change again within one mtime tick


@dataclass(frozen=True)
class AbortMark:
    """What an ABORT marker tells: when it was asked for, and the job's state at that time."""

    asked_at: str
    state: str | None


class Runs:
    """The files of every job under the runs root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = os.fspath(root)

    @property
    def watcher_lock(self) -> Path:
        """Held by the one watcher of this runs root; its mtime is the watcher's heartbeat."""
        return self.root / ".watcher.lock"

    @property
    def watcher_notes(self) -> Path:
        """What the watcher cannot do and why, a line each; the status shows them."""
        return self.root / ".watcher.notes"

    def watcher_complaints(self) -> list[str]:
        """What the watcher says it cannot do."""
        try:
            return files.read_regular(self.watcher_notes, 1 << 20).decode().splitlines()
        except (OSError, ValetError, UnicodeDecodeError):
            return []

    def watcher_beat(self) -> float | None:
        """Unix time of the watcher's last poll; None when there never was one."""
        try:
            return self.watcher_lock.stat().st_mtime
        except OSError:
            return None

    def folder(self, job_id: str) -> Path:
        """The job's folder; NotFound for an id that could not be a folder's name."""
        if not JOB_ID.fullmatch(job_id):
            raise NotFound(f"there is no job {job_id[:80]!r}: an id has letters, digits, - and _")
        return self.root / job_id

    def file(self, job_id: str, name: str) -> str:
        """A file of the job whose id is known to be one; cheaper than a Path."""
        return f"{self._root}/{job_id}/{name}"

    def record_path(self, job_id: str) -> Path:
        """The job's `job.json`."""
        return self.folder(job_id) / "job.json"

    def log_path(self, job_id: str) -> Path:
        """The job's `job.log`, whatever its record says."""
        return self.folder(job_id) / "job.log"

    def create(self, record: Record) -> bool:
        """Write a first record, unless the job has one already: then False.

        Not fsynced: the prompt in the inbox is the durable half and can rebuild it.
        """
        path = self.record_path(record.job_id)
        path.parent.mkdir(exist_ok=True)
        try:
            files.create(path, job.encode(record), durable=False)
        except FileExistsError:
            return False
        return True

    def write(self, record: Record, *, durable: bool = True) -> None:
        """Replace the job's record. Only the job's one writer may call this."""
        files.write(self.record_path(record.job_id), job.encode(record), durable=durable)

    def read(self, job_id: str) -> Record | None:
        """The job's record from the disk; None without one. Raises BadRecord and OSError."""
        try:
            return job.decode(files.read_regular(self.record_path(job_id), RECORD_LIMIT), job_id)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (Invalid, TooLarge) as error:
            raise BadRecord(f"job {job_id}: {error.detail}") from error

    def mark_abort(self, job_id: str, state: State, now: float) -> AbortMark:
        """Put the job's ABORT marker down durably, or find the one that is there.

        `state` is where the job stands, `now` Unix time; both are kept in the marker. Raises
        OSError when it cannot be stored, FileNotFoundError without a run folder.
        """
        mark = AbortMark(job.stamp(now), state.value)
        with contextlib.suppress(FileExistsError):
            files.create(self.folder(job_id) / "ABORT", f"{mark.asked_at} {mark.state}\n".encode())
        return self.abort_mark(job_id) or mark

    def abort_mark(self, job_id: str) -> AbortMark | None:
        """The job's ABORT marker; one made by hand (`touch`) speaks by its mtime."""
        path = self.root / job_id / "ABORT"
        words: list[str] = []
        try:
            info = os.lstat(path)
        except OSError:
            return None
        with contextlib.suppress(ValetError, OSError):  # not ours to read: its presence is enough
            words = files.read_regular(path, 200).decode("utf-8", "replace").split()
        if len(words) == 2 and job.seconds_of(words[0]) is not None:
            return AbortMark(words[0], words[1])
        return AbortMark(job.stamp(info.st_mtime), None)


@dataclass(frozen=True)
class Entry:
    """One job in the index. `problem` says why there is no record to show."""

    signature: tuple[int, int, int]  # inode, mtime in ns, size of job.json
    record: Record | None
    problem: str | None = None


class Index:
    """What the runs folder holds, kept in memory and looked after on each question."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self._lock = threading.Lock()  # guards all below
        self._entries: dict[str, Entry] = {}
        self._ids: list[str] = []  # sorted: oldest first
        self._live: set[str] = set()  # ids whose record may still change
        self._bare: set[str] = set()  # folders that have no record yet
        self._counts: Counter[State] = Counter()
        self._folder_mtime = 0

    def get(self, job_id: str) -> Record | None:
        """The job's record as it is on the disk now; None without one."""
        entry = self._entries.get(job_id)
        if entry and entry.record and entry.record.state.terminal:
            with contextlib.suppress(OSError):
                os.stat(self.runs.file(job_id, "job.json"))
                return entry.record
        self.runs.folder(job_id)
        with self._lock:
            entry = self._look_at(job_id)
            return entry.record if entry else None

    def live(self) -> list[Record]:
        """Every record that is not terminal, oldest first."""
        with self._lock:
            self._refresh()
            entries = (self._entries[job_id] for job_id in sorted(self._live))
            return [entry.record for entry in entries if entry.record]

    def newest_first(self, before: str | None = None) -> Iterator[Record]:
        """Every record from the newest on, or from the one before `before` on."""
        with self._lock:
            self._refresh()
        while True:
            with self._lock:
                end = len(self._ids) if before is None else bisect.bisect_left(self._ids, before)
                ids = self._ids[max(0, end - _PAGE) : end]
            for job_id in reversed(ids):
                entry = self._entries.get(job_id)
                if entry and entry.record:
                    yield entry.record
            if not ids:
                return
            before = ids[0]

    def counts(self) -> dict[str, int]:
        """How many jobs there are in each state, zeros too."""
        with self._lock:
            self._refresh()
            return {state.value: self._counts[state] for state in State}

    def problems(self) -> list[str]:
        """One sentence for each folder whose record cannot be read."""
        with self._lock:
            self._refresh()
            entries = (self._entries.get(job_id) for job_id in sorted(self._live))
            return [entry.problem for entry in entries if entry and entry.problem]

    def _refresh(self) -> None:
        try:
            mtime = self.runs.root.stat().st_mtime_ns
            if mtime != self._folder_mtime:
                self._rescan()
                settled = time.time_ns() - mtime > _SETTLE_NS
                self._folder_mtime = mtime if settled else 0
        except FileNotFoundError:  # the folder itself is gone: the status says so
            for job_id in list(self._entries):
                self._forget(job_id)
        # Running ones last: else one that ended while we looked would still count as running
        # beside the one that took its place.
        running = {job_id for job_id in self._live if self._is_running(job_id)}
        for job_id in [*(self._live - running), *self._bare]:
            self._look_at(job_id)
        for job_id in [job_id for job_id in self._live if self._is_running(job_id)]:
            self._look_at(job_id)

    def _is_running(self, job_id: str) -> bool:
        record = self._entries[job_id].record
        return record is not None and record.state is State.RUNNING

    def _rescan(self) -> None:
        with os.scandir(self.runs.root) as listing:
            names = {item.name for item in listing if JOB_ID.fullmatch(item.name)}
        for job_id in self._entries.keys() - names:
            self._forget(job_id)
        self._bare &= names
        for job_id in sorted(names - self._entries.keys()):
            if self._look_at(job_id) is None:
                self._bare.add(job_id)

    def _look_at(self, job_id: str) -> Entry | None:
        path = self.runs.record_path(job_id)
        try:
            info = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            if job_id in self._entries:  # perhaps the folder is still there
                self._bare.add(job_id)
            self._forget(job_id)
            return None
        except OSError as error:
            return self._keep(job_id, Entry((0, 0, 0), None, f"job {job_id}: {error}"))
        signature = (info.st_ino, info.st_mtime_ns, info.st_size)
        known = self._entries.get(job_id)
        if known and known.signature == signature:
            return known
        try:
            entry = Entry(signature, self.runs.read(job_id))
        except BadRecord as error:
            entry = Entry(signature, None, error.detail)
        except OSError as error:  # no signature: it is read again at the next look
            entry = Entry((0, 0, 0), None, f"job {job_id}: {error}")
        return self._keep(job_id, entry)

    def _keep(self, job_id: str, entry: Entry) -> Entry:
        self._bare.discard(job_id)
        known = self._entries.get(job_id)
        if known is None:
            bisect.insort(self._ids, job_id)
        elif known.record:
            self._counts[known.record.state] -= 1
        self._entries[job_id] = entry
        if entry.record:
            self._counts[entry.record.state] += 1
        if entry.record and entry.record.state.terminal:
            self._live.discard(job_id)
        else:
            self._live.add(job_id)
        return entry

    def _forget(self, job_id: str) -> None:
        entry = self._entries.pop(job_id, None)
        self._live.discard(job_id)
        if entry is not None:
            self._ids.pop(bisect.bisect_left(self._ids, job_id))
            if entry.record:
                self._counts[entry.record.state] -= 1
