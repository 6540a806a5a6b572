"""`upgrade`: another version beside the present one, link moved, service restarted, checked.

    the power goes           what the next start sees
    before the link moved    the old version; a file more, which nothing uses
    behind it                the new version, whole and unchecked; the old file is still there, and
                             its own `upgrade` goes back to it

Running jobs know nothing of it: their agents have no part of the file open, and the new server
adopts them. What fails is rolled back: link, units, restart. What is installed stands in
`appliance`.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from pv_lib import appliance, files
from pv_lib.appliance import API, FOLDER, LINK, PYTHON, UNIT_FOLDER, UNITS, Archive, Steps
from pv_lib.config import Config
from pv_lib.errors import ValetError

_HEALTHY_SECONDS = 30.0  # how long a new version may take until it answers and its watcher works
_STEADY_SECONDS = 3.0  # and how long it must stay so
_LOOK_SECONDS = 0.2


def upgrade(archive: Archive, *, dry_run: bool, out: TextIO) -> None:
    """Put `archive` in the place of what is installed. Raises ValetError when it went back."""
    steps = Steps(out, dry_run=dry_run)
    if not dry_run:
        appliance.need_root("upgrade")
    os.umask(0o022)
    if not LINK.exists():
        raise ValetError(f"nothing is installed at {LINK}: sudo python3 {archive.path} install")
    config = appliance.load()
    holder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValetError("another upgrade is at work: wait for its end") from None
    old = Archive.read(LINK)
    if old.data == archive.data:
        steps.say(f"not needed: {LINK} is this version, {old.version}; nothing was changed")
        return
    if not dry_run:
        _check_runs(archive, config)
    old_place = LINK.resolve() if LINK.is_symlink() else old.place
    new_place = archive.place
    is_new = not new_place.exists()
    active = [unit for unit in UNITS if appliance.unit_is("is-active", unit)]
    units = {name: archive.unit(name) for name in UNITS if (UNIT_FOLDER / name).exists()}
    before = {name: (UNIT_FOLDER / name).read_bytes() for name in units}
    steps.take(
        f"keep {LINK} as {old_place}", not old_place.exists(), lambda: os.link(LINK, old_place)
    )
    appliance.put_archive(steps, archive)

    def go() -> None:
        steps.take(f"point {LINK} to it", True, lambda: appliance.point_link(new_place))
        appliance.put_units(steps, units, [old])
        _restart(steps, active)
        if not dry_run:
            _await_health(config, active, archive.version)

    def go_back() -> None:
        steps.take(f"point {LINK} to {old_place}", True, lambda: appliance.point_link(old_place))
        appliance.put_units(steps, before, [archive])
        _restart(steps, active)
        _await_health(config, active, old.version)
        steps.take(f"remove {new_place}", is_new, lambda: new_place.unlink(missing_ok=True))

    _with_way_back(go, go_back, f"version {archive.version}", f"version {old.version}")
    for path in sorted(FOLDER.glob("pv-*.pyz")):
        if path not in (old_place, new_place):
            steps.take(f"remove {path}, of an earlier version", True, path.unlink)
    if active:
        steps.say(f"{'Would be' if dry_run else 'Is'} in use: version {archive.version}.")
    else:
        steps.say(f"No unit is running; the next start of {API} uses version {archive.version}.")
    steps.say(f"To go back: sudo python3 {old_place} upgrade")


def _with_way_back(go: Callable[[], None], go_back: Callable[[], None], new: str, old: str) -> None:
    try:
        go()
    except BaseException as error:  # Ctrl-C as well: half an upgrade is none
        why = error.detail if isinstance(error, ValetError) else type(error).__name__
        try:
            go_back()
        except ValetError as further:
            raise ValetError(
                f"{new} does not work here ({why}), and going back to {old} failed "
                f"({further.detail}): see journalctl -u {API}"
            ) from error
        raise ValetError(f"{new} does not work here ({why}): {old} is in use again") from error


def _check_runs(archive: Archive, config: Config) -> None:
    """Have the units' Python run it, as the service's user, before anything is changed."""
    trial = FOLDER / files.temp_name()
    files.write(trial, archive.data, mode=0o755)
    try:
        argv = ["runuser", "-u", config.api_user, "--", PYTHON, "-I", "-S", str(trial), "--version"]
        said = appliance.run(*argv).strip()
    except ValetError as error:
        why = error.detail.rpartition(" --version: ")[2]
        raise ValetError(
            f"{archive.path} does not run here ({why}): nothing was changed"
        ) from error
    finally:
        trial.unlink()
    if said != f"Prompt Valet {archive.version}":
        raise ValetError(f"{archive.path} says it is {said!r}: nothing was changed")


def _restart(steps: Steps, units: Sequence[str]) -> None:
    for unit in units:
        steps.take(f"restart {unit}", True, lambda: _restart_one(unit))  # noqa: B023


def _restart_one(unit: str) -> None:
    try:
        appliance.run("systemctl", "restart", unit)
    except ValetError as error:
        why = appliance.why_it_failed(unit)
        raise ValetError(f"{unit} did not start: {why}") from error


def _await_health(config: Config, units: Sequence[str], version: str) -> None:
    """Wait until it answers and its watcher works, and both have lasted. Raises ValetError."""
    deadline = time.monotonic() + _HEALTHY_SECONDS
    since, first_beat = 0.0, ""
    while units:
        complaint, beat = _look(config, units, version)
        now = time.monotonic()
        if complaint is not None:
            since = 0.0
        elif not since:
            since, first_beat = now, beat
        elif now - since >= _STEADY_SECONDS and (beat != first_beat or API not in units):
            return
        if now > deadline:
            raise ValetError(complaint or "its watcher does not work")
        time.sleep(_LOOK_SECONDS)


def _look(config: Config, units: Sequence[str], version: str) -> tuple[str | None, str]:
    """What is not as it should be, and the watcher's heartbeat."""
    for unit in units:
        if not appliance.unit_is("is-active", unit):
            return f"{unit} is not active", ""
    if API not in units:
        return None, ""
    try:
        status = appliance.client(config, 5).call("GET", "/api/v1/status")
    except ValetError as error:
        return error.detail, ""
    if status.get("version") != version:
        return f"{status.get('version')} answers at the port", ""
    return None, str(status["watcher"]["heartbeat_at"])
