"""`upgrade`: install another version beside the present one, switch the link, restart, check.

    power cut                what the next start runs
    before the link moves    the old version; the new file is there, unused
    after it                 the new version, complete but unchecked; a second `upgrade` finishes,
                             the `upgrade` of the old file goes back

Running jobs are not affected: their agents have no part of the file open, and the new server
adopts them. A failure is rolled back: link, units, restart. What an installed machine consists of
is in `machine`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from pv_lib.errors import ValetError
from pv_lib.install import machine, systemd
from pv_lib.install.archive import Archive, installed_archives, point_link, put_archive
from pv_lib.install.machine import API, ENV, FOLDER, LINK, PYTHON, UNIT_FOLDER, UNITS
from pv_lib.install.steps import Steps, alone, need_root, run
from pv_lib.settings.config import Config
from pv_lib.system import files

_HEALTHY_SECONDS = 20.0  # for a new version to answer with a live watcher; less than WatchdogSec
_STEADY_SECONDS = 3.0  # that it must stay healthy
_LOOK_SECONDS = 0.2
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def upgrade(archive: Archive, *, dry_run: bool, out: TextIO) -> None:
    """Replace the installed version by `archive`. Raises ValetError, also after a rollback."""
    steps = Steps(out, dry_run=dry_run)
    if not dry_run:
        need_root("upgrade")
    os.umask(0o022)
    if not LINK.exists():
        raise ValetError(f"nothing is installed at {LINK}: sudo python3 {archive.path} install")
    if not ENV.is_file():
        raise ValetError(f"{ENV} is not there, and no start works without it: nothing was changed")
    with alone(steps):
        _Upgrade(steps, archive).run()


class _Upgrade:
    """One upgrade: the state before it, the steps forward, and the rollback."""

    def __init__(self, steps: Steps, archive: Archive) -> None:
        self._steps = steps
        self._new = archive
        self._config = machine.load()
        self._old = Archive.read(LINK)
        self._known = installed_archives()
        self._active = [unit for unit in UNITS if systemd.is_up(unit)]
        present = [name for name in UNITS if (UNIT_FOLDER / name).exists()]
        self._units = {name: archive.unit(name) for name in present}
        self._before = {name: (UNIT_FOLDER / name).read_bytes() for name in present}
        self._asked = API in self._active and self._version() is not None

    def run(self) -> None:
        """Run every step, and roll back on a failure. Raises ValetError."""
        if self._old.data == self._new.data:
            self._finish()
            return
        if not self._steps.dry_run:
            _check_runs(self._new, self._config)
        if API in self._active and not self._asked:
            self._steps.say(f"NOTE: the present version does not answer; {API} is only looked at.")
        linked = LINK.is_symlink() and os.sep not in os.readlink(LINK)
        old_place = FOLDER / os.readlink(LINK) if linked else self._old.place
        new_place = self._new.place
        is_new = not new_place.exists()
        put_archive(self._steps, self._old, old_place)
        put_archive(self._steps, self._new, new_place)
        handlers = {number: signal.signal(number, _interrupt) for number in _ENDS}
        try:
            self._go(new_place)
        except BaseException as error:  # noqa: BLE001 - a lost connection too: no half upgrade
            for number in _ENDS:
                signal.signal(number, signal.SIG_IGN)
            self._go_back(old_place, new_place if is_new else None, error)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        for path in sorted(FOLDER.glob("pv-*.pyz")):
            if path not in (old_place, new_place):
                self._steps.take(f"remove {path}, of an earlier version", True, path.unlink)
        self._say_end()
        self._steps.say(f"To go back: sudo python3 {old_place} upgrade")

    def _finish(self) -> None:
        """Do those steps after the link that are missing, perhaps because of a power cut."""
        changed = systemd.put_units(self._steps, self._units, self._known)
        if changed or (self._asked and self._version() != self._new.version):
            self._restart()
            self._await_health(self._new.version)
            self._say_end()
        else:
            self._steps.say(f"not needed: {LINK} is this version, {self._new.version}")

    def _go(self, place: Path) -> None:
        self._steps.take(f"point {LINK} to {place}", True, lambda: point_link(place))
        systemd.put_units(self._steps, self._units, self._known)
        self._restart()
        self._await_health(self._new.version)

    def _go_back(self, place: Path, unused: Path | None, error: BaseException) -> NoReturn:
        new, old = f"version {self._new.version}", f"version {self._old.version}"
        why = _reason(error)
        try:
            self._steps.take(f"point {LINK} to {place}", True, lambda: point_link(place))
            systemd.put_units(self._steps, self._before, [self._new])
            self._restart()
            self._await_health(self._old.version)
        except Exception as further:  # noqa: BLE001 - any failure must be reported
            raise ValetError(
                f"{new} does not work here ({why}), and going back to {old} failed "
                f"({_reason(further)}): see journalctl -u {API}"
            ) from error
        if unused:
            self._steps.take(f"remove {unused}", True, lambda: unused.unlink(missing_ok=True))
        raise ValetError(f"{new} does not work here ({why}): {old} is in use again") from error

    def _say_end(self) -> None:
        verb = "Would be" if self._steps.dry_run else "Is"
        if self._active:
            self._steps.say(f"{verb} in use: version {self._new.version}.")
        else:
            self._steps.say(f"No unit is running; the next start uses version {self._new.version}.")

    def _restart(self) -> None:
        for unit in self._active:
            self._steps.take(f"restart {unit}", True, lambda: _restart_one(unit))  # noqa: B023

    def _await_health(self, version: str) -> None:
        """Wait until it has been healthy for `_STEADY_SECONDS`. Raises ValetError."""
        deadline = time.monotonic() + _HEALTHY_SECONDS
        since, first_beat = 0.0, ""
        while self._active and not self._steps.dry_run:
            complaint, beat = self._look(version)
            now = time.monotonic()
            if complaint is not None:
                since = 0.0
            elif not since:
                since, first_beat = now, beat
            elif now - since >= _STEADY_SECONDS and (beat != first_beat or not beat):
                return
            if now > deadline:
                raise ValetError(complaint or "its watcher does not work")
            time.sleep(_LOOK_SECONDS)

    def _look(self, version: str) -> tuple[str | None, str]:
        """The fault found, if any, and the watcher's heartbeat where there must be a watcher."""
        for unit in self._active:
            if not systemd.unit_is("is-active", unit):
                return f"{unit} is not active", ""
        if not self._asked:
            return None, ""
        try:
            status = self._status()
        except ValetError as error:
            return error.detail, ""
        if status.get("version") != version:
            return f"{status.get('version')} answers at the port", ""
        watched = self._config.watcher or machine.WATCHER in self._active
        watcher = status.get("watcher")
        beat = watcher.get("heartbeat_at") if isinstance(watcher, Mapping) else None
        return None, str(beat or "never") if watched else ""

    def _status(self) -> Mapping[str, Any]:
        found = machine.client(self._config, 5).call("GET", "/api/v1/status")
        return found if isinstance(found, Mapping) else {}

    def _version(self) -> str | None:
        """The version that answers at the port; None where none answers."""
        try:
            return str(self._status().get("version"))
        except ValetError:
            return None


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    return error.detail if isinstance(error, ValetError) else f"{type(error).__name__}: {error}"


def _check_runs(archive: Archive, config: Config) -> None:
    """Run it once with the units' Python, as the service's user, before anything is changed."""
    trial = FOLDER / files.temp_name()
    argv = ["runuser", "-u", config.api_user, "--", PYTHON, "-I", "-S", str(trial), "--version"]
    try:
        files.write(trial, archive.data, mode=0o755)
        said = run(*argv).strip()
    except OSError as error:
        why = f"{FOLDER}: {error.strerror}"
        raise ValetError(f"{archive.path} cannot be tried ({why}): nothing was changed") from error
    except ValetError as error:
        why = error.detail.rpartition(" --version: ")[2]
        raise ValetError(
            f"{archive.path} does not run here ({why}): nothing was changed"
        ) from error
    finally:
        trial.unlink(missing_ok=True)
    if said != f"Prompt Valet {archive.version}":
        raise ValetError(f"{archive.path} says it is {said!r}: nothing was changed")


def _restart_one(unit: str) -> None:
    before = systemd.invocation(unit)
    try:
        run("systemctl", "restart", unit)
    except ValetError as error:
        started = systemd.invocation(unit) != before
        why = systemd.why_it_failed(unit) if started else error.detail
        raise ValetError(f"{unit} did not start: {why}") from error
