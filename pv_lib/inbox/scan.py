"""An incremental scan of the inbox: every prompt file, at the cost of what has changed.

The ctime of a folder changes when a name in it is added, renamed or removed, so a folder is read
only when its ctime has changed. Warm folders (with prompts, or changed lately) are checked by each
scan, the quiet ones in turn, a fixed number per scan: ten thousand quiet folders cost next to
nothing. A dropped file is checked by each scan, for it may still grow. Folders are entered by
handles, never through a link. Nothing here opens a file or decides what happens to it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pv_lib.inbox.prompt import Prompt, prompt_at
from pv_lib.system import beneath, files
from pv_lib.system.beneath import Root

AT_ONCE = 800  # quiet folders that one scan checks
WARM_SECONDS = 60.0  # this long after its last change a folder is quiet
MAX_DEPTH = 32
_Signature = tuple[int, int, int]


@dataclass(slots=True)
class _Folder:
    """What is known of a folder. `signature` is device, inode, ctime; None: read it again."""

    signature: _Signature | None = None
    inner: dict[str, int] = field(default_factory=dict)  # the folders in it, and their inodes
    prompts: list[Prompt] = field(default_factory=list)


class Scan:
    """The known folders of one inbox; from any thread."""

    def __init__(
        self, tree: Root, at_once: int = AT_ONCE, warm_seconds: float = WARM_SECONDS
    ) -> None:
        self._tree = tree
        self._root = os.fspath(tree.root)
        self._at_once = at_once
        self._warm_ns = warm_seconds * 1e9
        self._lock = threading.Lock()  # guards the fields below
        self._folders: dict[str, _Folder] = {}
        self._warm: set[str] = set()
        self._closed: set[str] = set()  # folders we may not read
        self._round: Iterator[str] = iter(())  # the folders left in this round

    def prompts(self, *, thorough: bool = False) -> list[Prompt]:
        """Every prompt file, by folder and name; with `thorough` every folder is checked.

        Raises OSError where the root cannot be read.
        """
        with self._lock:
            if self._root not in self._folders:
                self._read(self._root)
            for path in sorted(self._warm):
                self._check(path)
            for path in list(self._folders) if thorough else self._next_quiet():
                self._check(path)
            found = []
            for path in self._warm:
                found += [self._now(prompt) for prompt in self._folders[path].prompts]
        there = (prompt for prompt in found if prompt)
        return sorted(there, key=lambda prompt: (prompt.folders, prompt.path.name))

    def closed(self) -> list[str]:
        """The folders that could not be read, as far as they were checked."""
        with self._lock:
            return sorted(self._closed)

    def _next_quiet(self) -> list[str]:
        """The quiet folders to check in this scan."""
        turn = list(islice(self._round, self._at_once))
        if len(turn) < self._at_once:  # a new round
            self._round = iter(list(self._folders))
        return [path for path in turn if path not in self._warm]

    def _now(self, prompt: Prompt) -> Prompt | None:
        """The prompt with its present signature, where it is a dropped file."""
        if prompt.job_id is not None:
            return prompt
        with contextlib.suppress(OSError):
            parts = (*prompt.folders, prompt.path.name)
            return prompt_at(self._tree.root, parts, os.lstat(prompt.path))
        return None

    def _check(self, path: str) -> None:
        """Read a folder again if it has changed, and decide whether it is warm."""
        folder = self._folders.get(path)
        if folder is None:
            return
        is_root = path == self._root
        try:
            info = os.stat(path) if is_root else os.lstat(path)
            if folder.signature and folder.signature == _signature(info):
                self._set_warm(path, folder, info.st_ctime_ns)
            else:
                self._read(path)
        except OSError as error:
            if is_root:
                raise
            if isinstance(error, (FileNotFoundError, NotADirectoryError)):
                self._forget(path)
                self._recheck(os.path.dirname(path))
            else:  # no permission, no descriptor: try again
                self._set_unreadable(path, _Folder(inner=folder.inner), error)

    def _recheck(self, path: str) -> None:
        """Read this folder again: one in it is gone, and may come back with its old ctime."""
        folder = self._folders.get(path)
        if folder is not None:
            folder.signature = None
            self._warm.add(path)

    def _set_unreadable(self, path: str, folder: _Folder, why: OSError) -> None:
        """Remember a folder that could not be read."""
        self._folders[path] = folder
        if isinstance(why, PermissionError):
            self._closed.add(path)
        self._set_warm(path, folder, 0)

    def _set_warm(self, path: str, folder: _Folder, changed: int) -> None:
        """Decide whether the folder is warm; `changed` is its ctime in ns."""
        if folder.prompts or not folder.signature or time.time_ns() - changed < self._warm_ns:
            self._warm.add(path)
        else:
            self._warm.discard(path)

    def _read(self, path: str) -> None:
        with self._tree.folder(Path(path)) as opened:
            self._read_open(opened.fd, path)

    def _read_open(self, fd: int, path: str) -> None:
        """Read the open folder, and the new folders in it."""
        info, began = os.fstat(fd), time.time_ns()
        fresh = _Folder(_signature(info))
        if not files.settled(info.st_ctime_ns, began):
            fresh.signature = None
        parts = tuple(path[len(self._root) + 1 :].split("/")) if path != self._root else ()
        with os.scandir(fd) as listing:
            for item in listing:
                if item.is_dir(follow_symlinks=False):
                    if len(parts) < MAX_DEPTH and not item.name.startswith("."):
                        fresh.inner[item.name] = item.inode()
                elif item.name.endswith(".md"):
                    try:
                        below = (*parts, item.name)
                        prompt = prompt_at(self._tree.root, below, item.stat(follow_symlinks=False))
                    except OSError:  # gone, or no permission
                        fresh.signature = None
                    else:
                        fresh.prompts += [prompt] if prompt else []
        known = self._folders.get(path, _Folder()).inner
        self._folders[path] = fresh
        self._closed.discard(path)
        for name, inode in known.items():
            if fresh.inner.get(name) != inode:
                self._forget(f"{path}/{name}")
        for name in fresh.inner:
            if f"{path}/{name}" not in self._folders:
                self._enter(fd, path, name)
        self._set_warm(path, fresh, info.st_ctime_ns)

    def _enter(self, outer: int, path: str, name: str) -> None:
        inner = f"{path}/{name}"
        try:
            fd = os.open(name, beneath.STEP, dir_fd=outer)
        except OSError as error:  # gone, or no permission
            self._set_unreadable(inner, _Folder(), error)
            return
        try:
            self._read_open(fd, inner)
        except OSError as error:
            self._set_unreadable(inner, _Folder(), error)
        finally:
            os.close(fd)

    def _forget(self, path: str) -> None:
        folder = self._folders.pop(path, None)
        self._warm.discard(path)
        self._closed.discard(path)
        for name in folder.inner if folder else ():
            self._forget(f"{path}/{name}")


def _signature(info: os.stat_result) -> _Signature | None:
    """Device, inode and ctime; None where it is not a folder."""
    return (info.st_dev, info.st_ino, info.st_ctime_ns) if stat.S_ISDIR(info.st_mode) else None
