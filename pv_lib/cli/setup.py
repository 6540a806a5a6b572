"""The commands `install`, `upgrade` and `uninstall`, which work on the running pv.pyz."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pv_lib.install import install as steps
from pv_lib.install import upgrade as replacement
from pv_lib.install.archive import Archive


def install(*, token: bool, dry_run: bool) -> int:
    """Install this file on the machine."""
    archive = Archive.read(_this_file())
    steps.install(archive, dry_run=dry_run, with_token=token, out=sys.stdout)
    return 0


def upgrade(*, file: Path | None, dry_run: bool) -> int:
    """Replace the installed version with `file`, or with this one."""
    replacement.upgrade(Archive.read(file or _this_file()), dry_run=dry_run, out=sys.stdout)
    return 0


def uninstall(*, dry_run: bool) -> int:
    """Remove Prompt Valet from the machine."""
    steps.uninstall(dry_run=dry_run, out=sys.stdout)
    return 0


def _this_file() -> Path:
    return Path(os.path.abspath(sys.argv[0]))
