"""The table of job options: what a submission may ask for beside its prompt, branch and filename.

Each option stands here once. The checks, the front matter, the query and JSON of POST /jobs, the
receipt, the idempotency fingerprint and a retry are made from the rows; the record has a field of
the same name. What an option does lives where it is used, never here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pv_lib.jobs import job
from pv_lib.jobs.job import Record

MAX_PRIORITY = 1000
MAX_TIMEOUT = 31_536_000  # a year, in seconds
_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "string": str,
    "integer": int,
    "number": job.finite,
}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One row of the table. `kind` is a JSON type: string, integer or number.

    A string must match `pattern` in full. A number lies between `low` and `high`, both included,
    and is larger than `above`. `wanted` completes "must be …" for a value of another type, and
    `fault` is the sentence for one out of bounds.
    """

    name: str
    kind: str
    meaning: str
    wanted: str
    fault: str
    default: Any = None
    pattern: re.Pattern[str] | None = None
    low: int | None = None
    above: int | None = None
    high: int | None = None
    droppable: bool = True  # may stand in the front matter of a dropped file
    echoed: bool = True  # stands in the receipt
    fingerprinted: bool = True  # a request with another value is another request

    def accepts(self, value: Any) -> bool:
        """Whether `value`, of the right type or None, is within the bounds."""
        if value is None:
            return self.default is None
        if self.pattern is not None:
            return self.pattern.fullmatch(value) is not None
        return (
            (self.low is None or self.low <= value)
            and (self.above is None or self.above < value)
            and (self.high is None or value <= self.high)
        )

    def parse(self, text: str) -> Any:
        """The value of `text` in front matter. Raises ValueError where it is not a number."""
        value = _PARSERS[self.kind](text)
        if value is None:
            raise ValueError(text)
        return value


OPTIONS = (
    Option(
        name="model",
        kind="string",
        pattern=re.compile(r"[^\x00-\x20\x7f-\xa0-][^\x00-\x1f\x7f-\x9f]{0,199}"),
        meaning="instead of PV_CODEX_MODEL",
        wanted="a string: a model's name",
        fault="must be a model's name",
    ),
    Option(
        name="timeout_seconds",
        kind="number",
        above=0,
        high=MAX_TIMEOUT,
        meaning="the job ends after this",
        wanted="a number of seconds",
        fault=f"must be more than 0 and at most {MAX_TIMEOUT}",
    ),
    Option(
        name="priority",
        kind="integer",
        default=0,
        low=-MAX_PRIORITY,
        high=MAX_PRIORITY,
        meaning="higher goes first",
        wanted="a whole number",
        fault=f"must lie between -{MAX_PRIORITY} and {MAX_PRIORITY}",
    ),
)


def complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """The value of every option: the one given, else the default."""
    return {option.name: given.get(option.name, option.default) for option in OPTIONS}


def of_record(record: Record) -> dict[str, Any]:
    """The options a job was submitted with."""
    return {option.name: getattr(record, option.name) for option in OPTIONS}


def faults(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The options in `given` that are out of bounds, each with the sentence that says so."""
    values = complete(given)
    return [(o.name, o.fault) for o in OPTIONS if not o.accepts(values[o.name])]
