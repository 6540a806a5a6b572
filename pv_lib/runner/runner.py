"""The runner of one job, from claimed to terminal, told from top to bottom.

Prepare the work tree, write prompt.md, start the agent or adopt the one that an earlier server
started, write its output to job.log, heed ABORT, timeout and limits, judge, bring the work home as
a branch, record the end, archive the prompt.
A runner has a thread of its own and may wait. It chooses no jobs, writes no record itself
(`recorder`), and works with any agent and any launcher (`agent.adapter`, `agent.launcher`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pv_lib.agent import program
from pv_lib.agent.adapter import Agent, Launch
from pv_lib.agent.launcher import MARKER, Launcher, Process, Trace
from pv_lib.agent.transcript import Verdict
from pv_lib.errors import JobFailed, ValetError
from pv_lib.git.command import Git
from pv_lib.git.repos import Repos
from pv_lib.git.worktree import Workspace, WorkTree
from pv_lib.inbox import acceptance, frontmatter
from pv_lib.inbox.inbox import Inbox
from pv_lib.jobs.job import Record, State
from pv_lib.jobs.store import Runs
from pv_lib.runner import delivery
from pv_lib.runner.delivery import Delivery
from pv_lib.runner.interrupt import Interrupt, Left
from pv_lib.runner.recorder import FolderGone, Recorder
from pv_lib.runner.supervisor import ABORTED, SWEEP_GRACE, Supervisor
from pv_lib.runner.timing import Timing
from pv_lib.settings.config import Config
from pv_lib.system import files
from pv_lib.system.journal import Journal


@dataclass(frozen=True)
class Services:
    """What every job of this server shares."""

    config: Config
    runs: Runs
    inbox: Inbox
    repos: Repos
    workspace: Workspace
    journal: Journal
    environ: Mapping[str, str]
    agent: Agent
    launcher: Launcher
    clock: Callable[[], float] = time.time


class _Aborted(Exception):
    """An ABORT came before the agent was started."""


class Runner:
    """Runs one job. `prompt` is its claimed file, or None where that file is gone."""

    def __init__(self, services: Services, record: Record, prompt: Path | None) -> None:
        self._services = services
        self._prompt = prompt
        self._job_id = record.job_id
        self._run = services.runs.folder(record.job_id)
        config, clock, journal = services.config, services.clock, services.journal
        self._interrupt = Interrupt(record.job_id, journal)
        self._recorder = Recorder(
            record, services.runs, journal, self._interrupt, config.heartbeat_seconds, clock
        )
        self._delivery = Delivery(
            self._recorder, self._interrupt, config, services.workspace, self._git
        )
        self._timing = Timing(record, config.job_timeout_seconds, clock())
        self._process: Process | None = None
        self._seen = services.agent.transcript()
        self._supervisor = Supervisor(
            self._recorder,
            self._interrupt,
            self._timing,
            config,
            services.agent,
            services.launcher,
        )

    def leave(self) -> None:
        """Let go of the job, at once; its agent goes on. For any thread."""
        self._interrupt.leave()

    def wake(self) -> None:
        """Look at the job's ABORT marker at once. For any thread."""
        self._interrupt.wake()

    def run(self) -> None:
        """See the job to its end, or let go of it; whatever fails becomes the job's verdict."""
        try:
            verdict, exit_code = self._live_on()
        except Left:
            return
        except FolderGone:
            self._bury()
            return
        except JobFailed as error:
            verdict, exit_code = Verdict(State.FAILED, error.reason, error.detail), None
        except Exception as error:  # noqa: BLE001 - the top of a thread: a decided outcome
            self._end_all(self._services.config.abort_grace_seconds)
            what = f"{type(error).__name__}: {error}"
            self._services.journal.error(f"job {self._job_id}: unexpected {what}")
            why = f"Prompt Valet failed while it ran this job ({what})"
            verdict, exit_code = Verdict(State.FAILED, "internal_error", why), None
        with contextlib.suppress(Left):
            verdict = self._delivery.bring_home(verdict, self._seen)
            self._recorder.finish(verdict, exit_code, self._seen)
            self._archive(verdict.state)

    def _bury(self) -> None:
        """The end of a job without a run folder: the agent is ended, its work kept."""
        self._end_all(self._services.config.abort_grace_seconds)
        why = "its run folder was deleted; ended the agent"
        self._services.journal.warn(f"job {self._job_id}: {why}")
        with contextlib.suppress(Left):
            self._delivery.bring_home(ABORTED, self._seen)
            self._archive(State.ABORTED)

    def _archive(self, state: State) -> None:
        if self._prompt is not None:
            services = self._services
            delivery.archive(self._prompt, state, services.inbox, self._job_id, services.journal)

    def _end_all(self, grace: float) -> None:
        self._services.launcher.end(self._job_id, grace)

    def _live_on(self) -> tuple[Verdict, int | None]:
        """As `_live`, again and again while the system is short of something.

        That is safe at any point: an agent that was started is adopted, and text that is in the log
        is skipped.
        """
        while True:
            why = "the agent could not be started"
            try:
                if not self._run.exists():
                    raise FolderGone
                outcome = self._live()
                if outcome is not None:
                    return outcome
            except OSError as error:
                if error.errno not in files.TRANSIENT:
                    raise
                why = str(error.strerror)
            self._interrupt.wait_to_retry("cannot go on", why)

    def _live(self) -> tuple[Verdict, int | None] | None:
        """The verdict and the exit status; None if the agent was not started and may be."""
        services = self._services
        self._seen = services.agent.transcript()
        if self._process is None:
            if services.launcher.trace(self._run) is Trace.NEVER:
                self._process = self._start()
                if self._process is None:
                    return ABORTED, None
            else:
                self._process = self._adopt()
        self._supervisor.attend(self._process, self._seen)
        exit_code = self._process.exit_code()
        if exit_code is None and services.launcher.trace(self._run) is Trace.NEVER:
            self._process = None  # the sh around it could not even write its pid
            return None
        if self._supervisor.ending is not None:
            return self._supervisor.ending, exit_code
        verdict = services.agent.judge(self._seen, exit_code)
        if verdict.state is State.FAILED and self._recorder.abort_asked():
            verdict = ABORTED  # the agent ended before this runner saw the ABORT
        return verdict, exit_code

    def _adopt(self) -> Process:
        self._services.journal.info(f"job {self._job_id}: adopted")
        record = self._recorder.record
        if record.reason in ("timeout", "log_limit"):  # the ending had begun
            self._supervisor.ending = Verdict(State.FAILED, record.reason, record.error)
        return self._services.launcher.adopt(self._run, self._job_id)

    def _start(self) -> Process | None:
        """From claimed to started; None when an ABORT came first."""
        services, recorder = self._services, self._recorder
        if recorder.record.state is State.RUNNING:  # a killed server: its git may still run
            self._end_all(SWEEP_GRACE)
        recorder.begin()
        self._write_prompt()
        try:
            tree = self._prepare()
        except _Aborted:
            return None
        found = program.find(services.agent.program, services.environ.get("PATH"))
        message = self._run / "last-message.md"
        launch = Launch(tree.path, message, recorder.record.model, tree.git)
        argv = services.agent.argv(found, launch)
        environ = services.agent.environ(services.environ)
        (self._run / "job.log").touch()
        if recorder.abort_asked():
            return None
        process = services.launcher.spawn(self._run, self._job_id, argv, tree.path, environ)
        recorder.change(phase="running", pid=process.pid)
        where = f"{tree.path} (pid {process.pid})"
        services.journal.info(f"job {self._job_id}: started in {where}")
        return process

    def _prepare(self) -> WorkTree:
        record = self._recorder.record
        git = self._git(self._heed_preparing)
        tree = self._services.workspace.prepare(
            record.repo or "", record.branch or "", record.filename, record.job_id, git
        )
        began = {"branch": tree.branch, "base": tree.base, "commit": None}
        self._recorder.change(result={**began, "notes": list(tree.notes)} if tree.notes else began)
        self._recorder.save()
        return tree

    def _git(self, tick: Callable[[], None]) -> Git:
        """git in this job's name, with the marker: a killed server's git can be found and ended."""
        name, address = self._services.config.git_author
        author = {"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": address}
        committer = {"GIT_COMMITTER_NAME": name, "GIT_COMMITTER_EMAIL": address}
        return Git({**self._services.environ, **author, **committer, MARKER: self._job_id}, tick)

    def _heed_preparing(self) -> None:
        self._interrupt.check()
        self._recorder.beat(self._seen)
        if self._recorder.abort_asked():
            raise _Aborted
        if self._timing.timed_out:
            raise JobFailed("timeout", f"no work tree within the job's {self._timing.timeout:g} s")

    def _write_prompt(self) -> None:
        if self._prompt is None:
            if not (self._run / "prompt.md").is_file():
                raise JobFailed("lost", "the prompt's file vanished before the agent was started")
            return
        limit = self._services.config.max_prompt_bytes
        try:
            data = self._services.inbox.read(self._prompt, acceptance.max_file_bytes(limit))
        except (OSError, ValetError) as error:
            if isinstance(error, OSError) and error.errno in files.TRANSIENT:
                raise
            raise JobFailed("bad_prompt", f"the prompt could not be read: {error}") from error
        text = frontmatter.strip(data)
        try:
            acceptance.check_text(text, limit)
        except ValetError as error:
            why = f"the queued prompt cannot be run any more: it {error.fields[0][1]}"
            raise JobFailed("bad_prompt", why) from error
        files.write(self._run / "prompt.md", text, durable=False)
