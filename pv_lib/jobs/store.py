"""The runs folder: one folder a job, its record and files. Paths, whole reads, whole writes.

It is the truth about every job. `on_write` is called after each write, for the index. Nothing here
decides what becomes of a job.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pv_lib.errors import BadRecord, Invalid, NotFound, TooLarge, ValetError
from pv_lib.jobs import job
from pv_lib.jobs.job import JOB_ID, Record, State
from pv_lib.system import files

RECORD_LIMIT = 4 << 20


@dataclass(frozen=True)
class AbortMark:
    """An ABORT marker: when the abort was requested, and the job's state at that time."""

    asked_at: str
    state: str | None


class Runs:
    """The files of every job under the runs root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = os.fspath(root)
        self.on_write: Callable[[Record], None] = lambda record: None  # called after each write

    @property
    def watcher_lock(self) -> Path:
        """Held by the one watcher of this runs root; its mtime is the watcher's heartbeat."""
        return self.root / ".watcher.lock"

    @property
    def watcher_notes(self) -> Path:
        """The file with the watcher's present problems, a line each; the status shows them."""
        return self.root / ".watcher.notes"

    def watcher_complaints(self) -> list[str]:
        """The watcher's present problems."""
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

    def create(self, record: Record) -> bool:
        """Write a first record, unless the job has one already: then False.

        Not fsynced: the prompt in the inbox is the durable half and can rebuild it.
        """
        folder = os.fspath(self.folder(record.job_id))
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        try:
            files.create(f"{folder}/job.json", job.encode(record), durable=False)
        except FileExistsError:
            return False
        self.on_write(record)
        return True

    def write(self, record: Record, *, durable: bool = True) -> None:
        """Replace the job's record. Only the job's one writer may call this."""
        files.write(self.record_path(record.job_id), job.encode(record), durable=durable)
        self.on_write(record)

    def read(self, job_id: str) -> Record | None:
        """The job's record from the disk; None without one. Raises BadRecord and OSError."""
        try:
            return job.decode(files.read_regular(self.record_path(job_id), RECORD_LIMIT), job_id)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (Invalid, TooLarge) as error:
            raise BadRecord(f"job {job_id}: {error.detail}") from error

    def mark_abort(self, job_id: str, state: State, now: float) -> AbortMark:
        """Create the job's ABORT marker durably, or return the existing one.

        The job's `state` and `now` (Unix time) are stored in it. Raises
        OSError when it cannot be stored, FileNotFoundError without a run folder.
        """
        mark = AbortMark(job.stamp(now), state.value)
        with contextlib.suppress(FileExistsError):
            files.create(self.folder(job_id) / "ABORT", f"{mark.asked_at} {mark.state}\n".encode())
        return self.abort_mark(job_id) or mark

    def abort_mark(self, job_id: str) -> AbortMark | None:
        """The job's ABORT marker; for one made by hand (`touch`) the time is its mtime."""
        path = self.root / job_id / "ABORT"
        words: list[str] = []
        try:
            info = os.lstat(path)
        except OSError:
            return None
        with contextlib.suppress(ValetError, OSError):  # unreadable: its presence is enough
            words = files.read_regular(path, 200).decode("utf-8", "replace").split()
        if len(words) == 2 and job.seconds_of(words[0]) is not None:
            return AbortMark(words[0], words[1])
        return AbortMark(job.stamp(info.st_mtime), None)
