"""The watcher's queue and slots: what a wake reads, and which thread it reaches."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from harness import FAKE, REPO, make_repository, until

from pv_lib.agent import process, registry
from pv_lib.agent.sweep import end_carriers
from pv_lib.git.command import Git
from pv_lib.git.repos import Repos
from pv_lib.git.worktree import Workspace
from pv_lib.inbox.inbox import Inbox
from pv_lib.inbox.intake import Intake
from pv_lib.jobs.index import Index
from pv_lib.jobs.job import Record, State
from pv_lib.jobs.store import Runs
from pv_lib.jobs.submission import Submission
from pv_lib.runner import supervisor
from pv_lib.runner.runner import Services
from pv_lib.settings import config as settings
from pv_lib.system.journal import Journal
from pv_lib.watcher.queue import Queue
from pv_lib.watcher.slots import Slots
from pv_lib.watcher.watcher import Watcher


class CountedRuns(Runs):
    """Counts how often a record is read, and may fail to."""

    reads = 0
    fault: OSError | None = None

    def read(self, job_id: str) -> Record | None:
        self.reads += 1
        if self.fault:
            raise self.fault
        return super().read(job_id)


class Parts:
    """A queue over a root of its own, without the loop."""

    def __init__(self, root: Path) -> None:
        make_repository(root / "repos" / REPO, "dev")
        environ = {**os.environ, "CODEX_FAKE_YARD": str(root)}
        given = {"PV_ROOT": str(root), "PV_MIN_FREE_BYTES": "1MiB", "PV_CODEX_BIN": str(FAKE)}
        config, faults = settings.read({**given, "PV_ABORT_GRACE_SECONDS": "2"})
        assert not faults + settings.make_folders(config)
        self.runs = CountedRuns(config.runs_root)
        self.index = Index(self.runs)
        self.runs.on_write = self.index.note_write
        self.index.start()
        self.inbox = Inbox(config.inbox_root, config.finished_root)
        repos = Repos(config.repos_root, Git(environ))
        self.intake = Intake(config, self.index, self.inbox, repos)
        workspace = Workspace(config.work_root, repos)
        self.services = Services(
            config=config,
            runs=self.runs,
            inbox=self.inbox,
            repos=repos,
            workspace=workspace,
            journal=Journal(),
            environ=environ,
            agent=registry.make(config),
            launcher=process,
        )
        slots = Slots(self.services, lambda: None)
        self.queue = Queue(self.services, self.intake, self.index, slots)

    def submit(self, text: str) -> Record:
        return self.intake.submit([Submission(REPO, "main", text.encode())])[0]

    def is_drop(self, path: Path) -> bool:
        prompt = self.inbox.look_at(path)
        assert prompt
        return self.queue.reconcile(prompt)


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


def test_a_record_is_read_once_to_queue_its_file(parts: Parts) -> None:
    record = parts.submit("one")
    before = parts.runs.reads
    assert not parts.is_drop(Path(record.inbox_path or ""))
    assert parts.queue.get(record.job_id) and parts.runs.reads - before == 1
    assert not parts.is_drop(Path(record.inbox_path or ""))
    assert parts.runs.reads - before == 1  # a waiting job's record is in memory


@pytest.mark.parametrize("state", [State.RUNNING, State.SUCCEEDED])
def test_a_queued_file_of_a_job_that_ran_is_a_drop(parts: Parts, state: State) -> None:
    record = parts.submit("one")
    parts.runs.write(replace(record, state=state, started_at=record.created_at))
    assert parts.is_drop(Path(record.inbox_path or ""))
    assert len(parts.queue) == 0


def test_a_copy_of_a_waiting_file_is_a_drop_and_a_moved_one_is_followed(parts: Parts) -> None:
    record = parts.submit("one")
    path = Path(record.inbox_path or "")
    assert not parts.is_drop(path)
    moved = path.parent.with_name("dev") / path.name
    moved.parent.mkdir()
    shutil.copy(path, moved)
    assert parts.is_drop(moved)
    path.unlink()
    assert not parts.is_drop(moved)
    waiting = parts.queue.get(record.job_id)
    assert waiting and (waiting.path, waiting.record.branch) == (moved, "dev")


def test_a_moved_file_is_followed_where_its_start_was_interrupted(parts: Parts) -> None:
    record = parts.submit("one")
    path = Path(record.inbox_path or "")
    parts.runs.write(replace(record, state=State.RUNNING, started_at=record.created_at))
    parts.runs.folder(record.job_id).joinpath("agent.lock").write_bytes(
        Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    )
    claimed = path.rename(path.with_name(path.name.replace(".prompt.md", ".running.md")))
    assert not parts.is_drop(claimed)
    moved = path.parent.with_name("dev") / path.name
    moved.parent.mkdir()
    claimed.rename(moved)
    assert not parts.is_drop(moved)
    waiting = parts.queue.get(record.job_id)
    assert waiting and (waiting.path, waiting.record.branch) == (moved, "dev")


def test_a_file_whose_record_cannot_be_read_now_is_no_drop(parts: Parts) -> None:
    record = parts.submit("one")
    parts.runs.fault = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with pytest.raises(OSError, match="Too many open files"):
        parts.is_drop(Path(record.inbox_path or ""))


def test_a_wake_reaches_the_runner_of_a_running_job(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abort need not wait for the runner's next look, here an hour away."""
    monkeypatch.setattr(supervisor, "TICK", 3600.0)
    watcher = Watcher(parts.services, parts.intake, parts.index, lambda: None)
    watcher.acquire()
    thread = threading.Thread(target=watcher.run, daemon=True)
    thread.start()
    job_id = parts.submit("fake: wait never").job_id
    agent = parts.runs.folder(job_id) / "agent.pid"

    def has_ended() -> bool:
        watcher.wake(job_id)
        record = parts.index.get(job_id)
        return record is not None and record.state is State.ABORTED

    try:
        until(agent.exists, "the agent")
        parts.runs.mark_abort(job_id, State.RUNNING, time.time())
        until(has_ended, "the job's end")
    finally:
        watcher.stop()
        end_carriers(job_id, 0)
    until(lambda: not thread.is_alive(), "the watcher's end")
