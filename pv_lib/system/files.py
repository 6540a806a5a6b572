"""Durable writes, and safe reads of files that another user may have made.

Owns the sequence temporary dot-name, fsync, rename, fsync of the folder. It takes about 0.5 ms;
without it a power cut loses acknowledged files. Knows nothing of jobs or inboxes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from pv_lib.errors import Conflict, Invalid, NoRoom, TooLarge, ValetError

# Errors that pass by themselves or once an operator frees space: try again, and fail no job.
TRANSIENT = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EMFILE,
        errno.ENFILE,
        errno.EAGAIN,
        errno.ENOMEM,
        errno.EIO,
    }
)


_OURS = f"{os.getpid():x}-{os.urandom(6).hex()}"  # unique among all processes, past ones too
_count = itertools.count()
_TICK_NS, _WHOLE_SECONDS_NS = 50_000_000, 2_100_000_000


def refusal(error: OSError, what: str) -> ValetError:
    """The error for a person: `what` did not happen, and the system's reason."""
    kinds: dict[int, type[ValetError]] = {
        errno.ENOSPC: NoRoom,
        errno.EDQUOT: NoRoom,
        errno.ELOOP: Conflict,
    }
    where = f"{error.filename}: " if error.filename else ""
    kind = kinds.get(error.errno or 0, ValetError)
    return kind(f"{what} ({where}{error.strerror}): nothing was changed; try again later")


def settled(changed: int, now: int) -> bool:
    """Whether a change after `now` would give the file a newer mtime than `changed`.

    Both are Unix times in ns. Two changes within one tick of the file system have the same mtime. A
    tick is a few milliseconds, or up to two seconds on file systems that store whole seconds: ext3,
    small ext4, FAT.
    """
    return now - changed > (_WHOLE_SECONDS_NS if changed % 10**9 == 0 else _TICK_NS)


def sync_folder(folder: Path | str) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents durably; no error when it exists."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    sync_folder(folder.parent)


def write(path: Path | str, data: bytes, *, durable: bool = True, mode: int = 0o600) -> None:
    """Replace the file at `path` atomically: readers see the old content or the new.

    With `durable` it survives a power cut, else only a crash of this process. The umask applies to
    `mode`. Raises OSError, and leaves `path` unchanged then.
    """
    temp = _write_temp(path, data, durable, mode)
    try:
        os.rename(temp, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp)
        raise
    if durable:
        sync_folder(os.path.dirname(path))


def create(path: Path | str, data: bytes, *, durable: bool = True, mode: int = 0o600) -> None:
    """Create the file at `path` atomically. Raises FileExistsError where it exists.

    Of two processes creating the same file, exactly one succeeds.
    """
    temp = _write_temp(path, data, durable, mode)
    try:
        os.link(temp, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temp)
    if durable:
        sync_folder(os.path.dirname(path))


def read_regular(
    path: Path | str,
    limit: int,
    *,
    dir_fd: int | None = None,
    check: Callable[[os.stat_result], None] = lambda info: None,
) -> bytes:
    """Read a regular file of at most `limit` bytes.

    `check` is called with its stat result and may raise. Raises TooLarge for a larger file, else
    as `open_regular`.
    """
    fd, info = _open_regular(path, dir_fd)
    try:
        check(info)
        if info.st_size > limit:
            name = os.path.basename(path)
            raise TooLarge(f"{name} has {info.st_size} bytes; the limit is {limit}")
        data = os.read(fd, info.st_size + 1)
        while len(data) != info.st_size and (more := os.read(fd, limit + 1 - len(data))):
            data += more  # the file grows
        return data[:limit]
    finally:
        os.close(fd)


def open_regular(path: Path | str, *, dir_fd: int | None = None) -> FileIO:
    """Open a regular file to read.

    Raises Invalid for a link, FIFO, socket or device, without waiting for its other end; OSError
    when the file does not exist or is not readable.
    """
    return FileIO(_open_regular(path, dir_fd)[0])


def _open_regular(path: Path | str, dir_fd: int | None) -> tuple[int, os.stat_result]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:
            name = os.path.basename(path)
            raise Invalid(f"{name} is a symbolic link, which is never followed") from error
        if error.errno == errno.ENXIO:  # a socket
            raise Invalid(f"{os.path.basename(path)} is not a regular file") from error
        raise
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise Invalid(f"{os.path.basename(path)} is not a regular file")
    return fd, info


def write_new(
    path: Path | str,
    data: bytes,
    *,
    durable: bool = True,
    dir_fd: int | None = None,
    mode: int = 0o600,
) -> None:
    """Write a file that must not exist yet; after an OSError it does not exist.

    With `durable` its content is durable, but its name only once its folder is synced.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    fd = os.open(path, flags, mode, dir_fd=dir_fd)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=dir_fd)
        raise


def temp_name() -> str:
    """A unique dot-name."""
    return f".{_OURS}-{next(_count):x}.tmp"


def _write_temp(path: Path | str, data: bytes, durable: bool, mode: int) -> str:
    temp = os.path.join(os.path.dirname(path), temp_name())
    write_new(temp, data, durable=durable, mode=mode)
    return temp
