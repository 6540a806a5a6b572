"""How a prompt becomes a job: the checks, the durable file, the first record.

Both ways in meet here: a submission over HTTP (`submit`) and a file dropped into the inbox
(`take`). The inbox file is the promise: it is durable before anything is acknowledged and can
rebuild its record (`rebuild`). Nothing here runs a job or speaks HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pv_lib.errors import (
    BadRecord,
    Conflict,
    Invalid,
    KeyReused,
    NoRoom,
    NotFound,
    TooLarge,
    ValetError,
)
from pv_lib.git.repos import Repos
from pv_lib.inbox import frontmatter
from pv_lib.inbox.inbox import Inbox
from pv_lib.inbox.prompt import QUEUED, Prompt, tidy_stem
from pv_lib.jobs import job
from pv_lib.jobs.index import Index
from pv_lib.jobs.job import JobIds, Record, State
from pv_lib.jobs.store import Runs
from pv_lib.settings.config import Config
from pv_lib.system import files, space

DEFAULT_FILENAME = "prompt.prompt.md"
MAX_PRIORITY = 1000
MAX_TIMEOUT = 31_536_000  # a year, in seconds
_MAX_NAME = 200  # characters of a filename
FILENAME = re.compile(r"[^./\x00-\x1f\x7f-\x9f][^/\x00-\x1f\x7f-\x9f]{0,196}\.md")
NOT_BLANK = re.compile(r"[^\s\x1c-\x1f\x85\ufeff]")  # \s as Python and as JavaScript have it
MODEL = re.compile(r"[^\x00-\x20\x7f-\xa0-][^\x00-\x1f\x7f-\x9f]{0,199}")


@dataclass(frozen=True)
class Submission:
    """What somebody wants done. `repo` may be a bare name until it is checked."""

    repo: str
    branch: str
    text: bytes
    filename: str = DEFAULT_FILENAME
    source: str = "api"
    priority: int = 0
    model: str | None = None
    timeout_seconds: float | None = None
    retry_of: str | None = None
    attempt: int = 1
    idempotency: str | None = None


@dataclass(eq=False, slots=True)
class _Ticket:
    """What one submission wants stored in one folder, as (name, bytes); all or none of it."""

    records: list[Record]
    folder: Path
    drops: list[tuple[str, bytes]]
    served: bool = False
    error: ValetError | None = field(default_factory=lambda: ValetError("it was not stored"))


class Intake:
    """The door. One per process; the API and the watcher each bring their own prompts."""

    def __init__(
        self,
        config: Config,
        index: Index,
        inbox: Inbox,
        repos: Repos,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._index = index
        self._runs: Runs = index.runs
        self._inbox = inbox
        self.repos = repos
        self._clock = clock
        self._ids = JobIds(clock)
        self._desk = threading.Lock()  # held by the thread that stores for all who wait
        self._tickets: deque[_Ticket] = deque()
        self._keyed = threading.Lock()  # guards _recovered, and one keyed submission at a time
        self._recovered = False  # whether every file in the inbox has its record

    def submit(self, submissions: Sequence[Submission]) -> list[Record]:
        """Accept all of `submissions`, which are for one branch, or none; then they are durable.

        Raises Invalid, NotFound, TooLarge or NoRoom; an OSError of the disk becomes NoRoom.
        """
        checked = [self._check(submission) for submission in submissions]
        records = [self._first_record(submission) for submission in checked]
        drops = [
            (
                os.path.basename(record.inbox_path or ""),
                frontmatter.write(submission.text, _keys(record), _OWN_KEYS),
            )
            for record, submission in zip(records, checked, strict=True)
        ]
        ticket = _Ticket(records, Path(records[0].inbox_path or "").parent, drops)
        self._tickets.append(ticket)
        with self._desk:
            if not ticket.served:
                self._serve([self._tickets.popleft() for _ in range(len(self._tickets))])
        if ticket.error is not None:
            raise ticket.error
        return records

    def _serve(self, tickets: list[_Ticket]) -> None:
        """Store for all who wait at once.

        Eight threads that did it side by side would take twice as long: each call of the system
        hands the interpreter over, and each would sync the folder for itself.
        """
        folders: dict[Path, list[_Ticket]] = {}
        for ticket in tickets:
            ticket.served = True
            folders.setdefault(ticket.folder, []).append(ticket)
        try:
            self._check_room()
        except ValetError as error:
            for ticket in tickets:
                ticket.error = error
            return
        for group in folders.values():
            self._store(group)

    def _store(self, tickets: list[_Ticket]) -> None:
        """Those of one folder, together or else each for itself."""
        drops = [drop for ticket in tickets for drop in ticket.drops]
        try:
            self._inbox.drop(tickets[0].folder, drops)
        except OSError as error:
            if len(tickets) == 1:
                tickets[0].error = files.refusal(error, "the prompt could not be stored")
                return
            for ticket in tickets:
                self._store_again(ticket)
            return
        for ticket in tickets:
            ticket.error = None
            for record in ticket.records:
                with contextlib.suppress(OSError):  # the watcher can make it from the inbox file
                    self._record(record)

    def _store_again(self, ticket: _Ticket) -> None:
        """For itself, after those of its folder could not be stored together.

        Some may have had their names by then, and the watcher may have claimed them.
        """
        both = zip(ticket.records, ticket.drops, strict=True)
        ticket.drops = [drop for record, drop in both if not self._is_taken(record)]
        if ticket.drops:
            self._store([ticket])
        else:
            ticket.error = None

    def _is_taken(self, record: Record) -> bool:
        """Whether the watcher has it already, and perhaps brought it to its end."""
        if self._inbox.holds(self._inbox.places(record.inbox_path, record.job_id)[1]):
            return True
        with contextlib.suppress(BadRecord, OSError):
            known = self._runs.read(record.job_id)
            return known is not None and known.state is not State.CREATED
        return False

    def submit_once(self, submission: Submission, key: str) -> tuple[Record, bool]:
        """As `submit`, unless `key` came before: then the first answer's record and False.

        Raises KeyReused when the key came with another request.
        """
        known = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:32]
        mark = f"{known}.{_fingerprint(submission)}"
        with self._keyed:
            if not self._recovered:
                self._recover_records()
                self._recovered = True
            first = self._index.marked(known)
            if first and first.idempotency != mark:
                why = "this Idempotency-Key came before with another request: use a new key"
                raise KeyReused(why)
            if first:
                return first, False
            return self.submit([replace(submission, idempotency=mark)])[0], True

    def _recover_records(self) -> None:
        """Of submissions that a crash left without one: their keys must not be taken twice."""
        for prompt in self._inbox.scan():
            known = prompt.job_id is None or self._index.get(prompt.job_id) is not None
            if not known and not prompt.claimed and self.carries_own_block(prompt):
                self.rebuild(prompt)

    def retry(self, old: Record) -> Record:
        """Queue the prompt of a terminal job again. Raises Conflict while it is not terminal."""
        if not old.state.terminal:
            raise Conflict(f"job {old.job_id} is {old.state.value}: abort it or wait for its end")
        again = Submission(
            repo=old.repo or "",
            branch=old.branch or "",
            text=self.prompt_of(old),
            filename=old.filename or DEFAULT_FILENAME,
            source="retry",
            priority=old.priority,
            model=old.model,
            timeout_seconds=old.timeout_seconds,
            retry_of=old.job_id,
            attempt=old.attempt + 1,
        )
        return self.submit([again])[0]

    def take(self, prompt: Prompt) -> tuple[Record, Path]:
        """Make a job of a dropped file: rename it to carry an id, then give it its block.

        A prompt that cannot be run becomes a job all the same, which ends `failed` with the
        reason. Returns the record and the file's new path. Raises OSError when the file is gone
        or not ours to move.
        """
        job_id = self._ids.new()
        path = self._inbox.carry(prompt, job_id)
        return self.rebuild(replace(prompt, path=path, job_id=job_id)), path

    def rebuild(self, prompt: Prompt, *, started: bool = False) -> Record:
        """The record of a file that carries an id, made anew from the file alone.

        The folders are the truth about repository and branch, the block about the rest. What
        cannot be run fails; a job that was `started` has been checked before.
        """
        job_id = prompt.job_id or ""
        now = self._clock()
        base = Record(job_id, filename=tidy_stem(prompt.filename) + QUEUED, source="inbox")
        base = base.with_(
            **job.split_repo(_shown(prompt.repo)),
            branch=_shown(prompt.branch),
            branch_name=_shown(prompt.branch),
            inbox_path=_shown(str(prompt.path)),
            log_path=self._runs.file(job_id, "job.log"),
            created_at=job.stamp(now),
            updated_at=job.stamp(now),
        )
        try:
            if len(prompt.folders) < 3:
                raise Invalid("the file must lie in a folder owner/name/branch of the inbox")
            data = self._inbox.read(prompt.path, self._file_limit)
            block = frontmatter.read(data)
            base = base.with_(**_from_block(block, job_id))
            self._check(_as_submission(base, frontmatter.strip(data)))
            if not prompt.claimed and block.get("job_id") != job_id:
                self._inbox.replace(prompt.path, frontmatter.write(data, _keys(base), _OWN_KEYS))
        except ValetError as error:
            reason = "unknown_target" if isinstance(error, NotFound) else "bad_prompt"
            if not started:
                stamp = job.stamp(now)
                base = job.advance(base, State.FAILED, stamp, reason=reason, error=error.detail)
        self._record(base)
        return base

    def carries_own_block(self, prompt: Prompt) -> bool:
        """Whether the file's block names the id in the file's name: then it is ours, and whole."""
        try:
            data = self._inbox.read(prompt.path, self._file_limit)
        except (OSError, ValetError):
            return False
        return frontmatter.read(data).get("job_id") == prompt.job_id

    @property
    def _file_limit(self) -> int:
        """Bytes of the largest prompt with its front matter."""
        return 2 * self._config.max_prompt_bytes + 65536

    def prompt_of(self, record: Record) -> bytes:
        """The prompt as the agent gets it, wherever the job's file is by now.

        Raises NotFound when neither the run folder nor the inbox has it any more.
        """
        given = self._runs.folder(record.job_id) / "prompt.md"
        if given.is_file():
            return files.read_regular(given, 1 << 30)
        for place in self._inbox.places(record.inbox_path, record.job_id):
            with contextlib.suppress(OSError):
                return frontmatter.strip(self._inbox.read(place, 1 << 30))
        raise NotFound(f"the prompt of job {record.job_id} is not there any more")

    def _check(self, submission: Submission) -> Submission:
        faults: list[tuple[str, str]] = []
        if len(submission.text) > self._config.max_prompt_bytes:
            limit = self._config.max_prompt_bytes
            why = f"has {len(submission.text)} bytes; PV_MAX_PROMPT_BYTES is {limit}"
            raise TooLarge(f"markdown_text: {why}", [("markdown_text", why)])
        try:
            if not NOT_BLANK.search(submission.text.decode("utf-8")):
                faults.append(("markdown_text", "must not be blank: say what is to be done"))
        except UnicodeDecodeError as error:
            faults.append(("markdown_text", f"is not UTF-8 (byte {error.start})"))
        name = submission.filename
        faults += [("filename", why) for why in [_filename_fault(name)] if why]
        if not -MAX_PRIORITY <= submission.priority <= MAX_PRIORITY:
            faults.append(("priority", f"must lie between -{MAX_PRIORITY} and {MAX_PRIORITY}"))
        if submission.timeout_seconds is not None and not (
            0 < submission.timeout_seconds <= MAX_TIMEOUT
        ):
            faults.append(("timeout_seconds", f"must be more than 0 and at most {MAX_TIMEOUT}"))
        if submission.model is not None and not MODEL.fullmatch(submission.model):
            faults.append(("model", "must be a model's name"))
        if faults:
            raise Invalid.of(faults)
        repo = self.repos.full_name(submission.repo)
        self.repos.check_branch(repo, submission.branch)
        return replace(submission, repo=repo, filename=tidy_stem(name) + QUEUED)

    def _check_room(self) -> None:
        for root in (self._inbox.root, self._runs.root):
            try:
                free = space.free_bytes(root)
            except OSError as error:
                why = f"{root} cannot be used ({error.strerror}): nothing was queued"
                raise ValetError(why) from error
            if free < self._config.min_free_bytes:
                limit = self._config.min_free_bytes
                raise NoRoom(
                    f"{root} has {free} bytes free, less than PV_MIN_FREE_BYTES={limit}: "
                    "nothing was queued; make room and submit again"
                )

    def _first_record(self, submission: Submission) -> Record:
        job_id = self._ids.new()
        now = job.stamp(self._clock())
        where = (submission.repo, submission.branch, submission.filename)
        owner, _, name = submission.repo.rpartition("/")
        return Record(
            job_id=job_id,
            repo=submission.repo,
            git_owner=owner or None,
            repo_name=name,
            filename=submission.filename,
            branch=submission.branch,
            branch_name=submission.branch,
            source=submission.source,
            priority=submission.priority,
            model=submission.model,
            timeout_seconds=submission.timeout_seconds,
            retry_of=submission.retry_of,
            attempt=submission.attempt,
            idempotency=submission.idempotency,
            created_at=now,
            updated_at=now,
            inbox_path=str(self._inbox.queue_path(job_id, *where)),
            log_path=self._runs.file(job_id, "job.log"),
        )

    def _record(self, record: Record) -> None:
        if not self._runs.create(record) and record.state.terminal:
            self._runs.write(record)


_BLOCK_TEXTS = ("created_at", "source", "model", "retry_of", "idempotency", "filename")
_BLOCK_NUMBERS: dict[str, Callable[[str], Any]] = {
    "priority": int,
    "attempt": int,
    "timeout_seconds": job.finite,
}
_OWN_KEYS = frozenset({"job_id", "repo", "branch", *_BLOCK_TEXTS, *_BLOCK_NUMBERS})


def _keys(record: Record) -> dict[str, str | int | float]:
    """The block that rebuilds `record`; defaults are left out."""
    plain = job.to_dict(record)
    first = {name: plain[name] for name in ("job_id", "repo", "branch")}
    rest = {name: plain[name] for name in (*_BLOCK_TEXTS, *_BLOCK_NUMBERS)}
    blank = job.to_dict(Record("", filename=record.filename))
    return first | {n: v for n, v in rest.items() if v is not None and v != blank.get(n)}


def _from_block(block: dict[str, str], job_id: str) -> dict[str, Any]:
    """The fields a block gives; of a block that belongs to another job only the options."""
    ours = block.get("job_id") == job_id
    names = _BLOCK_TEXTS if ours else ("model",)
    fields: dict[str, Any] = {name: block[name] for name in names if block.get(name)}
    for name, parse in _BLOCK_NUMBERS.items():
        if block.get(name) and (ours or name != "attempt"):
            try:
                fields[name] = parse(block[name])
            except ValueError:
                fields[name] = None
            if fields[name] is None:
                raise Invalid.of([(name, f"{block[name][:100]!r} is not a number")])
    return fields


def _as_submission(record: Record, text: bytes) -> Submission:
    return Submission(
        repo=record.repo or "",
        branch=record.branch or "",
        text=text,
        filename=record.filename or DEFAULT_FILENAME,
        priority=record.priority,
        model=record.model,
        timeout_seconds=record.timeout_seconds,
    )


def _filename_fault(name: str) -> str | None:
    if FILENAME.fullmatch(name):
        return None
    if name.startswith("."):
        return "must not begin with a dot"
    if not name.endswith(".md"):
        return "must end in .md"
    if len(name) > _MAX_NAME:
        return f"must not be longer than {_MAX_NAME} characters"
    return "must be a plain name without slashes or control characters"


def _fingerprint(submission: Submission) -> str:
    values = (submission.repo, submission.branch, submission.filename, submission.model)
    options = (submission.priority, submission.timeout_seconds)
    return hashlib.sha256(repr((values, options, submission.text)).encode()).hexdigest()[:16]


def _shown(text: str) -> str:
    """A path from the disk as text that JSON can hold."""
    return text.encode("utf-8", "replace").decode()
