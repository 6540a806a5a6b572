"""The parent process: where runuser started this server, the two must end together."""

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
    """Where runuser started us, ask for SIGKILL when it dies.

    Killed itself, it would leave this server beside the next one, for good. systemd's watchdog
    kills only it, and a server that hangs obeys nothing less; nothing is lost by it.

    Under systemd it is the process that the unit has started, and SYSTEMD_EXEC_PID its pid: its
    name cannot be read where the unit hides the processes of others.
    """
    parent = os.getppid()
    ours = environ.get("SYSTEMD_EXEC_PID") == str(parent)
    with contextlib.suppress(OSError):
        ours = ours or Path(f"/proc/{parent}/comm").read_text() == "runuser\n"
    if ours:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died just before
            raise ValetError("runuser is gone: nobody would ever stop this server")
