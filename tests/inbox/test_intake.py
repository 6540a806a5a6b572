"""Many submit at once: stored together, refused one by one."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness import REPO, make_repository

from pv_lib.errors import NoRoom, ValetError
from pv_lib.git.command import Git
from pv_lib.git.repos import Repos
from pv_lib.inbox.inbox import Inbox
from pv_lib.inbox.intake import Intake
from pv_lib.jobs.index import Index
from pv_lib.jobs.store import Runs
from pv_lib.jobs.submission import Submission
from pv_lib.settings import config as settings

THREADS = 24


class FullForSome(Inbox):
    """A disk that has no room for texts that say so, and counts what it is asked."""

    calls = 0

    def drop(self, folder: Path, prompts: Sequence[tuple[str, bytes]]) -> None:
        self.calls += 1
        if any(b"large" in data for _, data in prompts):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        super().drop(folder, prompts)


class FailsInTheMiddle(Inbox):
    """A disk that gives the first of several files its name, and fails when it is claimed."""

    def drop(self, folder: Path, prompts: Sequence[tuple[str, bytes]]) -> None:
        super().drop(folder, prompts[:1])
        if len(prompts) > 1:
            self.claim(folder / prompts[0][0])
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))


def make_intake(tmp_path: Path, kind: type[Inbox]) -> Intake:
    make_repository(tmp_path / "repos" / REPO, "dev")
    config, faults = settings.read({"PV_ROOT": str(tmp_path), "PV_MIN_FREE_BYTES": "1MiB"})
    assert not faults + settings.make_folders(config)
    runs = Runs(config.runs_root)
    index = Index(runs)
    runs.on_write = index.note_write
    index.start()
    inbox = kind(config.inbox_root, config.finished_root)
    return Intake(config, index, inbox, Repos(config.repos_root, Git(os.environ)))


@pytest.fixture
def intake(tmp_path: Path) -> Intake:
    return make_intake(tmp_path, FullForSome)


def submit_all(intake: Intake, texts: Sequence[bytes]) -> list[str | ValetError]:
    """The id or the refusal of each, all submitted at the same time by a thread of its own."""
    found: list[str | ValetError] = [""] * len(texts)
    together = threading.Barrier(len(texts))

    def submit(number: int) -> None:
        branch = ("main", "dev")[number % 2]
        together.wait()
        try:
            found[number] = intake.submit([Submission(REPO, branch, texts[number])])[0].job_id
        except ValetError as error:
            found[number] = error

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_who_submit_at_once_have_their_file_and_record(intake: Intake, tmp_path: Path) -> None:
    found = submit_all(intake, [f"do {number}".encode() for number in range(THREADS)])
    assert len(set(found)) == THREADS
    for number, job_id in enumerate(found):
        assert isinstance(job_id, str)
        (path,) = (tmp_path / "inbox").rglob(f"*-{job_id}.prompt.md")
        assert path.parent.name == ("main", "dev")[number % 2]
        assert path.read_text().endswith(f"do {number}")
        assert (tmp_path / "runs" / job_id / "job.json").exists()


def test_one_that_cannot_be_stored_takes_nobody_with_it(intake: Intake, tmp_path: Path) -> None:
    texts = [b"large" if number % 5 == 0 else b"small" for number in range(THREADS)]
    for text, answer in zip(texts, submit_all(intake, texts), strict=True):
        assert isinstance(answer, NoRoom if text == b"large" else str)
    files = [path for path in (tmp_path / "inbox").rglob("*") if path.is_file()]
    assert sorted(path.read_bytes()[-5:] for path in files) == [b"small"] * texts.count(b"small")
    assert len(list((tmp_path / "runs").glob("*/job.json"))) == texts.count(b"small")


def test_what_was_claimed_before_its_group_failed_is_not_stored_again(tmp_path: Path) -> None:
    found = submit_all(make_intake(tmp_path, FailsInTheMiddle), [b"x"] * THREADS)
    files = [path.name for path in (tmp_path / "inbox").rglob("*") if path.is_file()]
    assert len(set(found)) == len(files) == THREADS
    for job_id in found:
        assert isinstance(job_id, str) and sum(job_id in name for name in files) == 1


def test_a_defect_in_storing_is_no_acknowledgement(intake: Intake, tmp_path: Path) -> None:
    """Whoever stores for all may fail in a way that nobody thought of."""

    def broken(folder: Path, prompts: Sequence[tuple[str, bytes]]) -> None:
        raise ZeroDivisionError

    intake._inbox.drop = broken  # type: ignore[method-assign]
    failures = []
    together = threading.Barrier(4)

    def submit() -> None:
        together.wait()
        try:
            intake.submit([Submission(REPO, "main", b"x")])
        except (ValetError, ZeroDivisionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 4
