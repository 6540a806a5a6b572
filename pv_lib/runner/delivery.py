"""The delivery of a job whose agent is over: its work becomes a branch, its prompt is archived.

It repeats what failed for want of disk or memory, and heeds an abort once the work is safe. The
git steps are `git.publish`'s; the terminal record is the recorder's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pv_lib.agent.transcript import Transcript, Verdict
from pv_lib.git import publish
from pv_lib.git.command import Git, GitFailed
from pv_lib.git.publish import Work
from pv_lib.git.worktree import Workspace
from pv_lib.inbox.inbox import Inbox
from pv_lib.jobs.job import State
from pv_lib.runner.interrupt import Interrupt, Left
from pv_lib.runner.recorder import FolderGone, Recorder
from pv_lib.settings.config import Config
from pv_lib.system import files
from pv_lib.system.journal import Journal


class Delivery:
    """Brings one job's work home. `git_with` makes a git that calls its argument as `tick`."""

    def __init__(
        self,
        recorder: Recorder,
        interrupt: Interrupt,
        config: Config,
        workspace: Workspace,
        git_with: Callable[[Callable[[], None]], Git],
    ) -> None:
        self._recorder = recorder
        self._interrupt = interrupt
        self._config = config
        self._workspace = workspace
        self._git_with = git_with
        self._is_safe = False  # whether the work is on its branch: only the network is left

    def bring_home(self, verdict: Verdict, seen: Transcript) -> Verdict:
        """Make a branch of what the agent left, and the record's result; the verdict with that.

        Raises Left.
        """
        partial = verdict.state is not State.SUCCEEDED
        work = self._work(seen.message or "", partial=partial)
        if work is None:
            return verdict
        self._recorder.show(phase="publishing")
        result = self._delivered(work, self._git_with(lambda: self._tick(seen)))
        self._recorder.show(result=result)
        something = result.get("commit") or result.get("work_tree")
        if work.tree.git and not (work.partial or something):
            return replace(verdict, reason="no_changes")
        return verdict

    def _delivered(self, work: Work, git: Git) -> dict[str, Any]:
        """The result of `publish.bring_home`, tried again as long as the fault may pass."""
        while True:
            try:
                return publish.bring_home(
                    work, self._config, self._workspace, git, self._show_result
                )
            except (Left, FolderGone):
                raise
            except Exception as error:  # noqa: BLE001 - the work stays where it is
                if not (isinstance(error, OSError) and error.errno in files.TRANSIENT):
                    return publish.kept(work, f"{type(error).__name__}: {error}")
                self._interrupt.wait_to_retry("cannot be brought home", error.strerror)

    def _work(self, message: str, *, partial: bool) -> Work | None:
        """What is to be brought home; None where the agent never had a folder to work in."""
        record, run = self._recorder.record, self._recorder.run
        result = record.result or {}
        where = (record.repo or "", record.filename, record.job_id)
        tree = self._workspace.tree(*where, base=result.get("base"))
        if record.result is None and not (tree.git and tree.path.exists()):
            return None
        try:
            prompt = (run / "prompt.md").read_text("utf-8", "replace")
        except OSError:
            prompt = ""
        return Work(record, tree, run, publish.title_of(prompt), message, partial)

    def _show_result(self, result: dict[str, Any]) -> None:
        """The work is safe: from here on an abort ends what needs the network."""
        self._is_safe = True
        self._recorder.show(result=result)

    def _tick(self, seen: Transcript) -> None:
        self._interrupt.check()
        with contextlib.suppress(FolderGone):
            self._recorder.beat(seen)
            if self._is_safe and self._recorder.abort_asked():
                raise GitFailed("an abort came first")


def archive(prompt: Path, state: State, inbox: Inbox, job_id: str, journal: Journal) -> None:
    """Move the job's prompt to the finished root."""
    try:
        inbox.archive(prompt, state)
    except OSError as error:
        journal.warn(f"job {job_id}: {prompt} could not be archived ({error.strerror})")
