"""`install` and `uninstall`: each step checks first, so both can be repeated at any time.

    power cut after   state left          the next `install`
    user, folders     nothing uses them   continues
    archive           nothing uses it     continues
    link              nothing starts it   continues
    settings, token   nothing reads them  continues, and leaves them as they are
    units             not enabled         prints what to do next

Replacing a version is done by `upgrade`; what an installed machine consists of is in `machine`.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import secrets
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from pv_lib.errors import ValetError
from pv_lib.install import machine, systemd
from pv_lib.install.archive import Archive, installed_archives, point_link, put_archive
from pv_lib.install.machine import API, ENV, FOLDER, LINK, PYTHON, UNIT_FOLDER, UNITS
from pv_lib.install.steps import Steps, alone, need_root, run
from pv_lib.settings import config as settings
from pv_lib.settings.config import Config
from pv_lib.system import files

_USER, _ROOT = "prompt-valet", Path("/srv/prompt-valet")
_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_TOKEN = ENV.with_name("token")
_NEEDED = {
    "git": "install it with the system's package manager",
    "systemctl": "this needs a machine that systemd runs",
    "runuser": "install util-linux",
    PYTHON: "the unit starts it: install Python 3.10 or newer there",
}


def install(archive: Archive, *, dry_run: bool, with_token: bool, out: TextIO) -> None:
    """Make this machine ready for `systemctl start`. Raises ValetError, ConfigFault."""
    steps = Steps(out, dry_run=dry_run)
    if not dry_run:
        need_root("install")
        if not _BOOTED.is_dir():
            raise ValetError(
                "systemd does not run this machine: start `python3 pv.pyz serve` by hand"
            )
    os.umask(0o022)
    for program, remedy in _NEEDED.items():
        if not shutil.which(program):
            raise ValetError(f"{program} is not on this machine: {remedy}, then install again")
    with alone(steps):
        _install(steps, archive, with_token)


def _install(steps: Steps, archive: Archive, with_token: bool) -> None:
    _refuse_other_version(archive)
    config = machine.load()
    home = machine.home()
    _make_user(steps, config, home)
    for folder in dict.fromkeys((home, config.root)):  # they may be the same folder
        _make_folder(steps, folder, 0o700, config.api_user)
    _make_folder(steps, FOLDER, 0o755)
    place = archive.place
    put_archive(steps, archive, place)
    at_link = LINK.is_symlink() and os.readlink(LINK) == place.name
    steps.take(f"point {LINK} to it", not at_link, lambda: point_link(place))
    _make_folder(steps, ENV.parent, 0o755)
    _put_settings(steps, archive, config, with_token)
    texts = {name: archive.unit(name) for name in UNITS}
    systemd.put_units(steps, texts, installed_archives())
    if with_token and not steps.dry_run and machine.load().api_token is None:
        steps.say(f"NOTE: the token is not asked for yet: set PV_API_TOKEN_FILE={_TOKEN} in {ENV}")
    _end(steps, config, home)


def uninstall(*, dry_run: bool, out: TextIO) -> None:
    """Remove the program from this machine, and leave its data. Raises ValetError."""
    steps = Steps(out, dry_run=dry_run)
    if not dry_run:
        need_root("uninstall")
    with alone(steps):
        _uninstall(steps)


def _uninstall(steps: Steps) -> None:
    no_token = {k: v for k, v in machine.read_env().items() if not k.startswith("PV_API_TOKEN")}
    config, _ = settings.read(no_token)  # a fault in them must not prevent the removal
    for unit in UNITS:
        active = systemd.is_up(unit)
        steps.take(f"stop {unit}", active, lambda: run("systemctl", "stop", unit))  # noqa: B023
        enabled = systemd.unit_is("is-enabled", unit)
        steps.take(f"disable {unit}", enabled, lambda: run("systemctl", "disable", unit))  # noqa: B023
    for unit in UNITS:
        path = UNIT_FOLDER / unit
        steps.take(f"remove {path}", path.exists(), lambda: path.unlink())  # noqa: B023
    steps.take(
        "have systemd read its units",
        steps.changes > 0,
        lambda: run("systemctl", "daemon-reload"),
    )
    for path in [LINK, *sorted(FOLDER.glob("pv-*.pyz"))]:
        steps.take(f"remove {path}", os.path.lexists(path), lambda: path.unlink())  # noqa: B023
    remove = FOLDER.unlink if FOLDER.is_symlink() else FOLDER.rmdir
    steps.take(f"remove {FOLDER}", FOLDER.exists(), remove)
    apart = [str(root) for root in config.roots.values() if config.root not in root.parents]
    steps.say(
        f"left: {', '.join([str(config.root), *apart])} with every run, prompt and clone, "
        f"{ENV.parent} with the settings, and the user {config.api_user}. Jobs that run now go on "
        "to their end. Installed again, Prompt Valet takes all of it up."
    )
    if (config.api_user, config.root, apart) == (_USER, _ROOT, []):
        steps.say(f"To remove these too: rm -r {_ROOT} {ENV.parent} && userdel {_USER}")


def _refuse_other_version(archive: Archive) -> None:
    if LINK.exists() and LINK.read_bytes() != archive.data:
        installed = Archive.read(LINK)
        raise ValetError(
            f"version {installed.version} is installed here and this is {archive.version}: "
            f"sudo python3 {archive.path} upgrade"
        )


def _make_user(steps: Steps, config: Config, home: Path) -> None:
    user = config.api_user
    known = _exists(pwd.getpwnam, user)
    if not known and user != _USER:
        raise ValetError(
            f"PV_API_USER={user} is not a user of this machine: create it, or name another in {ENV}"
        )
    group = ["--gid", user] if _exists(grp.getgrnam, user) else ["--user-group"]
    argv = ["useradd", "--system", *group, "--home-dir", str(home)]
    argv += ["--shell", "/usr/sbin/nologin", user]
    steps.take(f"create the user {user}", not known, lambda: run(*argv))


def _exists(look: Callable[[str], object], name: str) -> bool:
    """Whether `look`, a lookup of users or of groups, finds the name."""
    try:
        look(name)
    except KeyError:
        return False
    return True


def _make_folder(steps: Steps, folder: Path, mode: int, user: str = "root") -> None:
    def make() -> None:
        if not _is_roots(folder):  # the owner of a folder above could redirect root
            with machine.as_user(user):
                folder.mkdir(parents=True, mode=mode)
            return
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            owner = pwd.getpwnam(user)
            os.fchown(fd, owner.pw_uid, owner.pw_gid)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
        files.sync_folder(folder.parent)

    needed = not folder.exists()
    known = _exists(pwd.getpwnam, user)
    if not needed and not (known and folder.stat().st_uid == pwd.getpwnam(user).pw_uid):
        needed = folder.stat().st_uid == 0 and not any(folder.iterdir())  # half made
        if not needed:
            raise ValetError(
                f"{folder} does not belong to {user}: chown -R {user}: {folder}, then install again"
            )
    steps.take(f"make the folder {folder}, of {user} and mode {mode:04o}", needed, make)


def _is_roots(folder: Path) -> bool:
    """Whether only root can change which folder this path leads to."""
    above = {*folder.parents, folder.parent.resolve(), *folder.parent.resolve().parents}
    for path in above:
        with contextlib.suppress(FileNotFoundError):
            info = path.lstat()
            open_to_all = not stat.S_ISLNK(info.st_mode) and info.st_mode & 0o022
            if info.st_uid != 0 or open_to_all:
                return False
    return True


def _put_settings(steps: Steps, archive: Archive, config: Config, with_token: bool) -> None:
    """Write the settings and the token where they are missing; existing ones are left."""
    text = archive.shipped("ops/env/pv.env.example")
    if with_token:
        text = text.replace(b"#PV_API_TOKEN_FILE=\n", f"PV_API_TOKEN_FILE={_TOKEN}\n".encode())
        steps.take(
            f"make a token in {_TOKEN}, which only {config.api_user} can read",
            not _TOKEN.exists(),
            lambda: _make_token(config.api_user),
        )
    steps.take(f"write {ENV}", not ENV.exists(), lambda: files.create(ENV, text, mode=0o644))


def _make_token(user: str) -> None:
    temp = _TOKEN.with_name(files.temp_name())
    files.write_new(temp, secrets.token_urlsafe(24).encode() + b"\n")
    shutil.chown(temp, user, pwd.getpwnam(user).pw_gid)
    os.rename(temp, _TOKEN)
    files.sync_folder(_TOKEN.parent)


def _end(steps: Steps, config: Config, home: Path) -> None:
    """Print what needs a person, and the next three commands."""
    if not steps.changes:
        steps.say("Nothing was changed: it was installed already.")
    if not systemd.unit_is("is-active", API) and _is_taken(config):
        steps.say(
            f"NOTE: port {config.bind_port} of {config.bind_host} is taken by another program: "
            f"stop that, or set another PV_BIND_PORT in {ENV}, before the start."
        )
    if not shutil.which(config.codex_bin):
        steps.say(
            f"NOTE: {config.codex_bin} is not there yet, and no job can run without it: "
            "npm install -g @openai/codex"
        )
    if steps.dry_run:
        steps.say("This was a dry run: nothing was changed.")
    if systemd.unit_is("is-active", API):
        return
    user = config.api_user
    steps.say("Next:")
    steps.say(f"  sudo -u {user} env HOME={home} codex login")
    steps.say(
        f"  sudo -u {user} git clone https://github.com/OWNER/NAME.git "
        f"{config.repos_root}/OWNER/NAME"
    )
    steps.say(f"  sudo systemctl enable --now {API}")


def _is_taken(config: Config) -> bool:
    family = socket.AF_INET6 if ":" in config.bind_host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.bind_host, config.bind_port))
            probe.listen()
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
