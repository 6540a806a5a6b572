"""Finds and ends every process of a job, by the marker in its environment, wherever it went.

A process leaves the agent's group with setsid, but keeps the environment it was started with.
Knows nothing of run folders or locks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from pv_lib.agent.launcher import MARKER

_LOOKS = 50  # at /proc, where something forks all the time: far more than a chain escapes


def carries(pid: int, job_id: str) -> bool:
    """Whether this process has the job's marker."""
    return _mark(job_id) in _environ(pid)


def carriers(job_id: str) -> list[int]:
    """Every process whose environment carries the job's marker, zombies excluded."""
    return sweep(job_id, None)


def sweep(job_id: str, number: signal.Signals | None) -> list[int]:
    """Signal every process that carries the job's marker; the pids that were seen.

    One look at /proc can fall between two forks of a chain that starts its successor and ends. So
    finding none counts only if nothing forked during the look. The newest are read first, and
    signalled at once, before they fork. A process found to carry no marker is not read again,
    which makes each further look short.
    """
    strangers = {os.getpid()}
    for look in range(_LOOKS):
        forks, found = _forks(), []
        pids = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        for pid in sorted(pids - strangers, reverse=True):
            environ = _environ(pid)
            if _mark(job_id) in environ:
                found.append(pid)
                if number is not None:
                    _signal_carrier(pid, job_id, number)
            elif any(environ):  # it is empty for a moment during exec: those are read again
                strangers.add(pid)
        if found or (look > 0 and forks == _forks()):
            return found
    return []


def end_carriers(job_id: str, grace: float) -> None:
    """End every process with the job's marker: SIGTERM, `grace` seconds, then SIGKILL.

    A stopped process is continued, so that it gets the SIGTERM. SIGKILL is repeated until a look
    finds none, which also catches a process that forks for ever.
    """
    if not sweep(job_id, signal.SIGTERM):
        return
    sweep(job_id, signal.SIGCONT)
    deadline = time.monotonic() + grace
    while carriers(job_id) and time.monotonic() < deadline:
        time.sleep(0.02)
    give_up = time.monotonic() + 5
    while sweep(job_id, signal.SIGKILL) and time.monotonic() < give_up:
        time.sleep(0.002)


def _mark(job_id: str) -> bytes:
    return f"{MARKER}={job_id}".encode()


def _environ(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def _forks() -> bytes:
    """How many processes and threads the machine has started since boot, from /proc/stat."""
    text = Path("/proc/stat").read_bytes()
    return text[text.index(b"\nprocesses ") :].split(b"\n", 2)[1]


def _signal_carrier(pid: int, job_id: str, number: signal.Signals) -> None:
    """Signal through a pidfd, after reading the marker once more: never a stranger."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if carries(pid, job_id):
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(handle, number)
    finally:
        os.close(handle)
