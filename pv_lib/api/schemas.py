"""What the JSON bodies look like, as JSON Schema. Pure data, held to the real answers by tests.

The record's fields are listed from `job`, so that a new one cannot be missing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pv_lib.api import parameters
from pv_lib.jobs import job
from pv_lib.jobs.options import OPTIONS, Option

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_NUMBER: Schema = {"type": "number"}
_EXAMPLE_ID = "01990d3f5c7a7000a1b2c3d4e5f60718"
_EXAMPLE_TIME = "2026-11-22T15:56:29.123Z"
STATE: Schema = {"type": "string", "enum": [state.value for state in job.State]}
JOB_ID: Schema = {
    "type": "string",
    "pattern": f"^(?:{job.JOB_ID.pattern})$",
    "description": "32 hex digits, a UUIDv7: ids sort by submission",
    "examples": [_EXAMPLE_ID],
}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _answered(option: Option) -> Schema:
    """An option in a record: of records by other programs its bounds are not known."""
    plain: Schema = {"type": option.kind}
    return _or_null(plain) if option.default is None else plain


def _object(properties: Schema, **more: Any) -> Schema:
    plain = {"type": "object", "properties": properties, "required": list(properties)}
    return {**plain, "additionalProperties": False, **more}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def ref(name: str) -> Schema:
    """A pointer to a named schema."""
    return {"$ref": f"#/components/schemas/{name}"}


# What each field of a record is; those not named are text or null.
_MEANINGS: dict[str, str] = {
    "reason": "a stable word for programs: completed, exit_code, timeout, …",
    "error": "a sentence for people",
    "phase": "preparing, running or publishing",
    "source": "api, upload, retry or inbox",
    "activity": "what the agent is doing now",
    "heartbeat_at": "when the watcher last saw to the job",
    "idempotency": "a digest of the Idempotency-Key and the request",
    "log_bytes": "size of the log",
    "queue_position": "1 is next; null for what does not wait",
}
_KINDS: dict[str, Schema] = {
    "job_id": JOB_ID,
    "state": STATE,
    "schema": {"type": "integer"},
    "attempt": {"type": "integer"},
    "pid": _or_null({"type": "integer"}),
    "exit_code": _or_null({"type": "integer"}),
    "usage": {"type": ["object", "null"], "description": "tokens, as the agent counts them"},
    "result": {"type": ["object", "null"], "description": "branch, commit and what changed"},
    **{option.name: _answered(option) for option in OPTIONS},
}
_DERIVED: Schema = {
    "stalled": _FLAG,
    "age_seconds": _or_null(_NUMBER),
    "queue_position": _or_null(_COUNT),
    "log_bytes": _COUNT,
    "last_output_at": _or_null(_TEXT),
}


_RECORD_FIELDS = [field.name for field in dataclasses.fields(job.Record) if field.name != "extra"]


def _job() -> Schema:
    properties = {n: dict(_KINDS.get(n, _or_null(_TEXT))) for n in _RECORD_FIELDS} | _DERIVED
    for name, schema in properties.items():
        if name in _MEANINGS:
            properties[name] = {**schema, "description": _MEANINGS[name]}
        if name.endswith("_at"):
            properties[name] = {**schema, "examples": [_EXAMPLE_TIME]}
    why = "a job's record; fields that other programs wrote into it are shown as well"
    return _object(properties, additionalProperties=True, description=why)


def _submission() -> Schema:
    properties = {}
    for name, parameter in parameters.FIELDS.items():
        schema = {**parameter.schema, "description": parameter.meaning}
        if name not in parameters.NEEDED:
            schema["type"] = [schema["type"], "null"]
        properties[name] = schema
    example = {
        "repo": "nova-rey/example",
        "branch": "main",
        "markdown_text": "# Demo run\nAdd or modify files as requested.",
        "filename": "demo.prompt.md",
    }
    return _object(properties, required=list(parameters.NEEDED), examples=[example])


_GAUGE: Schema = _object(
    {"now": _COUNT, "most": _COUNT, "refused": _COUNT, "most_per_client": _COUNT},
    required=["now", "most", "refused"],
)
_ROOT = _object({"path": _TEXT, "exists": _FLAG, "writable": _FLAG, "free_bytes": _or_null(_COUNT)})
_LIMITS = _object(
    {
        "connections": _GAUGE,
        "streams": _GAUGE,
        "body_bytes": _GAUGE,
        "largest_body_bytes": _COUNT,
        "largest_head_bytes": _COUNT,
        "head_seconds": _NUMBER,
        "body_seconds": _NUMBER,
        "idle_seconds": _NUMBER,
        "send_seconds": _NUMBER,
    },
    description="what clients have of this server, and may have at most",
)
_STATUS = _object(
    {
        "version": _TEXT,
        "started_at": _TEXT,
        "uptime_seconds": _NUMBER,
        "config": {"type": "object", "description": "the settings that matter, by name"},
        "roots": {"type": "object", "additionalProperties": _ROOT},
        "jobs": _object(
            {
                "counts": _object({state.value: _COUNT for state in job.State}),
                "total": _COUNT,
                "stalled_running": _COUNT,
            }
        ),
        "queue": _object({"waiting": _COUNT, "running": _COUNT, "slots": _COUNT}),
        "watcher": _object(
            {
                "mode": {"type": "string", "enum": ["built in", "apart"]},
                "heartbeat_at": _or_null(_TEXT),
                "alive": _FLAG,
            }
        ),
        "targets": _object({"count": _COUNT}),
        "limits": _LIMITS,
        "problems": {**_list(_TEXT), "description": "what needs a person, a sentence each"},
    }
)
_ASKED: Schema = {
    **dict.fromkeys(("repo", "branch", "filename", "source"), _TEXT),
    **{option.name: _answered(option) for option in OPTIONS if option.echoed},
    "retry_of": _or_null(_TEXT),
}
_RECEIPT = _object(
    {
        "job_id": JOB_ID,
        "state": {"type": "string", "enum": [job.State.CREATED.value]},
        "created_at": _TEXT,
        "inbox_path": _TEXT,
        **{name: _ASKED[name] for name in _RECORD_FIELDS if name in _ASKED},
    },
    description="a job that is on the disk and will be run",
)
RECEIPT_FIELDS = tuple(_RECEIPT["properties"])
_FAULT = _object({"field": _TEXT, "detail": _TEXT})
_PROBLEM = _object(
    {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {**_TEXT, "description": "what happened, to what, and what to do"},
        "errors": {**_list(_FAULT), "description": "the input fields at fault"},
    },
    required=["type", "title", "status", "detail"],
    description="RFC 9457",
    examples=[
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": f"there is no job {_EXAMPLE_ID}",
        }
    ],
)
_UPLOAD = _object(
    {
        "repo": parameters.SUBMIT["repo"].schema,
        "branch": parameters.SUBMIT["branch"].schema,
        "files": {
            **_list(ref("Markdown")),
            "minItems": 1,
            "maxItems": parameters.MAX_FILES,
            "description": "files that end in .md",
        },
    }
)
SCHEMAS: dict[str, Schema] = {
    "Health": _object({"status": {"type": "string", "enum": ["ok"]}, "version": _TEXT}),
    "Status": _STATUS,
    "Targets": _object({"targets": _list(_object({"repo": _TEXT, "branch": _TEXT}))}),
    "Submission": _submission(),
    "Upload": _UPLOAD,
    "Receipt": _RECEIPT,
    "Receipts": _object({"jobs": _list(ref("Receipt"))}),
    "Job": _job(),
    "Jobs": _object({"jobs": _list(ref("Job")), "next": _or_null(JOB_ID)}),
    "Abort": _object(
        {"job_id": JOB_ID, "previous_state": STATE, "abort_requested_at": _TEXT},
    ),
    "Markdown": {
        **parameters.FIELDS["markdown_text"].schema,
        "contentMediaType": "text/markdown",
        "description": "the prompt; not blank",
    },
    "LogEvent": _object(
        {
            "id": {**_TEXT, "description": "the log's byte offset behind the line"},
            "data": {**_TEXT, "description": "a line; of the event `end` the state as JSON"},
            "event": {"type": "string", "enum": ["message", "end"]},
        },
        required=["data"],
    ),
    "ChangeEvent": _object(
        {
            "id": {**_TEXT, "description": "the change's number"},
            "data": {
                **_TEXT,
                "description": "JSON: of the event `job` the record as it is now, of `gone` the "
                "job_id of a deleted one; `reset` says that some were missed: list the jobs anew",
            },
            "event": {"type": "string", "enum": ["job", "gone", "reset"]},
        },
        required=["data", "event"],
    ),
    "Problem": _PROBLEM,
}
