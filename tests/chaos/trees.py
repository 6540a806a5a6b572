"""Kills of the server while git prepares or publishes: no job lost, nothing half-made left."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from chaos.common import Chaos, clear
from harness import Valet, git, program, until

PHASES = ("preparing", "publishing")


def run(chaos: Chaos) -> None:
    kills = 8 if chaos.short else 50
    root = chaos.root / "trees"
    root.mkdir()
    slow = root / "bin" / "git"
    slow.parent.mkdir()
    pause = "sleep 0.0$(od -An -N1 -tu1 /dev/urandom | tr -d ' ')"  # up to a tenth of a second
    slow.write_text(f'#!/bin/sh\n{pause}\nexec {shutil.which("git")} "$@"\n')
    slow.chmod(0o755)
    valet = Valet(root, program(), PV_PUBLISH="push", PV_POLL_INTERVAL_SECONDS="0.1")
    bare = root / "origin.git"
    git(root, "clone", "--quiet", "--bare", str(valet.repo), str(bare))
    git(valet.repo, "remote", "add", "origin", str(bare))
    valet.environ["PATH"] = f"{slow.parent}:{valet.environ['PATH']}"
    try:
        valet.start()
        wrong, reached = [], dict.fromkeys(PHASES, 0)
        for number in range(kills):
            phase = PHASES[number % 2]
            job_id = valet.submit(f"fake: append ran.txt {number}\nfake: write x.txt x")["job_id"]
            if _kill_in(chaos, valet, job_id, phase, number):
                reached[phase] += 1
            record = valet.await_end(job_id)
            wrong += [f"{number}, {phase}: {why}" for why in _faults(valet, bare, record)]
        _judge(chaos, valet, kills, wrong, reached)
    finally:
        clear(valet)


def _kill_in(chaos: Chaos, valet: Valet, job_id: str, phase: str, number: int) -> bool:
    """Kill the server a random moment after the job came to `phase`; whether it still was."""
    path = valet.runs / job_id / "job.json"
    until(lambda: json.loads(path.read_text())["phase"] == phase, phase)
    time.sleep(chaos.random("trees", number).uniform(0, 0.25))  # the moment is the experiment
    valet.processes.pop().stop(signal.SIGKILL)
    hit = bool(json.loads(path.read_text())["phase"] == phase)
    valet.start()
    return hit


def _faults(valet: Valet, bare: Path, record: dict[str, Any]) -> list[str]:
    if (record["state"], record["reason"]) != ("succeeded", "completed"):
        return [f"{record['state']}, {record['reason']}, {record['error']}"]
    result = record["result"]
    faults = [result["publish_error"]] if "publish_error" in result else []
    ours = git(valet.repo, "rev-list", f"{result['base']}..{result['branch']}").split()
    if ours != [result["commit"]]:
        faults.append(f"the branch has {len(ours)} commits")
    if git(valet.repo, "show", "--format=", "--name-only", result["commit"]) != "x.txt\n":
        faults.append("the commit is not what the agent did")
    if git(bare, "branch", "--list", "--format=%(objectname)", result["branch"]).split() != ours:
        faults.append("origin has another branch")
    return faults


def _judge(
    chaos: Chaos, valet: Valet, kills: int, wrong: list[str], reached: dict[str, int]
) -> None:
    say = chaos.figures
    text = ", ".join(f"{count} in {phase}" for phase, count in reached.items())
    say.say("kills while git works", f"{kills}, {text}", good=all(reached.values()))
    say.none("jobs lost, or with a half-made change", wrong, kills)
    ran = (valet.repo / "ran.txt").read_text().split()
    say.none("jobs run other than once", sorted(set(ran) ^ {str(n) for n in range(kills)}), kills)
    say.say("runs", len(ran), good=len(ran) == kills)
    admin = valet.repo / ".git" / "worktrees"

    def left() -> list[str]:
        trees = [*(valet.root / "work").iterdir(), *(admin.iterdir() if admin.exists() else [])]
        return [str(path) for path in [*trees, *(valet.repo / ".git").rglob("*.lock")]]

    deadline = time.monotonic() + 10
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    say.none("work trees and locks left over", left(), kills)
    fault = git(valet.repo, "fsck", "--full", "--strict")
    say.say("git fsck", fault or "clean", good=not fault)
