"""Room on the disks: how much is free, and whether that explains a failure."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

_NO_ROOM = 1 << 20  # bytes


def free_bytes(root: Path) -> int:
    """Bytes that this user can still write below `root`. Raises OSError."""
    info = os.statvfs(root)
    return info.f_bavail * info.f_frsize


def raise_if_full(*places: Path) -> None:
    """OSError where a disk has next to no room: whatever failed there is worth another try."""
    for place in places:
        with contextlib.suppress(FileNotFoundError):
            if free_bytes(place) < _NO_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))
