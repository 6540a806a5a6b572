from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Valet, until

from pv_lib.jobs import job
from pv_lib.jobs.index import Index
from pv_lib.jobs.job import Record, State
from pv_lib.jobs.store import Runs

ENDED = (State.SUCCEEDED, State.FAILED, State.ABORTED)


def write(runs: Path, number: int, **fields: Any) -> str:
    """A run folder as another program makes one; ids sort by number."""
    job_id = f"{number:032x}"
    plain = {
        "state": ENDED[number % 3].value,
        "repo": f"o{number % 2}/r{number % 5}",
        "branch": "main",
    }
    (runs / job_id).mkdir()
    (runs / job_id / "job.json").write_text(json.dumps({**plain, **fields}))
    return job_id


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


@pytest.fixture
def index(runs: Runs) -> Index:
    """Over 300 ended jobs, an empty folder, a broken record and one that runs."""
    for number in range(300):
        write(runs.root, number)
    (runs.root / "bare").mkdir()
    (runs.root / "broken").mkdir()
    (runs.root / "broken" / "job.json").write_text("[]")
    write(runs.root, 1000, state="running")
    index = Index(runs)
    runs.on_write = index.note_write
    index.start()
    assert len(index.living()) == 1
    return index


def ids(index: Index, before: str | None = None, **wanted: str) -> list[str]:
    return [record.job_id for record in index.newest_first(before, **wanted)]


def by_hand(runs: Runs, before: str = "~", **wanted: str) -> list[str]:
    """The same from the disk, slowly."""
    found = []
    for folder in runs.root.iterdir():
        record = runs.read(folder.name) if folder.name not in ("bare", "broken") else None
        if record and record.job_id < before:
            plain = {**job.to_dict(record), "repo": (record.repo, record.repo_name)}
            if all(
                value == plain[name] or value in plain["repo"] for name, value in wanted.items()
            ):
                found.append(record.job_id)
    return sorted(found, reverse=True)


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"state": "failed"},
        {"state": "running"},
        {"state": "created"},
        {"repo": "o1/r3"},
        {"repo": "r3"},
        {"repo": "none"},
        {"branch": "main"},
        {"state": "aborted", "repo": "r4"},
        {"state": "aborted", "repo": "o0/r4", "branch": "main"},
        {"repo": "r4", "branch": "dev"},
    ],
)
@pytest.mark.parametrize("before", [None, f"{150:032x}", "0"])
def test_filters_find_what_a_slow_search_finds(
    index: Index, runs: Runs, before: str | None, wanted: dict[str, str]
) -> None:
    assert ids(index, before, **wanted) == by_hand(runs, before or "~", **wanted)


def test_the_counts_are_those_of_the_disk(index: Index) -> None:
    assert index.counts() == {
        **{state.value: 100 for state in ENDED},
        "created": 0,
        "running": 1,
    }
    assert len(index.problems()) == 1 and "broken" in index.problems()[0]


def test_what_a_writer_tells_is_known_at_once(index: Index, runs: Runs) -> None:
    before = index.sequence
    record = Record(f"{2000:032x}", branch="main").with_(**job.split_repo("o0/r0"))
    runs.create(record)
    assert index.counts()["created"] == 1 and ids(index)[0] == record.job_id
    assert index.positions() == {record.job_id: 1}
    runs.write(job.advance(record, State.RUNNING, "2026-01-01T00:00:00Z"))
    assert index.counts()["created"] == 0 and index.counts()["running"] == 2
    assert record.job_id in ids(index, state="running", repo="r0") and index.positions() == {}
    running = index.get(record.job_id)
    assert running is not None
    runs.write(job.advance(running, State.FAILED, "2026-01-01T00:00:01Z", reason="timeout"))
    assert index.counts()["failed"] == 101 and len(index.living()) == 1
    ended = index.get(record.job_id)
    assert ended is not None and ended.reason == "timeout"
    told = index.changes(before)
    assert told is not None
    assert [record.state.value for _, record in told if record] == ["created", "running", "failed"]


