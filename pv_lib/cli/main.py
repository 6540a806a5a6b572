"""The command line: one table of commands, and errors as one line on stderr.

A command's module is imported when it is called for and not before, so that a short command starts
without the server; once imported, the module has all it needs. Exit codes: 0 done, 1 failed, 2
wrong usage or settings.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pv_lib import stamp
from pv_lib.errors import ConfigFault, ValetError

_SETTINGS = "pv_lib.settings.config"  # whose table --help shows
_DRY_RUN = ("--dry-run", {"action": "store_true", "help": "say each step and take none"})


class Command(NamedTuple):
    """One row: the command, and the function that gets its arguments by name.

    `arguments` are what argparse takes for each.
    """

    name: str
    help: str
    module: str
    function: str
    arguments: tuple[tuple[str, dict[str, Any]], ...] = ()


COMMANDS = (
    Command(
        "serve",
        "answer HTTP and run the jobs",
        "pv_lib.app",
        "serve",
        (
            (
                "--no-watcher",
                {"action": "store_true", "help": "only answer HTTP; a `watch` runs the jobs"},
            ),
        ),
    ),
    Command("watch", "run the jobs, without HTTP", "pv_lib.app", "watch"),
    Command(
        "install",
        "set this machine up to run it, as root",
        "pv_lib.cli.setup",
        "install",
        (("--token", {"action": "store_true", "help": "make a token and ask for it"}), _DRY_RUN),
    ),
    Command(
        "upgrade",
        "replace the installed version, as root",
        "pv_lib.cli.setup",
        "upgrade",
        (
            (
                "file",
                {
                    "nargs": "?",
                    "metavar": "FILE",
                    "type": Path,
                    "help": "the new pv.pyz; else the one that runs",
                },
            ),
            _DRY_RUN,
        ),
    ),
    Command(
        "uninstall",
        "remove it and leave its data, as root",
        "pv_lib.cli.setup",
        "uninstall",
        (_DRY_RUN,),
    ),
    Command(
        "demo",
        "show the main job in a temporary root",
        "pv_lib.cli.demo",
        "demo",
        (("--keep", {"metavar": "DIR", "type": Path, "help": "leave everything in DIR"}),),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    given = vars(_parser().parse_args(argv))
    command: Command = given.pop("command")
    try:
        function: Callable[..., int] = getattr(_load(command.module), command.function)
        return function(**given)
    except ConfigFault as error:
        for fault in error.faults:
            _complain(fault)
        return 2
    except ValetError as error:
        _complain(error.detail)
        return 1
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _complain(f"{error.filename or 'the system'}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit 2."""
        _complain(f"{message} (see {self.prog} --help)")
        raise SystemExit(2)


class _TopParser(_Parser):
    """Adds the table of settings to its help, which no other call needs."""

    def format_help(self) -> str:
        """As argparse has it, and the settings."""
        settings = _load(_SETTINGS).describe()
        return f"{super().format_help()}\nsettings, from the environment:\n{settings}\n"


def _parser() -> argparse.ArgumentParser:
    parser = _TopParser(
        prog="pv", description="Prompt Valet: the box in the corner that does your coding jobs."
    )
    parser.add_argument("--version", action="version", version=f"Prompt Valet {stamp.FULL}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for row in COMMANDS:
        command = commands.add_parser(row.name, help=row.help)
        for name, how in row.arguments:
            command.add_argument(name, **how)
        command.set_defaults(command=row)
    return parser


def _load(module: str) -> Any:
    return importlib.import_module(module)


def _complain(text: str) -> None:
    priority = "<3>" if _load("pv_lib.system.journal").listens(os.environ) else ""
    print(f"{priority}pv: " + text.replace("\n", " "), file=sys.stderr)
