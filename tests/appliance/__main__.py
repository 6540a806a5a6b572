"""The appliance on a real machine, a command of its own: `python3 tests/appliance [scene ...]`.

As root: boots a fresh Debian with a real systemd for each scene, copies in the one file, and does
what an operator does. Prints one line a figure; exit 1 when one of them is wrong. The installed
system is kept beside the temporary folders and used again.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_TESTS), str(_TESTS.parent)]

from appliance import guides, machine, mishaps, proxy, restarts, sandbox, upkeep  # noqa: E402 - the path comes first
from appliance.box import Box  # noqa: E402
from chaos.common import Figures  # noqa: E402
from harness import TREE  # noqa: E402

SCENES = {
    "guide": guides.own,
    "by-hand": guides.by_hand,
    "original": guides.original,
    "upkeep": upkeep.run,
    "sandbox": sandbox.run,
    "proxy": proxy.run,
    "restarts": restarts.run,
    "upgrades": upkeep.run_upgrades,
    "mishaps": mishaps.run,
}


def main() -> int:
    """Build, play the scenes, judge."""
    parser = argparse.ArgumentParser(prog="tests/appliance", description=__doc__)
    parser.add_argument("scenes", nargs="*", metavar="scene", help=", ".join(SCENES))
    arguments = parser.parse_args()
    if set(arguments.scenes) - set(SCENES):
        parser.error("scenes are " + ", ".join(SCENES))
    subprocess.run([str(TREE / "build.sh")], check=True, stdout=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the machine is stopped
    kept = Path(tempfile.gettempdir()) / f"pv-appliance-{machine.SUITE}"
    figures = Figures()
    for name in arguments.scenes or SCENES:
        print(f"--- {name}", flush=True)
        began = time.monotonic()
        folder = Path(tempfile.mkdtemp(prefix="pv-appliance-"))
        box = Box(machine.make(folder / "root", kept))
        try:
            box.machine.boot()
            SCENES[name](box, figures)
        except Exception:  # noqa: BLE001 - the other scenes are played all the same
            traceback.print_exc()
            figures.say(f"{name} came to its end", "no", good=False)
            print(box.machine.try_run("journalctl", "-u", "prompt-valet*", "-n", "25").out)
        finally:
            box.machine.stop()
            shutil.rmtree(folder)
        print(f"--- {name}: {time.monotonic() - began:.0f} s", flush=True)
    if figures.wrong:
        print(f"{figures.wrong} figures are wrong")
    return 1 if figures.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
