"""A submission: what a client asks for, before it is a job.

Also what a submission and a record have in common: the first record of an accepted submission,
the submission that a record came from, and the fingerprint that recognises a repeated request.
Pure: no file and no clock. Whether a submission can be run is decided in `inbox.acceptance`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pv_lib.jobs import job, options
from pv_lib.jobs.job import Record

DEFAULT_FILENAME = "prompt.prompt.md"
# The options of 0.1.0. They are part of every fingerprint, or its keys would not be recognised.
_FIRST_OPTIONS = ("model", "priority", "timeout_seconds")


@dataclass(frozen=True)
class Submission:
    """What a client asks for. `repo` may be a bare name until it is accepted.

    `options` has the job options by name (see `options`); one that is missing has its default.
    """

    repo: str
    branch: str
    text: bytes
    filename: str = DEFAULT_FILENAME
    source: str = "api"
    options: Mapping[str, Any] = field(default_factory=dict)
    retry_of: str | None = None
    attempt: int = 1
    idempotency: str | None = None


def of_record(record: Record, text: bytes) -> Submission:
    """The submission that `record` came from; `text` is its prompt."""
    return Submission(
        repo=record.repo or "",
        branch=record.branch or "",
        text=text,
        filename=record.filename or DEFAULT_FILENAME,
        options=options.of_record(record),
    )


def retry_of(old: Record, text: bytes) -> Submission:
    """The submission that runs the job of `old` again."""
    again = of_record(old, text)
    return replace(again, source="retry", retry_of=old.job_id, attempt=old.attempt + 1)


def first_record(submission: Submission, job_id: str, now: str) -> Record:
    """The record of an accepted submission, without its paths; `now` is a timestamp."""
    record = Record(
        job_id=job_id,
        filename=submission.filename,
        branch=submission.branch,
        branch_name=submission.branch,
        source=submission.source,
        **options.complete(submission.options),
        retry_of=submission.retry_of,
        attempt=submission.attempt,
        idempotency=submission.idempotency,
        created_at=now,
        updated_at=now,
    )
    return record.with_(**job.split_repo(submission.repo))


def fingerprint(submission: Submission) -> str:
    """A digest that is the same for the same request.

    An option that came after 0.1.0 counts only where it differs from its default, so that a
    request without it keeps its fingerprint.
    """
    given = options.complete(submission.options)
    model, *rest = (given[name] for name in _FIRST_OPTIONS)
    values = (submission.repo, submission.branch, submission.filename, model)
    later = tuple(
        (option.name, given[option.name])
        for option in options.OPTIONS
        if option.fingerprinted and option.name not in _FIRST_OPTIONS
        if given[option.name] != option.default
    )
    parts = (values, tuple(rest), *([later] if later else []), submission.text)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
