"""The intake: stores what was accepted, as a durable file in the inbox and a first record.

Submissions come from the API (`submit`), dropped files from the watcher (`take`). A submission is
acknowledged when its inbox file is durable; the record can be made again from that file. Many
submissions at once share one write (group commit), and a repeated Idempotency-Key makes no second
job. Nothing here decides what is acceptable (see `acceptance`), runs a job or speaks HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pv_lib.errors import BadRecord, Conflict, KeyReused, NoRoom, NotFound, ValetError
from pv_lib.git.repos import Repos
from pv_lib.inbox import acceptance, frontmatter, rebuild
from pv_lib.inbox.inbox import Inbox
from pv_lib.inbox.prompt import Prompt
from pv_lib.jobs import job, submission
from pv_lib.jobs.index import Index
from pv_lib.jobs.job import JobIds, Record, State
from pv_lib.jobs.store import Runs
from pv_lib.jobs.submission import Submission
from pv_lib.settings.config import Config
from pv_lib.system import files, space


@dataclass(eq=False, slots=True)
class _Ticket:
    """One request's files for one folder, as (name, bytes), to be stored all or none.

    `error` says why it was not stored, and is None once it was.
    """

    records: list[Record]
    folder: Path
    drops: list[tuple[str, bytes]]
    served: bool = False
    error: ValetError | None = field(default_factory=lambda: ValetError("it was not stored"))


class Intake:
    """Makes queued jobs of submissions and dropped files. One per process; from any thread."""

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
        self._rebuild = rebuild.Rebuild(inbox, repos, config.max_prompt_bytes)
        self.repos = repos
        self._clock = clock
        self._ids = JobIds(clock)
        self._desk = threading.Lock()  # guards the fields of waiting tickets
        self._tickets: deque[_Ticket] = deque()
        self._keyed = threading.Lock()  # guards _recovered; one keyed submission at a time
        self._recovered = False  # whether every file in the inbox has its record

    def submit(self, submissions: Sequence[Submission]) -> list[Record]:
        """Queue all of `submissions`, which are for one branch, durably, or none of them.

        Raises Invalid, NotFound, TooLarge or NoRoom; an OSError of the disk becomes NoRoom.
        """
        limit = self._config.max_prompt_bytes
        checked = [acceptance.check(wanted, limit, self.repos) for wanted in submissions]
        records = [self._first_record(wanted) for wanted in checked]
        drops = [
            (os.path.basename(record.inbox_path or ""), rebuild.with_block(wanted.text, record))
            for record, wanted in zip(records, checked, strict=True)
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
        """Group commit: one thread stores the tickets of all threads that wait.

        Eight threads side by side would take twice as long: each system call hands over the
        interpreter lock, and each thread would sync the folder again.
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
        """Store the tickets of one folder together; if that fails, one by one."""
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
                with contextlib.suppress(OSError):  # the watcher rebuilds it from the inbox file
                    self._record(record)

    def _store_again(self, ticket: _Ticket) -> None:
        """Store one ticket after its group failed.

        Files that were renamed before the failure may have been claimed: they are not stored again.
        """
        both = zip(ticket.records, ticket.drops, strict=True)
        ticket.drops = [drop for record, drop in both if not self._is_taken(record)]
        if ticket.drops:
            self._store([ticket])
        else:
            ticket.error = None

    def _is_taken(self, record: Record) -> bool:
        """Whether the watcher has claimed the job's file, or the job has even ended."""
        if self._inbox.holds(self._inbox.places(record.inbox_path, record.job_id)[1]):
            return True
        with contextlib.suppress(BadRecord, OSError):
            known = self._runs.read(record.job_id)
            return known is not None and known.state is not State.CREATED
        return False

    def submit_once(self, wanted: Submission, key: str) -> tuple[Record, bool]:
        """Submit, unless `key` was used before. Returns the record and whether it is new.

        Raises KeyReused when the key was used with another request.
        """
        known = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:32]
        mark = f"{known}.{submission.fingerprint(wanted)}"
        with self._keyed:
            if not self._recovered:
                self._recover_records()
                self._recovered = True
            first = self._index.marked(known)
            if first and first.idempotency != mark:
                why = "this Idempotency-Key was used before with another request: use a new key"
                raise KeyReused(why)
            if first:
                return first, False
            return self.submit([replace(wanted, idempotency=mark)])[0], True

    def _recover_records(self) -> None:
        """Rebuild records that a crash lost, so that the index knows every idempotency key."""
        for prompt in self._inbox.scan():
            known = prompt.job_id is None or self._index.get(prompt.job_id) is not None
            if not known and not prompt.claimed and self.carries_own_block(prompt):
                self.rebuild(prompt)

    def retry(self, old: Record) -> Record:
        """Queue the prompt of a terminal job again. Raises Conflict while it is not terminal."""
        if not old.state.terminal:
            raise Conflict(f"job {old.job_id} is {old.state.value}: abort it or wait for its end")
        return self.submit([submission.retry_of(old, self.prompt_of(old))])[0]

    def take(self, prompt: Prompt) -> tuple[Record, Path]:
        """Adopt a dropped file: rename it to carry a job id, then write its block and its record.

        A prompt that cannot be run becomes a job as well, one that has `failed` with the reason.
        Returns the record and the file's new path. Raises OSError when the file is gone or may
        not be moved.
        """
        job_id = self._ids.new()
        path = self._inbox.carry(prompt, job_id)
        return self.rebuild(replace(prompt, path=path, job_id=job_id)), path

    def rebuild(self, prompt: Prompt, *, started: bool = False) -> Record:
        """Make and store the record of a file that carries a job id, from the file alone.

        See `rebuild.Rebuild.record`.
        """
        log_path = self._runs.file(prompt.job_id or "", "job.log")
        now = job.stamp(self._clock())
        record = self._rebuild.record(prompt, log_path, now, started=started)
        self._record(record)
        return record

    def carries_own_block(self, prompt: Prompt) -> bool:
        """Whether the file is a queued prompt: its block has the job id of its name."""
        return self._rebuild.carries_own_block(prompt)

    def prompt_of(self, record: Record) -> bytes:
        """The prompt as the agent gets it, from the run folder, the inbox or the archive.

        Raises NotFound when it is in none of them.
        """
        given = self._runs.folder(record.job_id) / "prompt.md"
        if given.is_file():
            return files.read_regular(given, 1 << 30)
        for place in self._inbox.places(record.inbox_path, record.job_id):
            with contextlib.suppress(OSError):
                return frontmatter.strip(self._inbox.read(place, 1 << 30))
        raise NotFound(f"the prompt of job {record.job_id} was removed: submit it again")

    def _check_room(self) -> None:
        floor = self._config.min_free_bytes
        for root in (self._inbox.root, self._runs.root):
            try:
                low = space.is_low(root, floor)
            except OSError as error:
                why = f"{root} cannot be used ({error.strerror}): nothing was queued"
                raise ValetError(why) from error
            if low:
                raise NoRoom(
                    f"{root} has less than PV_MIN_FREE_BYTES={floor} bytes free: "
                    "nothing was queued; make room and submit again"
                )

    def _first_record(self, wanted: Submission) -> Record:
        job_id = self._ids.new()
        path = self._inbox.queue_path(job_id, wanted.repo, wanted.branch, wanted.filename)
        record = submission.first_record(wanted, job_id, job.stamp(self._clock()))
        return record.with_(inbox_path=str(path), log_path=self._runs.file(job_id, "job.log"))

    def _record(self, record: Record) -> None:
        if not self._runs.create(record) and record.state.terminal:
            self._runs.write(record)
