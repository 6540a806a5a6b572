"""What the routes answer: a Request in, a Response out. No socket, no thread, no watcher.

It shares the files on disk and a wake-up with the watcher, nothing else. `routes` has the table of
routes; the parameters arrive checked and typed.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from pv_lib.api import parameters
from pv_lib.api.caches import ListCache, Tail, TailCache
from pv_lib.api.feeds import ChangeFeed, LogFeed
from pv_lib.api.schemas import RECEIPT_FIELDS
from pv_lib.api.status import Overview
from pv_lib.api.view import Views
from pv_lib.errors import Busy, Conflict, Invalid, NotFound, Unauthorized, Unsupported
from pv_lib.httpd import wire
from pv_lib.httpd.connection import Follow
from pv_lib.httpd.follow import Arrival, Feed, Followers, Place
from pv_lib.httpd.gate import COOKIE, COOKIE_SECONDS, Gate
from pv_lib.httpd.limits import Limits
from pv_lib.httpd.wire import Request, Response, media_type
from pv_lib.inbox.intake import Intake
from pv_lib.jobs import job, logfile
from pv_lib.jobs.index import Index
from pv_lib.jobs.job import Record, State
from pv_lib.jobs.submission import DEFAULT_FILENAME, Submission
from pv_lib.system import files

Values = dict[str, Any]
_IN_MEMORY = 1 << 20  # bytes of log that are answered in one piece


@dataclass(frozen=True)
class Api:
    """What the routes need. `wake` tells the watcher of a new inbox file or an abort."""

    index: Index
    intake: Intake
    views: Views
    overview: Overview
    followers: Followers
    gate: Gate
    limits: Limits
    wake: Callable[[Path | str], None]
    version: str
    document: bytes  # of OpenAPI
    clock: Callable[[], float] = time.time
    tails: TailCache = field(default_factory=TailCache)
    lists: ListCache = field(default_factory=ListCache)

    def healthz(self, request: Request, _: str, params: Values) -> Response:
        """The server answers."""
        return Response(200, b'{"status": "ok", "version": "%b"}\n' % self.version.encode())

    def status(self, request: Request, _: str, params: Values) -> Response:
        """What an operator wants to know at a glance."""
        return Response(200, self.overview.encode(self.clock()))

    def targets(self, request: Request, _: str, params: Values) -> Response:
        """The repositories and branches that a submission may name."""
        pairs = [{"repo": repo, "branch": branch} for repo, branch in self.intake.repos.all()]
        return _json(200, {"targets": pairs})

    def submit(self, request: Request, _: str, params: Values) -> Response:
        """Queue a prompt: JSON, or Markdown with repo, branch and the rest in the query."""
        kind = media_type(request.headers)
        if kind == "text/markdown":
            given = {**params, "markdown_text": parameters.utf8(request.body, "body")}
        elif kind == "application/json":
            given = {**params, **parameters.json_object(request.body)}
        else:
            raise Unsupported("submit as Content-Type: application/json or text/markdown")
        submission = parameters.submission(given)
        key = parameters.header(request, parameters.IDEMPOTENCY_KEY)
        if key is None:
            record, new = self.intake.submit([submission])[0], True
        else:
            record, new = self.intake.submit_once(submission, key)
        if new:
            self.wake(Path(record.inbox_path or ""))
        return self._created(record)

    def upload(self, request: Request, _: str, params: Values) -> Response:
        """Queue several files at once: all of them or none."""
        if media_type(request.headers) != "multipart/form-data":
            raise Unsupported("upload as Content-Type: multipart/form-data")
        given: dict[str, str] = {}
        prompts: list[tuple[str, bytes]] = []
        for part in wire.parse_form(request.headers.get("content-type", ""), request.body):
            if part.name == "files":
                name = DEFAULT_FILENAME if part.filename is None else part.filename
                prompts.append((name, part.data))
            elif part.filename is None and part.name in ("repo", "branch"):
                if part.name in given:
                    raise Invalid.of([(part.name, "is given more than once")])
                given[part.name] = parameters.utf8(part.data, part.name)
            else:
                raise Invalid.of([(part.name, "is not a field: there are repo, branch, files")])
        faults = [(name, "is missing") for name in ("repo", "branch") if name not in given]
        if not prompts:
            faults.append(("files", "is missing: send at least one file that ends in .md"))
        if len(prompts) > parameters.MAX_FILES:
            faults.append(("files", f"are too many: at most {parameters.MAX_FILES} in one request"))
        if faults:
            raise Invalid.of(faults)
        submissions = [
            Submission(given["repo"], given["branch"], data, filename=name, source="upload")
            for name, data in prompts
        ]
        records = self.intake.submit(submissions)
        for record in records:
            self.wake(Path(record.inbox_path or ""))
        return _json(201, {"jobs": [_receipt(record) for record in records]})

    def list_jobs(self, request: Request, _: str, params: Values) -> Response:
        """The jobs, newest first, filtered."""
        query, version, now = tuple(params.items()), self.index.version, self.clock()
        response = self.lists.get(query, version, now)
        if response is None:
            response = self._list(params, now)
            self.lists.put(query, version, now, response)
        return response

    def _list(self, params: Values, now: float) -> Response:
        limit = params.get("limit", parameters.LIST["limit"].schema["default"])
        page = list(itertools.islice(self._found(params), limit + 1))
        places = self.index.positions()
        jobs = [self.views.encode(r, places.get(r.job_id), now) for r in page[:limit]]
        more = f'"{page[limit - 1].job_id}"' if len(page) > limit else "null"
        return Response(200, b'{"jobs": [%b], "next": %b}\n' % (b", ".join(jobs), more.encode()))

    def detail(self, request: Request, job_id: str, params: Values) -> Response:
        """One job's record."""
        record = self._record(job_id)
        place = self.index.positions().get(job_id) if record.state is State.CREATED else None
        return Response(200, self.views.encode(record, place, self.clock()) + b"\n")

    def log(self, request: Request, job_id: str, params: Values) -> Response:
        """The log's last lines, or everything from a byte offset on."""
        lines = params.get("lines", parameters.LOG["lines"].schema["default"])
        path = self.index.runs.file(job_id, "job.log")
        tail = Tail(path, lines, params.get("ansi", "strip")) if "offset" not in params else None
        cached = self.tails.get(tail) if tail else None
        if cached:
            return cached
        file = self._open(self._record(job_id), "job.log")
        if tail:
            start, end = logfile.tail_start(file, lines)
        else:
            start, end = logfile.piece(file, params["offset"], params.get("lines"))
        headers = {"X-Log-Offset": str(start), "X-Next-Offset": str(end)}
        kind = "text/plain; charset=utf-8"
        if params.get("ansi") == "raw":
            file.seek(start)
            return Response(200, b"", kind, headers, file=file, length=end - start)
        plain = logfile.plain(file, start, end)
        if end - start > _IN_MEMORY:
            return Response(200, b"", kind, headers, file=file, chunks=plain)
        with file:
            info = os.fstat(file.fileno())
            response = Response(200, b"".join(plain), kind, headers)
        if tail and info.st_size == end:
            self.tails.put(tail, info, response, self.clock())
        return response

    def stream(self, request: Request, job_id: str, params: Values) -> Follow:
        """Every line of the log, live, until the job's end."""
        self._record(job_id)
        offset = parameters.header(request, parameters.LAST_EVENT_ID) or 0
        strip = params.get("ansi") == "strip"
        key = f"the log of job {job_id}{' (stripped)' if strip else ''}"
        feed = functools.partial(LogFeed, self.index, job_id, strip=strip)
        return self._follow(request, key, feed, offset)

    def changes(self, request: Request, _: str, params: Values) -> Follow:
        """Every change of a job's record, live."""
        after = parameters.header(request, parameters.LAST_EVENT_ID)
        now = self.index.sequence
        lost = after is not None and self.index.changes(after) is None
        feed = functools.partial(ChangeFeed, self.index, self.views, self.clock)
        offset = now if after is None or lost else after
        greeting = b"event: reset\ndata: {}\nid: %d\n\n" % now if lost else b""
        return self._follow(request, "the records' changes", feed, offset, greeting)

    def _follow(
        self,
        request: Request,
        key: str,
        feed: Callable[[], Feed],
        offset: int,
        greeting: bytes = b"",
    ) -> Follow:
        streams, client = self.limits.streams, request.client
        if not streams.take(1, client):
            streams.refuse()
            raise Busy("too many streams are open: close one, or try again in a second")
        done = functools.partial(streams.release, 1, client)
        arrival = Arrival(key, feed, Place(offset), done)
        return Follow(lambda sock: self.followers.add(sock, arrival), done, greeting)

    def abort(self, request: Request, job_id: str, params: Values) -> Response:
        """Ask for the job's end."""
        record = self._record(job_id)
        if record.state.terminal:
            raise Conflict(f"job {job_id} has ended already: it is {record.state.value}")
        mark = self.index.runs.mark_abort(job_id, record.state, self.clock())
        self.wake(job_id)
        plain = {
            "job_id": job_id,
            "previous_state": mark.state or record.state.value,
            "abort_requested_at": mark.asked_at,
        }
        return _json(200, plain)

    def retry(self, request: Request, job_id: str, params: Values) -> Response:
        """Queue an ended job's prompt again, as a new job."""
        record = self.intake.retry(self._record(job_id))
        self.wake(Path(record.inbox_path or ""))
        return self._created(record)

    def prompt(self, request: Request, job_id: str, params: Values) -> Response:
        """The prompt as the agent gets it."""
        data = self.intake.prompt_of(self._record(job_id))
        return Response(200, data, "text/markdown; charset=utf-8")

    def message(self, request: Request, job_id: str, params: Values) -> Response:
        """The agent's last message."""
        return self._run_file(request, job_id, "last-message.md", "text/markdown; charset=utf-8")

    def diff(self, request: Request, job_id: str, params: Values) -> Response:
        """What the job changed, as `git show` prints it."""
        return self._run_file(request, job_id, "changes.diff", "text/x-diff; charset=utf-8")

    def events(self, request: Request, job_id: str, params: Values) -> Response:
        """The agent's raw output."""
        return self._run_file(request, job_id, "codex.jsonl", "application/x-ndjson")

    def sign_in(self, request: Request, _: str, params: Values) -> Response:
        """A session for a browser: a cookie that opens as the bearer token does.

        Only the token gets one, or a stolen cookie could be renewed for ever.
        """
        if self.gate.token is not None and "authorization" not in request.headers:
            raise Unauthorized("sign in with the bearer token: Authorization: Bearer …")
        value = self.gate.session(self.clock())
        return Response(204, headers=_cookie(request, value, COOKIE_SECONDS) if value else {})

    def sign_out(self, request: Request, _: str, params: Values) -> Response:
        """Take the cookie back."""
        return Response(204, headers=_cookie(request, "", 0))

    def describe(self, request: Request, _: str, params: Values) -> Response:
        """This document."""
        return Response(200, self.document)

    def _run_file(self, request: Request, job_id: str, name: str, kind: str) -> Response:
        file = self._open(self._record(job_id), name)
        return Response(200, b"", kind, file=file, length=os.fstat(file.fileno()).st_size)

    def _open(self, record: Record, name: str) -> FileIO:
        try:
            return files.open_regular(self.index.runs.file(record.job_id, name))
        except (FileNotFoundError, NotADirectoryError, Invalid):
            why = f"job {record.job_id} has no {name}: it is {record.state.value}"
            raise NotFound(why) from None

    def _record(self, job_id: str) -> Record:
        record = self.index.get(job_id)
        if record is None:
            raise NotFound(f"there is no job {job_id}")
        return record

    def _created(self, record: Record) -> Response:
        response = _json(201, _receipt(record))
        response.headers["Location"] = f"/api/v1/jobs/{record.job_id}"
        return response

    def _found(self, params: Values) -> Iterator[Record]:
        """What the filters let through, newest first."""
        wanted = {name: params.get(name) for name in ("state", "repo", "branch")}
        stalled, now = params.get("stalled"), self.clock()
        if stalled and wanted["state"] is None:
            wanted["state"] = State.RUNNING.value  # no other can be
        for record in self.index.newest_first(params.get("before"), **wanted):
            if stalled is None or self.views.stalled(record, now) == stalled:
                yield record


def _cookie(request: Request, value: str, seconds: int) -> dict[str, str]:
    secure = "; Secure" if request.headers.get("origin", "").startswith("https:") else ""
    how = f"Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
    return {"Set-Cookie": f"{COOKIE}={value}; {how}"}


def _receipt(record: Record) -> dict[str, Any]:
    """What a submission is answered: only what never changes, so that a repeat can be equal."""
    plain = {**job.to_dict(record), "state": State.CREATED.value}
    return {name: plain[name] for name in RECEIPT_FIELDS}


def _json(status: int, plain: dict[str, Any]) -> Response:
    return Response(
        status, json.dumps(plain, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    )
