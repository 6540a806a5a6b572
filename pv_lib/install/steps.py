"""The steps of an installation: each change printed as a line, a dry run, a lock.

Owns how a change is reported and how another program is run for it. What the steps are is decided
by `install` and `upgrade`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from pv_lib.errors import ValetError
from pv_lib.install.machine import FOLDER
from pv_lib.system import journal

_LOCK = Path("/run/prompt-valet.lock")  # another user cannot open it, so cannot hold it


class Steps:
    """Prints each change as a line and makes it, unless it is a `dry_run`."""

    def __init__(self, out: TextIO, *, dry_run: bool) -> None:
        self._out = out
        self.dry_run = dry_run
        self.changes = 0

    def say(self, text: str) -> None:
        """Print a line; no fault where the reader has gone."""
        with contextlib.suppress(OSError):
            print(text, file=self._out, flush=True)

    def take(self, what: str, needed: bool, action: Callable[[], object]) -> None:
        """Do `action` where it is `needed`. Raises ValetError with `what` where it fails."""
        if needed:
            self.changes += 1
            if not self.dry_run:
                try:
                    action()
                except OSError as error:
                    raise ValetError(
                        f"could not {what}: {error.strerror}; remedy that and run this again, "
                        "what is done already stays"
                    ) from error
        self.say(f"{('would' if self.dry_run else 'done') if needed else 'not needed'}: {what}")


def need_root(command: str) -> None:
    """Raises ValetError for any user but root."""
    if os.geteuid() != 0:
        raise ValetError(
            f"{command} changes the system: run it as root; --dry-run only says the steps"
        )


def run(*argv: str) -> str:
    """Run a program; its output. Raises ValetError with the last line of its stderr."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise ValetError(f"{argv[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        why = journal.plain(said[-1]) if said else f"exit {done.returncode}"
        raise ValetError(f"{' '.join(argv)}: {why}")
    return done.stdout


@contextlib.contextmanager
def alone(steps: Steps) -> Iterator[None]:
    """Hold the lock of install, upgrade and uninstall, and remove temporary files they left.

    Raises ValetError where another process holds it. A dry run takes no lock.
    """
    if steps.dry_run:
        yield
        return
    holder = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "another install, upgrade or uninstall is at work"
            raise ValetError(f"{what}: wait for its end") from None
        for left in FOLDER.glob(".*.tmp"):
            left.unlink()
        yield
    finally:
        os.close(holder)
