"""Files below a root, reached folder by folder without following symbolic links.

A user who may write below a root can replace a folder by a link at any moment. So each folder is
opened relative to the descriptor of its parent (`dir_fd`), and the last descriptor is used for the
operation itself. The root itself may be a link: that is the operator's choice. Owns this walk and
the durable writes and moves at its end; knows no prompts or jobs, and accepts no path outside of
its root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pv_lib.system import files

STEP = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True)
class Folder:
    """An open folder, and the foreign uid that may have made it or a folder above it, if any."""

    fd: int
    foreign_uid: int | None

    def foreign_uid_of(self, info: os.stat_result) -> int | None:
        """The foreign uid that may have made a file in this folder, if any: see `_foreign_uid`."""
        return self.foreign_uid or _foreign_uid(os.fstat(self.fd), info)


class Root:
    """A root, and operations on the files below it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def folder(self, path: Path, *, make: bool = False) -> Iterator[Folder]:
        """Open the folder at `path`; with `make` it is created durably where it is missing.

        Raises OSError, with ELOOP where a part of the path is a link.
        """
        parts = path.relative_to(self.root).parts
        here, foreign_uid = os.fspath(self.root), None
        fd = self._open_root(make)
        try:
            info = os.fstat(fd)
            for name in parts:
                here = f"{here}/{name}"
                outer, fd = fd, _step(fd, name, here, make)
                around, info = info, os.fstat(fd)
                foreign_uid = foreign_uid or _foreign_uid(around, info)
                os.close(outer)
            yield Folder(fd, foreign_uid)
        except OSError as error:
            if isinstance(error.filename, str):  # an error with dir_fd names the last part only
                error.filename = os.path.join(here, error.filename)
            raise
        finally:
            os.close(fd)

    def _open_root(self, make: bool) -> int:
        try:
            return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if not make:
                raise
        files.make_folder(self.root)
        return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)

    def stat(self, path: Path) -> os.stat_result:
        """As os.lstat."""
        with self.folder(path.parent) as folder:
            return os.stat(path.name, dir_fd=folder.fd, follow_symlinks=False)

    def replace(self, path: Path, data: bytes) -> None:
        """As files.write, durable."""
        with self.folder(path.parent) as folder:
            temp = files.temp_name()
            files.write_new(temp, data, dir_fd=folder.fd)
            try:
                os.rename(temp, path.name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
            except OSError:
                unlink(temp, folder.fd)
                raise
            os.fsync(folder.fd)

    def move(self, source: Path, tree: Root, target: Path) -> None:
        """Move a file durably to `target`, whose folder is created when `tree` is another root."""
        make = tree is not self
        with tree.folder(target.parent, make=make) as there, self.folder(source.parent) as here:
            os.rename(source.name, target.name, src_dir_fd=here.fd, dst_dir_fd=there.fd)
            os.fsync(there.fd)
            if source.parent != target.parent:
                os.fsync(here.fd)


def unlink(name: str, fd: int) -> None:
    """Remove a file of the open folder `fd`; no error when there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=fd)


def _step(fd: int, name: str, path: str, make: bool) -> int:
    """Open the folder `name` in the open folder `fd`; `path` is its full path, for messages."""
    if name == "..":
        raise OSError(errno.EINVAL, "leads out of its root", path)
    try:
        return os.open(name, STEP, dir_fd=fd)
    except FileNotFoundError:
        if not make:
            raise
    except NotADirectoryError:
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not (stat.S_ISLNK(info.st_mode) or stat.S_ISDIR(info.st_mode)):  # replaced since
            raise
        why = "is a symbolic link, which is never followed: put a folder (or a mount) in its place"
        raise OSError(errno.ELOOP, why, path) from None
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=fd)
    os.fsync(fd)
    return _step(fd, name, path, make=False)


def _foreign_uid(folder: os.stat_result, info: os.stat_result) -> int | None:
    """The owner of a file in `folder`, where that is a world-writable folder.

    None where the owner is root or we, and where the folder is not world-writable: its writers are
    then trusted.
    """
    anybody = folder.st_mode & stat.S_IWOTH
    return info.st_uid if anybody and info.st_uid not in (0, os.geteuid()) else None
