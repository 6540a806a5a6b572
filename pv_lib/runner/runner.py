"""ONE job from claimed to terminal, told top to bottom.

Prepare the work tree, write prompt.md, start the agent (or adopt the one that an earlier server
started), carry its output into job.log, heed ABORT, timeout and limits, judge, bring the work
home as a branch, record, archive.
A runner is the only writer of its job's record and log while the job runs. It runs in a thread of
its own and may wait; it chooses no jobs and answers nobody.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pv_lib.agent import codex, process
from pv_lib.agent.codex import Transcript, Verdict
from pv_lib.agent.process import Agent, Trace
from pv_lib.errors import JobFailed, ValetError
from pv_lib.git import publish
from pv_lib.git.command import Git, GitFailed
from pv_lib.git.publish import Work
from pv_lib.git.repos import Repos
from pv_lib.git.worktree import Workspace, WorkTree
from pv_lib.inbox import acceptance, frontmatter
from pv_lib.inbox.inbox import Inbox
from pv_lib.jobs import job
from pv_lib.jobs.job import Record, State
from pv_lib.jobs.store import Runs
from pv_lib.runner.logwriter import LogWriter
from pv_lib.runner.timing import Timing
from pv_lib.settings.config import Config
from pv_lib.system import files
from pv_lib.system.journal import Journal

TICK = 0.02  # seconds between two looks at the agent: a line is in the log this much later
_READ = 512 << 10  # bytes of raw output per look, so that a flood cannot hold up an abort
_SAVE_SECONDS = 0.5  # how often activity and the like may be written
_SWEEP_GRACE = 0.5  # seconds a leftover child gets between SIGTERM and SIGKILL
_ABORTED = Verdict(State.ABORTED, "abort_requested")


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
    clock: Callable[[], float] = time.time


class _Left(Exception):
    """The server is leaving: the agent goes on and the next server adopts it."""


class _Aborted(Exception):
    """An ABORT came before the agent was started."""


class _FolderGone(Exception):
    """Somebody deleted the job's run folder: nothing can be recorded any more."""


