"""What the parts of tests/chaos share: figures, settings, jobs with a known outcome, /proc."""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from harness import Answer, Process, Valet, until

from pv_lib.agent.launcher import MARKER
from pv_lib.agent.sweep import carriers, end_carriers

HERE = Path(__file__).resolve().parent
TERMINAL = ("succeeded", "failed", "aborted")


@dataclass
class Figures:
    """One line a figure, and whether any was wrong."""

    wrong: int = 0

    def say(self, name: str, value: object, *, good: bool = True) -> None:
        self.wrong += not good
        print(f"{'ok ' if good else 'BAD'}  {name:<44} {value}", flush=True)

    def none(self, name: str, found: list[str], of: int) -> None:
        """A figure that must be 0; the first few offenders are named."""
        self.say(name, f"{len(found)} of {of}", good=not found)
        for what in found[:8]:
            print(f"         {what}", flush=True)


@dataclass
class Chaos:
    """How to run: the seed, the form and where."""

    seed: int
    short: bool
    root: Path
    figures: Figures = field(default_factory=Figures)

    def random(self, *salt: object) -> random.Random:
        return random.Random(f"{self.seed} {salt}")


@dataclass(frozen=True)
class Task:
    """A job for agent.sh and what must come of it."""

    token: str
    lines: int
    pause: float
    status: int

    @property
    def prompt(self) -> str:
        return f"{self.token} {self.lines} {self.pause:.3f} {self.status}\n"

    @property
    def log(self) -> bytes:
        lines = [
            f"{self.token}: line {n} of {self.lines}, ünïcödé and some more to fill it"
            for n in range(1, self.lines + 1)
        ]
        lines += [f"{self.token}: after the pause", f"{self.token}: from a child"]
        return "".join(
            f"{line}\n" for line in [*lines, f"{self.token}: exit {self.status}"]
        ).encode()


def settings(runs: Path, **further: str) -> dict[str, str]:
    """agent.sh as the agent, which notes its runs in `runs`."""
    plain = {"PV_CODEX_BIN": str(HERE / "agent.sh"), "CODEX_CHAOS_RUNS": str(runs)}
    return {**plain, "PV_POLL_INTERVAL_SECONDS": "0.1", **further}


def repositories(root: Path, count: int) -> list[str]:
    """Small repositories under `root`, as plain folders: git is not what is tried here."""
    names = [f"nova-rey/r{number}" for number in range(count)]
    for name in [*names, "nova-rey/example"]:
        (root / "repos" / name).mkdir(parents=True, exist_ok=True)
    return names


def ran(runs: Path) -> list[str]:
    """The tokens in the order of their runs."""
    return runs.read_text().split() if runs.exists() else []


def submit(valet: Valet, repo: str, task: Task, key: str | None) -> Answer | None:
    """One POST; None where nobody (or half an answer) came back."""
    body = {"repo": repo, "branch": "main", "markdown_text": task.prompt, "filename": "chaos.md"}
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Idempotency-Key"] = key
    try:
        return valet.ask("POST", "/api/v1/jobs", json.dumps(body).encode(), headers)
    except (OSError, HTTPException):
        return None


def await_listening(valet: Valet) -> bool:
    """Wait for the newest process to listen; False where it ended before."""
    process = valet.processes[-1]

    def look() -> str | None:
        found = re.search(r"listening on http://[^ ,]*:(\d+)", process.said)
        if found:
            valet.port = int(found[1])
            return "up"
        return "ended" if process.popen.poll() is not None else None

    return until(look, "listening") == "up"


def launch(valet: Valet) -> Process:
    """Start `serve` and do not wait for it."""
    process = Process([*valet.program, "serve"], valet.environ, valet.root / "server.log")
    valet.processes.append(process)
    return process


def alive(job_id: str, looks: int = 20) -> list[int]:
    """Who carries the job's marker: several looks, for one can fall between two forks."""
    found: set[int] = set()
    for _ in range(looks):
        found.update(carriers(job_id))
        time.sleep(0.002)
    return sorted(found)


def clear(valet: Valet) -> None:
    """Stop the server and end every process of its jobs, by their markers, until none is seen.

    One look at /proc serves all jobs; 20 in a row must be empty, for one can fall between forks.
    """
    valet.stop()
    marks = {f"{MARKER}={run.name}".encode(): run.name for run in valet.runs.glob("*")}
    empty = 0
    deadline = time.monotonic() + 20
    while empty < 20 and time.monotonic() < deadline:
        found = set()
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                found.update(marks.keys() & set(path.read_bytes().split(b"\0")))
        for mark in found:
            end_carriers(marks[mark], 0)
        empty = 0 if found else empty + 1
