"""Fixtures: the built archive, and a Prompt Valet that is stopped after the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import FAKE, NOBODY, PROGRAMS, TREE, Valet, built, program
from needs import need


@pytest.fixture(scope="session", autouse=True)
def _build() -> None:
    if "TEST_ARCHIVE" not in os.environ:
        subprocess.run([str(TREE / "build.sh")], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def make_valet(tmp_path: Path) -> Iterator[Callable[..., Valet]]:
    """Makes valets over `tmp_path`, not yet started."""
    made: list[Valet] = []

    def make(**settings: str) -> Valet:
        valet = Valet(tmp_path, program(), **settings)
        made.append(valet)
        return valet

    yield make
    for valet in made:
        valet.clear()


@pytest.fixture
def valet(make_valet: Callable[..., Valet]) -> Valet:
    """A started Prompt Valet in one process."""
    valet = make_valet()
    valet.start()
    return valet


@pytest.fixture
def quick(make_valet: Callable[..., Valet]) -> Callable[..., Valet]:
    """Makes a server with other limits than the product's."""

    def make(settings: dict[str, str] | None = None, **limits: float) -> Valet:
        valet = make_valet(**(settings or {}))
        changes = ",".join(f"{name}={value}" for name, value in limits.items())
        script = str(PROGRAMS / "quick_limits.py")
        valet.program = [sys.executable, "-I", "-S", script, changes, str(built())]
        valet.start()
        return valet

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    need("yes" if os.geteuid() == 0 else None, "root, to mount a small disk", "sudo pytest")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def unprivileged_valet() -> Iterator[Valet]:
    """A Prompt Valet that is not root, not yet started."""
    with tempfile.TemporaryDirectory(prefix="pv-test-") as name:
        root = Path(name)
        archive = shutil.copy(built(), root / "pv.pyz")
        agent = shutil.copy(FAKE, root / "agent")
        valet = Valet(root, [*program()[:-1], str(archive)], PV_CODEX_BIN=str(agent))
        valet.environ["HOME"] = name
        if os.geteuid() == 0:
            need(shutil.which("setpriv"), "setpriv", "apt-get install util-linux")
            user = str(NOBODY)
            for path in [root, *root.rglob("*")]:
                os.chown(path, NOBODY, NOBODY)
            dropped = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
            valet.program = [*dropped, *valet.program]
        yield valet
        valet.clear()
