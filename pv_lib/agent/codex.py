"""Codex: its command line, its environment, its events.

The one module that knows what only Codex needs or prints; what all agents share is in
`transcript`. Pure: no file, no process, no clock. The facts are from the real CLI:
tests/fixtures/codex holds its recorded output.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from pv_lib.agent import adapter, transcript
from pv_lib.agent.adapter import Launch, Program
from pv_lib.agent.transcript import ERROR_CHARS, ID_CHARS, Transcript, Verdict, brief
from pv_lib.jobs.job import State
from pv_lib.settings.config import Config

_USAGE_COUNTS = 20
_MAX_MISSES = 100  # broken events tried in one line, so that garbage cannot cost much
_EVENT_START = re.compile(r'\{\s*"type"\s*:\s*"(?:(?:thread|turn|item)\.|error")')
_FIND_END = json.JSONDecoder()
_SHELL = re.compile(r"(?:.*/)?(?:ba|da|z)?sh")
_USAGE_LIMIT = "hit your usage limit"
_START_FAILURE = re.compile(r"(error|usage|no prompt provided|not inside a trusted)\b", re.I)
_START_HINT = "check PV_CODEX_BIN, PV_CODEX_ARGS and the agent's own configuration"


class Codex:
    """The Codex CLI as an agent; see `adapter.Agent`."""

    name = "codex"

    def __init__(self, config: Config) -> None:
        self._config = config

    @property
    def program(self) -> Program:
        """The executable, and what to do where it is missing."""
        install = "install Codex (npm install -g @openai/codex)"
        return Program(self._config.codex_bin, "PV_CODEX_BIN", install)

    def argv(self, program: str, launch: Launch) -> list[str]:
        """The argument vector of one run; Codex reads the prompt from stdin."""
        config = self._config
        argv = [program, "exec", "--json", "--color", "never", "--sandbox", config.codex_sandbox]
        argv += ["--cd", str(launch.cwd), "--output-last-message", str(launch.message)]
        if launch.model or config.codex_model:
            argv += ["--model", launch.model or config.codex_model or ""]
        if not launch.git:
            argv.append("--skip-git-repo-check")
        return [*argv, *config.codex_args, "-"]

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables of `environ` that Codex may have."""
        return adapter.allowed(environ, self._config.codex_env, ("CODEX_", "OPENAI_"))

    def transcript(self) -> CodexTranscript:
        """A fresh transcript."""
        return CodexTranscript()

    def judge(self, seen: Transcript, exit_code: int | None) -> Verdict:
        """The verdict on a run that ended by itself."""
        limited = seen.error is not None and _USAGE_LIMIT in seen.error
        if limited and (seen.turn == "failed" or exit_code):
            return Verdict(State.FAILED, "usage_limit", seen.error)
        return transcript.judge(seen, exit_code, _START_HINT, _START_FAILURE)


