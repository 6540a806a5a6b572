"""The agent's language: its command line and environment, and its events as text and verdict.

Pure: no file, no process, no clock. `Transcript` folds the bytes of codex.jsonl, in whatever
pieces they come, into the bytes of job.log; the same input always gives the same log, so that a
log can be continued after a crash. Lines that are no events are passed on as text: an agent that
speaks none works as well, and so does Codex's stderr, which shares the file.
Facts are from the real CLI (tests/fixtures/codex holds what it printed).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pv_lib.jobs.job import State
from pv_lib.settings.config import Config

MAX_LINE = 16 << 20  # one event was seen at over 1 MB; a longer line is cut and taken as text
_ACTIVITY_CHARS = 160
_ERROR_CHARS = 2000  # what of an error or a first line may stand in the record
_USAGE_COUNTS = 20
_CANNOT_START = (126, 127)  # what sh answers: not executable, not found
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
_ENVIRONMENT = frozenset(
    {"PATH", "HOME", "LANG", "TERM", "TMPDIR", *_PROXIES, *map(str.lower, _PROXIES)}
)
_MAX_MISSES = 100  # broken events tried in one line, so that garbage cannot cost much
_EVENT_START = re.compile(r'\{\s*"type"\s*:\s*"(?:(?:thread|turn|item)\.|error")')
_FIND_END = json.JSONDecoder()
_LINE_END = re.compile(r"\r\n|\n|\r")
_SHELL = re.compile(r"(?:.*/)?(?:ba|da|z)?sh")
# How Codex, and most programs, begin when they give up before any work.
_START_FAILURE = re.compile(r"(error|usage|no prompt provided|not inside a trusted)\b", re.I)


def command(
    config: Config, program: str, model: str | None, cwd: Path, message: Path, *, git: bool
) -> list[str]:
    """The argument vector of one run; the prompt comes on stdin, never here."""
    argv = [program, "exec", "--json", "--color", "never", "--sandbox", config.codex_sandbox]
    argv += ["--cd", str(cwd), "--output-last-message", str(message)]
    if model or config.codex_model:
        argv += ["--model", model or config.codex_model or ""]
    if not git:
        argv.append("--skip-git-repo-check")
    return [*argv, *config.codex_args, "-"]


def environment(environ: Mapping[str, str], further: tuple[str, ...]) -> dict[str, str]:
    """What of `environ` the agent gets: an allow-list, so that no secret of ours slips through."""
    return {
        name: value
        for name, value in environ.items()
        if name in _ENVIRONMENT or name in further or name.startswith(("CODEX_", "OPENAI_"))
    }


class Transcript:
    """Folds an agent's raw output into a readable log, and keeps what the record needs.

    `turn` is None until the turn ends, then `completed` or `failed`; `error` the last error's
    text; `spoke` whether any event was seen; `first_text` the first line that was no event.
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
        self._header: str | None = None  # id of the command whose line was printed last
        self._todo: list[str] = []

    def feed(self, data: bytes) -> bytes:
        """The log's next bytes for the raw output's next bytes."""
        start = len(self._rest)
        self._rest += data
        begin = 0
        while (end := self._rest.find(b"\n", max(start, begin))) >= 0:
            self._line(bytes(self._rest[begin:end]))
            begin = end + 1
        del self._rest[:begin]
        while len(self._rest) > MAX_LINE:
            self._plain(bytes(self._rest[:MAX_LINE]))
            del self._rest[:MAX_LINE]
        return self._taken()

    def finish(self) -> bytes:
        """The log's last bytes: a line that the agent left unfinished."""
        if self._rest:
            self._line(bytes(self._rest))
            self._rest.clear()
        return self._taken()

    def _taken(self) -> bytes:
        text = "".join(self._out)
        self._out.clear()
        return text.encode("utf-8", "replace")

    def _say(self, text: str) -> None:
        self._header = None
        self._out += [line + "\n" for line in _LINE_END.split(text)]

    def _line(self, line: bytes) -> None:
        """One line: an event, text, or one run into the other where two streams met."""
        while len(line) > MAX_LINE:
            self._plain(line[:MAX_LINE])
            line = line[MAX_LINE:]
        done, misses = 0, 0
        text = line.decode("latin-1")  # a character a byte: positions are the same
        for found in _EVENT_START.finditer(text):
            if found.start() < done or misses > _MAX_MISSES:
                continue
            event, end = _decode(text, found.start())
            if event is None:
                misses += 1
                continue
            if line[done : found.start()].strip():
                self._plain(line[done : found.start()])
            self._event(event)
            done = end
        if not done or line[done:].strip():
            self._plain(line[done:])

    def _plain(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").removesuffix("\r")
        if self.first_text is None and text.strip() and not text.startswith("WARNING"):
            self.first_text = text.strip()[:_ERROR_CHARS]
        if not self.spoke and text.strip():
            self.activity = _brief(text)
        self._say(text)

    def _event(self, event: dict[str, Any]) -> None:
        self.spoke = True
        kind = _text(event, "type")
        if kind == "thread.started":
            self.thread_id = _text(event, "thread_id")[:_ACTIVITY_CHARS] or None
        elif kind == "turn.started":
            self.activity = "thinking"
        elif kind == "turn.completed":
            self._turn_completed(event)
        elif kind == "turn.failed":
            self._turn_failed(event)
        elif kind == "error":
            self._error(_text(event, "message"))
        elif kind.startswith("item."):
            item = event.get("item")
            if isinstance(item, dict):
                self._item(kind.removeprefix("item."), item)

    def _turn_completed(self, event: dict[str, Any]) -> None:
        self.turn, self.activity = "completed", "finished"
        usage = event.get("usage")
        if isinstance(usage, dict):
            counts = [(name[:_ACTIVITY_CHARS], n) for name, n in usage.items() if type(n) is int]
            self.usage = dict(counts[:_USAGE_COUNTS])
            names = ("input_tokens", "cached_input_tokens", "output_tokens")
            given, cached, out = (self.usage.get(name, 0) for name in names)
            self._say("")
            self._say(f"tokens: {given} in ({cached} cached), {out} out")

    def _turn_failed(self, event: dict[str, Any]) -> None:
        self.turn, self.activity = "failed", "failed"
        error = event.get("error")
        message = _inner(_text(error, "message")) if isinstance(error, dict) else ""
        if message and message[:_ERROR_CHARS] != self.error:
            self._say(f"error: {message}")
        self.error = message[:_ERROR_CHARS] or self.error

    def _error(self, text: str) -> None:
        message = _inner(text)
        self.error = message[:_ERROR_CHARS]
        self.activity = _brief(message)
        self._say(f"error: {message}")

    def _item(self, step: str, item: dict[str, Any]) -> None:
        kind = _text(item, "type")
        show: Callable[[str, dict[str, Any]], None] | None = {
            "agent_message": self._message,
            "reasoning": self._reasoning,
            "command_execution": self._command,
            "file_change": self._change,
            "todo_list": self._plan,
            "error": self._warning,
        }.get(kind)
        if show:
            show(step, item)
        elif step == "completed":
            named = (_text(item, name) for name in ("server", "tool", "query", "status"))
            self._say(" ".join(["*", kind or "item", *filter(None, named)]))
        else:
            self.activity = _brief(kind.replace("_", " ") or "working")

    def _message(self, step: str, item: dict[str, Any]) -> None:
        if step == "completed":
            self.message = _text(item, "text")
            self.activity = _brief(self.message)
            self._say("")
            self._say(self.message)

    def _reasoning(self, step: str, item: dict[str, Any]) -> None:
        if step == "completed":
            self.activity = _brief(_text(item, "text"))
            self._say("thinking: " + _text(item, "text"))

    def _command(self, step: str, item: dict[str, Any]) -> None:
        line = _shown_command(_text(item, "command"))
        name = _text(item, "id")
        if step == "started":
            self.activity = _brief("running: " + line)
        elif step != "completed":
            return
        if step == "started" or self._header != name:
            self._say("")
            self._say("$ " + line)
        self._header = name
        if step == "completed":
            self.activity = "thinking"
            output = _text(item, "aggregated_output")
            if output:
                self._say(output.removesuffix("\n"))
            code = item.get("exit_code")
            self._say(f"[exit {code}]" if code is not None else f"[{_text(item, 'status')}]")

    def _change(self, step: str, item: dict[str, Any]) -> None:
        changes = item.get("changes")
        listed = [c for c in changes if isinstance(c, dict)] if isinstance(changes, list) else []
        names = [f"{_text(c, 'kind')} {_text(c, 'path')}" for c in listed]
        if step == "started":
            self.activity = _brief("editing: " + ", ".join(names))
        elif step == "completed":
            self.activity = "thinking"
            failed = " (failed)" if item.get("status") == "failed" else ""
            self._say("")
            for name in names:
                self._say(f"* {name}{failed}")

    def _plan(self, step: str, item: dict[str, Any]) -> None:
        todo = item.get("items")
        listed = [t for t in todo if isinstance(t, dict)] if isinstance(todo, list) else []
        lines = [f"[{'x' if t.get('completed') else ' '}] {_text(t, 'text')}" for t in listed]
        if lines != self._todo:
            self._todo = lines
            self._say("")
            self._say("plan:")
            for line in lines:
                self._say("  " + line)
        if step != "completed":
            self.activity = "planning"

    def _warning(self, step: str, item: dict[str, Any]) -> None:
        if step == "completed":
            self._say("warning: " + _text(item, "message"))


@dataclass(frozen=True)
class Verdict:
    """How a job ends: the record's state, reason and error."""

    state: State
    reason: str
    error: str | None = None


def judge(seen: Transcript, exit_code: int | None) -> Verdict:
    """What became of an agent that has ended by itself, with `exit_code` (None: unknown).

    Exit 0 alone proves nothing of an agent that speaks events: the turn must have completed.
    """
    message = seen.error or "the agent gave no reason"
    if "hit your usage limit" in message and (seen.turn == "failed" or exit_code):
        return Verdict(State.FAILED, "usage_limit", message)
    if seen.turn == "failed":
        return Verdict(State.FAILED, "turn_failed", message)
    if exit_code is None:
        why = "the agent vanished without an exit status: killed from outside, or a power cut"
        return Verdict(State.FAILED, "lost", why)
    if exit_code == 0 and seen.turn is None and seen.spoke:
        return Verdict(State.FAILED, "turn_failed", "the agent ended before its turn was complete")
    if exit_code == 0:
        return Verdict(State.SUCCEEDED, "completed")
    last = f": {seen.error or seen.first_text}" if seen.error or seen.first_text else ""
    if not seen.spoke and _failed_at_start(seen, exit_code):
        hint = "check PV_CODEX_BIN, PV_CODEX_ARGS and the agent's own configuration"
        why = f"the agent failed at its start with exit status {exit_code}{last}; {hint}"
        return Verdict(State.FAILED, "spawn_failed", why)
    return Verdict(State.FAILED, "exit_code", f"the agent ended with exit status {exit_code}{last}")


def _failed_at_start(seen: Transcript, exit_code: int) -> bool:
    if exit_code in _CANNOT_START or seen.first_text is None:
        return True
    return _START_FAILURE.match(seen.first_text) is not None


def _decode(text: str, start: int = 0) -> tuple[dict[str, Any] | None, int]:
    """The JSON object at `start` of bytes read as Latin-1, and where it ends; else (None, 0)."""
    try:
        _, end = _FIND_END.raw_decode(text, start)
        event = json.loads(text[start:end].encode("latin-1").decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None, 0
    return (event, end) if isinstance(event, dict) else (None, 0)


def _text(plain: Mapping[str, Any], name: str) -> str:
    value = plain.get(name)
    return value if isinstance(value, str) else ""


def _inner(message: str) -> str:
    """An error's own sentence, where a provider's JSON body was passed on as the message."""
    if message.startswith("{"):
        body, _ = _decode(message.encode("utf-8", "replace").decode("latin-1"))
        error = body.get("error") if body else None
        if isinstance(error, dict) and _text(error, "message"):
            return _text(error, "message")
    return message


def _brief(text: str) -> str:
    line = next((part.strip() for part in _LINE_END.split(text) if part.strip()), "")
    line = "".join(c if c.isprintable() else " " for c in line)
    return line if len(line) <= _ACTIVITY_CHARS else line[: _ACTIVITY_CHARS - 1] + "…"


def _shown_command(line: str) -> str:
    """What the agent typed, without the `bash -lc '…'` that Codex wraps around it."""
    try:
        words = shlex.split(line)
    except ValueError:
        return line
    wrapped = len(words) == 3 and _SHELL.fullmatch(words[0]) and words[1] in ("-c", "-lc")
    return words[2] if wrapped else line
