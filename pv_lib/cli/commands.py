"""The table of commands, and the parser made from it. Nothing here runs one."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pv_lib import stamp

_SETTINGS = "pv_lib.settings.config"  # whose table --help shows
_DRY_RUN = ("--dry-run", {"action": "store_true", "help": "say each step and take none"})


class Command(NamedTuple):
    """One row: a command, and the function that is called with its arguments by name.

    Each of `arguments` is a name and the keywords of argparse's add_argument.
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


class Fault(Exception):
    """Wrong usage; its text is one sentence."""


def parse(argv: Sequence[str] | None) -> tuple[Command, dict[str, Any]]:
    """The called command and its arguments by name. Raises Fault; --help prints and exits."""
    given = vars(_parser().parse_args(argv))
    return given.pop("command"), given


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise it as a Fault, which `main` prints."""
        raise Fault(f"{message} (see {self.prog} --help)")


class _TopParser(_Parser):
    """The parser of the program: its help ends with the table of settings."""

    def format_help(self) -> str:
        """The help of argparse, and the settings, whose module is loaded for nothing else."""
        settings = importlib.import_module(_SETTINGS).describe()
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
