"""The routes: a Request in, a Response out. No socket, no thread, no watcher.

It meets the watcher on disk and shares only a wake-up with it. The table at the end is the list
of all routes, and what a path may be asked comes from it alone.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pv_lib import fields, files, job, logfile, wire
from pv_lib.config import Config
from pv_lib.errors import Conflict, Invalid, MethodNotAllowed, NotFound, TooLarge, Unsupported
from pv_lib.follow import Followers
from pv_lib.intake import Intake, Submission, free_bytes
from pv_lib.job import Record, State
from pv_lib.server import Answer, Follow
from pv_lib.store import Index
from pv_lib.wire import Request, Response

Route = Callable[["Api", Request, str], Answer]
DEFAULT_LINES, MAX_LINES = 200, 100_000
DEFAULT_LIMIT, MAX_LIMIT = 50, 500
MAX_FILES = 100
_ALIVE_POLLS = 5  # poll intervals after which a silent watcher counts as gone
_SHOWN_SETTINGS = (
    "stall_threshold_seconds",
    "heartbeat_seconds",
    "poll_interval_seconds",
    "max_running",
    "job_timeout_seconds",
    "abort_grace_seconds",
    "max_prompt_bytes",
    "max_log_bytes",
    "min_free_bytes",
    "codex_sandbox",
)
_KEY = re.compile(r"[!-~]{1,200}")


@dataclass(frozen=True)
class Api:
    """What the routes need. `wake` tells the watcher of a new inbox file or an abort."""

    config: Config
    index: Index
    intake: Intake
    followers: Followers
    wake: Callable[[Path | str], None]
    version: str
    started: float  # Unix time
    clock: Callable[[], float] = time.time

    def __call__(self, request: Request) -> Answer:
        """Find the route and ask it. Raises ValetError for the server to tell."""
        routes, job_id = _find(request.segments)
        if routes is None:
            raise NotFound(f"there is nothing at /{'/'.join(request.segments)[:200]}")
        allow = ", ".join(sorted({*routes, "OPTIONS", *(["HEAD"] if "GET" in routes else [])}))
        if request.method == "OPTIONS":
            return Response(204, headers={"Allow": allow})
        route = routes.get("GET" if request.method == "HEAD" else request.method)
        if route is None:
            raise MethodNotAllowed(f"{request.method} is not possible here, only {allow}", allow)
        try:
            return route(self, request, job_id)
        except OSError as error:
            raise files.refusal(error, "the disk did not do what was asked") from error

    def healthz(self, request: Request, _: str) -> Response:
        """The server answers."""
        fields.params(request)
        return _json(200, {"status": "ok", "version": self.version})

    def status(self, request: Request, _: str) -> Response:
        """What an operator wants to know at a glance."""
        fields.params(request)
        now = self.clock()
        config = self.config
        counts = self.index.counts()
        live = self.index.live()
        running = [r for r in live if r.state is State.RUNNING]
        roots = {name: _root(path) for name, path in config.roots.items()}
        plain: dict[str, Any] = {
            "version": self.version,
            "started_at": job.stamp(self.started),
            "uptime_seconds": round(now - self.started, 3),
            "config": {
                **{f"{name}_root": str(path) for name, path in config.roots.items()},
                **{name: getattr(config, name) for name in _SHOWN_SETTINGS},
            },
            "roots": roots,
            "jobs": {
                "counts": counts,
                "total": sum(counts.values()),
                "stalled_running": sum(self._stalled(record, now) for record in running),
            },
            "queue": {
                "waiting": counts[State.CREATED.value],
                "running": counts[State.RUNNING.value],
                "slots": config.max_running,
            },
            "watcher": self._watcher(now),
            "targets": {"count": sum(1 for _ in self.intake.repos.all())},
            "problems": self._problems(roots),
        }
        return _json(200, plain)

    def targets(self, request: Request, _: str) -> Response:
        """The repositories and branches that a submission may name."""
        fields.params(request)
        pairs = [{"repo": repo, "branch": branch} for repo, branch in self.intake.repos.all()]
        return _json(200, {"targets": pairs})

    def submit(self, request: Request, _: str) -> Response:
        """Queue one prompt."""
        if request.content_type == "application/json":
            fields.params(request)
            given = fields.json_object(request.body)
        elif request.content_type == "text/markdown":
            allowed = [name for name in fields.FIELDS if name != "markdown_text"]
            given = fields.from_query(fields.params(request, *allowed))
            given["markdown_text"] = fields.utf8(request.body, "body")
        else:
            raise Unsupported("submit as Content-Type: application/json or text/markdown")
        submission = fields.submission(given)
        key = request.headers.get("idempotency-key")
        if key is None:
            record, new = self.intake.submit([submission])[0], True
        elif not _KEY.fullmatch(key):
            raise Invalid.of([("Idempotency-Key", "must be 1 to 200 printable ASCII characters")])
        else:
            record, new = self.intake.submit_once(submission, key)
        if new:
            self.wake(Path(record.inbox_path or ""))
        return self._created(record)

    def upload(self, request: Request, _: str) -> Response:
        """Queue several files at once: all of them or none."""
        fields.params(request)
        if request.content_type != "multipart/form-data":
            raise Unsupported("upload as Content-Type: multipart/form-data")
        given: dict[str, str] = {}
        prompts: list[tuple[str, bytes]] = []
        for part in wire.parse_form(request.headers.get("content-type", ""), request.body):
            if part.filename is not None and part.name == "files":
                prompts.append((part.filename, part.data))
            elif part.filename is None and part.name in ("repo", "branch"):
                if part.name in given:
                    raise Invalid.of([(part.name, "is given more than once")])
                given[part.name] = fields.utf8(part.data, part.name)
            else:
                raise Invalid.of([(part.name, "is not a field: there are repo, branch, files")])
        missing = [(name, "is missing") for name in ("repo", "branch") if name not in given]
        if not prompts:
            missing.append(("files", "is missing: send at least one file that ends in .md"))
        if len(prompts) > MAX_FILES:
            raise TooLarge(f"files: at most {MAX_FILES} in one request")
        if missing:
            raise Invalid.of(missing)
        submissions = [
            Submission(given["repo"], given["branch"], data, filename=name, source="upload")
            for name, data in prompts
        ]
        records = self.intake.submit(submissions)
        for record in records:
            self.wake(Path(record.inbox_path or ""))
        return _json(201, {"jobs": [_receipt(record) for record in records]})

    def list_jobs(self, request: Request, _: str) -> Response:
        """The jobs, newest first, filtered."""
        params = fields.params(request, "state", "repo", "branch", "stalled", "limit", "before")
        wanted = self._filter(params)
        limit = fields.whole(params, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
        found = (r for r in self.index.newest_first(params.get("before")) if wanted(r))
        page = list(itertools.islice(found, limit + 1))
        places = self._queue_places()
        jobs = [self._shown(record, places) for record in page[:limit]]
        more = page[limit - 1].job_id if len(page) > limit else None
        return _json(200, {"jobs": jobs, "next": more})

    def detail(self, request: Request, job_id: str) -> Response:
        """One job's record."""
        fields.params(request)
        record = self._record(job_id)
        places = self._queue_places() if record.state is State.CREATED else {}
        return _json(200, self._shown(record, places))

    def log(self, request: Request, job_id: str) -> Response:
        """The log's last lines, or everything from a byte offset on."""
        params = fields.params(request, "lines", "offset")
        if len(params) == 2:
            raise Invalid.of([("offset", "cannot go with lines: give one of them")])
        lines = fields.whole(params, "lines", DEFAULT_LINES, 1, MAX_LINES)
        offset = fields.whole(params, "offset", 0, 0, 1 << 50)
        record = self._record(job_id)
        try:
            file = logfile.open_log(self.index.runs.log_path(job_id))
        except OSError:
            raise NotFound(f"job {job_id} has no log: it is {record.state.value}") from None
        if "offset" in params:
            size = os.fstat(file.fileno()).st_size
            start = min(offset, size)
        else:
            start, size = logfile.tail_start(file, lines)
        file.seek(start)
        headers = {"X-Log-Offset": str(start), "X-Next-Offset": str(size)}
        kind = "text/plain; charset=utf-8"
        return Response(200, b"", kind, headers, file=file, length=size - start)

    def stream(self, request: Request, job_id: str) -> Follow:
        """Every line of the log, live, until the job's end."""
        fields.params(request)
        self._record(job_id)
        text = request.headers.get("last-event-id", "")
        if text and not (text.isascii() and text.isdigit() and len(text) <= 15):
            raise Invalid.of([("Last-Event-ID", "must be a byte offset that the stream gave")])
        return Follow(lambda sock: self.followers.add(sock, job_id, int(text or 0)))

    def abort(self, request: Request, job_id: str) -> Response:
        """Ask for the job's end."""
        fields.params(request)
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

    def retry(self, request: Request, job_id: str) -> Response:
        """Queue an ended job's prompt again, as a new job."""
        fields.params(request)
        record = self.intake.retry(self._record(job_id))
        self.wake(Path(record.inbox_path or ""))
        return self._created(record)

    def prompt(self, request: Request, job_id: str) -> Response:
        """The prompt as the agent gets it."""
        fields.params(request)
        data = self.intake.prompt_of(self._record(job_id))
        return Response(200, data, "text/markdown; charset=utf-8")

    def message(self, request: Request, job_id: str) -> Response:
        """The agent's last message."""
        return self._run_file(request, job_id, "last-message.md", "text/markdown; charset=utf-8")

    def diff(self, request: Request, job_id: str) -> Response:
        """What the job changed, as `git show` prints it."""
        return self._run_file(request, job_id, "changes.diff", "text/x-diff; charset=utf-8")

    def events(self, request: Request, job_id: str) -> Response:
        """The agent's raw output."""
        return self._run_file(request, job_id, "codex.jsonl", "application/x-ndjson")

    def _run_file(self, request: Request, job_id: str, name: str, kind: str) -> Response:
        fields.params(request)
        record = self._record(job_id)
        try:
            file = logfile.open_log(self.index.runs.folder(job_id) / name)
        except OSError:
            why = f"job {job_id} has no {name}: it is {record.state.value}"
            raise NotFound(why) from None
        return Response(200, b"", kind, file=file, length=os.fstat(file.fileno()).st_size)

    def _record(self, job_id: str) -> Record:
        record = self.index.get(job_id)
        if record is None:
            raise NotFound(f"there is no job {job_id}")
        return record

    def _created(self, record: Record) -> Response:
        response = _json(201, _receipt(record))
        response.headers["Location"] = f"/api/v1/jobs/{record.job_id}"
        return response

    def _shown(self, record: Record, places: dict[str, int]) -> dict[str, Any]:
        """The record with what is derived when it is read."""
        now = self.clock()
        created = job.seconds_of(record.created_at)
        try:
            info = os.stat(self.index.runs.log_path(record.job_id))
        except OSError:
            info = None
        return {
            **job.to_dict(record),
            "stalled": self._stalled(record, now),
            "age_seconds": round(max(0.0, now - created), 3) if created else None,
            "queue_position": places.get(record.job_id),
            "log_bytes": info.st_size if info else 0,
            "last_output_at": job.stamp(info.st_mtime) if info and info.st_size else None,
        }

    def _stalled(self, record: Record, now: float) -> bool:
        if record.state is not State.RUNNING:
            return False
        beat = job.seconds_of(record.heartbeat_at) or job.seconds_of(record.started_at) or 0.0
        return now - beat > self.config.stall_threshold_seconds

    def _queue_places(self) -> dict[str, int]:
        waiting = [r for r in self.index.live() if r.state is State.CREATED]
        waiting.sort(key=job.queue_order)
        return {record.job_id: place for place, record in enumerate(waiting, 1)}

    def _filter(self, params: dict[str, str]) -> Callable[[Record], bool]:
        state, repo, branch = (params.get(name) for name in ("state", "repo", "branch"))
        if state is not None and state not in {s.value for s in State}:
            names = ", ".join(s.value for s in State)
            raise Invalid.of([("state", f"must be one of {names}")])
        stalled = params.get("stalled")
        if stalled not in (None, "true", "false"):
            raise Invalid.of([("stalled", "must be true or false")])
        before = params.get("before")
        if before is not None and not job.JOB_ID.fullmatch(before):
            raise Invalid.of([("before", "must be a job id")])
        now = self.clock()

        def wanted(record: Record) -> bool:
            return (
                (state is None or record.state.value == state)
                and (repo is None or repo in (record.repo, record.repo_name))
                and (branch is None or record.branch == branch)
                and (stalled is None or self._stalled(record, now) == (stalled == "true"))
            )

        return wanted

    def _watcher(self, now: float) -> dict[str, Any]:
        beat = self.index.runs.watcher_beat()
        limit = max(_ALIVE_POLLS * self.config.poll_interval_seconds, 2)
        return {
            "mode": "built in" if self.config.watcher else "apart",
            "heartbeat_at": job.stamp(beat) if beat else None,
            "alive": beat is not None and now - beat < limit,
        }

    def _problems(self, roots: dict[str, dict[str, Any]]) -> list[str]:
        limit = self.config.min_free_bytes
        problems = [*self.index.problems(), *self.index.runs.watcher_complaints()]
        for name, root in roots.items():
            if not root["exists"]:
                problems.append(f"the {name} root {root['path']} is not there")
            elif not root["writable"]:
                problems.append(f"the {name} root {root['path']} is not writable")
            elif name in ("inbox", "runs") and root["free_bytes"] < limit:
                problems.append(f"the {name} root has less than PV_MIN_FREE_BYTES={limit} free")
        return problems


