"""What an installed Prompt Valet consists of, and how systemd is asked about it.

    /opt/prompt-valet/pv-VERSION.pyz        the file, one a version
                      pv.pyz                a link to the one in use, which the units start
    /etc/prompt-valet/pv.env                the settings
    /etc/systemd/system/prompt-valet-*      the units

`install` puts it there, `upgrade` replaces it; what they change for good goes through `Steps`, so
that it is told, and a dry run changes nothing. Nothing here serves or runs jobs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import pwd
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from pv_lib.client import Client
from pv_lib.errors import ConfigFault, ValetError
from pv_lib.settings import config as settings
from pv_lib.settings.config import Config
from pv_lib.system import files, journal

_LOCK = Path("/run/prompt-valet.lock")  # not in a folder that others can open: they could hold it
FOLDER = Path("/opt/prompt-valet")
LINK = FOLDER / "pv.pyz"
ENV = Path("/etc/prompt-valet/pv.env")
API, WATCHER = "prompt-valet-api.service", "prompt-valet-watcher.service"
UNITS = (WATCHER, API)  # in the order in which they are restarted
UNIT_FOLDER = Path("/etc/systemd/system")
PYTHON = "/usr/bin/python3"  # that the units start


@dataclass(frozen=True)
class Archive:
    """A pv.pyz, read whole: what is installed is what was looked at."""

    path: Path
    data: bytes
    version: str

    @classmethod
    def read(cls, path: Path) -> Archive:
        """The file at `path`. Raises ValetError where it is none of ours; its code is not run."""
        try:
            data = path.read_bytes()
            stamp = zipfile.ZipFile(io.BytesIO(data)).read("pv_lib/stamp.py").decode()
        except OSError as error:
            raise ValetError(f"{path} cannot be read: {error.strerror}") from error
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ValetError(
                f"{path} is not a pv.pyz: build one with ./build.sh, and use dist/pv.pyz"
            ) from error
        found = dict(re.findall(r'^(VERSION|COMMIT) = "([\w.+-]+)"$', stamp, re.MULTILINE))
        if len(found) != 2:
            raise ValetError(f"{path} does not tell its version")
        return cls(path, data, f"{found['VERSION']}+{found['COMMIT']}")

    def shipped(self, name: str) -> bytes:
        """A file that it brings along, as `ops/systemd/….service`. Raises ValetError."""
        try:
            return zipfile.ZipFile(io.BytesIO(self.data)).read(name)
        except KeyError:
            raise ValetError(f"{self.path} has no {name}") from None

    def unit(self, name: str) -> bytes:
        """The text of a unit."""
        return self.shipped(f"ops/systemd/{name}")

    @property
    def place(self) -> Path:
        """Where it is installed: another build of the same version gets a name of its own."""
        usual = FOLDER / f"pv-{self.version}.pyz"
        if not usual.exists() or usual.read_bytes() == self.data:
            return usual
        return FOLDER / f"pv-{self.version}-{hashlib.sha256(self.data).hexdigest()[:8]}.pyz"


class Steps:
    """Each change as a line; with `dry_run` it is only said."""

    def __init__(self, out: TextIO, *, dry_run: bool) -> None:
        self._out = out
        self.dry_run = dry_run
        self.changes = 0

    def say(self, text: str) -> None:
        """A line of its own; who asked may have hung up."""
        with contextlib.suppress(OSError):
            print(text, file=self._out, flush=True)

    def take(self, what: str, needed: bool, action: Callable[[], object]) -> None:
        """Do `action` where it is `needed`. Raises ValetError with `what` where it fails."""
        if needed:
            self.changes += 1
            if not self.dry_run:
                try:
                    action()
                except OSError as error:
                    raise ValetError(
                        f"could not {what}: {error.strerror}; remedy that and run this again, "
                        "what is done already stays"
                    ) from error
        self.say(f"{('would' if self.dry_run else 'done') if needed else 'not needed'}: {what}")


def need_root(command: str) -> None:
    """Raises ValetError for anybody else."""
    if os.geteuid() != 0:
        raise ValetError(
            f"{command} changes the system: run it as root; --dry-run only says the steps"
        )


def run(*argv: str) -> str:
    """A program's output. Raises ValetError with its last line of complaint."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise ValetError(f"{argv[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        why = journal.plain(said[-1]) if said else f"exit {done.returncode}"
        raise ValetError(f"{' '.join(argv)}: {why}")
    return done.stdout


def unit_is(question: str, unit: str) -> bool:
    """Whether a unit `is-active` or `is-enabled`."""
    argv = ["systemctl", "--quiet", question, unit]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def is_up(unit: str) -> bool:
    """Whether the unit runs, or systemd is about to start it, again and again perhaps."""
    state = _show(unit, "ActiveState")
    return state in ("active", "activating", "reloading", "deactivating")


