"""The parts of a runner: its wait, its timing, and a run with another agent and launcher."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from harness import DEADLINE, REPO, make_repository, until

from pv_lib.agent import adapter, transcript
from pv_lib.agent.adapter import Launch, Program
from pv_lib.agent.launcher import RAW, Trace
from pv_lib.agent.transcript import Transcript, Verdict
from pv_lib.git.command import Git
from pv_lib.git.repos import Repos
from pv_lib.git.worktree import Workspace
from pv_lib.inbox.inbox import Inbox
from pv_lib.jobs.job import JobIds, Record, State
from pv_lib.jobs.store import Runs
from pv_lib.runner.interrupt import Interrupt, Left
from pv_lib.runner.runner import Runner, Services
from pv_lib.runner.timing import Timing
from pv_lib.settings import config
from pv_lib.system.journal import Journal


class Words:
    """An agent that prints plain text."""

    name = "words"
    program = Program("sh", "PV_WORDS", "install a shell")

    def argv(self, program: str, launch: Launch) -> list[str]:
        return [program, str(launch.cwd)]

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        return adapter.allowed(environ, (), ("WORDS_",))

    def transcript(self) -> Transcript:
        return Transcript()

    def judge(self, seen: Transcript, exit_code: int | None) -> Verdict:
        return transcript.judge(seen, exit_code, "check PV_WORDS")


@dataclass
class Sham:
    """A launcher and its process in one: it runs until it is signalled, and starts nothing.

    The first `failures` starts leave no trace, as those of a machine without a process to spare.
    """

    failures: int = 0
    starts: list[tuple[list[str], dict[str, str]]] = field(default_factory=list)
    signals: list[signal.Signals] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    pid: int | None = None
    status: int | None = None

    def trace(self, run: Path, /) -> Trace:
        return Trace.NEVER if len(self.starts) <= self.failures else Trace.OVER

    def spawn(
        self, run: Path, job_id: str, argv: Sequence[str], cwd: Path, environ: Mapping[str, str], /
    ) -> Sham:
        self.starts.append((list(argv), dict(environ)))
        if len(self.starts) > self.failures:
            (run / RAW).write_text("hello\n")
        return self

    def adopt(self, run: Path, job_id: str, /) -> Sham:
        return self

    def end(self, job_id: str, grace: float, /) -> None:
        self.ended.append(job_id)

    def alive(self) -> bool:
        return len(self.starts) > self.failures and self.status is None

    def signal(self, number: signal.Signals) -> None:
        self.signals.append(number)
        self.status = 130

    def exit_code(self) -> int | None:
        return self.status


@dataclass
class Stage:
    """A runner of one job, in a thread, with its launcher and its runs folder."""

    runner: Runner
    launcher: Sham
    runs: Runs
    job_id: str
    said: io.StringIO
    thread: threading.Thread

    def ended(self) -> Record:
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()
        record = self.runs.read(self.job_id)
        assert record is not None
        return record


def staged(root: Path, launcher: Sham) -> Stage:
    settings = config.load({"PV_ROOT": str(root), "PV_JOB_TIMEOUT_SECONDS": "60"})
    for folder in settings.roots.values():
        folder.mkdir(parents=True)
    make_repository(settings.repos_root / REPO)
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(root), "WORDS_KEY": "w", "CODEX_HOME": "c"}
    repos = Repos(settings.repos_root, Git(environ), None)
    said = io.StringIO()
    runs = Runs(settings.runs_root)
    services = Services(
        config=settings,
        runs=runs,
        inbox=Inbox(settings.inbox_root, settings.finished_root),
        repos=repos,
        workspace=Workspace(settings.work_root, repos),
        journal=Journal(said),
        environ=environ,
        agent=Words(),
        launcher=launcher,
    )
    record = Record(JobIds().new(), repo=REPO, branch="main", filename="x.prompt.md")
    runs.create(record)
    (runs.folder(record.job_id) / "prompt.md").write_text("Say hello")
    runner = Runner(services, record, None)
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    return Stage(runner, launcher, runs, record.job_id, said, thread)


def test_a_job_runs_with_another_agent_and_another_launcher(tmp_path: Path) -> None:
    stage = staged(tmp_path, Sham())
    log = stage.runs.folder(stage.job_id) / "job.log"
    until(lambda: log.exists() and log.read_text() == "hello\n", "the log")
    stage.launcher.status = 0
    record = stage.ended()
    assert (record.state, record.exit_code) == (State.SUCCEEDED, 0)
    [(argv, environ)] = stage.launcher.starts
    assert argv[0].endswith("/sh") and stage.job_id in argv[1]
    assert environ["WORDS_KEY"] == "w" and "CODEX_HOME" not in environ


def test_an_abort_and_a_wake_end_the_process_of_any_launcher(tmp_path: Path) -> None:
    stage = staged(tmp_path, Sham())
    until(lambda: stage.launcher.starts, "the start")
    stage.runs.mark_abort(stage.job_id, State.RUNNING, 0)
    stage.runner.wake()
    assert stage.ended().state is State.ABORTED
    assert stage.launcher.signals[0] is signal.SIGINT
    assert stage.launcher.ended == [stage.job_id]


def test_a_start_that_left_no_trace_is_made_again(tmp_path: Path) -> None:
    stage = staged(tmp_path, Sham(failures=2))
    until(lambda: len(stage.launcher.starts) == 3, "the third start")
    stage.launcher.status = 0
    assert stage.ended().state is State.SUCCEEDED
    assert stage.said.getvalue().count("cannot go on (the agent could not be started)") == 1


def test_a_wait_is_cut_short_by_a_wake_and_ended_by_a_leave() -> None:
    interrupt = Interrupt("1", Journal(io.StringIO()))
    waits = 0

    def wait() -> None:
        nonlocal waits
        with pytest.raises(Left):
            while True:
                interrupt.wait(3600)
                waits += 1

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    interrupt.wake()
    until(lambda: waits == 1, "the end of the first wait")
    interrupt.wake()
    until(lambda: waits == 2, "the end of the second wait")
    interrupt.leave()
    thread.join(DEADLINE)
    assert not thread.is_alive() and interrupt.leaving


def test_a_turn_that_follows_another_gets_its_own_grace() -> None:
    timing = Timing(Record("1"), 0, 0)
    assert not timing.is_behind_turn(ended=True, grace=0.01)
    until(lambda: timing.is_behind_turn(ended=True, grace=0.01), "the end of the grace")
    assert not timing.is_behind_turn(ended=False, grace=0.01)
    assert not timing.is_behind_turn(ended=True, grace=3600)
