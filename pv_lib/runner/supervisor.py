"""The supervisor of a running agent: its output into the log, and its end when it must end.

It heeds ABORT, the job's timeout, the log's limit and a process that stays behind its turn, and
sends the signals that are due. It starts nothing, and judges nothing but why it ends an agent.
"""

from __future__ import annotations

import signal

from pv_lib.agent.adapter import Agent
from pv_lib.agent.launcher import RAW, Launcher, Process
from pv_lib.agent.transcript import Transcript, Verdict
from pv_lib.jobs.job import State
from pv_lib.runner.interrupt import Interrupt, Left
from pv_lib.runner.logwriter import LogWriter
from pv_lib.runner.recorder import FolderGone, Recorder
from pv_lib.runner.timing import Timing
from pv_lib.settings.config import Config

TICK = 0.02  # seconds between two rounds: a line is in the log this much later
_READ = 512 << 10  # bytes of raw output per round, so that a flood cannot delay an abort
SWEEP_GRACE = 0.5  # seconds a leftover child gets between SIGTERM and SIGKILL
ABORTED = Verdict(State.ABORTED, "abort_requested")


class Supervisor:
    """Supervises the agent of one job. `ending` is set once: the verdict by which it is ended."""

    def __init__(
        self,
        recorder: Recorder,
        interrupt: Interrupt,
        timing: Timing,
        config: Config,
        agent: Agent,
        launcher: Launcher,
    ) -> None:
        self.ending: Verdict | None = None
        self._recorder = recorder
        self._interrupt = interrupt
        self._timing = timing
        self._max_log_bytes = config.max_log_bytes
        self._grace = config.abort_grace_seconds
        self._agent = agent
        self._launcher = launcher

    def attend(self, process: Process, seen: Transcript) -> None:
        """Until the agent is over: its output into the log, its facts into the record.

        Raises Left, FolderGone, and OSError where the system is short of something: it can be
        called again then, with a fresh transcript.
        """
        run = self._recorder.run
        try:
            raw = (run / RAW).open("ab+", buffering=0)
            log = (run / "job.log").open("ab", buffering=0)
        except FileNotFoundError:
            raise FolderGone from None
        with raw, log:
            raw.seek(0)
            writer = LogWriter(raw, log, seen)
            while self._turn_round(process, writer, seen):
                pass
            # A child that is left could write for ever: end it before the rest is read.
            self._launcher.end(self._recorder.record.job_id, SWEEP_GRACE)
            self._read_rest(writer, seen)

    def _turn_round(self, process: Process, writer: LogWriter, seen: Transcript) -> bool:
        """One round; whether the agent goes on."""
        over = not process.alive()  # before the read: what the agent wrote is all there then
        writer.pump(_READ)
        if over:
            return False
        if self.ending is None:
            self.ending = self._reason_to_end(writer.size, seen)
            if self.ending and self.ending.state is State.FAILED:  # for the next server
                self._recorder.change(reason=self.ending.reason, error=self.ending.error)
                self._recorder.save()
        if self.ending is not None:
            self._push(process)
        self._recorder.beat(seen)
        try:
            self._interrupt.wait(TICK)
        except Left:
            self._recorder.save()
            raise
        return True

    def _read_rest(self, writer: LogWriter, seen: Transcript) -> None:
        end = writer.size
        while writer.pump(min(_READ, max(0, end - writer.taken))):
            self._recorder.beat(seen)
            self._interrupt.check()
        writer.finish()
        while writer.unwritten:  # a full disk: wait for room
            self._interrupt.wait_to_retry("cannot write its log", writer.fault.strerror)
            writer.flush()
            self._recorder.beat(seen)

    def _reason_to_end(self, size: int, seen: Transcript) -> Verdict | None:
        """The verdict, if the agent must be ended now; `size` is that of its raw output."""
        limit = self._max_log_bytes
        ended = seen.turn is not None
        is_behind_turn = self._timing.is_behind_turn(ended=ended, grace=self._grace)
        if self._recorder.abort_asked():
            return ABORTED
        if self._timing.timed_out:
            why = f"the agent was ended after its {self._timing.timeout:g} s"
            return Verdict(State.FAILED, "timeout", why)
        if size > limit:
            why = f"the agent was ended: it wrote more than PV_MAX_LOG_BYTES={limit}"
            return Verdict(State.FAILED, "log_limit", why)
        return self._agent.judge(seen, 0) if is_behind_turn else None

    def _push(self, process: Process) -> None:
        """Send the next signal of the ending, when it is due."""
        step = self._timing.due(self._grace)
        if step is None:
            return
        process.signal(step)
        if step is signal.SIGKILL:
            self._launcher.end(self._recorder.record.job_id, 0)
        else:
            process.signal(signal.SIGCONT)  # a stopped one must get the signal
