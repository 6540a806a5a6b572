"""What the tests share: a running Prompt Valet, its HTTP, and waiting by polling to a deadline."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import needs

from pv_lib.agent.sweep import end_carriers

TREE = Path(__file__).resolve().parent.parent
PROGRAMS = TREE / "tests" / "programs"
FAKE = PROGRAMS / "fake_codex.py"
REPO = "nova-rey/example"
NOBODY = 65534
DEADLINE = 20.0
TERMINAL = ("succeeded", "failed", "aborted")
_PTRACE_SEIZE, _PTRACE_INTERRUPT = 0x4206, 0x4207
_WALL = 0x40000000  # __WALL of waitpid(2)
T = TypeVar("T")


def until(
    probe: Callable[[], T | None], what: str, seconds: float = DEADLINE, pause: float = 0.02
) -> T:
    """Poll until `probe` gives something true; fail with `what` at the deadline.

    It looks less often once it has waited for a while, because the other lanes need the machine.
    """
    start = time.monotonic()
    end = start + seconds
    while True:
        found = probe()
        if found:
            return found
        now = time.monotonic()
        if now > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.005 if now - start < 0.1 else pause)


@contextlib.contextmanager
def hung_watcher(server: int) -> Iterator[None]:
    """Stop the watcher's thread of this server, as a disk that never answers would.

    It is the third by age: the main one, the index's, the watcher's. At the end the server is
    killed, where it still lives.
    """
    thread = sorted(int(tid) for tid in os.listdir(f"/proc/{server}/task"))[2]
    libc = ctypes.CDLL(None, use_errno=True)
    for request in (_PTRACE_SEIZE, _PTRACE_INTERRUPT):
        assert libc.ptrace(request, thread, None, None) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)
        os.waitpid(thread, _WALL)  # the end of a thread is told to its tracer alone


def git(where: Path, *argv: str) -> str:
    needs.git()
    identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
    identity += ["-c", "safe.directory=*"]  # a test may have given it to another user
    done = subprocess.run(
        ["git", *identity, "-C", str(where), *argv], capture_output=True, text=True, check=True
    )
    return done.stdout


def make_repository(path: Path, *branches: str) -> Path:
    """A git repository on `main` with one commit, and further branches: a copy of a first one."""
    shutil.copytree(_first_repository(), path, symlinks=True)
    for branch in branches:
        there = path / ".git" / "refs" / "heads" / branch
        there.parent.mkdir(exist_ok=True)
        shutil.copy(path / ".git" / "refs" / "heads" / "main", there)
    return path


@functools.cache
def _first_repository() -> Path:
    folder = tempfile.mkdtemp(prefix="pv-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "repository"
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main", "--template=")
    (path / "README.md").write_text("# Example\n")
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message", "start")
    return path


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        return str(self.json["detail"])


class Process:
    """`pv` as a process of its own, its stderr in a file."""

    def __init__(self, argv: list[str], environ: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as stderr:
            start = stderr.tell()
            self.popen = subprocess.Popen(
                argv, env=dict(environ), stdin=subprocess.DEVNULL, stderr=stderr
            )
        self._start = start

    @property
    def said(self) -> str:
        return self.log.read_bytes()[self._start :].decode()

    def await_line(self, pattern: str) -> re.Match[str]:
        def look() -> re.Match[str] | None:
            found = re.search(pattern, self.said)
            if not found and self.popen.poll() is not None:
                raise AssertionError(f"ended with {self.popen.returncode}: {self.said}")
            return found

        return until(look, f"{pattern!r} in the log")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(timeout=DEADLINE)


class Valet:
    """A Prompt Valet with a root of its own, in one process or split."""

    def __init__(self, root: Path, program: list[str], **settings: str) -> None:
        self.root = root
        self.program = program
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PV_")},
            "PV_ROOT": str(root),
            "PV_BIND_PORT": "0",
            "PV_CODEX_BIN": str(FAKE),
            "PV_MAX_RUNNING": "1",
            "CODEX_FAKE_YARD": str(root / "repos" / REPO),
            "PV_POLL_INTERVAL_SECONDS": "0.1",
            "PV_HEARTBEAT_SECONDS": "0.2",
            "PV_ABORT_GRACE_SECONDS": "2",
            "PV_MIN_FREE_BYTES": "1MiB",
            **settings,
        }
        self.port = 0
        self.processes: list[Process] = []
        self.inbox = root / "inbox"
        self.runs = root / "runs"
        self.repo = root / "repos" / REPO
        if not self.repo.exists():
            make_repository(self.repo, "dev", "feature/one")

    def start(self, *argv: str) -> Process:
        """Start `serve` (or what is given) and wait until it is ready."""
        command = argv or ("serve",)
        process = Process([*self.program, *command], self.environ, self.root / "server.log")
        self.processes.append(process)
        if command[0] == "serve":
            self.port = int(process.await_line(r"listening on http://[^ ,]*:(\d+)")[1])
        else:
            process.await_line("watching")
        return process

    def stop(self) -> None:
        for process in self.processes:
            process.stop()

    def clear(self) -> None:
        """Stop, and end the agents that a stopped server rightly leaves running."""
        self.stop()
        for job_id in carried() & set(os.listdir(self.runs) if self.runs.exists() else ()):
            end_carriers(job_id, 0)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    @property
    def held(self) -> tuple[int, int]:
        """How many threads and descriptors the server has."""
        process = Path(f"/proc/{self.processes[-1].popen.pid}")
        return len(os.listdir(process / "task")), len(os.listdir(process / "fd"))

    @property
    def alone(self) -> bool:
        """Whether the server has no connection but the one that asks."""
        return bool(self.get("/api/v1/status")["limits"]["connections"]["now"] == 1)

    def at_rest(self) -> tuple[int, int]:
        """`held` once a hundred looks in a row have found the same, with nobody connected."""
        until(lambda: self.alone, "all others gone")
        looks: list[tuple[int, int]] = []

        def steady() -> bool:
            looks.append(self.held)
            return len(looks) >= 100 and len(set(looks[-100:])) == 1

        until(steady, "threads and descriptors that stay", pause=0.005)
        return looks[-1]

    def tree(self, job_id: str) -> Path:
        """The running job's work tree."""
        return self.root / "work" / job_id

    def show(self, record: Mapping[str, Any], path: str) -> str:
        """A file as the job's branch has it."""
        return git(self.repo, "show", f"{record['result']['branch']}:{path}")

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status == 200, answer
        return answer.json

    def post_json(self, path: str, plain: object) -> Answer:
        body = json.dumps(plain).encode()
        return self.ask("POST", path, body, {"Content-Type": "application/json"})

    def submit(self, text: str, **fields: object) -> dict[str, Any]:
        job = {"repo": REPO, "branch": "main", "markdown_text": text, **fields}
        answer = self.post_json("/api/v1/jobs", job)
        assert answer.status == 201, answer
        return dict(answer.json)

    def job(self, job_id: str) -> dict[str, Any]:
        return dict(self.get(f"/api/v1/jobs/{job_id}"))

    def await_state(self, job_id: str, *states: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            record = self.job(job_id)
            if record["state"] in states:
                return record
            assert record["state"] not in TERMINAL, f"{record}\n{self.processes[-1].said}"
            return None

        return until(look, f"job {job_id} in {states}")

    def await_end(self, job_id: str) -> dict[str, Any]:
        return self.await_state(job_id, *TERMINAL)

    def log(self, job_id: str) -> str:
        return (self.runs / job_id / "job.log").read_text()

    def events(
        self, job_id: str, last_event_id: str | None = None
    ) -> Iterator[tuple[str, str, str, float]]:
        """The stream's events as (name, id, data, Unix time of arrival)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        try:
            connection.request("GET", f"/api/v1/jobs/{job_id}/log/stream", headers=headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            found = {"event": "message", "id": "", "data": ""}
            for raw in response:
                line = raw.decode().rstrip("\n")
                if line:
                    name, _, value = line.partition(": ")
                    found[name] = value
                elif found["data"] or found["id"]:
                    yield found["event"], found["id"], found["data"], time.time()
                    found = {"event": "message", "id": "", "data": ""}
        finally:
            connection.close()


def built() -> Path:
    """The archive; `conftest` or whoever started this has built it from this tree."""
    return Path(os.environ.get("TEST_ARCHIVE") or TREE / "dist" / "pv.pyz")


def program() -> list[str]:
    """How the tests run Prompt Valet: the archive, by the bare interpreter."""
    return [sys.executable, "-I", "-S", str(built())]


def carried() -> set[str]:
    """The ids of all jobs that some process carries the marker of."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            found |= set(re.findall(rb"PV_JOB_ID=([^\0]+)", path.read_bytes()))
    return {os.fsdecode(job_id) for job_id in found}


def carriers(job_id: str) -> list[int]:
    """Processes that carry the job's marker."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if f"PV_JOB_ID={job_id}".encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def jobs(valet: Valet) -> list[dict[str, Any]]:
    return list(valet.get("/api/v1/jobs?limit=500")["jobs"])


def one_job(valet: Valet) -> dict[str, Any]:
    found = until(lambda: jobs(valet), "the drop as a job")
    assert len(found) == 1
    return valet.await_end(found[0]["job_id"])


def folder(valet: Valet, place: str = f"{REPO}/main") -> Path:
    path = valet.inbox / place
    path.mkdir(parents=True, exist_ok=True)
    return path


def put_socket(path: Path) -> None:
    subprocess.run(
        ["python3", "-c", "import socket, sys; socket.socket(1).bind(sys.argv[1])", path.name],
        cwd=path.parent,
        check=True,
    )
