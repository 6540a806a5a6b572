#!/usr/bin/env python3
"""An agent for tests: takes Codex's arguments, does what the prompt's `fake:` lines say.

It speaks Codex's events, unless `fake: plain` comes first; then it prints text. A step a line::

    fake: plain             speak no events from here on
    fake: say TEXT          a message (plain: a line)
    fake: lines N SECONDS   N messages `line 1` … with a pause between them
    fake: stderr TEXT       a line on stderr
    fake: raw TEXT          a line on stdout as it stands
    fake: write PATH TEXT   write a file in the work tree
    fake: remove PATH       remove a file from the work tree
    fake: sh TEXT           run a line of shell in the work tree
    fake: append PATH TEXT  add a line to a file
    fake: now PATH          add the Unix time as a line to a file
    fake: wait PATH         wait until the file exists
    fake: env PATH          write the environment, one variable a line

The last four meet the test in the folder CODEX_FAKE_YARD, not in the work tree::

    fake: ignore INT|TERM   ignore the signal
    fake: child SECONDS     leave a child in a session of its own behind
    fake: fail-turn TEXT    end with turn.failed and exit status 1
    fake: linger SECONDS    complete the turn, then stay
    fake: exit N            end with this status and nothing more
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

plain = False


def event(kind: str, **fields: object) -> None:
    """One event, unless this agent speaks none."""
    if not plain:
        print(json.dumps({"type": kind, **fields}, separators=(",", ":")), flush=True)


def say(text: str) -> None:
    """A message."""
    if plain:
        print(text, flush=True)
    item = {"id": "item_0", "type": "agent_message", "text": text}
    event("item.completed", item=item)


def complete() -> None:
    """The end of a turn that worked."""
    counts = {"input_tokens": 1200, "cached_input_tokens": 200, "output_tokens": 34}
    event("turn.completed", usage=counts)


def step(name: str, argument: str, where: pathlib.Path) -> None:
    """Do one step."""
    first, _, rest = argument.partition(" ")
    yard = pathlib.Path(os.environ.get("CODEX_FAKE_YARD", where))
    if name == "say":
        say(argument)
    elif name == "lines":
        for number in range(1, int(first) + 1):
            say(f"line {number}")
            time.sleep(float(rest or 0))
    elif name == "stderr":
        print(argument, file=sys.stderr, flush=True)
    elif name == "raw":
        print(argument, flush=True)
    elif name == "write":
        (where / first).write_text(rest)
    elif name == "remove":
        (where / first).unlink()
    elif name == "sh":
        subprocess.run(argument, shell=True, cwd=where, check=True)
    elif name in ("append", "now"):
        with (yard / first).open("a") as file:
            file.write((rest if name == "append" else repr(time.time())) + "\n")
    elif name == "wait":
        while not (yard / first).exists():
            time.sleep(0.01)
    elif name == "env":
        (yard / first).write_text("\n".join(f"{k}={v}" for k, v in os.environ.items()))
    elif name == "ignore":
        signal.signal(getattr(signal, "SIG" + first), signal.SIG_IGN)
    elif name == "child":
        subprocess.Popen(["sleep", first], start_new_session=True)
    elif name == "fail-turn":
        event("turn.failed", error={"message": argument})
        sys.exit(1)
    elif name == "linger":
        complete()
        time.sleep(float(first))
        sys.exit(0)
    elif name == "exit":
        sys.exit(int(first))
    else:
        sys.exit(f"fake_codex: unknown step {name}")


def main() -> None:
    """Play the prompt's steps, then complete the turn."""
    global plain
    where = pathlib.Path(sys.argv[sys.argv.index("--cd") + 1])
    lines = [line[6:] for line in sys.stdin.read().splitlines() if line.startswith("fake: ")]
    plain = "plain" in lines
    event("thread.started", thread_id="fake-thread")
    event("turn.started")
    for line in lines:
        name, _, argument = line.partition(" ")
        if name != "plain":
            step(name, argument, where)
    complete()


if __name__ == "__main__":
    main()
