"""Fixtures: the built archive, and a Prompt Valet that is stopped after the test."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import TREE, Valet, program


@pytest.fixture(scope="session", autouse=True)
def _build() -> None:
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