def _root(path: Path) -> dict[str, Any]:
    exists = path.is_dir()
    return {
        "path": str(path),
        "exists": exists,
        "writable": os.access(path, os.W_OK | os.X_OK),
        "free_bytes": free_bytes(path) if exists else None,
    }


def _receipt(record: Record) -> dict[str, Any]:
    """What a submission is answered: only what never changes, so that a repeat can be equal."""
    plain = job.to_dict(record)
    names = ("repo", "branch", "filename", "source", "priority", "model", "timeout_seconds")
    return {
        "job_id": record.job_id,
        "state": State.CREATED.value,
        "created_at": record.created_at,
        "inbox_path": record.inbox_path,
        **{name: plain[name] for name in (*names, "retry_of")},
    }


def _json(status: int, plain: dict[str, Any]) -> Response:
    return Response(
        status, json.dumps(plain, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    )


_JOB = "{job_id}"
ROUTES: dict[tuple[str, ...], dict[str, Route]] = {
    ("api", "v1", "healthz"): {"GET": Api.healthz},
    ("api", "v1", "status"): {"GET": Api.status},
    ("api", "v1", "targets"): {"GET": Api.targets},
    ("api", "v1", "jobs"): {"GET": Api.list_jobs, "POST": Api.submit},
    ("api", "v1", "jobs", "upload"): {"POST": Api.upload},
    ("api", "v1", "jobs", _JOB): {"GET": Api.detail},
    ("api", "v1", "jobs", _JOB, "log"): {"GET": Api.log},
    ("api", "v1", "jobs", _JOB, "log", "stream"): {"GET": Api.stream},
    ("api", "v1", "jobs", _JOB, "abort"): {"POST": Api.abort},
    ("api", "v1", "jobs", _JOB, "retry"): {"POST": Api.retry},
    ("api", "v1", "jobs", _JOB, "prompt"): {"GET": Api.prompt},
    ("api", "v1", "jobs", _JOB, "message"): {"GET": Api.message},
    ("api", "v1", "jobs", _JOB, "diff"): {"GET": Api.diff},
    ("api", "v1", "jobs", _JOB, "events"): {"GET": Api.events},
}


def _find(segments: tuple[str, ...]) -> tuple[dict[str, Route] | None, str]:
    """The methods of a path, and the job id in it."""
    if segments in ROUTES:
        return ROUTES[segments], ""
    if len(segments) < 4:
        return None, ""
    return ROUTES.get((*segments[:3], _JOB, *segments[4:])), segments[3]


def paths() -> Iterator[tuple[str, str]]:
    """Every (method, path) there is, for documents and their tests."""
    for segments, methods in ROUTES.items():
        yield from ((method, "/" + "/".join(segments)) for method in methods)
