"""HTTP input as checked values: query parameters, JSON bodies, submissions.

The tables of parameters stand here once, for the checks and for the OpenAPI document; those of
the job options come from `jobs.options`. Names and types are checked here, and each fault names
its field. Whether a submission can be run (the repository exists, the prompt is not blank) is
checked in `inbox.acceptance`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pv_lib.errors import Invalid
from pv_lib.httpd.wire import Request
from pv_lib.inbox.acceptance import FILENAME, NOT_BLANK
from pv_lib.inbox.prompt import STEM_BYTES
from pv_lib.jobs import job
from pv_lib.jobs.options import OPTIONS, Option
from pv_lib.jobs.submission import DEFAULT_FILENAME, Submission

_INTEGER = re.compile(r"-?[0-9]{1,16}")
_NUMBER = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,4})?")
_MAX_OFFSET = 1 << 50
_ANY = re.compile(r"[^\x00]*")


@dataclass(frozen=True)
class Parameter:
    """A query parameter, header or field: its JSON Schema and its meaning.

    `wanted` completes "must be …" in a fault. `expression` is the schema's pattern, which must
    match in full.
    """

    schema: Mapping[str, Any]
    meaning: str
    wanted: str
    expression: re.Pattern[str] | None = None


def _text(expression: re.Pattern[str], meaning: str, wanted: str, **schema: Any) -> Parameter:
    full = {"type": "string", "pattern": f"^(?:{expression.pattern})$", **schema}
    return Parameter(full, meaning, wanted, expression)


def _whole(low: int, high: int, meaning: str, default: int | None = None) -> Parameter:
    schema: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": high}
    if default is not None:
        schema["default"] = default
    return Parameter(schema, meaning, f"a whole number from {low} to {high}")


def _one_of(meaning: str, *words: str, default: str | None = None) -> Parameter:
    schema: dict[str, Any] = {"type": "string", "enum": list(words)}
    if default is not None:
        schema["default"] = default
    return Parameter(schema, meaning, "one of " + ", ".join(words))


def _option(option: Option) -> Parameter:
    """The parameter of a job option."""
    bounds = {
        "minimum": option.low,
        "exclusiveMinimum": option.above,
        "maximum": option.high,
        "pattern": f"^(?:{option.pattern.pattern})$" if option.pattern else None,
        "default": option.default,
    }
    schema = {"type": option.kind, **{k: v for k, v in bounds.items() if v is not None}}
    return Parameter(schema, option.meaning, option.wanted, option.pattern)


_ANSI = "terminal escapes and control characters: strip takes them out, raw leaves them in"
LIST = {
    "state": _one_of("only jobs in this state", *(state.value for state in job.State)),
    "repo": _text(_ANY, "only jobs of this owner/name, or name", "a string"),
    "branch": _text(_ANY, "only jobs of this branch", "a string"),
    "stalled": Parameter(
        {"type": "boolean"}, "only jobs that are stalled, or that are not", "true or false"
    ),
    "limit": _whole(1, 500, "at most so many jobs", 50),
    "before": _text(
        job.JOB_ID, "only jobs older than this one: the `next` of the page before", "a job id"
    ),
}
LOG = {
    "lines": _whole(1, 100_000, "the last so many lines; with an offset the first behind it", 200),
    "offset": _whole(0, _MAX_OFFSET, "everything from this byte of the log on"),
    "ansi": _one_of(_ANSI, "strip", "raw", default="strip"),
}
STREAM = {"ansi": _one_of(_ANSI, "strip", "raw", default="raw")}
LAST_EVENT_ID = {
    "Last-Event-ID": _whole(0, _MAX_OFFSET, "the last event's id: the stream goes on behind it")
}
IDEMPOTENCY_KEY = {
    "Idempotency-Key": _text(
        re.compile("[!-~]{1,200}"),
        "a repeat with the same key and request returns the first answer",
        "1 to 200 printable ASCII characters without spaces",
    )
}
# The fields of a submission without its text.
SUBMIT = {
    "repo": _text(
        re.compile(rf"(?:{job.OWNER.pattern}/)?{job.OWNER.pattern}"),
        "owner/name of a repository, or its name where one owner has it",
        "a string: owner/name",
    ),
    "branch": _text(job.BRANCH, "a branch it has", "a string that git takes as a branch"),
    "filename": _text(
        FILENAME,
        f"the prompt's name, cut to {STEM_BYTES} bytes; it names the branch with the change",
        "a string that ends in .md",
        default=DEFAULT_FILENAME,
    ),
    **{option.name: _option(option) for option in OPTIONS},
}
MAX_FILES = 100  # in one upload
NEEDED = ("repo", "branch", "markdown_text")
_TEXT = Parameter(
    {"type": "string", "pattern": NOT_BLANK.pattern}, "the prompt; not blank", "a string"
)
FIELDS = {**SUBMIT, "markdown_text": _TEXT}
_TYPES = {"string": (str,), "integer": (int,), "number": (int, float)}


def values(given: Mapping[str, str], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """The parameters `given`, each parsed by its schema. Raises Invalid with every fault."""
    takes = ", ".join(known) or "no parameters"
    faults = [(n, f"is not known here: there is {takes}") for n in given if n not in known]
    found: dict[str, Any] = {}
    for name, parameter in known.items():
        if name in given:
            try:
                found[name] = _read(given[name], parameter)
            except ValueError:
                faults.append((name, f"must be {parameter.wanted}"))
    if faults:
        raise Invalid.of(faults)
    return found


def header(request: Request, known: Mapping[str, Parameter]) -> Any:
    """The value of the one header in `known`; None where it is missing. Raises Invalid."""
    (name,) = known
    text = request.headers.get(name.lower())
    return None if text is None else values({name: text}, known)[name]


def _read(text: str, parameter: Parameter) -> Any:
    """`text` parsed and checked by the parameter's schema. Raises ValueError."""
    schema = parameter.schema
    kind = schema["type"]
    if kind == "boolean":
        return ("false", "true").index(text) == 1
    if kind == "string":
        wrong = text not in schema.get("enum", (text,))
        if wrong or (parameter.expression and not parameter.expression.fullmatch(text)):
            raise ValueError(text)
        return text
    if not (_INTEGER if kind == "integer" else _NUMBER).fullmatch(text):
        raise ValueError(text)
    value = int(text) if kind == "integer" else float(text)
    low, above = schema.get("minimum", value), schema.get("exclusiveMinimum")
    if not low <= value <= schema.get("maximum", value) or (above is not None and value <= above):
        raise ValueError(text)
    return value


