"""The entry point of every command: finds it, runs it, turns errors into one line on stderr.

It imports a command's module when the command is called, so that a short command loads neither
argparse nor the server. Exit codes: 0 done, 1 failed, 2 wrong usage or settings.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from pv_lib import stamp
from pv_lib.errors import ConfigFault, ValetError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. `argv` is without the program, by default sys.argv's."""
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except ConfigFault as error:
        for fault in error.faults:
            _complain(fault)
        return 2
    except ValetError as error:
        _complain(error.detail)
        return 1
    except BrokenPipeError:  # the reader of our output has closed it
        _end_output()
        return 1
    except OSError as error:
        _complain(f"{error.filename or 'the system'}: {error.strerror or error}")
        _end_output()
        return 1
    except KeyboardInterrupt:
        return 130


def _run(words: list[str]) -> int:
    if words == ["--version"]:
        print(f"Prompt Valet {stamp.FULL}", flush=True)
        return 0
    commands = importlib.import_module("pv_lib.cli.commands")
    try:
        command, given = commands.parse(words)
    except commands.Fault as error:
        _complain(str(error))
        return 2
    function = getattr(importlib.import_module(command.module), command.function)
    code: int = function(**given)
    return code


def _end_output() -> None:
    """Flush stdout, or drop what cannot be written: the interpreter would complain at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(text: str) -> None:
    journal = importlib.import_module("pv_lib.system.journal")
    priority = "<3>" if journal.listens(os.environ) else ""
    print(f"{priority}pv: " + text.replace("\n", " "), file=sys.stderr)
