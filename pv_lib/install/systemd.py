"""The units and systemd: systemctl, the journal, and unit files written.

Knows which unit files were edited by hand and leaves them. When a unit is started or stopped is
decided by `install` and `upgrade`.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from pv_lib.errors import ValetError
from pv_lib.install.archive import Archive
from pv_lib.install.machine import UNIT_FOLDER
from pv_lib.install.steps import Steps, run
from pv_lib.system import files, journal


def unit_is(question: str, unit: str) -> bool:
    """Whether a unit `is-active` or `is-enabled`."""
    argv = ["systemctl", "--quiet", question, unit]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def is_up(unit: str) -> bool:
    """Whether the unit runs, or systemd is starting, restarting or stopping it."""
    state = _show(unit, "ActiveState")
    return state in ("active", "activating", "reloading", "deactivating")


def invocation(unit: str) -> str:
    """systemd's id of the unit's last start."""
    return _show(unit, "InvocationID")


def why_it_failed(unit: str) -> str:
    """Why the unit's last start failed: the last line it logged, if any."""
    if _show(unit, "Result") == "timeout":
        return "it was not ready in time"
    run("journalctl", "--sync")
    ours = (f"_SYSTEMD_INVOCATION_ID={invocation(unit)}", "SYSLOG_IDENTIFIER=prompt-valet")
    said = run("journalctl", *ours, "-n1", "-ocat", "-q").strip()
    return journal.plain(said) or f"see journalctl -u {unit}"


def _show(unit: str, name: str) -> str:
    return run("systemctl", "show", f"--property={name}", "--value", unit).strip()


def put_units(steps: Steps, texts: Mapping[str, bytes], ours: Sequence[Archive]) -> bool:
    """Write the unit files, but leave those edited by hand; whether systemd reloaded its units.

    A present file counts as unedited where it equals the unit of one of the archives `ours`.
    """
    changed = False
    for name, text in texts.items():
        path = UNIT_FOLDER / name
        present = path.read_bytes() if path.exists() else None
        if present not in (None, text, *_units(ours, name)):
            steps.say(f"left: {path}, which was changed by hand (remove it to get the new one)")
            continue
        needed = present != text
        steps.take(f"write {path}", needed, lambda: files.write(path, text, mode=0o644))  # noqa: B023
        changed = changed or needed
    if not steps.dry_run:  # a killed run may have written them
        changed = changed or any(_show(name, "NeedDaemonReload") == "yes" for name in texts)
    if changed:
        steps.take("have systemd read its units", True, lambda: run("systemctl", "daemon-reload"))
    return changed


def _units(archives: Sequence[Archive], name: str) -> Iterator[bytes]:
    """The texts of the unit `name` in the archives that have it."""
    for archive in archives:
        with contextlib.suppress(ValetError):
            yield archive.unit(name)