def utf8(data: bytes, what: str) -> str:
    """`data` as text. Raises Invalid, naming `what` and the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid.of([(what, f"is not UTF-8 (byte {error.start})")]) from None


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises Invalid."""
    text = utf8(body, "body")
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise Invalid("the body is not a JSON object with repo, branch and markdown_text")
    return plain


def submission(fields: Mapping[str, Any]) -> Submission:
    """The submission in `fields`. Raises Invalid with every unknown, missing or mistyped field."""
    faults = []
    given: dict[str, Any] = {}
    for name, parameter in FIELDS.items():
        value = fields.get(name)
        kind = parameter.schema["type"]
        if kind == "integer" and isinstance(value, float) and value.is_integer():
            value = int(value)  # 5.0 is a whole number in JSON
        if value is None:
            if name in NEEDED:
                faults.append((name, f"is missing: it must be {parameter.wanted}"))
        elif type(value) not in _TYPES[kind] or value != value:
            faults.append((name, f"must be {parameter.wanted}"))
        elif isinstance(value, str) and not _is_unicode(value):
            faults.append((name, "holds half a surrogate pair, which is not valid Unicode"))
        else:
            given[name] = value
    faults += [(str(n)[:50], "is not a field of a job") for n in fields if n not in FIELDS]
    if faults:
        raise Invalid.of(faults)
    text = given.pop("markdown_text").encode()
    options = {option.name: given.pop(option.name) for option in OPTIONS if option.name in given}
    return Submission(text=text, options=options, **given)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