def invocation(unit: str) -> str:
    """What systemd calls the unit's newest start."""
    return _show(unit, "InvocationID")


def why_it_failed(unit: str) -> str:
    """Why the unit's newest start came to nothing: the last line that it said, if any."""
    if _show(unit, "Result") == "timeout":
        return "it was not ready in time"
    run("journalctl", "--sync")
    ours = (f"_SYSTEMD_INVOCATION_ID={invocation(unit)}", "SYSLOG_IDENTIFIER=prompt-valet")
    said = run("journalctl", *ours, "-n1", "-ocat", "-q").strip()
    return journal.plain(said) or f"see journalctl -u {unit}"


def _show(unit: str, name: str) -> str:
    return run("systemctl", "show", f"--property={name}", "--value", unit).strip()


@contextlib.contextmanager
def alone(steps: Steps) -> Iterator[None]:
    """Nobody else installs, upgrades or uninstalls meanwhile; what such a one left is removed.

    Raises ValetError where somebody is at work. A dry run needs no lock.
    """
    if steps.dry_run:
        yield
        return
    holder = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "another install, upgrade or uninstall is at work"
            raise ValetError(f"{what}: wait for its end") from None
        for left in FOLDER.glob(".*.tmp"):
            left.unlink()
        yield
    finally:
        os.close(holder)


def read_env(path: Path = ENV) -> dict[str, str]:
    """The variables of a file that systemd reads as EnvironmentFile; none where it is not there.

    Comments and one pair of quotes around a value, as systemd takes them; values that go over
    several lines are not understood.
    """
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text("utf-8", "replace").splitlines():
            name, equals, value = line.strip().partition("=")
            if equals and name and not name.startswith(("#", ";")):
                text = value.strip()
                quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
                found[name.strip()] = text[1:-1] if quoted else text
    return found


def home() -> Path:
    """The service's HOME, where Codex keeps its login: the units', unless the settings have one."""
    return Path(read_env().get("HOME") or "/srv/prompt-valet")


def load() -> Config:
    """The settings of this machine. Raises ConfigFault with every fault, as `serve` would.

    The token is read with the rights of the service's user: where that user can put a link in its
    place, root would read for it what it may not.
    """
    environ = read_env()
    with as_user(environ.get("PV_API_USER") or "prompt-valet"):
        config, faults = settings.read(environ)
    if faults:
        raise ConfigFault([f"{ENV}: {fault}" for fault in faults])
    return config


@contextlib.contextmanager
def as_user(name: str) -> Iterator[None]:
    """With the rights of this user, where there is one and we are root."""
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        user = None
    if user is None or os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([user.pw_gid])
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def client(config: Config, timeout: float) -> Client:
    """To the server that has these settings on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.bind_host, config.bind_host)
    named = f"[{config.bind_host}]" if ":" in config.bind_host else config.bind_host
    headers = {"Host": named}
    if config.api_token:
        headers["Authorization"] = f"Bearer {config.api_token}"
    return Client(host, config.bind_port, timeout, headers)


def point_link(target: Path) -> None:
    """Make `LINK` point to `target`, by a rename: it is always the old one or the new one."""
    temp = FOLDER / files.temp_name()
    temp.symlink_to(target.name)
    os.replace(temp, LINK)
    files.sync_folder(FOLDER)


def known() -> list[Archive]:
    """Every version that lies here: a unit as one of them brings it was changed by nobody."""
    found = []
    for path in [LINK, *sorted(FOLDER.glob("pv-*.pyz"))]:
        with contextlib.suppress(ValetError):
            found.append(Archive.read(path))
    return found


def put_archive(steps: Steps, archive: Archive, place: Path) -> None:
    """The file at `place`, beside those of other versions; nothing uses it there yet."""
    steps.take(
        f"copy {archive.path} to {place}",
        not place.exists(),
        lambda: files.write(place, archive.data, mode=0o755),
    )


def put_units(steps: Steps, texts: Mapping[str, bytes], ours: Sequence[Archive]) -> bool:
    """The units with these texts; one that a person has changed is left. Whether systemd has news.

    `ours` are the archives whose units may be replaced.
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
    if not steps.dry_run:  # written, perhaps, by one that was killed behind it
        changed = changed or any(_show(name, "NeedDaemonReload") == "yes" for name in texts)
    if changed:
        steps.take("have systemd read its units", True, lambda: run("systemctl", "daemon-reload"))
    return changed


def _units(archives: Sequence[Archive], name: str) -> Iterator[bytes]:
    for archive in archives:
        with contextlib.suppress(ValetError):
            yield archive.unit(name)
