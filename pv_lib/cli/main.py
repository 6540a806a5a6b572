"""The entry of every command: finds it, runs it, turns errors into one line on stderr.

A module is imported when it is called for and not before, so that a short command starts without
argparse and without the server; once imported, a command has all it needs. Exit codes: 0 done, 1
failed, 2 wrong usage or settings.
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
    words = sys.argv[1:] if argv is None else list(argv)
    if words == ["--version"]:
        print(f"Prompt Valet {stamp.FULL}")
        return 0
    commands = importlib.import_module("pv_lib.cli.commands")
    try:
        command, given = commands.parse(words)
        function = getattr(importlib.import_module(command.module), command.function)
        code: int = function(**given)
    except commands.Fault as error:
        _complain(str(error))
        code = 2
    except ConfigFault as error:
        for fault in error.faults:
            _complain(fault)
        code = 2
    except ValetError as error:
        _complain(error.detail)
        code = 1
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        _complain(f"{error.filename or 'the system'}: {error.strerror or error}")
        code = 1
    except KeyboardInterrupt:
        code = 130
    return code


def _complain(text: str) -> None:
    journal = importlib.import_module("pv_lib.system.journal")
    priority = "<3>" if journal.listens(os.environ) else ""
    print(f"{priority}pv: " + text.replace("\n", " "), file=sys.stderr)
