"""A job: its states, its record, its id, and the record's bytes.

The one table of transitions lives here and `advance` is the one function that changes a state.
No file, no clock, no process: callers bring the time.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from typing import Any, NamedTuple

from pv_lib.errors import BadRecord

SCHEMA = 1
JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_OWNER = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
_FIRST_SECOND, _LAST_SECOND = -62135596800.0, 253402300799.0
OWNER = re.compile(_OWNER)
REPO = re.compile(rf"{_OWNER}/{_OWNER}")
# Stricter than git check-ref-format, which accepts @{-1}: no dash or dot first, no "..", no "//".
BRANCH = re.compile(
    r"(?!HEAD$)(?!.*(?:\.\.|//|/\.|\.lock(?:/|$)|\.$|/$))[A-Za-z0-9_][A-Za-z0-9._/+#@-]{0,199}"
)


class State(str, Enum):
    """The state of a job."""

    CREATED = "created"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABORTED = "aborted"

    @property
    def terminal(self) -> bool:
        """Whether the record never changes again."""
        return not TRANSITIONS[self]


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.CREATED: frozenset({State.RUNNING, State.FAILED, State.ABORTED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.ABORTED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.ABORTED: frozenset(),
}


class IllegalTransition(Exception):
    """A state change that the table does not have: a defect of this program, never of the input."""


@dataclass(frozen=True, slots=True)  # thousands of them are held
class Record:
    """What `job.json` holds. Timestamps are UTC ISO-8601 with Z; `extra` keeps unknown fields."""

    job_id: str
    state: State = State.CREATED
    schema: int = SCHEMA
    reason: str | None = None
    error: str | None = None
    repo: str | None = None
    git_owner: str | None = None
    repo_name: str | None = None
    branch: str | None = None
    branch_name: str | None = None
    filename: str | None = None
    source: str | None = None
    priority: int = 0
    created_at: str | None = None
    updated_at: str | None = None
    started_at: str | None = None
    heartbeat_at: str | None = None
    finished_at: str | None = None
    phase: str | None = None
    pid: int | None = None
    exit_code: int | None = None
    abort_requested_at: str | None = None
    inbox_path: str | None = None
    log_path: str | None = None
    model: str | None = None
    timeout_seconds: float | None = None
    thread_id: str | None = None
    usage: dict[str, Any] | None = None
    activity: str | None = None
    attempt: int = 1
    retry_of: str | None = None
    result: dict[str, Any] | None = None
    idempotency: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def with_(self, **changes: Any) -> Record:
        """A copy with other values; the state is changed by `advance` alone."""
        if "state" in changes:
            raise IllegalTransition("the state is changed by advance()")
        return dataclasses.replace(self, **changes)


class Facets(NamedTuple):
    """The fields by which jobs are found."""

    state: State
    repo: str | None
    repo_name: str | None
    branch: str | None
    mark: str | None  # idempotency


_FIELDS = tuple(f.name for f in dataclasses.fields(Record) if f.name != "extra")
_NUMBERS = {"schema": int, "priority": int, "attempt": int, "pid": int, "exit_code": int}
_OBJECTS = frozenset({"usage", "result"})
_text = json.encoder.encode_basestring


def advance(record: Record, state: State, now: str, **changes: Any) -> Record:
    """`record` in `state`, with `changes`; `now` becomes updated_at and the state's own stamp.

    Raises IllegalTransition for a change the table does not have.
    """
    if state not in TRANSITIONS[record.state]:
        raise IllegalTransition(f"{record.job_id}: {record.state.value} -> {state.value}")
    stamps = {"updated_at": now}
    if state is State.RUNNING:
        stamps |= {"started_at": now, "heartbeat_at": now}
    if state.terminal:
        stamps |= {"finished_at": now}
    return dataclasses.replace(record, state=state, **{**stamps, **changes})


def queue_order(record: Record) -> tuple[int, str, str]:
    """Sorts waiting jobs: the higher priority first, then the older one."""
    return (-record.priority, record.created_at or "", record.job_id)


def to_dict(record: Record) -> dict[str, Any]:
    """The record as JSON objects have it, unknown fields last."""
    plain = {name: getattr(record, name) for name in _FIELDS}
    plain["state"] = record.state.value
    return {"schema": plain.pop("schema"), **plain, **record.extra}


def encode(record: Record) -> bytes:
    """The bytes of `job.json`, made for `cat`: a field a line.

    json.dumps with an indent would take ten times as long, for it is written in Python then.
    """
    rows = ",\n".join(
        f"  {_text(name)}: {_encoded(value)}" for name, value in to_dict(record).items()
    )
    return f"{{\n{rows}\n}}\n".encode("utf-8", "replace")


def _encoded(value: Any) -> str:
    if value is None:
        return "null"
    if type(value) is str:
        return _text(value)
    if type(value) is int:
        return str(value)
    return json.dumps(value, ensure_ascii=False, indent=2).replace("\n", "\n  ")


def decode(data: bytes, job_id: str) -> Record:
    """Read a `job.json` found in the folder `job_id`, whoever wrote it.

    Missing fields get their defaults, fields of a wrong type too, unknown ones are kept; the
    folder's name is the id. Raises BadRecord when it is no JSON object with a known state.
    """
    plain, state = _parse(data, job_id)
    known: dict[str, Any] = {}
    for name in _FIELDS:
        if name in plain and name not in ("job_id", "state") and _fits(name, plain[name]):
            known[name] = plain[name]
    extra = {name: value for name, value in plain.items() if name not in _FIELDS}
    record = Record(job_id=job_id, state=state, **known, extra=extra)
    return record if record.repo is None else record.with_(**split_repo(record.repo))


def glance(data: bytes, job_id: str) -> Facets:
    """The facets of the record that `decode` would return, in a third of the time."""
    plain, state = _parse(data, job_id)
    texts = [plain.get(name) for name in ("repo", "repo_name", "branch", "idempotency")]
    repo, name, branch, mark = (text if isinstance(text, str) else None for text in texts)
    return Facets(state, repo, name if repo is None else repo.rpartition("/")[2], branch, mark)


def facets(record: Record) -> Facets:
    """The fields by which jobs are found."""
    return Facets(record.state, record.repo, record.repo_name, record.branch, record.idempotency)


def _parse(data: bytes, job_id: str) -> tuple[dict[str, Any], State]:
    try:
        plain = _DECODER.decode(data.decode(json.detect_encoding(data), "surrogatepass"))
        return plain, State(plain["state"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadRecord(f"job {job_id}: job.json is not a record with a known state") from None


def split_repo(repo: str) -> dict[str, str | None]:
    """`owner/name` as the record's three fields."""
    owner, _, name = repo.rpartition("/")
    return {"repo": repo, "git_owner": owner or None, "repo_name": name}


