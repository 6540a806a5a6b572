"""Free space on the disks: how much there is, and whether its lack explains a failure."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

_NO_ROOM = 1 << 20  # bytes


def free_bytes(root: Path) -> int:
    """The bytes that this user can still write below `root`. Raises OSError."""
    info = os.statvfs(root)
    return info.f_bavail * info.f_frsize


def is_low(root: Path, floor: int) -> bool:
    """Whether less than `floor` bytes (PV_MIN_FREE_BYTES) are free below `root`. Raises OSError."""
    return free_bytes(root) < floor


def raise_if_full(*places: Path) -> None:
    """Raise OSError (ENOSPC) where a disk is full: what failed there can be tried again."""
    for place in places:
        with contextlib.suppress(FileNotFoundError):
            if free_bytes(place) < _NO_ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))