class Runner:
    """Runs one job. `prompt` is its claimed file, or None where that file is gone."""

    def __init__(self, services: Services, record: Record, prompt: Path | None) -> None:
        self._services = services
        self._record = record
        self._prompt = prompt
        self._run = services.runs.folder(record.job_id)
        self._leave = threading.Event()
        config = services.config
        self._timing = Timing(record, config.job_timeout_seconds, services.clock())
        self._agent: Agent | None = None
        self._seen = Transcript()
        self._ending: Verdict | None = None  # set once: why the agent is being ended
        self._network = False  # whether the work is on its branch and may go out
        self._told = ""  # the last complaint, so that it is not said every second
        self._next_beat = 0.0
        self._next_save = 0.0

    def leave(self) -> None:
        """Let go of the job, at once; its agent goes on."""
        self._leave.set()

    def run(self) -> None:
        """See the job to its end, or let go of it; whatever fails becomes the job's verdict."""
        job_id = self._record.job_id
        try:
            verdict, exit_code = self._live_on()
        except _Left:
            return
        except _FolderGone:
            process.end_carriers(job_id, self._services.config.abort_grace_seconds)
            why = "its run folder was deleted; ended the agent"
            self._services.journal.warn(f"job {job_id}: {why}")
            with contextlib.suppress(_Left):
                self._bring_home(_ABORTED)
                self._archive(State.ABORTED)
            return
        except JobFailed as error:
            verdict, exit_code = Verdict(State.FAILED, error.reason, error.detail), None
        except Exception as error:  # noqa: BLE001 - the top of a thread: a decided outcome
            process.end_carriers(job_id, self._services.config.abort_grace_seconds)
            what = f"{type(error).__name__}: {error}"
            self._services.journal.error(f"job {job_id}: unexpected {what}")
            why = f"Prompt Valet failed while it ran this job ({what})"
            verdict, exit_code = Verdict(State.FAILED, "internal_error", why), None
        with contextlib.suppress(_Left):
            self._finish(self._bring_home(verdict), exit_code)

    def _live_on(self) -> tuple[Verdict, int | None]:
        """As `_live`, again and again while the system is short of something.

        That is safe at any point: what has been started is adopted, what has been written to the
        log is skipped.
        """
        while True:
            try:
                if not self._run.exists():
                    raise _FolderGone
                return self._live()
            except OSError as error:
                if error.errno not in files.TRANSIENT:
                    raise
                self._wait_for_better("cannot go on", error)

    def _wait_for_better(self, what: str, error: OSError) -> None:
        """Say what is wrong, and wait a second. Raises _Left when the server leaves."""
        self._tell(what, error)
        if self._leave.wait(1):
            raise _Left

    def _tell(self, what: str, error: OSError) -> None:
        """Say what is wrong, once."""
        text = f"job {self._record.job_id} {what} ({error.strerror}); trying again"
        if text != self._told:
            self._services.journal.error(text)
            self._told = text

    def _live(self) -> tuple[Verdict, int | None]:
        self._seen = Transcript()
        if self._agent is None and process.trace(self._run) is Trace.NEVER:
            self._agent = self._start()
            if self._agent is None:
                return _ABORTED, None
        elif self._agent is None:
            self._agent = process.adopt(self._run, self._record.job_id)
            self._services.journal.info(f"job {self._record.job_id}: adopted")
            if self._record.reason in ("timeout", "log_limit"):  # the ending had begun
                self._ending = Verdict(State.FAILED, self._record.reason, self._record.error)
        self._attend(self._agent)
        exit_code = self._agent.exit_code()
        if exit_code is None and process.trace(self._run) is Trace.NEVER:
            self._agent = None  # the sh around it could not even write its pid
            raise OSError(errno.EAGAIN, "the agent could not be started")
        verdict = self._ending or codex.judge(self._seen, exit_code)
        if verdict.state is State.FAILED and self._ending is None and self._abort_asked():
            verdict = _ABORTED  # asked for, and over before we looked
        return verdict, exit_code

    def _start(self) -> Agent | None:
        """From claimed to started; None when an ABORT came first."""
        config, job_id = self._services.config, self._record.job_id
        if self._record.state is State.RUNNING:  # the server was killed: so may its git be
            process.end_carriers(job_id, _SWEEP_GRACE)
        self._begin()
        self._write_prompt()
        try:
            tree = self._prepare()
        except _Aborted:
            return None
        program = process.find_program(config.codex_bin, self._services.environ.get("PATH"))
        message = self._run / "last-message.md"
        argv = codex.command(config, program, self._record.model, tree.path, message, git=tree.git)
        environ = codex.environment(self._services.environ, config.codex_env)
        (self._run / "job.log").touch()
        if self._abort_asked():
            return None
        agent = process.spawn(self._run, job_id, argv, tree.path, environ)
        self._change(phase="running", pid=agent.pid)
        self._services.journal.info(f"job {job_id}: started in {tree.path} (pid {agent.pid})")
        return agent

    def _prepare(self) -> WorkTree:
        record = self._record
        git = self._git(self._heed_preparing)
        tree = self._services.workspace.prepare(
            record.repo or "", record.branch or "", record.filename, record.job_id, git
        )
        began = {"branch": tree.branch, "base": tree.base, "commit": None}
        self._change(result={**began, "notes": list(tree.notes)} if tree.notes else began)
        self._save()
        return tree

    def _git(self, tick: Callable[[], None]) -> Git:
        """git in this job's name: a killed server's is found by the marker, as the agent is."""
        name, address = self._services.config.git_author
        author = {"GIT_AUTHOR_NAME": name, "GIT_AUTHOR_EMAIL": address}
        committer = {"GIT_COMMITTER_NAME": name, "GIT_COMMITTER_EMAIL": address}
        marker = {process.MARKER: self._record.job_id}
        return Git({**self._services.environ, **author, **committer, **marker}, tick)

    def _heed_preparing(self) -> None:
        if self._leave.is_set():
            raise _Left
        self._note()
        if self._abort_asked():
            raise _Aborted
        if self._timing.timed_out:
            raise JobFailed("timeout", f"no work tree within the job's {self._timing.timeout:g} s")

    def _begin(self) -> None:
        if self._record.state is State.CREATED:
            self._record = job.advance(self._record, State.RUNNING, self._now())
        self._change(phase="preparing")
        self._save(durable=True)

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

    def _attend(self, agent: Agent) -> None:
        """Until the agent is over: its output into the log, its news into the record."""
        try:
            raw = (self._run / "codex.jsonl").open("ab+", buffering=0)
            log = (self._run / "job.log").open("ab", buffering=0)
        except FileNotFoundError:
            raise _FolderGone from None
        with raw, log:
            raw.seek(0)
            pipe = LogWriter(raw, log, self._seen)
            while True:
                over = not agent.alive()  # asked before the read: what came before is all there
                pipe.pump(_READ)
                if over:
                    break
                self._look_around(agent, pipe.size)
                self._note()
                if self._leave.wait(TICK):
                    self._save()
                    raise _Left
            # Whoever is left could write for ever: end them before the rest is read.
            process.end_carriers(self._record.job_id, _SWEEP_GRACE)
            end = pipe.size
            while pipe.pump(min(_READ, max(0, end - pipe.taken))):
                self._note()
                if self._leave.is_set():
                    raise _Left
            pipe.finish()
            while pipe.unwritten:  # a full disk: wait for room
                self._wait_for_better("cannot write its log", pipe.fault)
                pipe.flush()
                self._note()

    def _look_around(self, agent: Agent, size: int) -> None:
        config = self._services.config
        if self._ending is None:
            self._ending = self._reason_to_end(size)
            if self._ending and self._ending.state is State.FAILED:  # for the next server
                self._change(reason=self._ending.reason, error=self._ending.error)
                self._save()
        if self._ending is not None:
            self._timing.push(agent, self._record.job_id, config.abort_grace_seconds)

    def _reason_to_end(self, size: int) -> Verdict | None:
        limit = self._services.config.max_log_bytes
        if self._abort_asked():
            return _ABORTED
        if self._timing.timed_out:
            why = f"the agent was ended after its {self._timing.timeout:g} s"
            return Verdict(State.FAILED, "timeout", why)
        if size > limit:
            why = f"the agent was ended: it wrote more than PV_MAX_LOG_BYTES={limit}"
            return Verdict(State.FAILED, "log_limit", why)
        if self._seen.turn and self._timing.turn_over(self._services.config.abort_grace_seconds):
            return codex.judge(self._seen, 0)
        return None

    def _abort_asked(self) -> bool:
        mark = self._services.runs.abort_mark(self._record.job_id)
        if mark is None:
            if not self._run.exists():
                raise _FolderGone
            return False
        self._change(abort_requested_at=mark.asked_at)
        return True

    def _note(self) -> None:
        """What the transcript learned into the record, and the heartbeat."""
        seen, now = self._seen, time.monotonic()
        self._change(thread_id=seen.thread_id, usage=seen.usage, activity=seen.activity)
        if now >= self._next_beat:
            self._next_beat = now + self._services.config.heartbeat_seconds
            self._change(heartbeat_at=self._now())
            self._next_save = now
        if now >= self._next_save:
            self._save()

    def _change(self, **changes: Any) -> None:
        news = {k: v for k, v in changes.items() if v is not None and getattr(self._record, k) != v}
        if news:
            self._record = self._record.with_(**news, updated_at=self._now())
            self._next_save = min(self._next_save, time.monotonic() + _SAVE_SECONDS)

    def _save(self, *, durable: bool = False) -> None:
        self._next_save = float("inf")
        try:
            self._services.runs.write(self._record, durable=durable)
        except (FileNotFoundError, NotADirectoryError):
            raise _FolderGone from None
        except OSError as error:
            if durable:
                raise
            self._next_save = time.monotonic() + 1
            self._tell("cannot write its record", error)

    def _bring_home(self, verdict: Verdict) -> Verdict:
        """What the agent left becomes a branch and the record's result; the verdict with that."""
        work = self._work(partial=verdict.state is not State.SUCCEEDED)
        if work is None:
            return verdict
        self._show(phase="publishing")
        services, git = self._services, self._git(self._heed_publishing)
        result = None
        while result is None:
            try:
                result = publish.bring_home(
                    work, services.config, services.workspace, git, self._tell_result
                )
            except (_Left, _FolderGone):
                raise
            except Exception as error:  # noqa: BLE001 - the work stays where it is
                if isinstance(error, OSError) and error.errno in files.TRANSIENT:
                    self._wait_for_better("cannot be brought home", error)
                else:
                    result = publish.kept(work, f"{type(error).__name__}: {error}")
        self._show(result=result)
        something = result.get("commit") or result.get("work_tree")
        if work.tree.git and not (work.partial or something):
            return replace(verdict, reason="no_changes")
        return verdict

    def _work(self, *, partial: bool) -> Work | None:
        """What is to be brought home; None where the agent never had a place to work."""
        record = self._record
        result = record.result or {}
        where = (record.repo or "", record.filename, record.job_id)
        tree = self._services.workspace.tree(*where, base=result.get("base"))
        if record.result is None and not (tree.git and tree.path.exists()):
            return None
        try:
            prompt = (self._run / "prompt.md").read_text("utf-8", "replace")
        except OSError:
            prompt = ""
        title, said = publish.title_of(prompt), self._seen.message or ""
        return Work(record, tree, self._run, title, said, partial)

    def _tell_result(self, result: dict[str, Any]) -> None:
        """The work is safe: from here on an abort ends what needs the network."""
        self._network = True
        self._show(result=result)

    def _heed_publishing(self) -> None:
        if self._leave.is_set():
            raise _Left
        with contextlib.suppress(_FolderGone):
            self._note()
            if self._network and self._abort_asked():
                raise GitFailed("an abort came first")

    def _show(self, **changes: Any) -> None:
        """Into the record, as long as there is a run folder for it."""
        self._change(**changes)
        with contextlib.suppress(_FolderGone):
            self._save()

    def _finish(self, verdict: Verdict, exit_code: int | None) -> None:
        """The terminal record, durable, then the prompt's file to the finished root."""
        seen = self._seen
        self._change(thread_id=seen.thread_id, usage=seen.usage)
        self._record = job.advance(
            self._record,
            verdict.state,
            self._now(),
            reason=verdict.reason,
            error=verdict.error,
            exit_code=exit_code,
            activity=None,
            phase=None,
            heartbeat_at=self._now(),
        )
        message = self._run / "last-message.md"
        while True:
            try:
                if seen.message and not (message.exists() and message.stat().st_size):
                    files.write(message, seen.message.encode("utf-8", "replace"))
                self._save(durable=True)
                break
            except (_FolderGone, FileNotFoundError, NotADirectoryError):
                break
            except OSError as error:
                if error.errno not in files.TRANSIENT:  # somebody put a folder in its place
                    why = f"job {self._record.job_id}: its end could not be recorded ({error})"
                    self._services.journal.error(why)
                    break
                self._wait_for_better("cannot record its end", error)
        reason = ": ".join(filter(None, (verdict.reason, verdict.error)))
        self._services.journal.info(f"job {self._record.job_id}: {verdict.state.value} ({reason})")
        self._archive(verdict.state)

    def _archive(self, state: State) -> None:
        if self._prompt is None:
            return
        try:
            self._services.inbox.archive(self._prompt, state)
        except OSError as error:
            why = f"{self._prompt} could not be archived ({error.strerror})"
            self._services.journal.warn(f"job {self._record.job_id}: {why}")

    def _now(self) -> str:
        return job.stamp(self._services.clock())
