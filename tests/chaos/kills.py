"""SIGKILL of the server at random moments under load: nothing lost, nothing twice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.common import (
    TERMINAL,
    Chaos,
    Task,
    await_listening,
    clear,
    launch,
    ran,
    repositories,
    settings,
    submit,
)
from harness import Valet, program

from pv_lib.agent.launcher import Trace
from pv_lib.agent.process import trace

SUBMITTERS, REPOSITORIES, BACKLOG = 4, 8, 24


@dataclass
class Load:
    """What the submitters know."""

    valet: Valet
    repos: list[str]
    done: threading.Event = field(default_factory=threading.Event)
    tasks: dict[str, tuple[str, Task]] = field(default_factory=dict)  # token -> repo, task
    acknowledged: dict[str, str] = field(default_factory=dict)  # token -> job id
    refused: list[str] = field(default_factory=list)

    def acknowledge(self, token: str) -> str | None:
        """POST until somebody answers; None where the answer was no."""
        repo, task = self.tasks[token]
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            answer = submit(self.valet, repo, task, token)
            if answer and answer.status == 201:
                return str(answer.json["job_id"])
            if answer:
                self.refused.append(f"{token}: {answer.status} {answer.body[:200]!r}")
                return None
            self.done.wait(0.01)
        return None


def run(chaos: Chaos) -> None:
    kills = 15 if chaos.short else 300
    root = chaos.root / "kills"
    root.mkdir()
    runs = root / "runs.txt"
    valet = Valet(root, program(), **settings(runs, PV_MAX_RUNNING="4"))
    load = Load(valet, repositories(root, REPOSITORIES))
    threads = [
        threading.Thread(target=_submit_all, args=(chaos, load, number), daemon=True)
        for number in range(SUBMITTERS)
    ]
    try:
        began = time.monotonic()
        early, busy = _kill_all(chaos, load, threads, kills)
        took = time.monotonic() - began
        text = f"{kills} in {took:.0f} s, {early} before it listened, {busy} jobs ran on"
        chaos.figures.say("kills of the server", text)
        valet.start()
        load.done.set()
        for thread in threads:
            thread.join(60)
        _judge(chaos, load)
    finally:
        load.done.set()
        clear(valet)


def _submit_all(chaos: Chaos, load: Load, number: int) -> None:
    """One submitter: the next job when the last one is acknowledged, without a big backlog."""
    random = chaos.random("submitter", number)
    runs = load.valet.root / "runs.txt"
    count = 0
    while not load.done.is_set():
        if len(load.acknowledged) - len(ran(runs)) > BACKLOG:
            load.done.wait(0.02)
            continue
        count += 1
        token = f"t{number}-{count}"
        pause = random.choice([0.0, 0.02, 0.1, random.uniform(0, 0.6)])
        task = Task(token, random.randrange(1, 40), pause, random.choice([0, 0, 1, 7, 124, 200]))
        load.tasks[token] = (random.choice(load.repos), task)
        job_id = load.acknowledge(token)
        if job_id:
            load.acknowledged[token] = job_id


def _kill_all(
    chaos: Chaos, load: Load, threads: list[threading.Thread], kills: int
) -> tuple[int, int]:
    """Kill `kills` times; how many of them before it listened, and how many agents ran then."""
    random, valet = chaos.random("kills"), load.valet
    early = busy = 0
    for thread in threads:
        thread.start()
    for _ in range(kills):
        process = launch(valet)
        # The sleeps are the experiment: the moment of the kill is random.
        if random.random() < 0.2:
            time.sleep(random.uniform(0, 0.4))
        elif await_listening(valet):
            time.sleep(random.uniform(0.02, 0.5))
        valet.processes.remove(process)
        if process.popen.poll() is not None:
            load.refused.append(f"the server ended by itself: {process.said[-300:]!r}")
        process.popen.kill()
        process.popen.wait()
        early += "listening" not in process.said
        busy += sum(trace(run) is Trace.ALIVE for run in _folders(valet))
    return early, busy


def _judge(chaos: Chaos, load: Load) -> None:
    """Await every acknowledged job, then count what is wrong."""
    say, valet = chaos.figures, load.valet
    records = _await_all(valet, list(load.acknowledged.values()))
    count, asked = len(load.acknowledged), len(load.tasks)
    percent = 100 * count / max(1, asked)
    text = f"{percent:.2f} % ({count} of {asked})"
    say.say("acknowledged", text, good=count == asked and bool(count))
    say.none("submissions answered wrongly", load.refused, asked)
    tokens = Counter(ran(valet.root / "runs.txt"))
    jobs = {token: records.get(job_id) for token, job_id in load.acknowledged.items()}
    lost = [t for t, r in jobs.items() if r is None or not tokens[t] or r["reason"] == "lost"]
    say.none("lost", [_tell(t, jobs[t]) for t in lost], count)
    twice = [f"{token}: {times} times" for token, times in tokens.items() if times > 1]
    known = set(load.acknowledged.values())
    twice += [
        f"{run.name}: nobody was told of it" for run in _folders(valet) if run.name not in known
    ]
    twice += _answered_anew(load)
    say.none("run twice", twice, count)
    found = {token: record for token, record in jobs.items() if record}
    open_ = [_tell(t, r) for t, r in found.items() if r["state"] not in TERMINAL]
    say.none("without a terminal state", open_, count)
    codes = [_tell(t, r) for t, r in found.items() if r["exit_code"] != load.tasks[t][1].status]
    say.none("wrong exit code", codes, count)
    say.none("wrong log", [t for t in found if not _log_is_right(load, t)], count)
    left = [str(path) for path in valet.inbox.rglob("*") if path.is_file() and path.suffix == ".md"]
    say.none("prompts left in the inbox", left, count)


def _await_all(valet: Valet, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Every job's record at its end, or as it stands when nothing moves for 30 s."""
    waiting = set(ids)
    records: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + 30
    while waiting and time.monotonic() < deadline:
        for job_id in sorted(waiting):
            answer = valet.ask("GET", f"/api/v1/jobs/{job_id}")
            if answer.status == 200:
                records[job_id] = answer.json
            if answer.status == 200 and records[job_id]["state"] in TERMINAL:
                waiting.remove(job_id)
                deadline = time.monotonic() + 30
        time.sleep(0.05)
    return records


def _folders(valet: Valet) -> list[Path]:
    return [path for path in valet.runs.glob("*") if path.is_dir()]


def _answered_anew(load: Load) -> list[str]:
    """Those whose repeated submission is answered with another job."""
    found = []
    for token, job_id in load.acknowledged.items():
        again = load.acknowledge(token)
        if again != job_id:
            found.append(f"{token}: was {job_id}, repeated {again}")
    return found


def _log_is_right(load: Load, token: str) -> bool:
    path = load.valet.runs / load.acknowledged[token] / "job.log"
    return path.is_file() and path.read_bytes() == load.tasks[token][1].log


def _tell(token: str, record: dict[str, Any] | None) -> str:
    if record is None:
        return f"{token}: no record"
    names = ("job_id", "state", "reason", "error", "exit_code")
    return f"{token}: " + ", ".join(f"{name}={record[name]}" for name in names)
