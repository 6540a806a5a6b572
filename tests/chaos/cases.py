"""The figures that are single cases, each a test of the suite: run by name, a line each."""

from __future__ import annotations

import os
import subprocess
import sys

from chaos.common import Chaos
from harness import TREE

CASES = {
    "real Codex, server killed in mid-command": "agent/test_real_codex.py -k killed",
    "real Codex, aborted in mid-command": "agent/test_real_codex.py -k abort",
    "full disk": "whole/test_hardship.py -k disk_that_is_full or full_disk",
    "read-only root": "whole/test_hardship.py -k read_only",
    "no descriptors": "whole/test_hardship.py -k descriptors",
    "no process or thread": "whole/test_hardship.py -k no_further_process or to_spare",
    "garbage in the runs folder": "whole/test_hardship.py -k garbage",
    "clock set back an hour": "whole/test_hardship.py -k clock",
    "run folder deleted in mid-run": "watcher/test_recovery.py -k deleted",
}


def run(chaos: Chaos) -> None:
    for name, where in CASES.items():
        path, _, choice = where.partition(" -k ")
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*pytest, f"tests/{path}", "-k", choice],
            cwd=TREE,
            env={**os.environ, "CI": "true"},  # what is missing is a fault, never a skip
            capture_output=True,
            text=True,
            check=False,
        )
        result = done.stdout.strip().splitlines()[-1]
        chaos.figures.say(name, result, good=done.returncode == 0 and "passed" in result)
