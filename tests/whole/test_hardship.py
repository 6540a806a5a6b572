"""A full disk, a read-only one, no descriptors, garbage everywhere: nothing false, no crash."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import NOBODY, PROGRAMS, REPO, TREE, Valet, built, carriers, program, until
from needs import need

from pv_lib.httpd.limits import MAX_CONNECTIONS

JOB = {"repo": REPO, "branch": "main", "markdown_text": "fake: say x"}


@pytest.fixture
def small_valet(small_disk: Path) -> Iterator[Valet]:
    valet = Valet(small_disk, program(), PV_MIN_FREE_BYTES="0")
    valet.start()
    yield valet
    valet.clear()


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return ballast
    raise AssertionError("the disk did not fill")


def test_a_full_disk_acknowledges_nothing_and_loses_nothing(small_valet: Valet) -> None:
    valet = small_valet
    steps = "fake: say up\nfake: wait go\nfake: exit 6"
    job_id = valet.submit(steps)["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    queued = valet.submit("fake: say later")["job_id"]
    (valet.repo / "go").touch()  # an empty file; the job ends in a moment
    os.rename(valet.repo / "go", valet.repo / "gone")
    ballast = fill(valet.root)
    answer = valet.post_json("/api/v1/jobs", JOB)
    assert answer.status == 507 and "No space left" in answer.detail
    assert [job["job_id"] for job in valet.get("/api/v1/jobs")["jobs"]] == [queued, job_id]
    os.rename(valet.repo / "gone", valet.repo / "go")
    valet.processes[-1].await_line("cannot")
    assert valet.ask("GET", "/api/v1/healthz").status == 200
    assert valet.job(job_id)["state"] == "running"
    ballast.unlink()
    record = valet.await_end(job_id)
    assert (record["reason"], record["exit_code"]) == ("exit_code", 6)
    assert valet.await_end(queued)["state"] == "succeeded"
    assert valet.await_end(valet.submit("fake: say back")["job_id"])["state"] == "succeeded"
    assert not list(valet.inbox.rglob("*.*md*"))


def test_a_disk_that_is_full_when_a_job_should_start(small_valet: Valet) -> None:
    valet = small_valet
    first = valet.submit("fake: say up\nfake: wait go")["job_id"]
    until(lambda: valet.job(first)["activity"] == "up", "the agent, ready for a signal")
    second = valet.submit("fake: append ran.txt x")["job_id"]
    ballast = fill(valet.root)
    os.killpg(int((valet.runs / first / "agent.pid").read_text()), signal.SIGINT)
    valet.processes[-1].await_line("cannot")
    ballast.unlink()
    valet.await_end(first)
    assert valet.await_end(second)["state"] == "succeeded"
    assert (valet.repo / "ran.txt").read_text() == "x\n"


def test_a_read_only_disk_refuses_and_recovers(small_valet: Valet) -> None:
    valet = small_valet
    root = str(valet.root)
    subprocess.run(["mount", "--bind", root, root], check=True)  # over it, so that paths lead here
    subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
    answer = valet.post_json("/api/v1/jobs", JOB)
    assert answer.status == 500 and "Read-only file system" in answer.detail
    status = valet.get("/api/v1/status")
    assert any("is not writable" in problem for problem in status["problems"])
    subprocess.run(["umount", root], check=True)
    assert valet.get("/api/v1/jobs")["jobs"] == []
    assert valet.await_end(valet.submit("fake: say back")["job_id"])["state"] == "succeeded"


def test_a_server_out_of_descriptors_stays_up_and_recovers(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet()
    valet.program = ["prlimit", "--nofile=48:48", *valet.program]
    need(shutil.which("prlimit"), "prlimit", "apt-get install util-linux")
    process = valet.start()
    job_id = valet.submit("fake: lines 3 0\nfake: wait go\nfake: lines 3 0\nfake: exit 3")["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "line 3", "the first half")
    held = [socket.create_connection(("127.0.0.1", valet.port)) for _ in range(80)]
    before = cpu_seconds(process.popen.pid)
    began = time.monotonic()
    (valet.repo / "go").touch()
    until(lambda: not carriers(job_id), "the agent's end")
    until(lambda: time.monotonic() - began > 1, "a second of that")
    assert cpu_seconds(process.popen.pid) - before < 0.7 * (time.monotonic() - began)
    for connection in held:
        connection.close()
    record = valet.await_end(job_id)
    assert (record["reason"], record["exit_code"]) == ("exit_code", 3)
    assert [line for line in valet.log(job_id).splitlines() if line] == [
        *("line 1", "line 2", "line 3"),
        *("line 1", "line 2", "line 3"),
    ]
    assert valet.await_end(valet.submit("fake: say back")["job_id"])["state"] == "succeeded"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_garbage_in_every_file_of_the_runs_folder(make_valet: Callable[..., Valet]) -> None:
    dice = random.Random(7)
    valet = make_valet(PV_MAX_RUNNING="1")
    process = valet.start()
    ended = valet.submit("fake: say x")["job_id"]
    valet.await_end(ended)
    running = valet.submit("fake: wait go")["job_id"]
    valet.await_state(running, "running")
    queued = valet.submit("fake: append ran.txt x")["job_id"]
    process.stop(signal.SIGKILL)
    for path in sorted(valet.runs.rglob("*")):
        if path.is_file():
            path.write_bytes(dice.randbytes(dice.choice([0, 1, 50, 5000])))
    valet.start()
    (valet.repo / "go").touch()
    until(lambda: valet.ask("GET", f"/api/v1/jobs/{queued}").status == 200, "its record again")
    assert valet.await_end(queued)["state"] == "succeeded"
    assert (valet.repo / "ran.txt").read_text() == "x\n"
    assert valet.job(running)["state"] in ("failed", "succeeded", "aborted")
    assert valet.ask("GET", f"/api/v1/jobs/{ended}").status == 404
    assert ended in str(valet.get("/api/v1/status")["problems"])


def test_garbage_under_a_running_servers_hands(make_valet: Callable[..., Valet]) -> None:
    dice = random.Random(11)
    valet = make_valet(PV_MAX_RUNNING="1")
    valet.start()
    running = valet.submit("fake: say up\nfake: wait go")["job_id"]
    until(lambda: valet.job(running)["activity"] == "up", "the agent's activity")
    queued = valet.submit("fake: append ran.txt x")["job_id"]
    for path in sorted(valet.runs.rglob("*")):
        if path.is_file():
            path.write_bytes(dice.randbytes(dice.choice([0, 1, 50, 5000])))
    assert valet.ask("GET", "/api/v1/status").status == 200
    (valet.repo / "go").touch()
    until(lambda: (valet.repo / "ran.txt").exists(), "the queued job's run")
    assert valet.await_end(valet.submit("fake: say back")["job_id"])["state"] == "succeeded"
    assert valet.await_end(queued)["state"] == "succeeded"
    assert valet.job(running)["state"] in ("failed", "succeeded", "aborted")
    assert (valet.repo / "ran.txt").read_text() == "x\n"
    assert valet.processes[-1].popen.poll() is None


def test_sigterm_ends_streams_with_a_hint_and_leaves_the_job(valet: Valet) -> None:
    job_id = valet.submit("fake: say up\nfake: wait go")["job_id"]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    with socket.create_connection(("127.0.0.1", valet.port)) as stream:
        path = f"/api/v1/jobs/{job_id}/log/stream"
        stream.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        stream.settimeout(10)
        heard = b""
        while b"data: up" not in heard:
            heard += stream.recv(4096)
        began = time.monotonic()
        assert valet.processes[-1].stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 1.5  # the contract's figure
        while data := stream.recv(4096):
            heard += data
    assert b"\nretry: 1000\n" in heard and b"event: end" not in heard
    assert carriers(job_id)


def test_a_second_ctrl_c_is_at_once(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_ABORT_GRACE_SECONDS="600")
    process = valet.start()
    job_id = valet.submit("fake: ignore INT\nfake: ignore TERM\nfake: say up\nfake: wait go")[
        "job_id"
    ]
    until(lambda: valet.job(job_id)["activity"] == "up", "the agent's activity")
    process.popen.send_signal(signal.SIGINT)
    process.await_line(f"aborting {job_id}")
    assert process.stop(signal.SIGINT) == 0
    assert carriers(job_id) == []


def test_no_further_process_or_thread_and_back(unprivileged_valet: Valet) -> None:
    valet = unprivileged_valet  # no limit of processes would bind root
    shutil.rmtree(valet.repo / ".git")  # a plain folder: git cannot be started either
    process = valet.start()
    first = valet.submit("fake: say up\nfake: wait go\nfake: exit 3")["job_id"]
    until(lambda: valet.job(first)["activity"] == "up", "the agent's activity")
    second = valet.submit("fake: append ran.txt x")["job_id"]
    limit = [*valet.program[: -len(program())], "prlimit", f"--pid={process.popen.pid}"]
    subprocess.run([*limit, "--nproc=0:"], check=True)
    for _ in range(3 * MAX_CONNECTIONS // 2):  # each must give its place back
        answer = valet.ask("GET", "/api/v1/healthz")
        assert answer.status == 503 and "no further thread" in answer.detail
    (valet.repo / "go").touch()
    process.await_line(f"{second} must wait|cannot be taken")
    assert '"exit_code"' in (valet.runs / first / "job.json").read_text()
    subprocess.run([*limit, f"--nproc={resource.getrlimit(resource.RLIMIT_NPROC)[0]}:"], check=True)
    assert valet.ask("GET", "/api/v1/healthz").status == 200
    assert valet.job(first)["exit_code"] == 3
    assert valet.await_end(second)["state"] == "succeeded"
    assert (valet.repo / "ran.txt").read_text() == "x\n"


def test_a_spawn_without_a_process_to_spare_can_be_tried_again(tmp_path: Path) -> None:
    code = (
        "import os, resource, sys; from pathlib import Path; from pv_lib.agent import process\n"
        "run = Path(sys.argv[1])\n"
        f"os.geteuid() or os.setuid({NOBODY})\n"
        "hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))\n"
        "try: process.spawn(run, 'x', ['/bin/true'], run, {})\n"
        "except BlockingIOError: print(process.trace(run).name)\n"
    )
    with tempfile.TemporaryDirectory(prefix="pv-test-") as name:
        os.chmod(name, 0o777)
        done = subprocess.run(
            [sys.executable, "-c", code, name], cwd=TREE, capture_output=True, text=True, check=True
        )
    assert done.stdout == "NEVER\n"


def test_a_clock_set_back_an_hour(make_valet: Callable[..., Valet], tmp_path: Path) -> None:
    valet = make_valet(PV_STALL_THRESHOLD_SECONDS="5")
    clock = tmp_path / "clock"
    clock.write_text("0")
    script = PROGRAMS / "shifted_clock.py"
    valet.program = [sys.executable, "-I", "-S", str(script), str(clock), str(built())]
    valet.start()
    first = valet.submit("fake: say up\nfake: wait go\nfake: exit 4")["job_id"]
    until(lambda: valet.job(first)["activity"] == "up", "the agent's activity")
    second = valet.submit("fake: append ran.txt second")["job_id"]
    before = valet.job(first)["heartbeat_at"]
    clock.write_text("-3600")
    until(lambda: valet.job(first)["heartbeat_at"] < before, "a heartbeat by the new clock")
    third = valet.submit("fake: append ran.txt third")["job_id"]
    assert first < second < third
    valet.processes[-1].stop(signal.SIGKILL)
    valet.start()
    fourth = valet.submit("fake: append ran.txt fourth")["job_id"]
    (valet.inbox / REPO / "main" / "drop.md").write_text("fake: append ran.txt drop")
    status = valet.get("/api/v1/status")
    assert status["jobs"]["stalled_running"] == 0 and status["problems"] == [], status
    (valet.repo / "go").touch()
    assert valet.await_end(first)["exit_code"] == 4
    for job_id in (second, third, fourth):
        assert valet.await_end(job_id)["state"] == "succeeded"
    until(lambda: len(list((valet.root / "finished").rglob("*.done.md"))) == 4, "the drop's end")
    ran = (valet.repo / "ran.txt").read_text().split()
    assert sorted(ran) == ["drop", "fourth", "second", "third"]
    assert all(job["age_seconds"] >= 0 for job in valet.get("/api/v1/jobs")["jobs"])
