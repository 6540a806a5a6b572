"""What crashes, other hands and bad luck leave behind, and what the next look does with it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import REPO, Process, Valet, carriers, git, make_repository, until


def adopted(process: Process) -> None:
    process.await_line("adopted")


def busy_valet(make_valet: Callable[..., Valet], **settings: str) -> Valet:
    """One slot, taken by a job that waits for a file `go`."""
    valet = make_valet(PV_MAX_RUNNING="1", **settings)
    valet.start()
    valet.await_state(valet.submit("fake: wait go")["job_id"], "running")
    return valet


def test_a_prompt_withdrawn_while_no_watcher_looked_ends_as_withdrawn(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet()
    api = valet.start("serve", "--no-watcher")
    receipt = valet.submit("fake: append ran.txt x")
    api.stop()
    Path(receipt["inbox_path"]).unlink()
    valet.start()
    assert valet.await_end(receipt["job_id"])["reason"] == "withdrawn"


def test_prompts_deleted_at_once_are_withdrawn_or_run_but_never_stuck(
    make_valet: Callable[..., Valet],
) -> None:
    valet = busy_valet(make_valet)
    ids = []
    for _ in range(40):
        receipt = valet.submit("fake: append ran.txt x")
        Path(receipt["inbox_path"]).unlink(missing_ok=True)
        ids.append(receipt["job_id"])
    for job_id in ids:
        assert valet.await_end(job_id)["reason"] == "withdrawn"
    (valet.repo / "go").touch()


def test_an_abort_that_spans_a_restart_ends_aborted(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    process = valet.start()
    job_id = valet.submit("fake: say up\nfake: wait never")["job_id"]
    record = until(lambda: valet.job(job_id) if valet.job(job_id)["activity"] == "up" else None, "")
    process.stop(signal.SIGKILL)
    (valet.runs / job_id / "ABORT").touch()
    os.killpg(record["pid"], signal.SIGINT)
    until(lambda: not carriers(job_id), "the agent gone")
    valet.start()
    record = valet.await_end(job_id)
    assert (record["state"], record["reason"]) == ("aborted", "abort_requested")


def test_a_timeout_that_spans_a_restart_ends_as_timeout(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_ABORT_GRACE_SECONDS="20")
    process = valet.start()
    steps = "fake: ignore INT\nfake: wait never"
    job_id = valet.submit(steps, timeout_seconds=0.3)["job_id"]
    until(lambda: valet.job(job_id)["reason"] == "timeout", "the ending begun")
    process.stop(signal.SIGKILL)
    os.killpg(valet_pid(valet, job_id), signal.SIGKILL)
    valet.start()
    record = valet.await_end(job_id)
    assert (record["state"], record["reason"]) == ("failed", "timeout")


def valet_pid(valet: Valet, job_id: str) -> int:
    return int((valet.runs / job_id / "agent.pid").read_text())


def test_a_record_spoilt_while_the_agent_lives_is_made_anew_and_the_agent_adopted(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet()
    process = valet.start()
    job_id = valet.submit("fake: append ran.txt x\nfake: wait go\nfake: exit 5")["job_id"]
    until((valet.repo / "ran.txt").exists, "the agent at work")
    process.stop(signal.SIGKILL)
    (valet.runs / job_id / "job.json").write_bytes(b"\0garbage")
    process = valet.start()
    adopted(process)
    other = valet.submit("fake: append ran.txt y")["job_id"]
    assert valet.job(other)["state"] == "created"
    (valet.repo / "go").touch()
    record = valet.await_end(job_id)
    assert (record["reason"], record["exit_code"]) == ("exit_code", 5)
    valet.await_end(other)
    assert (valet.repo / "ran.txt").read_text() == "x\ny\n"


def test_a_run_folder_deleted_while_the_server_was_down_ends_the_agent(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet()
    process = valet.start()
    job_id = valet.submit("fake: say up\nfake: wait never")["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    process.stop(signal.SIGKILL)
    shutil.rmtree(valet.runs / job_id)
    valet.start()
    after = valet.submit("fake: append ran.txt y")["job_id"]
    assert valet.await_end(after)["state"] == "succeeded"
    assert carriers(job_id) == []


def removed(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def test_the_run_folder_of_an_adopted_job_may_be_deleted(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    process = valet.start()
    job_id = valet.submit("fake: say up\nfake: wait never")["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    process.stop(signal.SIGKILL)
    process = valet.start()
    adopted(process)
    until(lambda: removed(valet.runs / job_id), "the folder removed under its writer's hands")
    after = valet.submit("fake: append ran.txt y")["job_id"]
    assert valet.await_end(after)["state"] == "succeeded"


def test_the_run_folder_of_a_queued_job_may_be_deleted(make_valet: Callable[..., Valet]) -> None:
    valet = busy_valet(make_valet)
    job_id = valet.submit("fake: append ran.txt x")["job_id"]
    shutil.rmtree(valet.runs / job_id)
    (valet.repo / "go").touch()
    until(lambda: valet.ask("GET", f"/api/v1/jobs/{job_id}").status == 200, "its record again")
    assert valet.await_end(job_id)["state"] == "succeeded"
    assert (valet.repo / "ran.txt").read_text() == "x\n"


def test_a_leftover_child_that_writes_for_ever_does_not_hold_the_job(valet: Valet) -> None:
    agent = valet.root / "agent"
    agent.write_text("#!/bin/sh\n(while :; do echo noise; done) &\nexit 4\n")
    agent.chmod(0o755)
    valet.stop()
    valet.environ["PV_CODEX_BIN"] = str(agent)
    valet.start()
    job_id = valet.submit("anything")["job_id"]
    assert valet.await_end(job_id)["exit_code"] == 4
    assert carriers(job_id) == []


def test_one_long_line_of_an_agent_harms_nobody(valet: Valet) -> None:
    agent = valet.root / "agent"
    agent.write_text("#!/bin/sh\nhead -c 6000000 /dev/zero | tr '\\0' x\nexit 3\n")
    agent.chmod(0o755)
    valet.stop()
    valet.environ["PV_CODEX_BIN"] = str(agent)
    valet.start()
    job_id = valet.submit("anything")["job_id"]
    record = valet.await_end(job_id)
    assert record["exit_code"] == 3 and len(record["error"]) < 5000
    assert len(valet.log(job_id)) == 6_000_001
    assert sum(len(e[2]) for e in valet.events(job_id) if e[0] == "message") == 6_000_000


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run: (run / "job.json").write_text('{"state":"running","repo":"a\\u0000b"}'),
        lambda run: (run / "job.json").mkdir(),
        lambda run: (run / "job.json").symlink_to("/etc/passwd"),
        lambda run: (run / "job.json").write_bytes(b"x" * (5 << 20)),
        lambda run: subprocess.run(["mkfifo", str(run / "job.json")], check=True),
        lambda run: [
            (run / "job.json").write_text('{"state":"running"}'),
            (run / "agent.lock").write_bytes(b"\xff\xfe"),
        ],
        lambda run: [
            (run / "job.json").write_text('{"state":"created","inbox_path":"/x"}'),
            subprocess.run(["mkfifo", str(run / "ABORT")], check=True),
        ],
    ],
    ids=["nul", "folder", "link", "huge", "fifo", "lock", "abort-fifo"],
)
def test_a_spoilt_run_folder_stops_nobody(
    make_valet: Callable[..., Valet], spoil: Callable[[Path], object]
) -> None:
    valet = make_valet()
    run = valet.runs / "spoilt_1"
    run.mkdir(parents=True)
    spoil(run)
    valet.start()
    assert valet.await_end(valet.submit("fake: say fine")["job_id"])["state"] == "succeeded"
    assert valet.ask("GET", "/api/v1/jobs").status == 200
    assert valet.get("/api/v1/status")["watcher"]["alive"] is True
    assert valet.ask("GET", "/api/v1/jobs/spoilt_1/prompt").status == 404


def test_a_prompt_that_cannot_be_claimed_holds_up_no_other(valet: Valet) -> None:
    make_repository(valet.root / "repos" / "nova-rey" / "other")
    valet.await_state(valet.submit("fake: wait go")["job_id"], "running")
    queued = valet.submit("fake: say x")
    path = Path(queued["inbox_path"])
    path.with_name(path.name.replace(".prompt.md", ".running.md")).mkdir()
    (valet.repo / "go").touch()
    other = valet.submit("fake: say y", repo="nova-rey/other")["job_id"]
    assert valet.await_end(other)["state"] == "succeeded"
    until(lambda: queued["job_id"] in str(valet.get("/api/v1/status")["problems"]), "the problem")
    assert valet.job(queued["job_id"])["state"] == "created"


def test_a_queued_file_moved_to_another_folder_runs_there(make_valet: Callable[..., Valet]) -> None:
    valet = busy_valet(make_valet)
    other = make_repository(valet.root / "repos" / "other" / "thing")
    queued = valet.submit("fake: write ran.txt x")
    place = valet.inbox / "other" / "thing" / "main"
    place.mkdir(parents=True)
    shutil.move(queued["inbox_path"], place)
    until(lambda: valet.job(queued["job_id"])["repo"] == "other/thing", "the record moved")
    (valet.repo / "go").touch()
    assert valet.await_end(queued["job_id"])["state"] == "succeeded"
    branch = valet.job(queued["job_id"])["result"]["branch"]
    assert git(other, "show", f"{branch}:ran.txt") == "x"


def test_a_queued_file_moved_while_no_server_ran_runs_there(
    make_valet: Callable[..., Valet],
) -> None:
    valet = busy_valet(make_valet)
    queued = valet.submit("fake: say x")
    valet.processes[-1].stop()
    place = valet.inbox / REPO / "dev"
    place.mkdir(parents=True)
    shutil.move(queued["inbox_path"], place)
    valet.start()
    until(lambda: valet.job(queued["job_id"])["branch"] == "dev", "the record moved")
    (valet.repo / "go").touch()
    assert valet.await_end(queued["job_id"])["state"] == "succeeded"


def test_a_copy_of_a_queued_file_is_a_job_of_its_own(make_valet: Callable[..., Valet]) -> None:
    valet = busy_valet(make_valet)
    queued = valet.submit("fake: append ran.txt x", priority=4, model="m")
    path = Path(queued["inbox_path"])
    shutil.copy(path, path.with_name("copy-" + path.name))
    until(lambda: len(valet.get("/api/v1/jobs")["jobs"]) == 3, "three jobs")
    copy = valet.get("/api/v1/jobs")["jobs"][0]
    assert copy["job_id"] != queued["job_id"]
    assert (copy["priority"], copy["model"], copy["idempotency"]) == (4, "m", None)
    (valet.repo / "go").touch()
    for job_id in (copy["job_id"], queued["job_id"]):
        assert valet.await_end(job_id)["state"] == "succeeded"
    assert (valet.repo / "ran.txt").read_text() == "x\nx\n"


def test_an_ended_prompt_moved_back_under_its_own_name_is_a_new_job(valet: Valet) -> None:
    receipt = valet.submit("fake: append ran.txt x")
    valet.await_end(receipt["job_id"])
    done = until(lambda: list((valet.root / "finished").rglob("*.done.md")), "the archive")[0]
    done.rename(receipt["inbox_path"])
    until(lambda: len(valet.get("/api/v1/jobs")["jobs"]) == 2, "a second job")
    again = valet.get("/api/v1/jobs")["jobs"][0]["job_id"]
    assert valet.await_end(again)["state"] == "succeeded" and again != receipt["job_id"]
    assert (valet.repo / "ran.txt").read_text() == "x\nx\n"


def test_a_drop_whose_name_looks_like_ours_must_hold_still_too(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet(PV_POLL_INTERVAL_SECONDS="0.5")
    valet.start()
    place = valet.inbox / REPO / "main"
    place.mkdir(parents=True)
    target = place / f"half-{'0123456789abcdef' * 2}.prompt.md"
    with target.open("w") as file:
        file.write("fake: append ran.txt one\n")
        file.flush()
        time.sleep(0.5)  # the case itself
        file.write("fake: append ran.txt two\n")
    job = until(lambda: valet.get("/api/v1/jobs")["jobs"], "the drop as a job")[0]
    assert valet.await_end(job["job_id"])["state"] == "succeeded"
    assert (valet.repo / "ran.txt").read_text() == "one\ntwo\n"


def test_a_key_repeated_after_a_crash_before_the_record_makes_no_second_job(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet()
    api = valet.start("serve", "--no-watcher")
    body = json.dumps({"repo": REPO, "branch": "main", "markdown_text": "fake: append ran.txt x"})
    headers = {"Content-Type": "application/json", "Idempotency-Key": "once"}
    first = valet.ask("POST", "/api/v1/jobs", body.encode(), headers)
    api.stop(signal.SIGKILL)
    shutil.rmtree(valet.runs / first.json["job_id"])  # as if it had died before the record
    valet.start()
    again = valet.ask("POST", "/api/v1/jobs", body.encode(), headers)
    assert again.json["job_id"] == first.json["job_id"]
    valet.await_end(first.json["job_id"])
    assert (valet.repo / "ran.txt").read_text() == "x\n"


def test_the_first_answer_stays_the_same_whatever_model_is_the_default(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet(PV_CODEX_MODEL="default-model")
    valet.start()
    body = json.dumps({"repo": REPO, "branch": "main", "markdown_text": "fake: say x"}).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": "once"}
    first = valet.ask("POST", "/api/v1/jobs", body, headers)
    valet.await_end(first.json["job_id"])
    assert valet.ask("POST", "/api/v1/jobs", body, headers).json == first.json


def test_a_prompt_with_a_sea_of_blanks_freezes_nobody(valet: Valet) -> None:
    text = "---\npv:\n  a: x" + " " * 200_000 + "y\n---\nfake: say hi\n"
    began = time.monotonic()
    assert valet.await_end(valet.submit(text)["job_id"])["state"] == "succeeded"
    assert time.monotonic() - began < 10  # was minutes


def is_gone(valet: Valet, name: str) -> bool:
    status = valet.get("/api/v1/status")
    told = f"the {name} root {valet.root / name} is not there" in status["problems"]
    return told and not status["roots"][name]["exists"]


def test_roots_that_vanish_are_named_and_work_goes_on_when_they_are_back(valet: Valet) -> None:
    for name in ("inbox", "runs"):
        (valet.root / name).rename(valet.root / f"{name}-away")
        until(functools.partial(is_gone, valet, name), "the problem in the status")
        assert valet.ask("GET", "/api/v1/jobs").status == 200
        job = {"repo": REPO, "branch": "main", "markdown_text": "fake: say x"}
        answer = valet.post_json("/api/v1/jobs", job)
        assert answer.status == 500 and "cannot be used" in answer.detail
        (valet.root / f"{name}-away").rename(valet.root / name)
        assert valet.await_end(valet.submit("fake: say back")["job_id"])["state"] == "succeeded"


def test_a_record_naming_a_foreign_file_does_not_show_it(valet: Valet) -> None:
    run = valet.runs / "foreign_1"
    run.mkdir()
    for path in ("/etc/hostname", f"{valet.inbox}/../../../../../../etc/hostname", "/" + "x" * 300):
        (run / "job.json").write_text(json.dumps({"state": "failed", "inbox_path": path}))
        assert valet.ask("GET", "/api/v1/jobs/foreign_1/prompt").status == 404
        assert valet.ask("POST", "/api/v1/jobs/foreign_1/retry").status == 404


def test_a_linked_work_tree_is_a_repository_without_asking_git(valet: Valet) -> None:
    linked = valet.root / "repos" / "nova-rey" / "linked"
    git(valet.repo, "worktree", "add", "--quiet", "-b", "side", str(linked))
    pairs = [t["branch"] for t in valet.get("/api/v1/targets")["targets"] if "linked" in t["repo"]]
    assert pairs == ["dev", "feature/one", "main", "side"]
    job_id = valet.submit("fake: write ran.txt x", repo="linked", branch="side")["job_id"]
    assert valet.show(valet.await_end(job_id), "ran.txt") == "x"


def test_long_names_can_be_retried(valet: Valet) -> None:
    receipt = valet.submit("fake: say x", filename="a" * 160 + ".md")
    valet.await_end(receipt["job_id"])
    assert valet.ask("POST", f"/api/v1/jobs/{receipt['job_id']}/retry").status == 201


def test_faults_of_settings_and_of_folders_are_named_together(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet(PV_BIND_PORT="x", PV_RUNS_ROOT="/proc/nope")
    argv = [*valet.program, "serve"]
    done = subprocess.run(argv, env=valet.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "PV_BIND_PORT=x" in done.stderr and "PV_RUNS_ROOT=/proc/nope" in done.stderr


def test_a_record_by_other_hands_never_moves_a_file_outside_the_inbox(valet: Valet) -> None:
    outside = valet.root / "precious.prompt.md"
    outside.write_text("fake: append ran.txt x")
    run = valet.runs / "foreign_2"
    run.mkdir()
    record = {"state": "created", "repo": REPO, "branch": "main", "inbox_path": str(outside)}
    (run / "job.json").write_text(json.dumps(record))
    valet.stop()
    valet.start()
    assert valet.await_end("foreign_2")["reason"] == "withdrawn"
    assert outside.exists() and not (valet.repo / "ran.txt").exists()


def test_what_a_crashed_submission_left_is_removed_in_time(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet()
    place = valet.inbox / REPO / "main"
    place.mkdir(parents=True)
    old, young = place / ".a-1.prompt.md.tmp", place / ".b-2.prompt.md.tmp"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (1e9, 1e9))
    valet.start()
    until(lambda: not old.exists(), "the old one removed")
    assert young.exists()


def test_a_stream_goes_on_across_a_killed_server_without_gap_or_repeat(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet()
    process = valet.start()
    steps = "fake: lines 5 0\nfake: wait go\nfake: lines 5 0"
    job_id = valet.submit(steps)["job_id"]
    heard: list[tuple[str, str]] = []
    for _, mark, data, _ in valet.events(job_id):
        heard.append((mark, data))
        if data == "line 5":
            break
    process.stop(signal.SIGKILL)
    (valet.repo / "go").touch()
    until(lambda: not carriers(job_id), "the agent's end")
    valet.start()
    for name, mark, data, _ in valet.events(job_id, heard[-1][0]):
        if name == "message":
            heard.append((mark, data))
    assert "".join(f"{data}\n" for _, data in heard) == valet.log(job_id)
    marks = [int(mark) for mark, _ in heard]
    assert marks == sorted(set(marks)) and marks[-1] == len(valet.log(job_id))


def test_a_forged_pid_gets_no_stranger_signalled(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    process = valet.start()
    job_id = valet.submit("fake: say up\nfake: wait never")["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    process.stop(signal.SIGKILL)
    bystander = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        (valet.runs / job_id / "agent.pid").write_text(str(bystander.pid))
        valet.start()
        valet.ask("POST", f"/api/v1/jobs/{job_id}/abort")
        assert valet.await_end(job_id)["state"] == "aborted"
        assert carriers(job_id) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_job_claimed_and_not_started_is_started_once(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet()
    api = valet.start("serve", "--no-watcher")
    receipt = valet.submit("fake: append ran.txt x")
    api.stop()
    queued = Path(receipt["inbox_path"])
    queued.rename(queued.with_name(queued.name.replace(".prompt.md", ".running.md")))
    valet.start()
    assert valet.await_end(receipt["job_id"])["state"] == "succeeded"
    until(lambda: not list(valet.inbox.rglob("*.md")), "an empty inbox")
    assert len(valet.get("/api/v1/jobs")["jobs"]) == 1
    assert (valet.repo / "ran.txt").read_text() == "x\n"
