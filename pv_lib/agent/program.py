"""Finds an agent's executable in PATH. Which one it is, `adapter.Program` says."""

from __future__ import annotations

import os
import shutil

from pv_lib.agent.adapter import Program
from pv_lib.errors import JobFailed


def find(program: Program, path: str | None) -> str:
    """The path of the executable; `path` is the PATH to search.

    Raises JobFailed (`spawn_failed`) with what to do where there is none.
    """
    found = shutil.which(program.name, path=path)
    if found:
        return found
    if "/" in program.name and os.path.exists(program.name):
        what = "is not an executable file: chmod +x it, or name another"
    else:
        what = f"is not there: {program.install} or name its path"
    raise JobFailed("spawn_failed", f"{program.setting}={program.name} {what}, then retry the job")
