"""Aborts over process shapes: nothing of the job is left, nobody else is touched."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from chaos.common import HERE, Chaos, alive, clear, repositories, settings
from chaos.shapes import SHAPES
from harness import Valet, program, until

from pv_lib.agent.launcher import MARKER

GRACE, AFTER, AT_ONCE = 1.0, 2.0, 6
OTHER_ID = "0123456789abcdef0123456789abcdef"


@dataclass
class Bystander:
    """A process that must never be signalled."""

    what: str
    notes: Path
    popen: subprocess.Popen[bytes]

    @property
    def harm(self) -> str | None:
        code = self.popen.poll()
        if code is not None:
            return f"{self.what}: died with {code}"
        if self.notes.exists():
            return f"{self.what}: got signals {self.notes.read_text().split()}"
        return None

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()


@dataclass
class Yard:
    """What the aborts share."""

    chaos: Chaos
    valet: Valet
    repos: list[str]
    lock: threading.Lock = field(default_factory=threading.Lock)
    survivors: list[str] = field(default_factory=list)
    harmed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    bystanders: int = 0

    def bystander(self, what: str, cwd: Path, **environ: str) -> Bystander:
        with self.lock:
            self.bystanders += 1
            notes = self.valet.root / f"bystander-{self.bystanders}"
        popen = subprocess.Popen(
            [sys.executable, "-I", "-S", str(HERE / "shapes.py"), "bystander", str(notes)],
            cwd=cwd,
            env={"PATH": os.environ["PATH"], **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert popen.stdout and popen.stdout.readline() == b"ready\n"
        popen.stdout.close()
        return Bystander(what, notes, popen)


def run(chaos: Chaos) -> None:
    aborts = 16 if chaos.short else 200
    root = chaos.root / "aborts"
    root.mkdir()
    repos = repositories(root, AT_ONCE)
    agent = root / "agent"
    agent.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "{HERE}/shapes.py"\n')
    agent.chmod(0o755)
    special = {"PV_CODEX_BIN": str(agent), "PV_MAX_RUNNING": str(AT_ONCE)}
    quick = {"PV_ABORT_GRACE_SECONDS": f"{GRACE:g}"}
    valet = Valet(root, program(), **{**settings(root / "runs.txt"), **special, **quick})
    yard = Yard(chaos, valet, repos)
    always: list[Bystander] = []
    try:
        valet.start()
        always.append(yard.bystander("same user", Path("/")))
        always.append(yard.bystander("in the runs folder", valet.runs))
        always.append(yard.bystander("another PV_JOB_ID", Path("/"), **{MARKER: OTHER_ID}))
        always += [yard.bystander(f"in {name}", root / "repos" / name) for name in repos]
        _abort_all(yard, aborts)
        yard.harmed += [what for what in (b.harm for b in always) if what]
    finally:
        for bystander in always:
            bystander.end()
        clear(valet)
    _say(yard, aborts)


def _say(yard: Yard, aborts: int) -> None:
    say = yard.chaos.figures
    say.none("aborts with another end", yard.wrong, aborts)
    say.none("survivors", yard.survivors, aborts)
    say.none("foreign processes signalled", yard.harmed, yard.bystanders)
    seconds, shape = yard.slowest
    limit = GRACE + AFTER
    say.say("slowest abort", f"{seconds:.2f} s ({shape})", good=0 < seconds <= limit)


def _abort_all(yard: Yard, aborts: int) -> None:
    """As many lanes as repositories, each one abort after the other, shapes in turn."""
    shapes = [list(SHAPES)[number % len(SHAPES)] for number in range(aborts)]
    yard.chaos.random("aborts").shuffle(shapes)

    def lane(number: int) -> None:
        for index in range(number, aborts, len(yard.repos)):
            try:
                _abort(yard, index, yard.repos[number], shapes[index])
            except AssertionError as error:
                yard.wrong.append(f"{shapes[index]}: {str(error)[:300]}")

    with ThreadPoolExecutor(len(yard.repos)) as pool:
        for done in [pool.submit(lane, number) for number in range(len(yard.repos))]:
            done.result()


def _abort(yard: Yard, index: int, repo: str, shape: str) -> None:
    valet, random = yard.valet, yard.chaos.random("abort", index)
    job_id = valet.submit(shape, repo=repo)["job_id"]
    log = valet.runs / job_id / "job.log"
    until(lambda: log.exists() and b"ready" in log.read_bytes(), f"{shape} is ready")
    near = yard.bystander("an id that begins alike", valet.repo.parent, **{MARKER: job_id + "0"})
    try:
        time.sleep(random.uniform(0, 0.3))  # the moment of the abort is random
        asked = time.monotonic()
        answer = valet.ask("POST", f"/api/v1/jobs/{job_id}/abort")
        assert answer.status in (200, 202), answer
        end = valet.await_end(job_id)
        took = time.monotonic() - asked
        if end["state"] != "aborted":
            yard.wrong.append(f"{shape}: {end['state']}, {end['reason']}, {end['error']}")
        until(lambda: time.monotonic() - asked > GRACE + AFTER, "grace + 2 s are over")
        left = alive(job_id)
        with yard.lock:
            yard.survivors += [f"{shape}, job {job_id}: pids {left}"] if left else []
            yard.slowest = max(yard.slowest, (took, shape))
            yard.harmed += [near.harm] if near.harm else []
    finally:
        near.end()