def finite(text: str) -> float | None:
    """The number in `text`; None for 1e999 and NaN, which JSON does not have. Raises ValueError."""
    value = float(text)
    return value if math.isfinite(value) else None


_DECODER = json.JSONDecoder(parse_float=finite, parse_constant=lambda _: None)


def _fits(name: str, value: Any) -> bool:
    if name in _NUMBERS:
        nullable = name in ("pid", "exit_code")
        return (value is None and nullable) or (type(value) is int)
    if name == "timeout_seconds":
        return value is None or (type(value) in (int, float) and value >= 0)
    if name in _OBJECTS:
        return value is None or isinstance(value, dict)
    return value is None or isinstance(value, str)


def stamp(seconds: float) -> str:
    """A Unix time as in the records: `2026-11-22T15:56:29.123Z`; years 1 to 9999."""
    seconds = min(max(seconds, _FIRST_SECOND), _LAST_SECOND)  # a file's mtime can be anything
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def seconds_of(text: str | None) -> float | None:
    """A record's timestamp as Unix time; None if it is missing or invalid."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.timestamp()


class JobIds:
    """Makes job ids: UUIDv7 as 32 hex digits, each sorting after the one before.

    Within a millisecond, and while the clock stands still or goes back, the 12-bit field after the
    time counts up, so that ids of one process always sort by submission.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards _last
        self._last = 0  # milliseconds << 12 | counter

    def new(self) -> str:
        """The next id."""
        with self._lock:
            self._last = max(self._last + 1, int(self._clock() * 1000) << 12)
            moment, count = self._last >> 12, self._last & 0xFFF
        tail = int.from_bytes(os.urandom(8), "big") & 0x3FFFFFFFFFFFFFFF
        return f"{moment:012x}{0x7000 | count:04x}{1 << 63 | tail:016x}"
