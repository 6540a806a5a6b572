"""The protocol of an agent: what the runner must know of a program that does coding jobs.

One module implements it for one agent, `registry` lists them. The life cycle of one run:

    program, argv, environ   before the start; the runner finds the program, writes prompt.md
                             and gives all of it to the launcher
    transcript               at each start and each adoption, for the raw output from its start
    judge                    when the process has ended by itself. An abort, a timeout or a limit
                             has its verdict already; a process that stays behind after its turn
                             is ended, and judged with exit status 0

An agent is made once, from the settings, and is used by the threads of all jobs: it holds no
state of a run. Its methods are pure. To resume a thread of an earlier run will be a field of
`Launch`. How a process is started, found again and ended is `launcher`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pv_lib.agent.transcript import Transcript, Verdict

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
_ENVIRONMENT = frozenset(
    {"PATH", "HOME", "LANG", "TERM", "TMPDIR", *_PROXIES, *map(str.lower, _PROXIES)}
)


@dataclass(frozen=True)
class Program:
    """An agent's executable: `name` in PATH or a path, the `setting` that names it.

    `install` is what a person does where it is missing, as an imperative.
    """

    name: str
    setting: str
    install: str


@dataclass(frozen=True)
class Launch:
    """What one run of an agent needs.

    `cwd` is the folder to work in, and a git work tree if `git`; the agent may write its last
    message to `message`; `model` is the job's own choice, None where it has none.
    """

    cwd: Path
    message: Path
    model: str | None
    git: bool


class Agent(Protocol):
    """A program that reads a prompt from stdin, works in a folder, prints and ends."""

    @property
    def name(self) -> str:
        """Its key in the registry."""

    @property
    def program(self) -> Program:
        """Its executable, to be found in PATH at each start."""

    def argv(self, program: str, launch: Launch) -> list[str]:
        """The argument vector; `program` is the path that was found. The prompt is never in it."""

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Its environment, out of the server's `environ`: by allow-list, see `allowed`."""

    def transcript(self) -> Transcript:
        """A fresh transcript, which reads this agent's output."""

    def judge(self, seen: Transcript, exit_code: int | None) -> Verdict:
        """The verdict on a run that ended by itself; `exit_code` None: unknown."""


def allowed(
    environ: Mapping[str, str], names: Sequence[str], prefixes: tuple[str, ...]
) -> dict[str, str]:
    """The variables that every agent gets, and those with one of `names` or `prefixes`.

    A list of what is allowed, so that no secret of the server can slip through.
    """
    return {
        name: value
        for name, value in environ.items()
        if name in _ENVIRONMENT or name in names or name.startswith(prefixes)
    }
