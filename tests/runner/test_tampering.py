"""Files that other hands have touched: the job is judged, the others go on, nothing runs twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import REPO, Valet, carriers, put_socket, until

FAR = 300_000_000_000  # seconds: the year 11476, past what timestamps can say


def is_adopted(valet: Valet, job_id: str) -> bool:
    return f"job {job_id}: adopted" in valet.processes[-1].said


@pytest.mark.parametrize("spoil", ["branch gone", "limit lower"])
def test_a_living_agent_is_adopted_though_its_prompt_would_be_refused_now(
    make_valet: Callable[..., Valet], spoil: str
) -> None:
    valet = make_valet()
    valet.start()
    prompt = f"fake: say up\nfake: wait go\nfake: exit 5\n{'x' * 3000}"
    job_id = valet.submit(prompt, branch="dev")["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    valet.processes[-1].stop(signal.SIGKILL)
    (valet.runs / job_id / "job.json").write_text("garbage")
    if spoil == "branch gone":
        git = ["git", "-C", str(valet.repo)]
        subprocess.run([*git, "checkout", "-q", "main"], check=True)
        subprocess.run([*git, "branch", "-q", "-D", "dev"], check=True)
    else:
        valet.environ["PV_MAX_PROMPT_BYTES"] = "1000"
    valet.start()
    until(lambda: is_adopted(valet, job_id), "its adoption")
    (valet.repo / "go").touch()
    assert valet.await_end(job_id)["exit_code"] == 5
    assert carriers(job_id) == []


@pytest.mark.parametrize("what", ["fifo", "folder", "link"])
def test_what_lies_in_a_files_place_stops_no_stream_and_no_answer(valet: Valet, what: str) -> None:
    odd, plain = (valet.submit("fake: say x")["job_id"] for _ in range(2))
    for job_id in (odd, plain):
        valet.await_end(job_id)
    held = valet.at_rest()
    for name in ("job.log", "codex.jsonl", "last-message.md", "changes.diff"):
        path = valet.runs / odd / name
        path.unlink(missing_ok=True)
        make = {"fifo": os.mkfifo, "folder": os.mkdir}.get(what)
        make(path) if make else path.symlink_to("/etc/passwd")
    for name in ("log", "events", "message", "diff"):
        answer = valet.ask("GET", f"/api/v1/jobs/{odd}/{name}")
        assert answer.status == 404 and "it is succeeded" in answer.detail
    for job_id in (odd, plain):  # the stream of the odd one has its end alone
        assert [event[0] for event in valet.events(job_id)][-1] == "end"
    until(lambda: valet.held == held, "no descriptor left behind")


def put_far_future(path: Path) -> None:
    path.touch()
    os.utime(path, (FAR, FAR))


@pytest.mark.parametrize("put", [put_socket, put_far_future, Path.mkdir, os.mkfifo])
def test_an_abort_marker_of_any_kind_aborts(valet: Valet, put: Callable[[Path], None]) -> None:
    running = valet.submit("fake: wait go")["job_id"]
    valet.await_state(running, "running")
    queued = valet.submit("fake: say never")["job_id"]
    for job_id in (queued, running):
        put(valet.runs / job_id / "ABORT")
    for job_id in (queued, running):
        assert valet.await_end(job_id)["state"] == "aborted"
    assert valet.get("/api/v1/jobs")["jobs"]


@pytest.mark.parametrize(
    "inbox_path",
    ["a\0b-{id}.prompt.md", "\ud800-{id}.prompt.md", "x" * 300 + "-{id}.prompt.md", REPO],
    ids=["nul", "surrogate", "long", "folder"],
)
@pytest.mark.parametrize("state", ["created", "running"])
def test_a_record_by_other_hands_harms_no_other_job(
    valet: Valet, inbox_path: str, state: str
) -> None:
    blocker = valet.submit("fake: wait go")["job_id"]
    valet.await_state(blocker, "running")
    queued = valet.submit("fake: append ran.txt x")["job_id"]
    odd = "0" * 32
    path = f"{valet.inbox}/{inbox_path.replace('{id}', odd)}"
    record = {"state": state, "repo": REPO, "branch": "main", "inbox_path": path}
    valet.processes[-1].stop()
    (valet.runs / odd).mkdir()
    (valet.runs / odd / "job.json").write_text(json.dumps(record))
    valet.start()
    assert valet.await_end(odd)["state"] in ("aborted", "failed")
    (valet.repo / "go").touch()
    assert valet.await_end(queued)["state"] == "succeeded"
    assert (valet.repo / "ran.txt").read_text() == "x\n"


def test_a_deleted_lock_does_not_make_a_job_run_twice(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    valet.start()
    job_id = valet.submit("fake: append ran.txt x\nfake: wait go")["job_id"]
    until(lambda: (valet.repo / "ran.txt").exists(), "the agent's start")
    valet.processes[-1].stop(signal.SIGKILL)
    (valet.runs / job_id / "agent.lock").unlink()
    valet.start()
    assert valet.await_end(job_id)["state"] == "failed"
    assert carriers(job_id) == []
    assert (valet.repo / "ran.txt").read_text() == "x\n"


@pytest.mark.parametrize("put", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path.name)])
def test_an_odd_lock_holds_up_nobody(
    make_valet: Callable[..., Valet], put: Callable[[Path], None]
) -> None:
    valet = make_valet()
    valet.start()
    job_id = valet.submit("fake: say up\nfake: wait go")["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    valet.processes[-1].stop(signal.SIGKILL)
    lock = valet.runs / job_id / "agent.lock"
    lock.unlink()
    put(lock)
    valet.start()
    assert valet.await_end(job_id)["state"] == "failed"
    assert valet.await_end(valet.submit("fake: say next")["job_id"])["state"] == "succeeded"


@pytest.mark.parametrize("name", ["last-message.md", "job.json"])
def test_a_folder_in_a_files_place_holds_up_nobody(valet: Valet, name: str) -> None:
    job_id = valet.submit("fake: say up\nfake: wait go")["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    path = valet.runs / job_id / name
    until(lambda: not path.is_file() or not path.unlink(), "it is gone")
    until(lambda: make_folder(path), "the folder")
    (valet.repo / "go").touch()
    assert valet.await_end(valet.submit("fake: say next")["job_id"])["state"] == "succeeded"


def make_folder(path: Path) -> bool:
    """Whether there is a folder by now; a record may come back before."""
    path.unlink(missing_ok=True) if not path.is_dir() else None
    try:
        path.mkdir()
    except FileExistsError:
        return path.is_dir()
    return True


def test_a_run_folder_that_became_a_file_holds_up_nobody(valet: Valet) -> None:
    job_id = valet.submit("fake: say up\nfake: wait go")["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    shutil.move(valet.runs / job_id, valet.root / "moved")
    (valet.runs / job_id).touch()
    assert valet.await_end(valet.submit("fake: say next")["job_id"])["state"] == "succeeded"
    until(lambda: carriers(job_id) == [], "the agent's end")


def test_a_deleted_watcher_lock_is_taken_again_or_ends_the_watcher(valet: Valet) -> None:
    lock = valet.runs / ".watcher.lock"
    lock.unlink()
    until(lambda: lock.exists(), "the lock again")
    other = subprocess.run(
        [*valet.program, "watch"], env=valet.environ, capture_output=True, text=True, check=False
    )
    assert other.returncode == 1 and "another watcher owns" in other.stderr


def test_output_that_the_agent_cut_off_is_judged_by_what_is_left(valet: Valet) -> None:
    job_id = valet.submit("fake: say up\nfake: wait go\nfake: exit 3")["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    os.truncate(valet.runs / job_id / "codex.jsonl", 0)
    (valet.repo / "go").touch()
    assert valet.await_end(job_id)["exit_code"] == 3
