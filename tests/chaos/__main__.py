"""Chaos, a command of its own: `python3 tests/chaos [--seed N] [--short] [part ...]`.

Prints one line a figure; exit 1 when one of them is wrong. Parts: kills, points, trees,
aborts, endurance, crowd, cases; all of them by default.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_TESTS), str(_TESTS.parent)]

from chaos import aborts, cases, crowd, endurance, kills, points, trees  # noqa: E402 - the path comes first
from chaos.common import Chaos  # noqa: E402
from harness import TREE  # noqa: E402

PARTS = {
    "kills": kills.run,
    "points": points.run,
    "trees": trees.run,
    "aborts": aborts.run,
    "endurance": endurance.run,
    "crowd": crowd.run,
    "cases": cases.run,
}


def main() -> int:
    """Build, run the parts, judge."""
    parser = argparse.ArgumentParser(prog="tests/chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="a small form of everything")
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    arguments = parser.parse_args()
    if set(arguments.parts) - set(PARTS):
        parser.error("parts are " + ", ".join(PARTS))
    subprocess.run([str(TREE / "build.sh")], check=True, stdout=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is ended
    root = Path(tempfile.mkdtemp(prefix="pv-chaos-"))
    chaos = Chaos(arguments.seed, arguments.short, root)
    for name in arguments.parts or PARTS:
        PARTS[name](chaos)
    if chaos.figures.wrong:
        print(f"{chaos.figures.wrong} figures are wrong; what they are about is in {root}")
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
