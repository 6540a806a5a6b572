"""The table of job options, and what is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import REPO, Valet

from pv_lib.api import parameters, schemas
from pv_lib.inbox import frontmatter, rebuild
from pv_lib.jobs import options, submission
from pv_lib.jobs.job import Record
from pv_lib.jobs.options import OPTIONS, Option
from pv_lib.jobs.submission import Submission

NAMES = [option.name for option in OPTIONS]
ALL: dict[str, Any] = {"model": "gpt-5", "timeout_seconds": 600, "priority": 5}


@pytest.mark.parametrize(
    ("submitted", "fingerprint"),
    [
        (Submission("a/b", "main", b"x"), "41ae988940f96c75"),
        (Submission("a/b", "main", b"x", options={"priority": 0}), "41ae988940f96c75"),
        (Submission("a/b", "main", b"x", options={"timeout_seconds": 1.5}), "d8723488abbd2936"),
        (Submission("a/b", "main", b"x", options={"priority": -3}), "9eb3f77bd619b6a8"),
        (
            Submission("b", "dev", "yé".encode(), filename="n.md", options=ALL),
            "2de04bb71623ce87",
        ),
    ],
)
def test_a_request_has_the_fingerprint_that_0_1_0_gave_it(
    submitted: Submission, fingerprint: str
) -> None:
    assert submission.fingerprint(submitted) == fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_a_request_with_another_option_has_another_fingerprint(name: str) -> None:
    plain, other = (Submission("a/b", "main", b"x", options=o) for o in ({}, {name: ALL[name]}))
    assert submission.fingerprint(plain) != submission.fingerprint(other)


@pytest.mark.parametrize("option", OPTIONS, ids=NAMES)
def test_an_option_goes_through_query_schema_receipt_and_record(option: Option) -> None:
    text = {"repo": "a/b", "branch": "main", option.name: str(ALL[option.name])}
    given = parameters.values(text, parameters.SUBMIT)
    submitted = parameters.submission({**given, "markdown_text": "x"})
    assert submitted.options == {option.name: ALL[option.name]}
    record = submission.first_record(submitted, "0" * 32, "2026-11-22T15:56:29.123Z")
    assert getattr(record, option.name) == ALL[option.name]
    assert submission.of_record(record, b"x").options[option.name] == ALL[option.name]
    assert submission.retry_of(record, b"x").options[option.name] == ALL[option.name]
    assert option.name in schemas.SCHEMAS["Submission"]["properties"]
    assert (option.name in schemas.RECEIPT_FIELDS) == option.echoed


@pytest.mark.parametrize("option", OPTIONS, ids=NAMES)
def test_an_option_goes_into_the_block_and_its_default_does_not(option: Option) -> None:
    record = Record("0" * 32, repo="a/b", branch="main", filename="n.prompt.md")
    assert option.name not in frontmatter.read(rebuild.with_block(b"x", record))
    asked = record.with_(**{option.name: ALL[option.name]})
    block = frontmatter.read(rebuild.with_block(b"x", asked))
    assert option.parse(block[option.name]) == ALL[option.name]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({}, None),
        (ALL, None),
        ({"model": None, "timeout_seconds": None}, None),
        ({"model": ""}, "must be a model's name"),
        ({"model": "-x"}, "must be a model's name"),
        ({"timeout_seconds": 0}, "must be more than 0 and at most 31536000"),
        ({"timeout_seconds": float("nan")}, "must be more than 0 and at most 31536000"),
        ({"timeout_seconds": 31_536_000}, None),
        ({"timeout_seconds": 31_536_001}, "must be more than 0 and at most 31536000"),
        ({"priority": 1000}, None),
        ({"priority": -1001}, "must lie between -1000 and 1000"),
    ],
)
def test_an_option_out_of_bounds_is_named(given: dict[str, Any], fault: str | None) -> None:
    assert options.faults(given) == ([(*given, fault)] if fault else [])


def test_the_receipt_and_the_file_have_every_option(valet: Valet) -> None:
    valet.stop()
    valet.start("serve", "--no-watcher")
    receipt = valet.submit("fake: say x", **ALL)
    assert {name: receipt[name] for name in NAMES} == ALL
    block = frontmatter.read(Path(receipt["inbox_path"]).read_bytes())
    assert {o.name: o.parse(block[o.name]) for o in OPTIONS} == ALL
    assert receipt["repo"] == REPO
