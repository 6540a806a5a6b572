"""The main job over HTTP, with an agent that does as it is told."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import REPO, Valet, carriers, git, until


def test_a_submission_runs_to_success(valet: Valet) -> None:
    text = "# Demo\nfake: say hello\nfake: write new.txt some text\n"
    receipt = valet.submit(text, filename="demo.prompt.md")
    assert Path(receipt["inbox_path"]).name == f"demo-{receipt['job_id']}.prompt.md"
    record = valet.await_end(receipt["job_id"])
    assert (record["state"], record["reason"], record["exit_code"]) == ("succeeded", "completed", 0)
    assert valet.show(record, "new.txt") == "some text"
    assert record["thread_id"] == "fake-thread"
    assert record["usage"]["output_tokens"] == 34
    assert record["activity"] is None and record["phase"] is None
    run = valet.runs / receipt["job_id"]
    assert (run / "prompt.md").read_text() == text
    assert (run / "last-message.md").read_text() == "hello"
    assert "hello\n" in valet.log(receipt["job_id"])
    assert "tokens: 1200 in (200 cached), 34 out\n" in valet.log(receipt["job_id"])
    finished = valet.root / "finished" / REPO / "main" / f"demo-{receipt['job_id']}.done.md"
    until(finished.exists, "the prompt in the finished folder")
    assert not Path(receipt["inbox_path"]).exists()
    assert finished.read_text().endswith(text)


def test_the_files_of_a_job_are_served(valet: Valet) -> None:
    job_id = valet.submit("# A\nfake: say the end\n")["job_id"]
    valet.await_end(job_id)
    path = f"/api/v1/jobs/{job_id}"
    assert valet.ask("GET", f"{path}/prompt").body == b"# A\nfake: say the end\n"
    assert valet.ask("GET", f"{path}/message").body == b"the end"
    events = valet.ask("GET", f"{path}/events").body.splitlines()
    assert json.loads(events[0])["type"] == "thread.started"
    log = valet.ask("GET", f"{path}/log")
    assert log.body.decode() == valet.log(job_id)
    tail = valet.ask("GET", f"{path}/log?lines=1")
    assert tail.body == b"tokens: 1200 in (200 cached), 34 out\n"
    offset = int(tail.headers["X-Log-Offset"])
    assert valet.ask("GET", f"{path}/log?offset={offset}").body == tail.body
    assert int(tail.headers["X-Next-Offset"]) == len(log.body)


def test_the_stream_shows_lines_while_the_job_runs(valet: Valet) -> None:
    steps = "fake: say first\nfake: wait go\nfake: say second\n"
    job_id = valet.submit(steps)["job_id"]
    seen = []
    for name, _, data, _ in valet.events(job_id):
        seen.append((name, data))
        if data == "first":
            assert valet.job(job_id)["state"] == "running"
            (valet.repo / "go").touch()
    lines = [data for name, data in seen if name == "message"]
    assert "\n".join(lines) + "\n" == valet.log(job_id)
    name, data = seen[-1]
    assert name == "end" and json.loads(data)["state"] == "succeeded"


def test_a_stream_resumes_behind_the_last_event_id(valet: Valet) -> None:
    job_id = valet.submit("fake: lines 20 0\n")["job_id"]
    valet.await_end(job_id)
    whole = list(valet.events(job_id))
    for _, mark, _, _ in whole[:-1]:
        rest = list(valet.events(job_id, mark))
        assert [e[:3] for e in rest] == [
            e[:3] for e in whole if e[1] == "" or int(e[1]) > int(mark)
        ]


def test_the_stream_of_a_created_job_waits(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_MAX_RUNNING="1")
    valet.start()
    first = valet.submit("fake: wait go\n")["job_id"]
    valet.await_state(first, "running")
    second = valet.submit("fake: say late\n")["job_id"]
    stream = valet.events(second)
    assert valet.job(second)["queue_position"] == 1
    (valet.repo / "go").touch()
    assert any(data == "late" for _, _, data, _ in stream)


def test_abort_ends_a_running_job_and_its_process(valet: Valet) -> None:
    job_id = valet.submit("fake: say up\nfake: wait never\n")["job_id"]
    until(lambda: "up" in (valet.job(job_id)["activity"] or ""), "the agent's activity")
    pid = valet.job(job_id)["pid"]
    os.kill(pid, 0)
    first = valet.ask("POST", f"/api/v1/jobs/{job_id}/abort")
    assert first.status == 200 and first.json["previous_state"] == "running"
    again = valet.ask("POST", f"/api/v1/jobs/{job_id}/abort")
    assert again.status == 409 or again.json == first.json
    record = valet.await_end(job_id)
    assert (record["state"], record["reason"]) == ("aborted", "abort_requested")
    assert record["abort_requested_at"] == first.json["abort_requested_at"]
    assert json.loads((valet.runs / job_id / "job.json").read_text())["state"] == "aborted"
    assert (valet.runs / job_id / "ABORT").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_abort_gets_an_agent_that_ignores_signals_and_its_children(valet: Valet) -> None:
    steps = (
        "fake: ignore INT\nfake: ignore TERM\nfake: child 300\nfake: say deaf\nfake: wait never\n"
    )
    job_id = valet.submit(steps)["job_id"]
    until(lambda: "deaf" in (valet.job(job_id)["activity"] or ""), "the agent's activity")
    assert len(carriers(job_id)) >= 3
    valet.ask("POST", f"/api/v1/jobs/{job_id}/abort")
    assert valet.await_end(job_id)["state"] == "aborted"
    assert carriers(job_id) == []


def test_a_child_left_behind_is_swept_after_a_clean_end(valet: Valet) -> None:
    job_id = valet.submit("fake: child 300\n")["job_id"]
    assert valet.await_end(job_id)["state"] == "succeeded"
    assert carriers(job_id) == []


def test_an_abort_marker_made_by_hand_works(valet: Valet) -> None:
    job_id = valet.submit("fake: wait never\n")["job_id"]
    valet.await_state(job_id, "running")
    (valet.runs / job_id / "ABORT").touch()
    assert valet.await_end(job_id)["state"] == "aborted"


def test_a_job_is_aborted_before_it_starts(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_MAX_RUNNING="1")
    valet.start()
    valet.await_state(valet.submit("fake: wait go\n")["job_id"], "running")
    queued = valet.submit("fake: append ran.txt no\n")
    answer = valet.ask("POST", f"/api/v1/jobs/{queued['job_id']}/abort")
    assert answer.json["previous_state"] == "created"
    record = valet.await_end(queued["job_id"])
    assert (record["state"], record["started_at"]) == ("aborted", None)
    (valet.repo / "go").touch()
    archived = valet.root / "finished" / REPO / "main"
    until(lambda: list(archived.glob("*.aborted.md")), "the prompt as aborted")
    assert not (valet.repo / "ran.txt").exists()


def test_a_queued_prompt_that_is_deleted_is_withdrawn(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_MAX_RUNNING="1")
    valet.start()
    valet.await_state(valet.submit("fake: wait go\n")["job_id"], "running")
    queued = valet.submit("fake: append ran.txt no\n")
    Path(queued["inbox_path"]).unlink()
    record = valet.await_end(queued["job_id"])
    assert (record["state"], record["reason"]) == ("aborted", "withdrawn")


def test_a_queued_prompt_may_be_edited(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_MAX_RUNNING="1")
    valet.start()
    valet.await_state(valet.submit("fake: wait go\n")["job_id"], "running")
    queued = valet.submit("fake: say before\n")
    path = Path(queued["inbox_path"])
    path.write_text(path.read_text().replace("before", "after"))
    (valet.repo / "go").touch()
    valet.await_end(queued["job_id"])
    assert "after\n" in valet.log(queued["job_id"])


def test_a_stopped_watcher_makes_its_job_look_stalled(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_STALL_THRESHOLD_SECONDS="1")
    watcher = valet.start("watch")
    valet.start("serve", "--no-watcher")
    job_id = valet.submit("fake: wait go\n")["job_id"]
    valet.await_state(job_id, "running")
    assert valet.get("/api/v1/jobs?stalled=true")["jobs"] == []
    watcher.popen.send_signal(signal.SIGSTOP)
    try:
        until(lambda: valet.job(job_id)["stalled"], "the job stalled")
        listed = valet.get("/api/v1/jobs?stalled=true")["jobs"]
        assert [job["job_id"] for job in listed] == [job_id]
        assert valet.get("/api/v1/status")["jobs"]["stalled_running"] == 1
        until(lambda: not valet.get("/api/v1/status")["watcher"]["alive"], "a silent watcher")
    finally:
        watcher.popen.send_signal(signal.SIGCONT)
    (valet.repo / "go").touch()
    assert valet.await_end(job_id)["state"] == "succeeded"
    assert valet.get("/api/v1/status")["jobs"]["stalled_running"] == 0


def test_an_agent_that_prints_plain_text(valet: Valet) -> None:
    steps = "fake: plain\nfake: say just text\nfake: stderr and this\n"
    job_id = valet.submit(steps)["job_id"]
    record = valet.await_end(job_id)
    assert record["state"] == "succeeded"
    assert valet.log(job_id) == "just text\nand this\n"


def test_an_agent_may_stop_after_a_failed_turn_and_take_up_another(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet(PV_ABORT_GRACE_SECONDS="0.2")
    valet.start()
    failed = 'fake: raw {"type":"turn.failed","error":{"message":"it broke"}}'
    started = 'fake: raw {"type":"turn.started"}'
    job_id = valet.submit(f"{failed}\n{started}\nfake: lines 4 0.2\nfake: say done")["job_id"]
    record = valet.await_end(job_id)
    assert (record["state"], record["error"], record["exit_code"]) == ("succeeded", None, 0)
    assert "line 4\n\ndone\n" in valet.log(job_id)


@pytest.mark.parametrize(
    ("steps", "reason", "error"),
    [
        ("fake: say working\nfake: exit 7", "exit_code", "exit status 7"),
        ("fake: plain\nfake: say working\nfake: exit 7", "exit_code", "exit status 7: working"),
        ("fake: fail-turn it broke", "turn_failed", "it broke"),
        ("fake: fail-turn You\u2019ve hit your usage limit.", "usage_limit", "usage limit"),
        ("fake: say half\nfake: exit 0", "turn_failed", "before its turn was complete"),
        ("fake: plain\nfake: raw Error: no config\nfake: exit 1", "spawn_failed", "no config"),
    ],
)
def test_how_a_failed_agent_is_judged(valet: Valet, steps: str, reason: str, error: str) -> None:
    record = valet.await_end(valet.submit(steps)["job_id"])
    assert (record["state"], record["reason"]) == ("failed", reason)
    assert error in record["error"]


def test_an_agent_that_is_missing_or_not_executable(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_CODEX_BIN="no-such-codex")
    process = valet.start()
    record = valet.await_end(valet.submit("anything")["job_id"])
    assert (record["state"], record["reason"]) == ("failed", "spawn_failed")
    assert "PV_CODEX_BIN=no-such-codex" in record["error"] and "npm install" in record["error"]
    process.stop()
    dud = valet.root / "dud"
    dud.write_text("no program")
    valet.environ["PV_CODEX_BIN"] = str(dud)
    process = valet.start()
    record = valet.await_end(valet.submit("anything")["job_id"])
    assert record["reason"] == "spawn_failed" and "chmod +x" in record["error"]
    process.stop()
    dud.write_text("#!/no/such/interpreter\n")
    dud.chmod(0o755)
    valet.start()
    record = valet.await_end(valet.submit("anything")["job_id"])
    assert record["reason"] == "spawn_failed" and "check PV_CODEX_BIN" in record["error"]


def test_a_job_that_takes_too_long_is_ended(valet: Valet) -> None:
    job_id = valet.submit("fake: wait never\n", timeout_seconds=0.5)["job_id"]
    record = valet.await_end(job_id)
    assert (record["state"], record["reason"]) == ("failed", "timeout")
    assert carriers(job_id) == []


def test_an_agent_that_writes_too_much_is_ended(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_MAX_LOG_BYTES="64KiB")
    valet.start()
    job_id = valet.submit("fake: plain\nfake: lines 9000000 0\n")["job_id"]
    record = valet.await_end(job_id)
    assert (record["state"], record["reason"]) == ("failed", "log_limit")


def test_the_agent_gets_an_allow_list_of_the_environment(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_CODEX_ENV="WANTED", WANTED="yes", UNWANTED="no", OPENAI_API_BASE="x")
    valet.start()
    job_id = valet.submit("fake: env env.txt")["job_id"]
    valet.await_end(job_id)
    lines = (valet.repo / "env.txt").read_text().splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert {"PATH", "HOME", "WANTED", "OPENAI_API_BASE", "PV_JOB_ID"} <= names
    assert [name for name in names if name.startswith("PV_")] == ["PV_JOB_ID"]
    assert "UNWANTED" not in names and f"PV_JOB_ID={job_id}" in lines


def test_priority_goes_before_age(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_MAX_RUNNING="1")
    valet.start()
    valet.await_state(valet.submit("fake: wait go")["job_id"], "running")
    jobs = [
        valet.submit(f"fake: append order.txt {name}", priority=priority)["job_id"]
        for name, priority in (("low", -1), ("first", 0), ("second", 0), ("high", 5))
    ]
    places = [valet.job(job_id)["queue_position"] for job_id in jobs]
    assert places == [4, 2, 3, 1]
    (valet.repo / "go").touch()
    for job_id in jobs:
        valet.await_end(job_id)
    assert (valet.repo / "order.txt").read_text().split() == ["high", "first", "second", "low"]


def test_the_work_begins_from_the_branch_asked_for(valet: Valet) -> None:
    git(valet.repo, "switch", "--quiet", "feature/one")
    (valet.repo / "one.txt").write_text("of feature one")
    git(valet.repo, "add", "--all")
    git(valet.repo, "commit", "--quiet", "--message", "one")
    git(valet.repo, "switch", "--quiet", "main")
    steps = "fake: write two.txt x\nfake: sh cat one.txt > three.txt"
    record = valet.await_end(valet.submit(steps, branch="feature/one")["job_id"])
    assert valet.show(record, "three.txt") == "of feature one"
    assert record["result"]["base"] == git(valet.repo, "rev-parse", "feature/one").strip()
    assert git(valet.repo, "branch", "--show-current").strip() == "main"


def test_retry_queues_the_same_prompt_again(valet: Valet) -> None:
    first = valet.submit("fake: append tries.txt x\nfake: exit 3", priority=2)["job_id"]
    valet.await_end(first)
    answer = valet.ask("POST", f"/api/v1/jobs/{first}/retry")
    assert answer.status == 201 and answer.json["retry_of"] == first
    assert answer.headers["Location"] == f"/api/v1/jobs/{answer.json['job_id']}"
    record = valet.await_end(answer.json["job_id"])
    assert (record["attempt"], record["priority"]) == (2, 2)
    assert (valet.repo / "tries.txt").read_text() == "x\nx\n"


def test_a_finished_turn_is_a_finished_job_even_if_the_process_stays(valet: Valet) -> None:
    began = time.monotonic()
    job_id = valet.submit("fake: linger 300")["job_id"]
    record = valet.await_end(job_id)
    assert (record["state"], record["reason"]) == ("succeeded", "no_changes")
    assert time.monotonic() - began < 60
    assert carriers(job_id) == []


def test_jobs_survive_a_killed_server_and_are_adopted(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    process = valet.start()
    steps = "fake: lines 5 0\nfake: wait go\nfake: lines 5 0\nfake: exit 9"
    job_id = valet.submit(steps)["job_id"]
    until(lambda: (valet.runs / job_id / "job.log").exists(), "a log")
    until(lambda: "line 5" in valet.log(job_id), "the first half of the log")
    process.stop(signal.SIGKILL)
    (valet.repo / "go").touch()
    valet.start()
    record = valet.await_end(job_id)
    assert (record["reason"], record["exit_code"]) == ("exit_code", 9)
    lines = [line for line in valet.log(job_id).splitlines() if line]
    assert lines == [f"line {n}" for n in (1, 2, 3, 4, 5, 1, 2, 3, 4, 5)]


def test_sigterm_leaves_jobs_running_and_sigint_aborts_them(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet()
    process = valet.start()
    job_id = valet.submit("fake: wait go")["job_id"]
    valet.await_state(job_id, "running")
    assert process.stop(signal.SIGTERM) == 0
    assert carriers(job_id)
    process = valet.start()
    assert valet.job(job_id)["state"] == "running"
    process.await_line("adopted")
    assert process.stop(signal.SIGINT) == 0
    assert carriers(job_id) == []
    assert json.loads((valet.runs / job_id / "job.json").read_text())["state"] == "aborted"
