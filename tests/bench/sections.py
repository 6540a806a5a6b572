"""The measurements, one function a question; each says its figures as soon as it has them."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.figures import Figures, quantile
from bench.stage import Process, fill_inbox, fill_log, fill_runs, floor, serving
from harness import REPO, Valet, program, until

RUNS = "Lists and status | runs on disk | times the bare handler"
FOLLOWERS = "A line to all followers of a job | followers | milliseconds"
JOBS = "201 to the agent's start | jobs submitted at once | milliseconds"
LOGS = "A job's log | bytes of job.log | milliseconds"
LIST = "/api/v1/jobs?limit=50"
FILTERS = {
    "state": f"{LIST}&state=failed",
    "repo": f"{LIST}&repo=owner3/project5",
    "stalled": f"{LIST}&stalled=true",
}
_CROWD = Path(__file__).with_name("crowd.py")


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    runs: tuple[int, ...]
    folders: int
    followers: tuple[int, ...]
    lines: int  # that followers get, five a second
    jobs: tuple[int, ...]
    logs: tuple[int, ...]
    seconds: float  # of each rate
    idle: float  # seconds that an idle server is watched
    quiet: float  # seconds until folders count as quiet
    starts: int


FULL = Scale(
    runs=(100, 1_000, 10_000, 100_000),
    folders=10_000,
    followers=(1, 100, 1_000, 5_000, 10_000),
    lines=50,
    jobs=(1, 8, 32),
    logs=(1 << 20, 1 << 25, 1 << 30),
    seconds=2.0,
    idle=20.0,
    quiet=65.0,
    starts=15,
)
SMALL = Scale((10, 50), 50, (1, 20), 5, (1, 2), (1 << 16, 1 << 20), 0.1, 0.5, 0.0, 1)


def rate(figures: Figures, name: str, bare: int, port: int, seconds: float, *asked: bytes) -> float:
    """Answers a second as a ratio to those of the bare handler, measured before and after."""
    half = seconds / 2
    low = load.rate(bare, load.get("/"), seconds=half)
    ours = load.rate(port, *asked, seconds=seconds)
    low = (low + load.rate(bare, load.get("/"), seconds=half)) / 2
    figures.say(
        name, ours / low, "x bare", WANTED.get(name, ""), f"{ours:.0f} a second, bare {low:.0f}"
    )
    return ours / low


WANTED = {
    "healthz": ">= 2.5",
    "detail": ">= 2.5",
    "log, last 200 lines": ">= 1.5",
    "submit, durable": ">= 0.25",
}


def requests(figures: Figures, scale: Scale) -> None:
    """The rates that do not depend on what is on the disk."""
    with floor() as bare, serving("", "serve", "--no-watcher") as valet:
        fill_runs(valet.runs, 100)
        until(lambda: len(valet.get("/api/v1/jobs?limit=500")["jobs"]) >= 100, "all runs")
        job_id = valet.get(LIST)["jobs"][0]["job_id"]
        fill_log(valet.runs / job_id / "job.log", 1 << 16)
        detail = f"/api/v1/jobs/{job_id}"
        submit = load.post(f"/api/v1/jobs?repo={REPO}&branch=main", "Add a CONTRIBUTING.md.")
        asked = {
            "healthz": load.get("/api/v1/healthz"),
            "detail": load.get(detail),
            "log, last 200 lines": load.get(f"{detail}/log"),
            "submit, durable": submit,
        }
        for name, request in asked.items():
            rate(figures, name, bare, valet.port, scale.seconds, request)


def scale_of_runs(figures: Figures, scale: Scale) -> None:
    """Lists, filters and status from few runs to many; the cold start, memory and idling."""
    known: dict[str, dict[int, float]] = {}
    with serving("", "serve", "--no-watcher") as stage, floor() as bare:
        there = 0
        for count in scale.runs:
            fill_runs(stage.runs, count - there, there)
            there = count
            last = count == scale.runs[-1]
            if last:
                fill_inbox(stage.inbox, scale.folders)
            with serving("", root=stage.root) as valet:
                process = Process(valet)
                _cold_start(figures, valet, count)
                if count == scale.runs[0] or last:
                    folders = f" and {scale.folders} inbox folders" if last else ""
                    time.sleep(scale.quiet if last else 0)
                    bound = "< 120" if last else "< 24"
                    figures.say(f"memory, {count} runs{folders}", process.resident, "MB", bound)
                    if last:
                        share = process.share(scale.idle)
                        figures.say(f"idle, {count} runs{folders}", share, "% of a core", "< 0.5")
                for name, request in _questions(valet).items():
                    ratio = rate(
                        figures, f"{name}, {count} runs", bare, valet.port, scale.seconds, *request
                    )
                    known.setdefault(name, {})[count] = ratio
                    figures.curve(RUNS, name, count, ratio)
    few, many = scale.runs[0], scale.runs[-1]
    for name, ratios in known.items():
        times = ratios[few] / ratios[many]
        figures.say(f"{name}: {few} against {many} runs", times, "times", _LIMITS.get(name, ""))


_LIMITS = {"list of 50": "< 1.3", "status": "< 1.3", **{f"list by {n}": "< 3" for n in FILTERS}}


def _questions(valet: Valet) -> dict[str, list[bytes]]:
    pages, before = [], ""
    for _ in range(40):
        page = valet.get(f"{LIST}{before}")
        pages.append(load.get(f"{LIST}{before}"))
        if page["next"] is None:
            break
        before = f"&before={page['next']}"
    return {
        "list of 50": [load.get(LIST)],
        "list of 50, another page each time": pages,
        "status": [load.get("/api/v1/status")],
        **{f"list by {name}": [load.get(path)] for name, path in FILTERS.items()},
    }


def _cold_start(figures: Figures, valet: Valet, count: int) -> None:
    """Until every record has been read; meanwhile others are served."""
    began, slowest, durable = time.monotonic(), 0.0, 0.0
    while any("still being read" in text for text in valet.get("/api/v1/status")["problems"]):
        asked = time.monotonic()
        assert valet.ask("GET", "/api/v1/healthz").status == 200
        slowest = max(slowest, time.monotonic() - asked)
        asked = time.monotonic()
        path = f"/api/v1/jobs?repo={REPO}&branch=nowhere"
        assert valet.ask("POST", path, b"x", {"Content-Type": "text/markdown"}).status == 404
        durable = max(durable, time.monotonic() - asked)
    took = time.monotonic() - began
    figures.say(f"cold start, {count} runs: all records read", took, "s")
    figures.say(f"cold start, {count} runs: slowest healthz", 1000 * slowest, "ms")


def followers(figures: Figures, scale: Scale) -> None:
    """A line a fifth of a second to every follower of one running job."""
    go = "until [ -e go ]; do sleep 0.05; done"
    lines = f"for ((i = 0; i < {scale.lines}; i++)); do"
    agent = f'{go}; {lines} echo "line $i $EPOCHREALTIME"; sleep 0.2; done; sleep 2'
    for count in scale.followers:
        with serving(agent) as valet:
            job_id = valet.submit("x")["job_id"]
            valet.await_state(job_id, "running")
            until(lambda: b"started" in valet.ask("GET", f"/api/v1/jobs/{job_id}/log").body, "log")  # noqa: B023
            process = Process(valet)
            idle = process.resident
            path = f"/api/v1/jobs/{job_id}/log/stream"
            argv = [sys.executable, str(_CROWD), str(valet.port), path, str(count)]
            with subprocess.Popen(
                [*argv, str(scale.lines)], stdout=subprocess.PIPE, text=True
            ) as crowd:
                assert crowd.stdout is not None and crowd.stdout.readline() == "ready\n"
                health = _Health(valet.port)
                (valet.tree(job_id) / "go").touch()
                time.sleep(0.1 * scale.lines)
                threads, grown = process.threads, process.resident - idle
                plain = json.loads(crowd.stdout.readline())
                health.stop()
        large = 1000 < count <= 5000
        name = f"{count} followers"
        last = [1000 * seconds for seconds in plain["last"]]
        assert len(last) == scale.lines
        figures.say(f"{name}: lost, doubled or out of order", plain["wrong"], "followers", "< 1")
        wanted = ("< 30", "< 120") if count == 1 else ("", "< 250" if large else "")
        figures.say(f"{name}: line to the last, median", quantile(last, 0.5), "ms", wanted[0])
        figures.say(f"{name}: line to the last, p99", quantile(last, 0.99), "ms", wanted[1])
        if count > 1:
            figures.say(f"{name}: memory", grown, "MB", "< 60" if large else "")
            figures.say(f"{name}: threads", threads, "threads", "< 24" if large else "")
            slow = 1000 * quantile(health.times, 0.99)
            figures.say(f"{name}: healthz p99", slow, "ms", "< 50" if large else "")
        figures.curve(FOLLOWERS, "median", count, quantile(last, 0.5))
        figures.curve(FOLLOWERS, "p99", count, quantile(last, 0.99))


class _Health:
    """Asks healthz on a kept connection, a hundred times a second, in a thread."""

    def __init__(self, port: int) -> None:
        self.times: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(port,))
        self._thread.start()

    def _run(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            while not self._over.wait(0.01):
                began = time.monotonic()
                sock.sendall(load.get("/api/v1/healthz"))
                assert sock.recv(1 << 16)
                self.times.append(time.monotonic() - began)

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()
        self._thread.join()


def starts(figures: Figures, scale: Scale) -> None:
    """From a submission's answer to the agent's first word, as many jobs at once as there are."""
    for count in scale.jobs:
        times: list[float] = []
        with serving("sleep 0.2", PV_MAX_RUNNING=str(count)) as valet:
            for _ in range(scale.starts if count == 1 else 1 + scale.starts // 5):
                answered: dict[str, float] = {}
                for number in range(count):
                    receipt = valet.submit(f"job {number}")
                    answered[receipt["job_id"]] = time.time()
                for job_id, moment in answered.items():
                    times.append(1000 * (_started(valet.runs / job_id) - moment))
                    valet.await_end(job_id)
        name = f"201 to the agent's start, {count} at once"
        bound = "< 20" if count == 1 else ""
        figures.say(f"{name}, median", statistics.median(times), "ms", bound)
        figures.curve(JOBS, "median", count, statistics.median(times))
        figures.curve(JOBS, "slowest", count, max(times))


def _started(run: Path) -> float:
    """When the agent said its first word; read from its file, to leave the server alone."""
    raw = run / "codex.jsonl"
    until(lambda: raw.exists() and b"\n" in raw.read_bytes(), "the agent's first word")
    word, moment = raw.read_text().split()[:2]
    assert word == "started"
    return float(moment)


def logs(figures: Figures, scale: Scale) -> None:
    """The end of a log, a part of it, and a new follower's first line, as it grows."""
    with serving("", "serve", "--no-watcher") as valet:
        run = valet.runs / "large"
        run.mkdir()
        (run / "job.json").write_text('{"state": "running"}')
        process = Process(valet)
        for size in scale.logs:
            fill_log(run / "job.log", size)
            middle = (run / "job.log").stat().st_size // 2
            last = size == scale.logs[-1]
            before = process.resident
            for name, query in (
                ("last 200 lines", "log"),
                ("200 lines from the middle", f"log?offset={middle}&lines=200"),
                ("a follower's first line", "log/stream"),
            ):
                path = f"/api/v1/jobs/large/{query}"
                took = [1000 * load.once(valet.port, path) for _ in range(scale.starts)]
                worst = max(took)
                text = f"log of {size >> 20} MiB: {name}, slowest"
                figures.say(text, worst, "ms", "< 50" if last else "")
                figures.curve(LOGS, name, size, statistics.median(took))
            text = f"log of {size >> 20} MiB: memory grown by"
            figures.say(text, process.resident - before, "MB", "< 8" if last else "")


