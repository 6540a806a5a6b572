"""The scan: every prompt file in the inbox, at the cost of what has happened since the last one.

A folder's ctime changes when something is put into it, renamed or removed, so a folder is read when
it has changed and else only asked for its ctime. Folders that hold prompts or changed lately are
asked each time, the others in turn, so many at a time: ten thousand folders where nothing happens
cost next to nothing. A dropped file is looked at each time, for it may still grow. Folders are
entered by handles, through no link. Nothing here opens a file, or decides what becomes of it.
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

AT_ONCE = 800  # quiet folders that one scan asks
WARM_SECONDS = 60.0  # after its last change a folder counts as quiet
MAX_DEPTH = 32
_Signature = tuple[int, int, int]


@dataclass(slots=True)
class _Folder:
    """What was read of a folder; without `signature` (device, inode, ctime) it is read again."""

    signature: _Signature | None = None
    inner: dict[str, int] = field(default_factory=dict)  # the folders in it, and their inodes
    prompts: list[Prompt] = field(default_factory=list)


class Scan:
    """The memory over one inbox; from any thread."""

    def __init__(
        self, tree: Root, at_once: int = AT_ONCE, warm_seconds: float = WARM_SECONDS
    ) -> None:
        self._tree = tree
        self._root = os.fspath(tree.root)
        self._at_once = at_once
        self._warm_ns = warm_seconds * 1e9
        self._lock = threading.Lock()  # guards all below
        self._folders: dict[str, _Folder] = {}
        self._warm: set[str] = set()
        self._closed: set[str] = set()  # what we may not read
        self._round: Iterator[str] = iter(())  # those whose turn is still to come

    def prompts(self, *, thorough: bool = False) -> list[Prompt]:
        """Every prompt file, by folder and name; with `thorough` every folder is asked.

        Raises OSError where the root cannot be read.
        """
        with self._lock:
            if self._root not in self._folders:
                self._read(self._root)
            for path in sorted(self._warm):
                self._ask(path)
            for path in list(self._folders) if thorough else self._in_turn():
                self._ask(path)
            found = []
            for path in self._warm:
                found += [self._now(prompt) for prompt in self._folders[path].prompts]
        there = (prompt for prompt in found if prompt)
        return sorted(there, key=lambda prompt: (prompt.folders, prompt.path.name))

    def closed(self) -> list[str]:
        """The folders that we may not read, as far as is known."""
        with self._lock:
            return sorted(self._closed)

    def _in_turn(self) -> list[str]:
        """The next quiet folders."""
        turn = list(islice(self._round, self._at_once))
        if len(turn) < self._at_once:  # a new round
            self._round = iter(list(self._folders))
        return [path for path in turn if path not in self._warm]

    def _now(self, prompt: Prompt) -> Prompt | None:
        """A dropped file as it is now."""
        if prompt.job_id is not None:
            return prompt
        with contextlib.suppress(OSError):
            parts = (*prompt.folders, prompt.path.name)
            return prompt_at(self._tree.root, parts, os.lstat(prompt.path))
        return None

    def _ask(self, path: str) -> None:
        """Read a folder again if it has changed; see how often it is asked from now on."""
        folder = self._folders.get(path)
        if folder is None:
            return
        is_root = path == self._root
        try:
            info = os.stat(path) if is_root else os.lstat(path)
            if folder.signature and folder.signature == _signature(info):
                self._place(path, folder, info.st_ctime_ns)
            else:
                self._read(path)
        except OSError as error:
            if is_root:
                raise
            if isinstance(error, (FileNotFoundError, NotADirectoryError)):
                self._forget(path)
                self._doubt(os.path.dirname(path))
            else:  # not ours to read, no descriptor: it may be another time
                self._put(path, _Folder(inner=folder.inner), error)

    def _doubt(self, path: str) -> None:
        """What was in it is gone: it, or a folder above, was moved, and may come back unchanged."""
        folder = self._folders.get(path)
        if folder is not None:
            folder.signature = None
            self._warm.add(path)

    def _put(self, path: str, folder: _Folder, why: OSError) -> None:
        """A folder that could not be read."""
        self._folders[path] = folder
        if isinstance(why, PermissionError):
            self._closed.add(path)
        self._place(path, folder, 0)

    def _place(self, path: str, folder: _Folder, changed: int) -> None:
        """How often it is asked from now on; it `changed` at that time, in ns."""
        if folder.prompts or not folder.signature or time.time_ns() - changed < self._warm_ns:
            self._warm.add(path)
        else:
            self._warm.discard(path)

    def _read(self, path: str) -> None:
        with self._tree.folder(Path(path)) as opened:
            self._read_open(opened.fd, path)

    def _read_open(self, fd: int, path: str) -> None:
        """Read the open folder and what is new below it."""
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
                        place = (*parts, item.name)
                        prompt = prompt_at(self._tree.root, place, item.stat(follow_symlinks=False))
                    except OSError:  # gone, or the folder is closed to us
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
        self._place(path, fresh, info.st_ctime_ns)

    def _enter(self, outer: int, path: str, name: str) -> None:
        inner = f"{path}/{name}"
        try:
            fd = os.open(name, beneath.STEP, dir_fd=outer)
        except OSError as error:  # gone, or not ours to read
            self._put(inner, _Folder(), error)
            return
        try:
            self._read_open(fd, inner)
        except OSError as error:
            self._put(inner, _Folder(), error)
        finally:
            os.close(fd)

    def _forget(self, path: str) -> None:
        folder = self._folders.pop(path, None)
        self._warm.discard(path)
        self._closed.discard(path)
        for name in folder.inner if folder else ():
            self._forget(f"{path}/{name}")


def _signature(info: os.stat_result) -> _Signature | None:
    """None for what is no folder (any more)."""
    return (info.st_dev, info.st_ino, info.st_ctime_ns) if stat.S_ISDIR(info.st_mode) else None
