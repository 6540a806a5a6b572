"""Thousands of jobs and requests in a row: memory, files and threads do not grow."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random

from chaos.common import TERMINAL, Chaos, clear, repositories, settings
from harness import DEADLINE, Valet, program, until

CLIENTS, PER_CONNECTION, MEGABYTES = 4, 100, 10.0
AGENT = "#!/bin/sh\ncat\necho done\n"


@dataclass(frozen=True)
class Size:
    """What the server holds."""

    megabytes: float
    files: int
    threads: int

    @staticmethod
    def of(pid: int) -> Size:
        with open(f"/proc/{pid}/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        kilobytes = int(lines["VmRSS"].split()[0])
        return Size(kilobytes / 1024, len(os.listdir(f"/proc/{pid}/fd")), int(lines["Threads"]))


def run(chaos: Chaos) -> None:
    jobs, requests = (60, 1500) if chaos.short else (2000, 50000)
    root = chaos.root / "endurance"
    root.mkdir()
    agent = root / "agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    special = {"PV_CODEX_BIN": str(agent), "PV_MAX_RUNNING": "4"}
    valet = Valet(root, program(), **{**settings(root / "runs.txt"), **special})
    repos = repositories(root, 8)
    try:
        pid = valet.start().popen.pid
        _jobs(valet, repos, jobs // 10)
        _requests(chaos, valet, requests // 10)
        before = _at_rest(pid)
        began = time.monotonic()
        bad = _jobs(valet, repos, jobs)
        bad += _requests(chaos, valet, requests)
        took = time.monotonic() - began
        after = _at_rest(pid, before)
    finally:
        clear(valet)
    _say(chaos, bad, (jobs, requests, took), before, after)


def _say(
    chaos: Chaos, bad: list[str], load: tuple[int, int, float], before: Size, after: Size
) -> None:
    jobs, requests, took = load
    say = chaos.figures
    say.say("endurance", f"{jobs} jobs and {requests} requests in {took:.0f} s")
    say.none("jobs and requests that went wrong", bad, jobs + requests)
    grown = after.megabytes - before.megabytes
    text = f"{grown:+.1f} MB ({before.megabytes:.1f} to {after.megabytes:.1f})"
    say.say("growth of resident memory", text, good=grown < MEGABYTES)
    for name, old, new in (
        ("open files", before.files, after.files),
        ("threads", before.threads, after.threads),
    ):
        say.say(f"growth in {name}", f"{new - old:+d} ({old} to {new})", good=new <= old)


def _at_rest(pid: int, like: Size | None = None) -> Size:
    """The size once the clients' connections are gone: as `like`, or unchanged for a second."""
    deadline, since, last = time.monotonic() + 10, time.monotonic(), Size.of(pid)
    while time.monotonic() < deadline:
        now = Size.of(pid)
        if (now.files, now.threads) != (last.files, last.threads):
            since, last = time.monotonic(), now
        calm = time.monotonic() - since > 1
        if calm and (like is None or (now.files <= like.files and now.threads <= like.threads)):
            break
        time.sleep(0.05)
    return Size.of(pid)


def _jobs(valet: Valet, repos: list[str], count: int) -> list[str]:
    """Submit `count` short jobs, a hundred in the queue at most, and await them all."""
    bad: list[str] = []
    waiting: list[str] = []

    def work_off(most: int) -> bool:
        while waiting:
            record = valet.job(waiting[0])
            if record["state"] not in TERMINAL:
                break
            if record["state"] != "succeeded":
                bad.append(f"{waiting[0]}: {record['state']}, {record['reason']}")
            waiting.pop(0)
        return len(waiting) <= most

    for number in range(count):
        waiting.append(valet.submit(f"job {number}", repo=repos[number % len(repos)])["job_id"])
        until(lambda: work_off(100), "the queue gets shorter")
    until(lambda: work_off(0), "every job has ended", 60)
    return bad


def _requests(chaos: Chaos, valet: Valet, count: int) -> list[str]:
    """`count` requests of every kind over a few clients that connect anew now and then."""
    page = valet.get("/api/v1/jobs?limit=100")["jobs"]
    ids = [job["job_id"] for job in page]
    bad: list[str] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        random = chaos.random("client", number)
        share = count // CLIENTS
        for start in range(0, share, PER_CONNECTION):
            found = _connection(valet, random, ids, min(PER_CONNECTION, share - start))
            with lock:
                bad.extend(found)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(client, number) for number in range(CLIENTS)]:
            done.result()
    return bad


def _connection(valet: Valet, random: Random, ids: list[str], count: int) -> list[str]:
    connection = http.client.HTTPConnection("127.0.0.1", valet.port, timeout=DEADLINE)
    bad = []
    try:
        for _ in range(count):
            job = f"/api/v1/jobs/{random.choice(ids)}"
            method, path, body, expected = random.choice(
                [
                    ("GET", "/api/v1/status", None, 200),
                    ("GET", "/api/v1/jobs?limit=5", None, 200),
                    ("GET", job, None, 200),
                    ("HEAD", job, None, 200),
                    ("GET", f"{job}/log", None, 200),
                    ("GET", f"{job}/log/stream", None, 200),
                    ("GET", f"{job}/prompt", None, 200),
                    ("GET", f"{job}/nothing", None, 404),
                    ("POST", f"{job}/abort", None, 409),
                    ("POST", "/api/v1/jobs", json.dumps({"repo": "none/none"}), (400, 404, 422)),
                    ("GET", "/api/v1/targets", None, 200),
                ]
            )
            kind = {"Content-Type": "application/json"} if body else {}
            connection.request(method, path, body, kind)
            answer = connection.getresponse()
            answer.read()
            if answer.status not in (expected if isinstance(expected, tuple) else (expected,)):
                bad.append(f"{method} {path}: {answer.status}")
    finally:
        connection.close()
    return bad
