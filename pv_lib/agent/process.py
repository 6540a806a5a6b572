"""The local launcher: an agent as a process of this machine. The module is a `Launcher`.

Knows nothing of records or events. Three files in the run folder outlive this server and give any
later one the agent's state:

    agent.lock  held (flock) by the `sh` around the agent as long as the agent lives; no pid to
                be reused, no heartbeat to be late. It holds the boot id, written durably before
                the agent can start.
    agent.pid   written by that `sh` before it starts the agent: its pid, also the group's. Once it
                is not empty the agent may have started (a rename would cost a process)
    agent.exit  the agent's exit status, by rename, before the lock is released

The agent's three streams are files, so it goes on when the server dies. The lock is the
`sh`'s own stdin, and the agent gets the prompt there, so it never holds the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pv_lib.agent import sweep
from pv_lib.agent.launcher import MARKER, RAW, Trace
from pv_lib.errors import JobFailed
from pv_lib.system import files

# A full disk must not cost the exit status: the last loop waits for room, holding the lock.
# `trap :` rather than `trap ''`: an ignored signal would be inherited by the agent.
_WRAPPER = """\
trap : INT TERM HUP
run=$1; shift
echo $$ >"$run/agent.pid" || exit 125
"$@" <"$run/prompt.md"
status=$?
until echo $status >"$run/.agent.exit" && mv "$run/.agent.exit" "$run/agent.exit"; do
    [ -d "$run" ] || break
    sleep 1
done 2>/dev/null
"""


def trace(run: Path) -> Trace:
    """Whether the agent of this run folder was never started, runs, or is over.

    Without an agent.pid nothing was started, unless the machine has been rebooted since: the file
    may have been lost then. Such a job counts as over, because no job runs twice.
    """
    try:
        fd = _open_lock(run)
    except OSError as error:
        if error.errno in files.TRANSIENT:
            raise
        return Trace.OVER if _left_traces(run) else Trace.NEVER  # not there, or no lock of ours
    try:
        if _held(fd):
            return Trace.ALIVE
        if _left_traces(run):  # asked after the lock: before it, the agent could end in between
            return Trace.OVER
        return Trace.NEVER if os.read(fd, 100) == _boot_id() else Trace.OVER
    except IsADirectoryError:
        return Trace.OVER
    finally:
        os.close(fd)


class LocalProcess:
    """One running or ended agent, started by this server or by one before it."""

    def __init__(self, run: Path, job_id: str, child: subprocess.Popen[bytes] | None) -> None:
        self.run = run
        self.job_id = job_id
        self._child = child  # to reap; None for an adopted agent, which init reaps

    def alive(self) -> bool:
        """Whether the `sh` around the agent still holds its lock."""
        try:
            fd = _open_lock(self.run)
        except OSError as error:
            if error.errno in files.TRANSIENT:  # nothing is known, so it goes on
                return True
            return self._child is not None and self._child.poll() is None  # somebody deleted it
        try:
            held = _held(fd)
        finally:
            os.close(fd)
        if not held and self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=1)
        return held

    @property
    def pid(self) -> int | None:
        """The pid of the `sh`, which leads the agent's session and group."""
        if self._child is not None:
            return self._child.pid
        try:
            return int((self.run / "agent.pid").read_text())
        except (OSError, ValueError):
            return None

    def exit_code(self) -> int | None:
        """The recorded exit status; None when there is none. Never a guess."""
        try:
            return int((self.run / "agent.exit").read_text())
        except (OSError, ValueError):
            return None

    def signal(self, number: signal.Signals) -> None:
        """Signal the agent's group, if it is still this agent's.

        The held lock proves that the leader lives, its marker that the pid is the leader's. So no
        stranger is signalled, whatever agent.pid contains.
        """
        pid = self.pid
        if pid is not None and self.alive() and sweep.carries(pid, self.job_id):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)


def spawn(
    run: Path,
    job_id: str,
    argv: Sequence[str],
    cwd: Path,
    environ: Mapping[str, str],
) -> LocalProcess:
    """Start `argv` in a session of its own, stdin from prompt.md, output to RAW.

    Raises OSError where the system cannot start a process now (files.TRANSIENT), JobFailed
    (`spawn_failed`) where it never will. In both cases nothing was started.
    """
    lock = run / "agent.lock"
    fd = -1
    try:
        files.write(lock, _boot_id())  # whole or not at all: an empty one would look like a loss
        fd = os.open(lock, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (run / RAW).open("ab") as output:
            child = subprocess.Popen(
                ["/bin/sh", "-c", _WRAPPER, f"pv-job-{job_id}", str(run), *argv],
                stdin=fd,
                stdout=output,
                stderr=output,
                cwd=cwd,
                env={**environ, MARKER: job_id},
                start_new_session=True,
            )
    except OSError as error:
        if error.errno in files.TRANSIENT:
            raise
        raise JobFailed("spawn_failed", f"the agent could not be started: {error}") from error
    finally:
        if fd >= 0:
            os.close(fd)
    return LocalProcess(run, job_id, child)


def adopt(run: Path, job_id: str) -> LocalProcess:
    """The agent that an earlier server started for this run folder."""
    return LocalProcess(run, job_id, None)


def end(job_id: str, grace: float) -> None:
    """End every process of the job on this machine."""
    sweep.end_carriers(job_id, grace)


def _left_traces(run: Path) -> bool:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if (run / "agent.pid").stat().st_size:
            return True
    return (run / "agent.exit").exists()


def _open_lock(run: Path) -> int:
    return os.open(run / "agent.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def _held(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two onlookers do not meet
    except BlockingIOError:
        return True
    return False  # closing fd frees it again


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
