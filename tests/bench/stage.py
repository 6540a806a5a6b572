"""What the benchmarks play on: run folders, inbox folders, logs, and the server's own figures."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Valet, program

from pv_lib.jobs import job
from pv_lib.jobs.job import Record, State

FIRST_MOMENT = 1_750_000_000_000  # Unix milliseconds of the oldest run
OWNERS, NAMES, BRANCHES = 7, 13, 5
_LINE = "%06d the agent did this and that in the work tree of its job\n"

# bash, because it knows the time without starting a program.
AGENT = """\
#!/bin/bash
echo "started $EPOCHREALTIME"
%s
"""


@contextmanager
def serving(agent: str, *argv: str, root: Path | None = None, **settings: str) -> Iterator[Valet]:
    """A server over `root`, or a root of its own, whose agent is the bash script `agent`."""
    with tempfile.TemporaryDirectory(prefix="pv-bench-") as name:
        place = root or Path(name)
        script = Path(name, "agent")
        script.write_text(AGENT % agent)
        script.chmod(0o755)
        usual = {"PV_POLL_INTERVAL_SECONDS": "1", "PV_HEARTBEAT_SECONDS": "5"}
        valet = Valet(place, program(), PV_CODEX_BIN=str(script), **{**usual, **settings})
        valet.start(*argv)
        try:
            yield valet
        finally:
            valet.clear()


def fill_runs(runs: Path, count: int, first: int = 0) -> None:
    """`count` ended runs as a year of use leaves them, one stalled one for each thousand."""
    runs.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        job_id = f"{FIRST_MOMENT + 1000 * number:012x}7{number % 4096:03x}8{number:015x}"
        repo = f"owner{number % OWNERS}/project{number % NAMES}"
        moment = job.stamp(FIRST_MOMENT / 1000 + number)
        ended = (State.SUCCEEDED, State.SUCCEEDED, State.FAILED, State.ABORTED)[number % 4]
        stuck = number % 1000 == 999
        record = Record(
            job_id,
            state=State.RUNNING if stuck else ended,
            reason=None if stuck else "completed",
            repo=repo,
            branch=f"branch{number % BRANCHES}",
            branch_name=f"branch{number % BRANCHES}",
            filename=f"task-{number}.prompt.md",
            source="api",
            created_at=moment,
            updated_at=moment,
            started_at=moment,
            heartbeat_at=moment,
            finished_at=None if stuck else moment,
            exit_code=None if stuck else 0,
            inbox_path=f"/srv/prompt-valet/inbox/{repo}/main/task-{number}-{job_id}.prompt.md",
            log_path=f"/srv/prompt-valet/runs/{job_id}/job.log",
            thread_id=f"thread-{number}",
            usage={"input_tokens": 1200 + number, "output_tokens": 34},
            result={"branch": f"codex/task-{number}", "commit": f"{number:040x}"},
        )
        run = runs / job_id
        os.mkdir(run)
        for name, data in (("job.json", job.encode(record)), ("job.log", b"done\n")):
            fd = os.open(run / name, os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(fd, data)
            os.close(fd)


def fill_inbox(inbox: Path, count: int) -> None:
    """`count` folders where nothing waits."""
    made = 0
    for number in range(count):
        path = inbox / f"owner{number // 100}" / f"project{number // 10 % 10}" / f"b{number % 10}"
        for folder in reversed((path, *path.parents)):
            if inbox in folder.parents and not folder.exists():
                folder.mkdir(parents=True)
                made += 1
        if made >= count:
            return


def fill_log(path: Path, size: int) -> None:
    """A log of at least `size` bytes, of lines as agents write them."""
    piece = b"".join((_LINE % number).encode() for number in range(10_000))
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(piece)


class Process:
    """What the system says of a server."""

    def __init__(self, valet: Valet) -> None:
        self._proc = Path(f"/proc/{valet.processes[-1].popen.pid}")

    @property
    def resident(self) -> float:
        """MB of memory, shared libraries included."""
        text = (self._proc / "status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) / 1024

    @property
    def threads(self) -> int:
        """How many."""
        return len(os.listdir(self._proc / "task"))

    def _used(self) -> dict[str, int]:
        """Nanoseconds of processor time of each living thread; exact, unlike `stat`."""
        used = {}
        for task in (self._proc / "task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it ended between the list and the read
                used[task.name] = int((task / "schedstat").read_text().split()[0])
        return used

    def share(self, seconds: float) -> float:
        """Per cent of one core that it uses while nobody asks anything."""
        before = self._used()
        time.sleep(seconds)
        return (
            sum(used - before.get(task, 0) for task, used in self._used().items()) / seconds / 1e7
        )


@contextmanager
def floor() -> Iterator[int]:
    """The port of the bare handler."""
    argv = [sys.executable, "-I", "-S", str(Path(__file__).with_name("floor.py"))]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()
