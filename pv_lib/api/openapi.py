"""The OpenAPI 3.1 document, made from the routing table and nothing else. Pure.

An `Operation` lists what is particular to it. The problems that any request can have (access,
limits, an internal error) are added to each here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from pv_lib.api.parameters import Parameter
from pv_lib.api.schemas import JOB_ID, SCHEMAS, ref
from pv_lib.httpd.gate import COOKIE

JSON = "application/json"
_EVERYWHERE = (400, 401, 403, 408, 413, 421, 431, 500, 501, 503, 505)
_WITH_BODY = (409, 415, 507)
_PROBLEM_HEADERS = {401: ("WWW-Authenticate", "Bearer"), 503: ("Retry-After", "1")}
_TEXT = {"type": "string"}


@dataclass(frozen=True)
class Body:
    """A body's media type, and its schema: a name from `schemas`, or None for text or bytes."""

    media: str
    schema: str | None = None


@dataclass(frozen=True)
class Operation:
    """One method of one path, as a client sees it.

    `gives` are the headers of its answer and their meanings. `token_only`: a session is not
    enough. `problems` are the statuses it can fail with, beside those that every operation has.
    `later`: the answer is 404 until the agent has written it.
    """

    method: str
    path: str
    name: str
    answers: Mapping[int, Body | None]
    query: Mapping[str, Parameter] = field(default_factory=dict)
    headers: Mapping[str, Parameter] = field(default_factory=dict)
    takes: tuple[Body, ...] = ()
    problems: tuple[int, ...] = ()
    gives: Mapping[str, str] = field(default_factory=dict)
    token_only: bool = False
    later: bool = False
    summary: str = ""


def document(operations: Iterable[Operation], version: str, *, secured: bool) -> dict[str, Any]:
    """The whole document; `secured` says whether a token is needed."""
    known = tuple(operations)
    paths: dict[str, Any] = {}
    for operation in known:
        item = paths.setdefault(operation.path, {})
        if "{job_id}" in operation.path:
            item["parameters"] = [{"$ref": "#/components/parameters/job_id"}]
        plain_operation = item[operation.method.lower()] = _operation(operation, known)
        if secured and operation.token_only:
            plain_operation["security"] = [{"token": []}]
    components: dict[str, Any] = {
        "schemas": SCHEMAS,
        "parameters": {
            "job_id": {"name": "job_id", "in": "path", "required": True, "schema": JOB_ID}
        },
        "responses": {f"problem_{status}": _problem(status) for status in _all_problems(known)},
    }
    plain: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Prompt Valet",
            "version": version,
            "description": "The box in the corner that does your coding jobs. HEAD answers "
            "wherever GET does, OPTIONS on every path.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": components,
    }
    if secured:
        components["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer"},
            "session": {"type": "apiKey", "in": "cookie", "name": COOKIE},
        }
        plain["security"] = [{"token": []}, {"session": []}]
    return plain


def _operation(operation: Operation, known: tuple[Operation, ...]) -> dict[str, Any]:
    answers = {
        str(status): _answer(status, body, operation.gives, known)
        for status, body in operation.answers.items()
    }
    for status in _problems(operation):
        answers[str(status)] = {"$ref": f"#/components/responses/problem_{status}"}
    plain: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary + (" 404 until there is one." if operation.later else ""),
        "responses": answers,
    }
    places = [("query", operation.query), ("header", operation.headers)]
    parameters = [
        {"name": name, "in": place, "description": parameter.meaning, "schema": parameter.schema}
        for place, group in places
        for name, parameter in group.items()
    ]
    if parameters:
        plain["parameters"] = parameters
    if operation.takes:
        content = {body.media: _media(body) for body in operation.takes}
        plain["requestBody"] = {"required": True, "content": content}
    return plain


def _media(body: Body) -> dict[str, Any]:
    return {"schema": ref(body.schema) if body.schema else _TEXT}


def _answer(
    status: int, body: Body | None, headers: Mapping[str, str], known: tuple[Operation, ...]
) -> dict[str, Any]:
    plain: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if headers:
        plain["headers"] = {
            name: {"description": meaning, "schema": _TEXT} for name, meaning in headers.items()
        }
    if body is None:
        return plain
    plain["content"] = {body.media: _media(body)}
    pointer = {"Receipt": "/job_id", "Receipts": "/jobs/0/job_id"}
    if body.schema in pointer:
        where = f"$response.body#{pointer[body.schema]}"
        plain["links"] = {
            other.name: {"operationId": other.name, "parameters": {"job_id": where}}
            for other in known
            if "{job_id}" in other.path and not other.later
        }
    return plain


def _problems(operation: Operation) -> list[int]:
    of_body = _WITH_BODY if operation.takes else () if operation.method == "GET" else (415,)
    of_job = (404,) if "{job_id}" in operation.path else ()
    return sorted({*_EVERYWHERE, *of_body, *of_job, *operation.problems})


def _all_problems(operations: Iterable[Operation]) -> list[int]:
    return sorted({status for operation in operations for status in _problems(operation)})


def _problem(status: int) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/problem+json": {"schema": ref("Problem")}},
    }
    if status in _PROBLEM_HEADERS:
        name, value = _PROBLEM_HEADERS[status]
        plain["headers"] = {name: {"required": True, "schema": {"const": value}}}
    return plain
