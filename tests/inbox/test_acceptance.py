"""The one check of a prompt: when it is submitted, and again when its job is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from harness import REPO, Valet, until

BOM = b"\xef\xbb\xbf"
LIMIT = 1000


@pytest.mark.parametrize(
    ("text", "status", "why"),
    [
        (b"x" * (LIMIT + 1), 413, f"has {LIMIT + 1} bytes; PV_MAX_PROMPT_BYTES is {LIMIT}"),
        (BOM, 400, "must not be blank"),
        (BOM + " \r\n\x85".encode(), 400, "must not be blank"),
        (b"caf\xe9", 400, "is not UTF-8 (byte 3)"),
    ],
    ids=["too large", "a lone BOM", "blank", "latin-1"],
)
def test_a_queued_prompt_is_edited_to_what_a_submission_is_refused_for(
    make_valet: Callable[..., Valet], text: bytes, status: int, why: str
) -> None:
    valet = make_valet(PV_MAX_RUNNING="1", PV_MAX_PROMPT_BYTES=str(LIMIT))
    valet.start()
    path = f"/api/v1/jobs?repo={REPO}&branch=main"
    refused = valet.ask("POST", path, text, {"Content-Type": "text/markdown"})
    assert refused.status == status and why.partition(" (")[0] in refused.detail
    valet.await_state(valet.submit("fake: wait go\n")["job_id"], "running")
    queued = valet.submit("before")
    file = Path(queued["inbox_path"])
    file.write_bytes(file.read_bytes().replace(b"before", text))
    (valet.repo / "go").touch()
    record = valet.await_end(queued["job_id"])
    assert (record["state"], record["reason"]) == ("failed", "bad_prompt")
    assert why in record["error"] and record["pid"] is None
    until(lambda: list((valet.root / "finished").rglob(f"*{queued['job_id']}.error.md")), "it")


def test_a_queued_prompt_may_grow_up_to_the_limit(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_MAX_RUNNING="1", PV_MAX_PROMPT_BYTES=str(LIMIT))
    valet.start()
    valet.await_state(valet.submit("fake: wait go\n")["job_id"], "running")
    queued = valet.submit("fake: say x\n")
    file = Path(queued["inbox_path"])
    text = b"fake: say x\n"
    file.write_bytes(file.read_bytes().replace(text, text + b"#" * (LIMIT - len(text))))
    (valet.repo / "go").touch()
    assert valet.await_end(queued["job_id"])["state"] == "succeeded"
    assert (valet.runs / queued["job_id"] / "prompt.md").stat().st_size == LIMIT
