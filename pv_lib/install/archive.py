"""A pv.pyz file, read whole, and its place beside those of other versions.

What is checked is what is installed, even where the file is replaced meanwhile. Its code is never
run here. Knows nothing of systemd or of the settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pv_lib.errors import ValetError
from pv_lib.install.machine import FOLDER, LINK
from pv_lib.install.steps import Steps
from pv_lib.system import files


@dataclass(frozen=True)
class Archive:
    """The bytes of one pv.pyz, and its version."""

    path: Path
    data: bytes
    version: str

    @classmethod
    def read(cls, path: Path) -> Archive:
        """The archive at `path`. Raises ValetError where it is not a pv.pyz."""
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
            raise ValetError(f"{path} does not name its version")
        return cls(path, data, f"{found['VERSION']}+{found['COMMIT']}")

    def shipped(self, name: str) -> bytes:
        """A file packed in it, such as `ops/systemd/….service`. Raises ValetError."""
        try:
            return zipfile.ZipFile(io.BytesIO(self.data)).read(name)
        except KeyError:
            raise ValetError(f"{self.path} has no {name}") from None

    def unit(self, name: str) -> bytes:
        """The text of a unit."""
        return self.shipped(f"ops/systemd/{name}")

    @property
    def place(self) -> Path:
        """The path to install it at: a second build of one version gets a name of its own."""
        usual = FOLDER / f"pv-{self.version}.pyz"
        if not usual.exists() or usual.read_bytes() == self.data:
            return usual
        return FOLDER / f"pv-{self.version}-{hashlib.sha256(self.data).hexdigest()[:8]}.pyz"


def installed_archives() -> list[Archive]:
    """The archives of every installed version: a unit equal to one of theirs is unedited."""
    found = []
    for path in [LINK, *sorted(FOLDER.glob("pv-*.pyz"))]:
        with contextlib.suppress(ValetError):
            found.append(Archive.read(path))
    return found


def put_archive(steps: Steps, archive: Archive, place: Path) -> None:
    """Copy the archive to `place`, where nothing uses it yet."""
    steps.take(
        f"copy {archive.path} to {place}",
        not place.exists(),
        lambda: files.write(place, archive.data, mode=0o755),
    )


def point_link(target: Path) -> None:
    """Make `LINK` point to `target`, atomically: by a rename."""
    temp = FOLDER / files.temp_name()
    temp.symlink_to(target.name)
    os.replace(temp, LINK)
    files.sync_folder(FOLDER)
