"""The protocol of a launcher: it starts the process of an agent, finds it again, and ends it.

`process` implements it for this machine. The contract of any implementation:

- A run folder never starts two agents. Only NEVER permits a start; where it is unknown whether
  an agent has started, the answer is OVER.
- The agent outlives the server. After a crash or a restart, `trace` and `adopt` need nothing but
  the run folder; no pid in a file and no timestamp may be the proof of life.
- The agent reads prompt.md as stdin and appends both its outputs to RAW, in the run folder.
- The exit status is stored before `alive` becomes false: who sees the end can read the status.
- Every process of the job has MARKER in its environment, git's included, and `end` finds them.
- OSError is for what may pass (files.TRANSIENT), JobFailed for what will not. Nothing has been
  started after either.

The runner calls, from the job's own thread: `trace`; then `spawn` or `adopt`; `alive` in each
round, `signal` when it ends the job; after the end `end` for what is left, then `exit_code`.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Protocol

MARKER = "PV_JOB_ID"  # the variable that every process of a job carries
RAW = "codex.jsonl"  # the raw output in the run folder, of any agent: the name is contract


class Trace(Enum):
    """What a run folder says about its agent."""

    NEVER = "never"  # it has not started: safe to start it
    ALIVE = "alive"  # it runs now: adopt it
    OVER = "over"  # it ran and is gone


class Process(Protocol):
    """The process of one agent, running or ended."""

    @property
    def pid(self) -> int | None:
        """For the record and for people; None where there is none on this machine."""

    def alive(self) -> bool:
        """Whether the agent may still run. True while that cannot be known."""

    def signal(self, number: signal.Signals) -> None:
        """Signal the agent and its children; no effect once it has ended. Never a stranger."""

    def exit_code(self) -> int | None:
        """The stored exit status; None when there is none. Never a guess."""


class Launcher(Protocol):
    """Starts, finds and ends the agents of all jobs; used by several threads."""

    def trace(self, run: Path, /) -> Trace:
        """Whether the agent of this run folder never started, runs, or is over."""

    def spawn(
        self,
        run: Path,
        job_id: str,
        argv: Sequence[str],
        cwd: Path,
        environ: Mapping[str, str],
        /,
    ) -> Process:
        """Start `argv` in `cwd` with `environ` and the marker."""

    def adopt(self, run: Path, job_id: str, /) -> Process:
        """The agent that an earlier server started for this run folder."""

    def end(self, job_id: str, grace: float, /) -> None:
        """End every process of the job: SIGTERM, `grace` seconds, SIGKILL. Returns when done."""
