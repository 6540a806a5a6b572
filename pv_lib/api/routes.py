"""The routing table: each method and path, its handler, its parameters, bodies and answers.

A path that is not in the table is answered with 404. The checks of parameters, OPTIONS, 405 and the
OpenAPI document are made from the table. What an answer contains is decided in `handlers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pv_lib.api import parameters
from pv_lib.api.handlers import Api
from pv_lib.api.openapi import JSON, Body, Operation
from pv_lib.errors import MethodNotAllowed, NotFound
from pv_lib.httpd.connection import Answer
from pv_lib.httpd.wire import Request, Response
from pv_lib.system import files

Handler = Callable[[Api, Request, str, dict[str, Any]], Answer]
_V1 = "/api/v1"
_JOB = f"{_V1}/jobs/{{job_id}}"
_MARKDOWN = Body("text/markdown")
_LOCATION = {"Location": "the job's path"}
_OFFSETS = {
    "X-Log-Offset": "the byte of the log at which the text begins",
    "X-Next-Offset": "the byte after the text: the offset of the next request",
}
_COOKIE = {"Set-Cookie": "the session, where there is a token"}


@dataclass(frozen=True)
class Route:
    """One row: an operation, and the method of `Api` that handles it."""

    operation: Operation
    handler: Handler


def _row(
    method: str, path: str, handler: Handler, status: int, body: Body | None, **more: Any
) -> Route:
    summary = (handler.__doc__ or "").partition("\n")[0]
    name = handler.__name__
    return Route(Operation(method, path, name, {status: body}, summary=summary, **more), handler)


def _json(name: str) -> Body:
    return Body(JSON, name)


TABLE: tuple[Route, ...] = (
    _row("GET", f"{_V1}/healthz", Api.healthz, 200, _json("Health")),
    _row("GET", f"{_V1}/status", Api.status, 200, _json("Status")),
    _row("GET", f"{_V1}/targets", Api.targets, 200, _json("Targets")),
    _row("GET", f"{_V1}/jobs", Api.list_jobs, 200, _json("Jobs"), query=parameters.LIST),
    _row(
        "POST",
        f"{_V1}/jobs",
        Api.submit,
        201,
        _json("Receipt"),
        query=parameters.SUBMIT,
        headers=parameters.IDEMPOTENCY_KEY,
        gives=_LOCATION,
        takes=(_json("Submission"), Body("text/markdown", "Markdown")),
        problems=(404, 422),
    ),
    _row(
        "POST",
        f"{_V1}/jobs/upload",
        Api.upload,
        201,
        _json("Receipts"),
        takes=(Body("multipart/form-data", "Upload"),),
        problems=(404,),
    ),
    _row("GET", _JOB, Api.detail, 200, _json("Job")),
    _row(
        "GET",
        f"{_JOB}/log",
        Api.log,
        200,
        Body("text/plain"),
        query=parameters.LOG,
        gives=_OFFSETS,
        later=True,
    ),
    _row(
        "GET",
        f"{_JOB}/log/stream",
        Api.stream,
        200,
        Body("text/event-stream", "LogEvent"),
        query=parameters.STREAM,
        headers=parameters.LAST_EVENT_ID,
    ),
    _row("POST", f"{_JOB}/abort", Api.abort, 200, _json("Abort"), problems=(409, 507)),
    _row(
        "POST",
        f"{_JOB}/retry",
        Api.retry,
        201,
        _json("Receipt"),
        gives=_LOCATION,
        problems=(409, 507),
    ),
    _row("GET", f"{_JOB}/prompt", Api.prompt, 200, _MARKDOWN),
    _row("GET", f"{_JOB}/message", Api.message, 200, _MARKDOWN, later=True),
    _row("GET", f"{_JOB}/diff", Api.diff, 200, Body("text/x-diff"), later=True),
    _row("GET", f"{_JOB}/events", Api.events, 200, Body("application/x-ndjson"), later=True),
    _row(
        "GET",
        f"{_V1}/events",
        Api.changes,
        200,
        Body("text/event-stream", "ChangeEvent"),
        headers=parameters.LAST_EVENT_ID,
    ),
    _row("POST", f"{_V1}/session", Api.sign_in, 204, None, gives=_COOKIE, token_only=True),
    _row("DELETE", f"{_V1}/session", Api.sign_out, 204, None, gives=_COOKIE),
    _row("GET", f"{_V1}/openapi.json", Api.describe, 200, Body(JSON)),
)


def _by_path() -> dict[tuple[str, ...], dict[str, Route]]:
    found: dict[tuple[str, ...], dict[str, Route]] = {}
    for route in TABLE:
        segments = tuple(route.operation.path[1:].split("/"))
        found.setdefault(segments, {})[route.operation.method] = route
    return found


_PATHS = _by_path()
_ID = "{job_id}"


@dataclass(frozen=True)
class Router:
    """Finds a request's route and calls its handler; the server calls it."""

    api: Api

    def __call__(self, request: Request) -> Answer:
        """The answer to a request. Raises ValetError, which the server turns into a problem."""
        if request.method == "OPTIONS" and request.segments == ("",):
            return Response(204, headers={"Allow": "DELETE, GET, HEAD, OPTIONS, POST"})
        routes, job_id = _find(request.segments)
        if routes is None:
            raise NotFound(f"there is nothing at /{'/'.join(request.segments)[:200]}")
        route = routes.get("GET" if request.method == "HEAD" else request.method)
        if route is None:
            allow = ", ".join(sorted({*routes, "OPTIONS", *(["HEAD"] if "GET" in routes else [])}))
            if request.method == "OPTIONS":
                return Response(204, headers={"Allow": allow})
            what = f"{request.method[:20]} is not possible here, only {allow}"
            raise MethodNotAllowed(what, allow)
        params = parameters.values(request.query, route.operation.query) if request.query else {}
        try:
            return route.handler(self.api, request, job_id, params)
        except OSError as error:
            raise files.refusal(error, "the disk did not do what was asked") from error


def _find(segments: tuple[str, ...]) -> tuple[dict[str, Route] | None, str]:
    """The routes of a path by method, None where there are none, and the job id in it."""
    if segments in _PATHS:
        return _PATHS[segments], ""
    if len(segments) < 4:
        return None, ""
    return _PATHS.get((*segments[:3], _ID, *segments[4:])), segments[3]
