"""The transcript of an agent's run: raw output in, log text and facts for the record out.

It owns what all agents share: bytes to lines, lines to text, the facts that the record and the
verdict are made from, and `judge`. Lines of plain text are complete here; an agent that prints
events overrides `Transcript.line`.
Pure: no file, no process, no clock, and nothing that only one agent says. The same output always
gives the same log, however it is cut into pieces, so a log can be continued after a crash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pv_lib.jobs.job import State

MAX_LINE = 16 << 20  # bytes; events above 1 MB were seen. A longer line is cut and taken as text
ID_CHARS = 160  # of an id or a name from the output
ERROR_CHARS = 2000  # of an error or a first line that is kept for the record
_ACTIVITY_CHARS = 160
_CANNOT_START = (126, 127)  # the exit status of sh: not executable, not found
_START_FAILURE = re.compile(r"(error|usage)\b", re.I)  # how most programs begin then
_LINE_END = re.compile(r"\r\n|\n|\r")


class Transcript:
    """Turns an agent's raw output into a readable log, and keeps what the record needs.

    `turn` is None until the turn ends, then `completed` or `failed`, and None again when another
    turn starts; `error` is the text of that turn's last error; `spoke` is whether there was any
    event; `first_text` is the first line that was no event.
    """

    def __init__(self) -> None:
        self.spoke = False
        self.thread_id: str | None = None
        self.usage: dict[str, Any] | None = None
        self.activity: str | None = None
        self.message: str | None = None
        self.turn: str | None = None
        self.error: str | None = None
        self.first_text: str | None = None
        self._rest = bytearray()
        self._out: list[str] = []

    def feed(self, data: bytes) -> bytes:
        """The next bytes of the log for the next bytes of the raw output."""
        start = len(self._rest)
        self._rest += data
        begin = 0
        while (end := self._rest.find(b"\n", max(start, begin))) >= 0:
            self._take(bytes(self._rest[begin:end]))
            begin = end + 1
        del self._rest[:begin]
        while len(self._rest) > MAX_LINE:
            self.plain(bytes(self._rest[:MAX_LINE]))
            del self._rest[:MAX_LINE]
        return self._taken()

    def finish(self) -> bytes:
        """The last bytes of the log: a line that the agent did not end."""
        if self._rest:
            self._take(bytes(self._rest))
            self._rest.clear()
        return self._taken()

    def line(self, line: bytes) -> None:
        """One line of at most MAX_LINE bytes, without its LF. Override it to read events."""
        self.plain(line)

    def plain(self, line: bytes) -> None:
        """A line, or a part of one, that is text."""
        text = line.decode("utf-8", "replace").removesuffix("\r")
        if self.first_text is None and text.strip() and not text.startswith("WARNING"):
            self.first_text = text.strip()[:ERROR_CHARS]
        if not self.spoke and text.strip():
            self.activity = brief(text)
        self.say(text)

    def say(self, text: str) -> None:
        """Append `text` to the log; it ends with a newline there."""
        self._out += [line + "\n" for line in _LINE_END.split(text)]

    def _take(self, line: bytes) -> None:
        while len(line) > MAX_LINE:
            self.plain(line[:MAX_LINE])
            line = line[MAX_LINE:]
        self.line(line)

    def _taken(self) -> bytes:
        text = "".join(self._out)
        self._out.clear()
        return text.encode("utf-8", "replace")


@dataclass(frozen=True)
class Verdict:
    """How a job ends: the record's state, reason and error."""

    state: State
    reason: str
    error: str | None = None


def judge(
    seen: Transcript,
    exit_code: int | None,
    hint: str,
    start_failure: re.Pattern[str] = _START_FAILURE,
) -> Verdict:
    """The verdict on an agent that ended by itself with `exit_code`; None: unknown.

    `hint` is what a person should check where the agent failed at its start; `start_failure`
    matches the first line of one that did. Exit status 0 is no success for an agent that prints
    events: its turn must have completed.
    """
    if seen.turn == "failed":
        return Verdict(State.FAILED, "turn_failed", seen.error or "the agent gave no reason")
    if exit_code is None:
        why = "the agent vanished without an exit status: killed from outside, or a power cut"
        return Verdict(State.FAILED, "lost", why)
    if exit_code == 0 and seen.turn is None and seen.spoke:
        return Verdict(State.FAILED, "turn_failed", "the agent ended before its turn was complete")
    if exit_code == 0:
        return Verdict(State.SUCCEEDED, "completed")
    last = f": {seen.error or seen.first_text}" if seen.error or seen.first_text else ""
    if not seen.spoke and _failed_at_start(seen, exit_code, start_failure):
        why = f"the agent failed at its start with exit status {exit_code}{last}; {hint}"
        return Verdict(State.FAILED, "spawn_failed", why)
    return Verdict(State.FAILED, "exit_code", f"the agent ended with exit status {exit_code}{last}")


def brief(text: str) -> str:
    """The first line of `text` that is not blank, printable and short: the record's activity."""
    line = next((part.strip() for part in _LINE_END.split(text) if part.strip()), "")
    line = "".join(c if c.isprintable() else " " for c in line)
    return line if len(line) <= _ACTIVITY_CHARS else line[: _ACTIVITY_CHARS - 1] + "…"


def _failed_at_start(seen: Transcript, exit_code: int, pattern: re.Pattern[str]) -> bool:
    if exit_code in _CANNOT_START or seen.first_text is None:
        return True
    return pattern.match(seen.first_text) is not None
