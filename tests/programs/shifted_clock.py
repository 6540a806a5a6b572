"""Runs a built pv.pyz with a wall clock that a file sets: `shifted_clock.py FILE pv.pyz serve`.

FILE holds the seconds to add to the real time. The clocks of files are the system's and stay as
they are, so after a step back every file that is written seems to come from the future.
"""

import runpy
import sys
import time
from pathlib import Path

real = time.time
offset = Path(sys.argv[1])
time.time = lambda: real() + float(offset.read_text())
time.time_ns = lambda: int(time.time() * 1e9)
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