def test_what_other_hands_write_and_delete_is_found(index: Index, runs: Runs) -> None:
    new = write(runs.root, 3000, state="created", repo="x/y")
    until(lambda: ids(index)[0] == new, "a new folder")
    path = runs.record_path(new)
    path.write_text('{"state": "running", "repo": "x/z"}')
    until(lambda: ids(index, repo="z", state="running") == [new], "its new repository")
    assert ids(index, repo="y") == []
    (runs.root / "bare" / "job.json").write_text('{"state": "aborted"}')
    until(lambda: "bare" in ids(index, state="aborted"), "the record of a folder without one")
    path.unlink()
    until(lambda: new not in ids(index), "no record")
    path.write_text('{"state": "succeeded", "repo": "x/y"}')
    until(lambda: ids(index, repo="y") == [new], "its record again")
    for number in range(300):
        shutil.rmtree(runs.root / f"{number:032x}")
    until(lambda: sum(index.counts().values()) == 3, "only what is left")
    assert ids(index) == by_hand(runs) or set(ids(index)) == {"bare", f"{1000:032x}", new}


def test_what_a_writer_tells_before_the_first_look_is_a_change_too(runs: Runs) -> None:
    index = Index(runs)
    runs.on_write = index.note_write
    before = index.sequence
    runs.create(Record(f"{1:032x}"))
    told = index.changes(before)
    assert told is not None and [job_id for job_id, _ in told] == [f"{1:032x}"]


def test_a_record_nested_as_deep_as_can_be_read_is_listed(valet: Valet) -> None:
    for depth in (500, 900, 960, 970, 975, 980, 985, 990, 995, 1000):
        run = valet.runs / f"deep{depth}"
        run.mkdir()
        nested = '{"a":' * depth + "1" + "}" * depth
        (run / "job.json").write_text(f'{{"state": "failed", "odd": {nested}}}')
    until(lambda: valet.get("/api/v1/status")["jobs"]["total"] >= 4, "those that can be read")
    found = valet.ask("GET", "/api/v1/jobs")  # nested too deep for a client as this one
    assert found.status == 200 and b"deep500" in found.body


def test_a_defect_is_told_once_and_the_index_looks_again(tmp_path: Path) -> None:
    class Broken(Runs):
        broken = True

        def read(self, job_id: str) -> Record | None:
            if self.broken:
                raise ZeroDivisionError
            return super().read(job_id)

    runs = Broken(tmp_path)
    write(tmp_path, 1, state="running")
    index, said = Index(runs), list[str]()
    index.start(said.append)
    until(lambda: said, "a complaint")
    runs.broken = False
    assert len(index.living()) == 1
    assert len(said) == 1 and "ZeroDivisionError" in said[0]


def test_a_deleted_runs_root_has_no_jobs_until_it_is_back(index: Index, runs: Runs) -> None:
    aside = runs.root.with_name("aside")
    runs.root.rename(aside)
    until(lambda: sum(index.counts().values()) == 0 and ids(index) == [], "no jobs")
    aside.rename(runs.root)
    until(lambda: sum(index.counts().values()) == 301, "all jobs")
    assert ids(index) == by_hand(runs)


@pytest.mark.long
def test_a_long_first_look_holds_up_neither_jobs_nor_the_newest_page(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet()
    valet.runs.mkdir()
    for number in range(20_000):
        write(valet.runs, number)
    valet.start()
    newest = f"{19_999:032x}"
    assert valet.get(f"/api/v1/jobs/{newest}")["job_id"] == newest
    receipt = valet.submit("fake: say early\n")
    page = valet.get("/api/v1/jobs?limit=2")["jobs"]
    assert page[0]["job_id"] == receipt["job_id"]
    assert valet.await_end(receipt["job_id"])["state"] == "succeeded"
    until(lambda: valet.get("/api/v1/status")["jobs"]["total"] == 20_001, "all counts")
    assert valet.get("/api/v1/status")["problems"] == []
    found = valet.get("/api/v1/jobs?state=failed&limit=500")
    assert {record["state"] for record in found["jobs"]} == {"failed"} and found["next"]


def test_a_repeat_after_a_restart_finds_its_first_answer(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    valet.start("serve", "--no-watcher")
    plain = {"repo": "nova-rey/example", "branch": "main", "markdown_text": "once"}
    headers = {"Content-Type": "application/json", "Idempotency-Key": "k-1"}
    body = json.dumps(plain).encode()
    first = valet.ask("POST", "/api/v1/jobs", body, headers)
    valet.stop()
    valet.start("serve", "--no-watcher")
    again = valet.ask("POST", "/api/v1/jobs", body, headers)
    assert first.status == again.status == 201 and again.body == first.body
    assert os.listdir(valet.runs).count(first.json["job_id"]) == 1
    assert len(valet.get("/api/v1/jobs")["jobs"]) == 1
