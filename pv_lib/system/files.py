"""Bytes to disk and back: durable writes, and reads that cannot be tricked.

Owns the fsync discipline: dot-name, fsync, rename, fsync of the folder; measured at about
0.5 ms, and without it a power cut loses acknowledged files. Knows nothing of jobs or inboxes.
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

# What passes by itself, or when an operator makes room: worth another try, never a verdict.
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


_OURS = f"{os.getpid():x}-{os.urandom(6).hex()}"  # one process, of all there ever were
_count = itertools.count()
_TICK_NS, _WHOLE_SECONDS_NS = 50_000_000, 2_100_000_000


def refusal(error: OSError, what: str) -> ValetError:
    """The disk's refusal for a person: `what` did not happen, and why."""
    kinds: dict[int, type[ValetError]] = {
        errno.ENOSPC: NoRoom,
        errno.EDQUOT: NoRoom,
        errno.ELOOP: Conflict,
    }
    where = f"{error.filename}: " if error.filename else ""
    kind = kinds.get(error.errno or 0, ValetError)
    return kind(f"{what} ({where}{error.strerror}): nothing was changed; try again later")


def settled(changed: int, now: int) -> bool:
    """Whether what changed at `changed` by its disk's clock will show a further change by its time.

    Both are Unix times in ns. Two changes within a tick have the same time; a tick is a few
    milliseconds, or up to two seconds on disks that count whole ones: ext3, small ext4, FAT.
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
    """Create `folder` and its parents, durably; no fault when it is there already."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    sync_folder(folder.parent)


def write(path: Path | str, data: bytes, *, durable: bool = True, mode: int = 0o600) -> None:
    """Replace `path` with `data`: readers see the old file or the new one, whole.

    With `durable` it survives a power cut; without, only a crash of this process.
    `mode` is within what the umask allows. Raises OSError; `path` is then as it was.
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
    """Write `path` whole, unless it exists: then FileExistsError and nothing changes.

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
    """Read a regular file of at most `limit` bytes that `check` has no fault to raise for.

    A larger file is TooLarge; else raises as `open_regular`.
    """
    fd, info = _open_regular(path, dir_fd)
    try:
        check(info)
        if info.st_size > limit:
            name = os.path.basename(path)
            raise TooLarge(f"{name} has {info.st_size} bytes; the limit is {limit}")
        data = os.read(fd, info.st_size + 1)
        while len(data) != info.st_size and (more := os.read(fd, limit + 1 - len(data))):
            data += more  # it grows
        return data[:limit]
    finally:
        os.close(fd)


def open_regular(path: Path | str, *, dir_fd: int | None = None) -> FileIO:
    """Open a regular file to read.

    A link, FIFO, socket or device at `path` is never opened for reading, which could wait for
    ever: Invalid. Raises OSError when the file is not there or not readable.
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
    """Write a file that must not be there yet; after an OSError it is not there.

    Its bytes are durable, its name only after its folder is synced.
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
    """A dot-name that nobody else has."""
    return f".{_OURS}-{next(_count):x}.tmp"


def _write_temp(path: Path | str, data: bytes, durable: bool, mode: int) -> str:
    temp = os.path.join(os.path.dirname(path), temp_name())
    write_new(temp, data, durable=durable, mode=mode)
    return temp
