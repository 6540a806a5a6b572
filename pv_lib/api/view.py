"""A record as the API shows it: JSON with derived fields.

Derived are stalled, age_seconds, queue_position, log_bytes and last_output_at. The encoded rest is
cached for the jobs that were shown last. Nothing here chooses which jobs are shown, or knows HTTP.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from pv_lib.jobs import job
from pv_lib.jobs.cache import FifoCache
from pv_lib.jobs.job import Record, State
from pv_lib.jobs.store import Runs

_ENTRIES = 2048  # jobs


@dataclass(slots=True)
class _Encoded:
    """The cached part of a record: `start` lacks the derived fields and the closing brace."""

    record: Record
    start: bytes
    created: float | None
    log: bytes | None = None  # its two fields, once the job has ended


class Views:
    """The encoder of one runs root. A job is stalled after `stall_seconds` without a heartbeat."""

    def __init__(self, runs: Runs, stall_seconds: float) -> None:
        self._runs = runs
        self._stall_seconds = stall_seconds
        self._cache: FifoCache[str, _Encoded] = FifoCache(_ENTRIES)

    def stalled(self, record: Record, now: float) -> bool:
        """Whether the running job's heartbeat is too old; `now` is Unix time."""
        if record.state is not State.RUNNING:
            return False
        beat = job.seconds_of(record.heartbeat_at) or job.seconds_of(record.started_at) or 0.0
        return now - beat > self._stall_seconds

    def encode(self, record: Record, place: int | None, now: float) -> bytes:
        """The JSON object; `place` is the job's in the queue, `now` Unix time."""
        known = self._cache.get(record.job_id)
        if known is None or known.record is not record:
            known = self._encode(record)
        log = known.log or self._log(known)
        age = b"null" if known.created is None else b"%.3f" % max(0.0, now - known.created)
        stalled = b"true" if self.stalled(record, now) else b"false"
        where = b"null" if place is None else b"%d" % place
        return b'%b, "stalled": %b, "age_seconds": %b, "queue_position": %b, %b}' % (
            known.start,
            stalled,
            age,
            where,
            log,
        )

    def _encode(self, record: Record) -> _Encoded:
        try:
            text = json.dumps(job.to_dict(record), ensure_ascii=False)
        except RecursionError:  # by other hands, nested as deep as could just be read
            plain = record.with_(usage=None, result=None, extra={})
            text = json.dumps(job.to_dict(plain), ensure_ascii=False)
        start = text.encode("utf-8", "replace")[:-1]
        fresh = _Encoded(record, start, job.seconds_of(record.created_at))
        self._cache.put(record.job_id, fresh)
        return fresh

    def _log(self, known: _Encoded) -> bytes:
        try:
            info = os.stat(self._runs.file(known.record.job_id, "job.log"))
        except OSError:
            return b'"log_bytes": 0, "last_output_at": null'
        last = f'"{job.stamp(info.st_mtime)}"' if info.st_size else "null"
        log = f'"log_bytes": {info.st_size}, "last_output_at": {last}'.encode()
        if known.record.state.terminal:
            known.log = log
        return log
