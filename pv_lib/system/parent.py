"""The parent process: a server that runuser started must end when runuser does."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from pv_lib.errors import ValetError

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def die_with_runuser(environ: Mapping[str, str]) -> None:
    """Where runuser is our parent, have the kernel send us SIGKILL when it dies.

    systemd's watchdog kills runuser only, and this server would go on beside the next one. It must
    be SIGKILL because the server may hang; the jobs lose nothing by it.

    Under systemd runuser is the process that the unit started, and SYSTEMD_EXEC_PID is its pid: its
    name cannot be read where the unit hides the processes of other users.
    """
    parent = os.getppid()
    ours = environ.get("SYSTEMD_EXEC_PID") == str(parent)
    with contextlib.suppress(OSError):
        ours = ours or Path(f"/proc/{parent}/comm").read_text() == "runuser\n"
    if ours:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died just before
            raise ValetError("runuser is gone: nobody would ever stop this server")
