"""Room on the disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from pv_lib.system import space


def test_a_disk_is_low_below_the_floor_and_not_at_it(tmp_path: Path) -> None:
    assert not space.is_low(tmp_path, 0)
    assert not space.is_low(tmp_path, space.free_bytes(tmp_path) // 2)
    assert space.is_low(tmp_path, 1 << 70)
    with pytest.raises(FileNotFoundError):
        space.is_low(tmp_path / "gone", 0)
