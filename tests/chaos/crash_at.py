"""Runs a built pv.pyz in this process and kills it at one of its calls that reach the disk.

    crash_at.py N before|after TRACE pv.pyz serve

SIGKILL before (or after) the Nth call of fsync, rename, link, mkdir or fork_exec; TRACE is left
naming that call. `strace -e inject=fsync,rename:signal=KILL:when=N` cannot do this: strace counts
per thread (tracee), and the path from submission to archive runs over three threads and more, so
there is no N that would stand for "the Nth call of the server", and some are never reached.
"""

import _posixsubprocess
import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_CALLS = itertools.count(1)  # one counter over all threads; next() is atomic


class Counted:
    """One of the calls. No function, so that no class which takes it over binds it as a method."""

    def __init__(self, name: str, call: Callable[..., Any], at: int, when: str, trace: str) -> None:
        self.name, self.call = name, call
        self.at, self.when, self.trace = at, when, trace

    def __call__(self, *args: Any, **named: Any) -> Any:
        mine = next(_CALLS) == self.at
        if mine and self.when == "before":
            self.die(args, named)
        try:
            return self.call(*args, **named)
        finally:  # also after a call that fails, as mkdir of what is there already
            if mine:
                self.die(args, named)

    def die(self, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        fd = os.open(self.trace, os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, f"{self.name} {self.where(args, named)}".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def where(self, args: tuple[Any, ...], named: dict[str, Any]) -> str:
        if self.name == "fsync":
            return os.readlink(f"/proc/self/fd/{args[0]}")
        if self.name == "fork_exec":
            return str(args[0][0])
        fds = [fd for key, fd in named.items() if key.endswith("dir_fd")]
        folders = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] or ["", ""]
        names = (str(arg) for arg in args[:2] if not isinstance(arg, int))
        return " -> ".join(map(os.path.join, folders, names))


def main() -> None:
    at, when, trace = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    # Before these are imported: Python 3.10's pathlib keeps references of its own to os.rename
    # and os.mkdir, and subprocess one to fork_exec. Later ones look them up in `os`.
    assert not {"pathlib", "subprocess"} & set(sys.modules), "imported too early"
    for name in ("fsync", "rename", "link", "mkdir"):
        setattr(os, name, Counted(name, getattr(os, name), at, when, trace))
    spawn = Counted("fork_exec", _posixsubprocess.fork_exec, at, when, trace)
    setattr(_posixsubprocess, "fork_exec", spawn)  # noqa: B010 - mypy knows it as a function
    import runpy

    sys.argv = sys.argv[4:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
