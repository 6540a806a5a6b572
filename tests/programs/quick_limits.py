"""Runs a built pv.pyz with other limits: `quick_limits.py NAME=NUMBER,… pv.pyz serve`.

The names are those of pv_lib.httpd.limits; what they limit is the product's own code.
"""

import runpy
import sys

changes, archive = sys.argv[1:3]
sys.path.insert(0, archive)
from pv_lib.httpd import limits  # noqa: E402 - the archive's

for change in changes.split(","):
    name, _, value = change.partition("=")
    old = getattr(limits, name)
    setattr(limits, name, type(old)(value))
del sys.argv[:2]
sys.path.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
