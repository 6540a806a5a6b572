"""What a released version wrote must load for ever: its records, queued and finished prompts.

`fixtures/released/VERSION` is a root as that version left it when it was killed: one job that
succeeded, one that failed, one at work, one in the queue. Nothing in it is ever changed; each
release adds a folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import TREE, Valet, until

pytestmark = pytest.mark.together  # the ids are those of the fixture, and each server ends its own
RELEASED = sorted((TREE / "tests/fixtures/released").iterdir())
MADE_IN = "/srv/prompt-valet"  # the root that the paths in the records name


@pytest.fixture(params=RELEASED, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, make_valet: Callable[..., Valet], tmp_path: Path) -> Valet:
    """The root of a released version under this build, not yet started."""
    valet = make_valet()
    for name in ("runs", "inbox", "finished"):
        shutil.copytree(request.param / name, tmp_path / name)
    for path in (tmp_path / "runs").glob("*/job.json"):
        path.write_text(path.read_text().replace(MADE_IN, str(tmp_path)))
    return valet


def records(valet: Valet) -> dict[str, dict[str, Any]]:
    """The records on the disk, by the state they are in."""
    found = [json.loads(path.read_bytes()) for path in valet.runs.glob("*/job.json")]
    return {record["state"]: record for record in found}


def test_there_is_a_release_to_load() -> None:
    assert [path.name for path in RELEASED][:1] == ["0.1.0"]


def test_ended_jobs_are_shown_and_found_as_they_were(old: Valet) -> None:
    before = records(old)
    old.start()
    for state in ("succeeded", "failed"):
        record = before[state]
        shown = old.job(record["job_id"])
        assert {name: shown[name] for name in record} == record
        query = f"state={state}&repo={record['repo']}&branch={record['branch']}"
        found = old.get(f"/api/v1/jobs?{query}")["jobs"]
        assert record["job_id"] in [job["job_id"] for job in found]
        kept = (old.runs / record["job_id"] / "prompt.md").read_bytes()
        assert old.ask("GET", f"/api/v1/jobs/{record['job_id']}/prompt").body == kept
        log = (old.runs / record["job_id"] / "job.log").read_bytes()
        assert old.ask("GET", f"/api/v1/jobs/{record['job_id']}/log").body == log
    succeeded = before["succeeded"]["job_id"]
    assert old.ask("GET", f"/api/v1/jobs/{succeeded}/message").body == b"Done."
    assert b"+hello" in old.ask("GET", f"/api/v1/jobs/{succeeded}/diff").body


def test_a_finished_prompt_alone_serves_a_retry(old: Valet) -> None:
    succeeded = records(old)["succeeded"]
    (old.runs / succeeded["job_id"] / "prompt.md").unlink()
    old.start()
    again = old.post_json(f"/api/v1/jobs/{succeeded['job_id']}/retry", {}).json
    ended = old.await_end(again["job_id"])
    assert (ended["state"], ended["retry_of"]) == ("succeeded", succeeded["job_id"])
    assert (ended["priority"], ended["model"], ended["timeout_seconds"]) == (5, "gpt-5", 600)
    assert old.show(ended, "NEW.md") == "hello"


@pytest.mark.parametrize("record_lost", [False, True])
def test_a_queued_prompt_runs_under_its_own_id_with_its_options(
    old: Valet, record_lost: bool
) -> None:
    queued = records(old)["created"]
    if record_lost:
        shutil.rmtree(old.runs / queued["job_id"])
    old.start()
    record = old.runs / queued["job_id"] / "job.json"
    until(record.exists, "the record, which the first poll makes anew where it is lost")
    ended = old.await_end(queued["job_id"])
    assert ended["state"] == "succeeded", ended
    same = ("repo", "branch", "filename", "source", "priority", "model", "timeout_seconds")
    assert {n: ended[n] for n in same} == {n: queued[n] for n in same}
    assert ended["created_at"] == queued["created_at"]
    given = (old.runs / queued["job_id"] / "prompt.md").read_text()
    assert given == (
        "---\nowner: somebody\n---\nfake: say from the queue\nfake: write QUEUED.md x\n"
    )


def test_a_job_that_was_at_work_is_lost_and_never_run_twice(old: Valet) -> None:
    running = records(old)["running"]
    old.start()
    ended = old.await_end(running["job_id"])
    assert (ended["state"], ended["reason"]) == ("failed", "lost")
    assert old.log(running["job_id"]) == "\nworking\n"
    pattern = f"*{running['job_id']}.error.md"
    finished = until(lambda: list((old.root / "finished").rglob(pattern)), "its archived prompt")
    assert len(finished) == 1
