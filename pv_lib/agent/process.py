"""The agent as processes: spawn, adopt, signal, sweep. Knows nothing of records or events.

Three files in the run folder outlive this server and tell any later one where things stand:

    agent.lock  held (flock) by the `sh` around the agent as long as the agent lives; no pid to
                be reused, no heartbeat to be late. It holds the boot id, written durably before
                the agent can start.
    agent.pid   written by that `sh` before it starts the agent: its pid, also the group's. As soon
                as it is not empty the agent may have started; a rename would cost a process
    agent.exit  the agent's exit status, by rename, before the lock falls free

The agent's three streams are files, so it works on when the server dies. The lock is the
`sh`'s own stdin, and the agent gets the prompt there, so it never holds the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

from pv_lib.errors import JobFailed
from pv_lib.system import files

MARKER = "PV_JOB_ID"
_LOOKS = 50  # at /proc, where something forks all the time: far more than a chain escapes
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


class Trace(Enum):
    """What a run folder tells about its agent."""

    NEVER = "never"  # it has not started: safe to start it
    ALIVE = "alive"  # it runs now: adopt it
    OVER = "over"  # it ran and is gone


def trace(run: Path) -> Trace:
    """Whether the agent of this run folder was never started, lives, or is over.

    Without an agent.pid nothing was started, unless the machine went down in between: then the
    file may have been lost with the power, and the job counts as over, for no job runs twice.
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


class Agent:
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

        The held lock says that the leader lives, its marker that the pid is the leader's: whatever
        agent.pid may say by now, no stranger is signalled.
        """
        pid = self.pid
        if pid is not None and self.alive() and _carries(pid, self.job_id):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)


def spawn(
    run: Path,
    job_id: str,
    argv: Sequence[str],
    cwd: Path,
    environ: Mapping[str, str],
) -> Agent:
    """Start `argv` in a session of its own, stdin from prompt.md, output to codex.jsonl.

    Raises OSError where the system cannot start a process now (files.TRANSIENT), JobFailed
    (`spawn_failed`) where it never will. In both cases nothing was started.
    """
    lock = run / "agent.lock"
    fd = -1
    try:
        files.write(lock, _boot_id())  # whole or not at all: an empty one would look like a loss
        fd = os.open(lock, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (run / "codex.jsonl").open("ab") as output:
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
    return Agent(run, job_id, child)


def find_program(name: str, path: str | None) -> str:
    """Where the agent's program is; `path` is the PATH to search.

    Raises JobFailed (`spawn_failed`) with what to do when there is none that can be executed.
    """
    program = shutil.which(name, path=path)
    if program:
        return program
    if "/" in name and os.path.exists(name):
        what = "is not an executable file: chmod +x it, or name another"
    else:
        what = "is not there: install Codex (npm install -g @openai/codex) or name its path"
    raise JobFailed("spawn_failed", f"PV_CODEX_BIN={name} {what}, then retry the job")


def adopt(run: Path, job_id: str) -> Agent:
    """The agent that an earlier server started for this run folder."""
    return Agent(run, job_id, None)


def carriers(job_id: str) -> list[int]:
    """Every process whose environment carries the job's marker, zombies excluded."""
    return sweep(job_id, None)


def sweep(job_id: str, number: signal.Signals | None) -> list[int]:
    """Signal every process that carries the job's marker; the pids that were seen.

    One look at /proc can fall between two forks of a chain that starts its successor and ends. So
    finding none counts only if nothing forked during the look. The newest are read first, and
    signalled at once, before they fork; what one look read and found to be a stranger is not read
    again, which makes each further look short.
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
    """End whatever still carries the job's marker: SIGTERM, `grace` seconds, then SIGKILL.

    A stopped process is continued so that it can obey. Killing goes on until a look finds none,
    so that a process forking for ever is caught between two forks.
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


def _mark(job_id: str) -> bytes:
    return f"{MARKER}={job_id}".encode()


def _environ(pid: int) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def _carries(pid: int, job_id: str) -> bool:
    return _mark(job_id) in _environ(pid)


def _forks() -> bytes:
    """How many processes and threads the machine has started since boot, from /proc/stat."""
    text = Path("/proc/stat").read_bytes()
    return text[text.index(b"\nprocesses ") :].split(b"\n", 2)[1]


def _signal_carrier(pid: int, job_id: str, number: signal.Signals) -> None:
    """Signal through a pidfd, with the marker read again behind it: never a stranger."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if _carries(pid, job_id):
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(handle, number)
    finally:
        os.close(handle)
