"""What comes in over HTTP as values: query parameters, JSON bodies, submissions.

Types and names are checked here and every fault names its field; whether a value makes sense (a
repository that exists, a prompt that is not blank) is `intake`'s to say.
"""

from __future__ import annotations

import json
from typing import Any

from pv_lib.errors import Invalid
from pv_lib.intake import DEFAULT_FILENAME, Submission
from pv_lib.wire import Request

_NUMBER = (int, float)
# A submission's fields: JSON types, what a fault says, whether it must be there.
FIELDS: dict[str, tuple[tuple[type, ...], str, bool]] = {
    "repo": ((str,), "a string: owner/name", True),
    "branch": ((str,), "a string", True),
    "markdown_text": ((str,), "a string", True),
    "filename": ((str,), "a string that ends in .md", False),
    "model": ((str,), "a string", False),
    "timeout_seconds": (_NUMBER, "a number of seconds", False),
    "priority": ((int,), "a whole number", False),
}


def params(request: Request, *names: str) -> dict[str, str]:
    """The query's parameters, all of which must be among `names`."""
    unknown = [name for name in request.query if name not in names]
    if unknown:
        takes = ", ".join(names) or "no parameters"
        raise Invalid.of([(name, f"is not known here: there is {takes}") for name in unknown])
    return request.query


def whole(params: dict[str, str], name: str, default: int, low: int, high: int) -> int:
    """A whole number among `params`, `default` where it is not given. Raises Invalid."""
    text = params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 17 and low <= int(text) <= high):
        raise Invalid.of([(name, f"must be a whole number from {low} to {high}")])
    return int(text)


def utf8(data: bytes, what: str) -> str:
    """`data` as text; Invalid names `what` and the byte where it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid.of([(what, f"is not UTF-8 (byte {error.start})")]) from None


def json_object(body: bytes) -> dict[str, Any]:
    """A body that must be a JSON object. Raises Invalid."""
    text = utf8(body, "body")
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body is not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise Invalid("the body is not a JSON object with repo, branch and markdown_text")
    return plain


def from_query(params: dict[str, str]) -> dict[str, Any]:
    """Query parameters as the JSON values they stand for."""
    fields: dict[str, Any] = dict(params)
    for name, parse in (("priority", int), ("timeout_seconds", float)):
        if name in fields:
            try:
                fields[name] = parse(fields[name])
            except ValueError:
                raise Invalid.of([(name, f"must be {FIELDS[name][1]}")]) from None
    return fields


def submission(fields: dict[str, Any]) -> Submission:
    """A checked submission; every field of a wrong type is named at once."""
    faults = []
    for name, (types, meaning, needed) in FIELDS.items():
        value = fields.get(name)
        if value is None:
            if needed:
                faults.append((name, f"is missing: it must be {meaning}"))
        elif type(value) not in types or value != value:
            faults.append((name, f"must be {meaning}"))
        elif isinstance(value, str) and not _is_unicode(value):
            faults.append((name, "holds half a surrogate pair, which is no Unicode text"))
    faults += [(str(n)[:50], "is not a field of a job") for n in fields if n not in FIELDS]
    if faults:
        raise Invalid.of(faults)
    given = {name: value for name, value in fields.items() if value is not None}
    text = given.pop("markdown_text").encode()
    return Submission(text=text, **{"filename": DEFAULT_FILENAME, **given})


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
