"""A kill at every single call that reaches the disk, from empty root to archived."""

from __future__ import annotations

import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from chaos.common import (
    HERE,
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
from harness import REPO, Valet, built, program, until

WORKERS = 4
KEY = "one-and-only"
TASK = Task("token", 3, 0.05, 0)


@dataclass(frozen=True)
class Point:
    """One kill: `way` is http or drop, `when` before or after call number `at`."""

    way: str
    when: str
    at: int

    @property
    def name(self) -> str:
        return f"{self.way}-{self.when}-{self.at}"


def run(chaos: Chaos) -> None:
    (chaos.root / "points").mkdir()
    step = 5 if chaos.short else 1
    for way, when in itertools.product(("http", "drop"), ("before", "after")):
        tried, wrong, calls = _pass(chaos.root / "points", way, when, step)
        chaos.figures.say(
            f"points, {way}, killed {when}", f"{tried} tried ({calls})", good=tried > 0
        )
        chaos.figures.none(f"points not recovered, {way}, killed {when}", wrong, tried)


def _pass(root: Path, way: str, when: str, step: int) -> tuple[int, list[str], str]:
    """Kill at 1, 1 + step, ... until a run is through without a kill."""
    numbers, through = itertools.count(1, step), threading.Event()
    results: list[tuple[str, list[str]]] = []

    def work() -> None:
        while not through.is_set():
            call, wrong = _attempt(root, Point(way, when, next(numbers)))
            if not call:
                through.set()
            results.append((call, wrong))

    with ThreadPoolExecutor(WORKERS) as pool:
        for worker in [pool.submit(work) for _ in range(WORKERS)]:
            worker.result()
    calls = [call.split()[0] for call, _ in results if call]
    kinds = ", ".join(f"{calls.count(name)} {name}" for name in sorted(set(calls)))
    return len(calls), [line for _, lines in results for line in lines], kinds


def _attempt(root: Path, point: Point) -> tuple[str, list[str]]:
    """The call that it was killed at ("" where it was not), and what was wrong after it."""
    place = root / point.name
    place.mkdir()
    repositories(place, 0)
    trace = root / f"{point.name}.call"
    crashing = [sys.executable, "-I", "-S", str(HERE / "crash_at.py"), str(point.at), point.when]
    valet = Valet(place, program(), **settings(place / "runs.txt"))
    valet.program = [*crashing, str(trace), str(built())]
    call, told = "", None
    try:
        told = _first_life(valet, point)
        call = trace.read_text().replace(str(place), "") if trace.exists() else ""
        valet.program = program()
        wrong = _second_life(valet, point, told)
    except AssertionError as error:
        call = call or "(no call)"
        wrong = [str(error).replace("\n", " ")[:300]]
    finally:
        clear(valet)
    return call, [f"{point.name} {call}: {text}" for text in wrong]


def _first_life(valet: Valet, point: Point) -> str | None:
    """Until it was killed, or archived and stopped; the job id if one was acknowledged."""
    told = None
    if point.way == "drop":
        folder = valet.inbox / REPO / "main"
        folder.mkdir(parents=True)
        (folder / ".chaos.tmp").write_text(TASK.prompt)
        (folder / ".chaos.tmp").rename(folder / "chaos.md")
    process = launch(valet)
    if await_listening(valet) and point.way == "http":
        answer = submit(valet, REPO, TASK, KEY)
        told = str(answer.json["job_id"]) if answer and answer.status == 201 else None
        assert answer is None or told, f"answered {answer}"
    until(lambda: process.popen.poll() is not None or _archived(valet), "killed or archived")
    process.stop()  # it finishes what follows the archive's rename
    valet.processes.remove(process)
    return told


def _second_life(valet: Valet, point: Point, told: str | None) -> list[str]:
    """A normal start, the same submission again, the end; what is wrong then."""
    valet.start()
    wrong = []
    if point.way == "http":
        answer = submit(valet, REPO, TASK, KEY)
        if answer is None or answer.status not in (200, 201):
            return [f"the repeated submission was answered {answer}"]
        again = answer.json["job_id"]
        if told not in (None, again):
            wrong.append(f"acknowledged as {told}, repeated as {again}")
    until(lambda: _archived(valet) and _all_over(valet), "the job is over and archived")
    jobs = valet.get("/api/v1/jobs")["jobs"]
    if len(jobs) != 1:
        wrong.append(f"{len(jobs)} jobs: {[(j['job_id'], j['state'], j['reason']) for j in jobs]}")
    wrong += [
        f"{j['state']}, {j['reason']}, {j['error']}" for j in jobs if j["state"] != "succeeded"
    ]
    tokens = ran(valet.root / "runs.txt")
    if tokens != [TASK.token]:
        wrong.append(f"ran {len(tokens)} times")
    if len(_archived(valet)) != 1 or not str(_archived(valet)[0]).endswith(".done.md"):
        wrong.append(f"archived as {_archived(valet)}")
    left = [p.name for p in valet.inbox.rglob("*.md")]
    return wrong + [f"left in the inbox: {name}" for name in left]


def _archived(valet: Valet) -> list[Path]:
    return list((valet.root / "finished").rglob("*.md"))


def _all_over(valet: Valet) -> bool:
    return all(job["state"] in TERMINAL for job in valet.get("/api/v1/jobs")["jobs"])
