"""What lies beneath a root, reached from it folder by folder and through no link.

Whoever may write somewhere below a root can put a link in a folder's place at any moment. So every
step goes by the handle of the folder before (`dir_fd`), and what is done is done through the last
one. The root itself may be a link: that is the operator's choice. Owns this walk and the durable
writes and moves at its end; nothing here knows prompts or jobs, or takes a path that is not
beneath its root.
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
    """An open folder, and the `stranger` (a user id) who may have made it or one above it."""

    fd: int
    stranger: int | None

    def stranger_of(self, info: os.stat_result) -> int | None:
        """The stranger by whose hand a file in here may come: see `_stranger`."""
        return self.stranger or _stranger(os.fstat(self.fd), info)


class Root:
    """A root and what lies beneath it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def folder(self, path: Path, *, make: bool = False) -> Iterator[Folder]:
        """The folder at `path`, open; with `make` it is made, durably, where it is missing.

        Raises OSError, with ELOOP where a link lies in the way.
        """
        parts = path.relative_to(self.root).parts
        here, stranger = os.fspath(self.root), None
        fd = self._open_root(make)
        try:
            info = os.fstat(fd)
            for name in parts:
                here = f"{here}/{name}"
                outer, fd = fd, _step(fd, name, here, make)
                around, info = info, os.fstat(fd)
                stranger = stranger or _stranger(around, info)
                os.close(outer)
            yield Folder(fd, stranger)
        except OSError as error:
            if isinstance(error.filename, str):  # a handle's errors name the last part alone
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
        """Move a file durably to `target`; its folder in another `tree` is made when missing."""
        make = tree is not self
        with tree.folder(target.parent, make=make) as there, self.folder(source.parent) as here:
            os.rename(source.name, target.name, src_dir_fd=here.fd, dst_dir_fd=there.fd)
            os.fsync(there.fd)
            if source.parent != target.parent:
                os.fsync(here.fd)


def unlink(name: str, fd: int) -> None:
    """Remove a file of the open folder `fd`; no fault when there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=fd)


def _step(fd: int, name: str, path: str, make: bool) -> int:
    """Open the folder `name`, which lies in the open folder `fd`; `path` is its whole path."""
    if name == "..":
        raise OSError(errno.EINVAL, "leads out of its root", path)
    try:
        return os.open(name, STEP, dir_fd=fd)
    except FileNotFoundError:
        if not make:
            raise
    except NotADirectoryError:
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not (stat.S_ISLNK(info.st_mode) or stat.S_ISDIR(info.st_mode)):  # swapped just now
            raise
        why = "is a symbolic link, which is never followed: put a folder (or a mount) in its place"
        raise OSError(errno.ELOOP, why, path) from None
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=fd)
    os.fsync(fd)
    return _step(fd, name, path, make=False)


def _stranger(folder: os.stat_result, info: os.stat_result) -> int | None:
    """The owner of what lies in `folder`, where anybody may have put it there.

    None where root or we own it, and where not everybody may write to the folder: whoever may has
    been given that right.
    """
    anybody = folder.st_mode & stat.S_IWOTH
    return info.st_uid if anybody and info.st_uid not in (0, os.geteuid()) else None