class CodexTranscript(Transcript):
    """Reads Codex's events: one JSON object a line, with stderr's text between and within."""

    def __init__(self) -> None:
        super().__init__()
        self._header: str | None = None  # id of the command whose line was printed last
        self._todo: list[str] = []

    def say(self, text: str) -> None:
        """Append `text` to the log."""
        self._header = None
        super().say(text)

    def line(self, line: bytes) -> None:
        """An event, text, or both in one line: stdout and stderr share the file."""
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
                self.plain(line[done : found.start()])
            self._event(event)
            done = end
        if not done or line[done:].strip():
            self.plain(line[done:])

    def _event(self, event: dict[str, Any]) -> None:
        self.spoke = True
        kind = _text(event, "type")
        if kind == "thread.started":
            self.thread_id = _text(event, "thread_id")[:ID_CHARS] or None
        elif kind == "turn.started":
            self.activity = "thinking"
            if self.turn == "failed":  # a completed turn counts, whatever follows it
                self.turn = self.error = None
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
            counts = [(name[:ID_CHARS], n) for name, n in usage.items() if type(n) is int]
            self.usage = dict(counts[:_USAGE_COUNTS])
            names = ("input_tokens", "cached_input_tokens", "output_tokens")
            given, cached, out = (self.usage.get(name, 0) for name in names)
            self.say("")
            self.say(f"tokens: {given} in ({cached} cached), {out} out")

    def _turn_failed(self, event: dict[str, Any]) -> None:
        self.turn, self.activity = "failed", "failed"
        error = event.get("error")
        message = _inner(_text(error, "message")) if isinstance(error, dict) else ""
        if message and message[:ERROR_CHARS] != self.error:
            self.say(f"error: {message}")
        self.error = message[:ERROR_CHARS] or self.error

    def _error(self, text: str) -> None:
        message = _inner(text)
        self.error = message[:ERROR_CHARS]
        self.activity = brief(message)
        self.say(f"error: {message}")

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
            self.say(" ".join(["*", kind or "item", *filter(None, named)]))
        else:
            self.activity = brief(kind.replace("_", " ") or "working")

    def _message(self, step: str, item: dict[str, Any]) -> None:
        if step == "completed":
            self.message = _text(item, "text")
            self.activity = brief(self.message)
            self.say("")
            self.say(self.message)

    def _reasoning(self, step: str, item: dict[str, Any]) -> None:
        if step == "completed":
            self.activity = brief(_text(item, "text"))
            self.say("thinking: " + _text(item, "text"))

    def _command(self, step: str, item: dict[str, Any]) -> None:
        line = _shown_command(_text(item, "command"))
        name = _text(item, "id")
        if step == "started":
            self.activity = brief("running: " + line)
        elif step != "completed":
            return
        if step == "started" or self._header != name:
            self.say("")
            self.say("$ " + line)
        self._header = name
        if step == "completed":
            self.activity = "thinking"
            output = _text(item, "aggregated_output")
            if output:
                self.say(output.removesuffix("\n"))
            code = item.get("exit_code")
            self.say(f"[exit {code}]" if code is not None else f"[{_text(item, 'status')}]")

    def _change(self, step: str, item: dict[str, Any]) -> None:
        changes = item.get("changes")
        listed = [c for c in changes if isinstance(c, dict)] if isinstance(changes, list) else []
        names = [f"{_text(c, 'kind')} {_text(c, 'path')}" for c in listed]
        if step == "started":
            self.activity = brief("editing: " + ", ".join(names))
        elif step == "completed":
            self.activity = "thinking"
            failed = " (failed)" if item.get("status") == "failed" else ""
            self.say("")
            for name in names:
                self.say(f"* {name}{failed}")

    def _plan(self, step: str, item: dict[str, Any]) -> None:
        todo = item.get("items")
        listed = [t for t in todo if isinstance(t, dict)] if isinstance(todo, list) else []
        lines = [f"[{'x' if t.get('completed') else ' '}] {_text(t, 'text')}" for t in listed]
        if lines != self._todo:
            self._todo = lines
            self.say("")
            self.say("plan:")
            for line in lines:
                self.say("  " + line)
        if step != "completed":
            self.activity = "planning"

    def _warning(self, step: str, item: dict[str, Any]) -> None:
        if step == "completed":
            self.say("warning: " + _text(item, "message"))


def _decode(text: str, start: int = 0) -> tuple[dict[str, Any] | None, int]:
    """The JSON object at `start` of bytes decoded as Latin-1, and its end; else (None, 0)."""
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
    """The sentence in an error message that is the JSON body of a provider's answer."""
    if message.startswith("{"):
        body, _ = _decode(message.encode("utf-8", "replace").decode("latin-1"))
        error = body.get("error") if body else None
        if isinstance(error, dict) and _text(error, "message"):
            return _text(error, "message")
    return message


def _shown_command(line: str) -> str:
    """The command itself, without the `bash -lc '…'` that Codex wraps around it."""
    try:
        words = shlex.split(line)
    except ValueError:
        return line
    wrapped = len(words) == 3 and _SHELL.fullmatch(words[0]) and words[1] in ("-c", "-lc")
    return words[2] if wrapped else line
