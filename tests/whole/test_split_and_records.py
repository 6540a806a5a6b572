"""Two processes that share nothing but the folders, and records written by other hands."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable

from harness import REPO, Valet, until


def test_the_flow_in_split_mode(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    valet.start("serve", "--no-watcher")
    assert valet.get("/api/v1/status")["watcher"]["alive"] is False
    job_id = valet.submit("fake: say first\nfake: wait go\nfake: say last\n")["job_id"]
    assert valet.job(job_id)["state"] == "created"
    valet.start("watch")
    until(lambda: valet.get("/api/v1/status")["watcher"]["alive"], "the watcher in the status")
    seen = []
    for name, _, data, _ in valet.events(job_id):
        seen.append((name, data))
        if data == "first":
            assert valet.job(job_id)["state"] == "running"
            (valet.repo / "go").touch()
    assert ("message", "last") in seen
    assert seen[-1][0] == "end" and json.loads(seen[-1][1])["state"] == "succeeded"
    aborted = valet.submit("fake: wait never\n")["job_id"]
    valet.await_state(aborted, "running")
    valet.ask("POST", f"/api/v1/jobs/{aborted}/abort")
    assert valet.await_end(aborted)["state"] == "aborted"
    counts = valet.get("/api/v1/status")["jobs"]["counts"]
    assert counts == {"created": 0, "running": 0, "succeeded": 1, "failed": 0, "aborted": 1}


def test_the_watcher_can_be_switched_off_by_its_setting(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_WATCHER="off")
    process = valet.start()
    assert "without a watcher" in process.said
    assert valet.get("/api/v1/status")["watcher"]["mode"] == "apart"


def test_a_second_watcher_says_who_holds_the_runs_root(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    first = valet.start()
    second = subprocess.run(
        [*valet.program, "watch"], env=valet.environ, capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert f"(pid {first.popen.pid} since " in second.stderr and "stop it first" in second.stderr


def test_a_record_written_by_hand_is_listed_filtered_and_streamed(valet: Valet) -> None:
    run = valet.runs / "by-hand_1"
    run.mkdir()
    record = {"state": "running", "repo": "some/repo", "branch": "dev", "mood": "sunny"}
    (run / "job.json").write_text(json.dumps(record))
    (run / "job.log").write_bytes(b"one\r\ntwo\rthree\n\xffour")
    listed = until(lambda: valet.get("/api/v1/jobs?repo=repo&branch=dev")["jobs"], "the record")
    assert listed[0]["job_id"] == "by-hand_1" and listed[0]["mood"] == "sunny"
    assert listed[0]["stalled"] is True
    assert valet.get("/api/v1/jobs?stalled=true&state=running")["jobs"][0]["job_id"] == "by-hand_1"
    stream = valet.events("by-hand_1")
    assert [next(stream)[2] for _ in range(3)] == ["one", "two", "three"]
    (run / "job.json").write_text(json.dumps({**record, "state": "succeeded"}))
    rest = [(name, data) for name, _, data, _ in stream]
    assert rest[0] == ("message", "\ufffdour")
    assert rest[1][0] == "end" and json.loads(rest[1][1])["state"] == "succeeded"
    assert valet.get("/api/v1/jobs?stalled=true")["jobs"] == []


def test_a_record_that_cannot_be_read_is_named_in_status(valet: Valet) -> None:
    for name, data in (("empty", b""), ("list", b"[]"), ("state", b'{"state":"odd"}')):
        (valet.runs / name).mkdir()
        (valet.runs / name / "job.json").write_bytes(data)
    (valet.runs / "stray").write_text("a file, not a folder")
    until(lambda: len(valet.get("/api/v1/status")["problems"]) == 3, "a sentence for each")
    assert valet.get("/api/v1/status")["jobs"]["total"] == 0
    assert valet.ask("GET", "/api/v1/jobs/empty").status == 404
    job_id = valet.submit("fake: say still here\n")["job_id"]
    assert valet.await_end(job_id)["state"] == "succeeded"


def test_paging_goes_through_all_jobs_newest_first(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    valet.start("serve", "--no-watcher")
    made = [valet.submit(f"job {n}")["job_id"] for n in range(7)]
    found, page = [], valet.get("/api/v1/jobs?limit=3")
    while True:
        found += [job["job_id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        page = valet.get(f"/api/v1/jobs?limit=3&before={page['next']}")
    assert found == made[::-1]
    assert len(valet.get(f"/api/v1/jobs?repo={REPO}&state=created")["jobs"]) == 7
    assert valet.get("/api/v1/jobs?state=failed") == {"jobs": [], "next": None}


def test_a_run_folder_deleted_in_mid_run_harms_nothing(valet: Valet) -> None:
    job_id = valet.submit("fake: say up\nfake: wait never\n")["job_id"]
    until(lambda: "up" in (valet.job(job_id)["activity"] or ""), "the agent's activity")
    subprocess.run(["rm", "-r", str(valet.runs / job_id)], check=True)
    until(lambda: valet.ask("GET", f"/api/v1/jobs/{job_id}").status == 404, "no job")
    until(lambda: list((valet.root / "finished").rglob(f"*{job_id}.aborted.md")), "the archive")
    after = valet.submit("fake: say next\n")["job_id"]
    assert valet.await_end(after)["state"] == "succeeded"


def test_a_running_jobs_heartbeat_goes_on(valet: Valet) -> None:
    job_id = valet.submit("fake: wait go\n")["job_id"]
    beats: set[str | None] = set()
    began = time.monotonic()
    while len(beats) < 4 and time.monotonic() - began < 20:
        beats.add(valet.job(job_id)["heartbeat_at"])
        time.sleep(0.05)
    assert len(beats - {None}) >= 3
    (valet.repo / "go").touch()
    assert valet.await_end(job_id)["state"] == "succeeded"
