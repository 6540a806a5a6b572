"""An installed machine: its paths, its settings, and the service's user.

    /opt/prompt-valet/pv-VERSION.pyz        the archive, one per version
                      pv.pyz                a link to the one in use, which the units start
    /etc/prompt-valet/pv.env                the settings
    /etc/systemd/system/prompt-valet-*      the units

Reads only. Changes are made by `install` and `upgrade`; nothing here serves or runs jobs.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from pv_lib.client import Client
from pv_lib.errors import ConfigFault
from pv_lib.settings import config as settings
from pv_lib.settings.config import Config

FOLDER = Path("/opt/prompt-valet")
LINK = FOLDER / "pv.pyz"
ENV = Path("/etc/prompt-valet/pv.env")
API, WATCHER = "prompt-valet-api.service", "prompt-valet-watcher.service"
UNITS = (WATCHER, API)  # in the order in which they are restarted
UNIT_FOLDER = Path("/etc/systemd/system")
PYTHON = "/usr/bin/python3"  # that the units start


def read_env(path: Path = ENV) -> dict[str, str]:
    """The variables of a file that systemd reads as EnvironmentFile; none where it does not exist.

    Handles comments and one pair of quotes around a value as systemd does, but no value that spans
    several lines.
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
    """The service's HOME, with the login of Codex: the units' unless the settings name another."""
    return Path(read_env().get("HOME") or "/srv/prompt-valet")


def load() -> Config:
    """The settings of this machine. Raises ConfigFault with every fault, as `serve` would.

    The token file is read with the rights of the service's user. That user may be able to replace
    it with a link, through which root would read any file.
    """
    environ = read_env()
    with as_user(environ.get("PV_API_USER") or "prompt-valet"):
        config, faults = settings.read(environ)
    if faults:
        raise ConfigFault([f"{ENV}: {fault}" for fault in faults])
    return config


@contextlib.contextmanager
def as_user(name: str) -> Iterator[None]:
    """Run the block with the rights of this user, where it exists and we are root."""
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
    """A client of the server that runs on this machine with these settings."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.bind_host, config.bind_host)
    named = f"[{config.bind_host}]" if ":" in config.bind_host else config.bind_host
    headers = {"Host": named}
    if config.api_token:
        headers["Authorization"] = f"Bearer {config.api_token}"
    return Client(host, config.bind_port, timeout, headers)