def start(figures: Figures, scale: Scale) -> None:
    """`--version`, and the server up to its first answer, against a Python that does nothing."""
    bare, short, ours = [], [], []
    with serving("") as valet:
        valet.stop()
        environ = {**valet.environ, "PV_BIND_PORT": str(valet.port)}
        for _ in range(scale.starts):
            began = time.monotonic()
            subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
            bare.append(time.monotonic() - began)
            began = time.monotonic()
            argv = [*program(), "--version"]
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
            short.append(time.monotonic() - began)
            began = time.monotonic()
            with open(os.devnull, "wb") as nowhere:
                process = subprocess.Popen([*program(), "serve"], env=environ, stderr=nowhere)
            until(lambda: _answers(valet.port), "the first answer")
            ours.append(time.monotonic() - began)
            process.terminate()
            process.wait()
    python = statistics.median(bare)
    note = f"{1000 * statistics.median(short):.0f} ms"
    figures.say("pv --version", statistics.median(short) / python, "x python", "< 2.5", note)
    ratio = statistics.median(ours) / python
    note = f"{1000 * statistics.median(ours):.0f} ms"
    figures.say("start to the first healthz", ratio, "x python", "< 8", note)


def _answers(port: int) -> bool:
    try:
        return load.once(port, "/api/v1/healthz") > 0
    except ConnectionError:
        return False


SECTIONS = {
    "requests": requests,
    "start": start,
    "jobs": starts,
    "logs": logs,
    "followers": followers,
    "runs": scale_of_runs,
}
