"""Front matter from a record, and a record from front matter.

The `pv:` block of a prompt holds what is needed to make its record again, so the record may be
lost. The file's path gives the repository and the branch, the block gives the rest. How a block is
read and written as bytes stands in `frontmatter`; a record is stored by `intake`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pv_lib.errors import Invalid, NotFound, ValetError
from pv_lib.git.repos import Repos
from pv_lib.inbox import acceptance, frontmatter
from pv_lib.inbox.inbox import Inbox
from pv_lib.inbox.prompt import QUEUED, Prompt, tidy_stem
from pv_lib.jobs import job, submission
from pv_lib.jobs.job import Record, State
from pv_lib.jobs.options import OPTIONS

_PLACE = ("job_id", "repo", "branch")
# The keys of a block beside the options. They count only in the block of the job itself.
_FACTS: Mapping[str, Callable[[str], Any]] = {
    "created_at": str,
    "source": str,
    "retry_of": str,
    "idempotency": str,
    "filename": str,
    "attempt": int,
}
_PARSERS = {**_FACTS, **{option.name: option.parse for option in OPTIONS}}
_DROPPABLE = frozenset(option.name for option in OPTIONS if option.droppable)


def with_block(data: bytes, record: Record) -> bytes:
    """The prompt `data` with the block that `record` can be rebuilt from; defaults are left out."""
    plain = job.to_dict(record)
    blank = job.to_dict(Record("", filename=record.filename))
    keys = {name: plain[name] for name in _PLACE}
    for name in _PARSERS:
        if plain[name] is not None and plain[name] != blank[name]:
            keys[name] = plain[name]
    return frontmatter.write(data, keys, frozenset({*_PLACE, *_PARSERS}))


class Rebuild:
    """Makes records from the files of one inbox; `max_bytes` is PV_MAX_PROMPT_BYTES."""

    def __init__(self, inbox: Inbox, repos: Repos, max_bytes: int) -> None:
        self._inbox = inbox
        self._repos = repos
        self._max_bytes = max_bytes

    def record(self, prompt: Prompt, log_path: str, now: str, *, started: bool) -> Record:
        """The record of a file whose name has a job id; the file is given its own block.

        A prompt that cannot be run gives a `failed` record, unless the job was `started`: then
        it was accepted before. `now` is a timestamp. Raises OSError where the file is gone.
        """
        job_id = prompt.job_id or ""
        base = _of_path(prompt, log_path, now)
        try:
            if len(prompt.folders) < 3:
                raise Invalid("the file must lie in a folder owner/name/branch of the inbox")
            data = self._read(prompt)
            block = frontmatter.read(data)
            base = base.with_(**_fields(block, job_id))
            given = submission.of_record(base, frontmatter.strip(data))
            acceptance.check(given, self._max_bytes, self._repos)
            if not prompt.claimed and block.get("job_id") != job_id:
                self._inbox.replace(prompt.path, with_block(data, base))
        except ValetError as error:
            if started:
                return base
            reason = "unknown_target" if isinstance(error, NotFound) else "bad_prompt"
            return job.advance(base, State.FAILED, now, reason=reason, error=error.detail)
        return base

    def carries_own_block(self, prompt: Prompt) -> bool:
        """Whether the file is a queued prompt: its block has the job id of its name.

        A file with its own block was written by us and is complete.
        """
        try:
            data = self._read(prompt)
        except (OSError, ValetError):
            return False
        return frontmatter.read(data).get("job_id") == prompt.job_id

    def _read(self, prompt: Prompt) -> bytes:
        return self._inbox.read(prompt.path, acceptance.max_file_bytes(self._max_bytes))


def _of_path(prompt: Prompt, log_path: str, now: str) -> Record:
    """The record as far as the path gives it."""
    base = Record(
        job_id=prompt.job_id or "",
        branch=_as_utf8(prompt.branch),
        branch_name=_as_utf8(prompt.branch),
        filename=tidy_stem(prompt.filename) + QUEUED,
        source="inbox",
        inbox_path=_as_utf8(str(prompt.path)),
        log_path=log_path,
        created_at=now,
        updated_at=now,
    )
    return base.with_(**job.split_repo(_as_utf8(prompt.repo)))


def _fields(block: Mapping[str, str], job_id: str) -> dict[str, Any]:
    """The record's fields in `block`. A block of another job gives options only."""
    names = _PARSERS if block.get("job_id") == job_id else _DROPPABLE
    fields: dict[str, Any] = {}
    for name, parse in _PARSERS.items():
        if name in names and block.get(name):
            try:
                fields[name] = parse(block[name])
            except ValueError:
                why = f"{block[name][:100]!r} is not a number"
                raise Invalid.of([(name, why)]) from None
    return fields


def _as_utf8(text: str) -> str:
    """A path from the disk as text that JSON can hold."""
    return text.encode("utf-8", "replace").decode()
