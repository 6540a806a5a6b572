"""The scan against a slow walk, whatever is done to the inbox; and what it does not read again."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import NOBODY, until

from pv_lib.inbox.prompt import Prompt, prompt_at
from pv_lib.inbox.scan import Scan
from pv_lib.system.beneath import Folder, Root
from pv_lib.system.files import settled

SETTLE = 0.06  # seconds after which a change has its own ctime


class CountingTree(Root):
    """A tree that counts how often a folder is opened."""

    opened = 0

    @contextlib.contextmanager
    def folder(self, path: Path, *, make: bool = False) -> Iterator[Folder]:
        self.opened += 1
        with super().folder(path, make=make) as found:
            yield found


def slowly(root: Path) -> list[Prompt]:
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            found.append(prompt_at(root, path.relative_to(root).parts, path.lstat()))
    return sorted(filter(None, found), key=lambda p: (p.folders, p.path.name))


def age(root: Path) -> None:
    """Wait until no folder's ctime is of just now."""
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    newest = max(path.stat().st_ctime for path in folders)
    until(lambda: time.time() > newest + SETTLE, "time to go by")


def change(root: Path, chance: random.Random, number: int) -> None:
    """One thing that somebody may do."""
    folders = [root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]
    files = [path for path in root.rglob("*") if path.is_file()]
    where = chance.choice(folders)
    names = (f"{number}.md", f"x-{number:032x}.prompt.md", f"y-{number:032x}.running.md")
    what = chance.randrange(9)
    if what < 3:
        (where / chance.choice((*names, f".{number}.md", f"{number}.txt"))).write_text("x")
    elif what == 3:
        (where / chance.choice((f"d{number}", f"d{number}/e/f", f".d{number}"))).mkdir(parents=True)
    elif what == 4 and files:
        chance.choice(files).unlink()
    elif what == 5 and files:
        chance.choice(files).rename(where / f"moved{number}.md")
    elif what == 6 and where != root:
        shutil.rmtree(where)
        if chance.random() < 0.5:  # another one in its place
            where.mkdir()
            (where / names[0]).write_text("y")
    elif what == 7 and where != root:
        with contextlib.suppress(OSError):
            where.rename(root / f"r{number}")
    elif what == 8:
        (where / f"link{number}").symlink_to(root)


@pytest.mark.parametrize("seed", range(4))
def test_the_scan_sees_what_a_slow_walk_sees(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    scan = Scan(Root(tmp_path))
    for number in range(300):
        change(tmp_path, chance, number)
        if number % 60 == 30:
            age(tmp_path)
            assert scan.prompts() == slowly(tmp_path)
        if number % 3 == 0:
            assert scan.prompts() == slowly(tmp_path)
    age(tmp_path)
    assert scan.prompts() == slowly(tmp_path) and slowly(tmp_path)


def test_unchanged_folders_are_not_read_again(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"o{number}/r/main").mkdir(parents=True)
    waiting = tmp_path / "o7/r/main/a.prompt.md"
    waiting.write_text("x")
    tree = CountingTree(tmp_path)
    scan = Scan(tree)
    age(tmp_path)
    scan.prompts()
    before = tree.opened
    for _ in range(5):
        assert [prompt.path for prompt in scan.prompts()] == [waiting]
    assert tree.opened == before
    waiting.write_text("it grows")  # which its folder does not tell
    assert [prompt.signature[2] for prompt in scan.prompts()] == [8]
    assert tree.opened == before
    waiting.rename(tmp_path / "o7/r/main/b.prompt.md")
    assert [prompt.path.name for prompt in scan.prompts()] == ["b.prompt.md"]
    assert tree.opened == before + 1


def test_many_quiet_folders_take_turns_and_none_is_left_out(tmp_path: Path) -> None:
    folders = [tmp_path / f"o{number}" for number in range(30)]
    for folder in folders:
        folder.mkdir()
    scan = Scan(Root(tmp_path), at_once=7, warm_seconds=0)
    age(tmp_path)
    assert scan.prompts() == []
    drop = folders[29] / "a.md"
    drop.write_text("x")
    looks = 0
    while not scan.prompts():
        looks += 1
        assert looks <= 5
    drop.write_text("xy")
    assert [prompt.signature[2] for prompt in scan.prompts()] == [2]


def test_a_thorough_scan_asks_every_folder(tmp_path: Path) -> None:
    folders = [tmp_path / f"o{number}" for number in range(30)]
    for folder in folders:
        folder.mkdir()
    scan = Scan(Root(tmp_path), at_once=1, warm_seconds=0)
    age(tmp_path)
    assert scan.prompts() == []
    (folders[29] / "a.md").write_text("x")
    assert len(scan.prompts(thorough=True)) == 1


@pytest.mark.parametrize("at_once", range(1, 12))
def test_what_lies_in_a_folder_that_was_away_for_a_while_is_found_again(
    tmp_path: Path, at_once: int
) -> None:
    for number in range(5):
        (tmp_path / f"o{number}/r/main").mkdir(parents=True)
    (tmp_path / "o3/r/main/a.md").write_text("x")
    scan = Scan(Root(tmp_path), at_once=at_once, warm_seconds=0)
    age(tmp_path)
    for _ in range(20):
        assert len(scan.prompts()) == 1
    (tmp_path / "o3").rename(tmp_path.with_name("aside"))
    scan.prompts()
    tmp_path.with_name("aside").rename(tmp_path / "o3")
    looks = 0
    while not scan.prompts():
        looks += 1
        assert looks < 40


def test_a_change_is_settled_when_a_further_one_would_have_another_time() -> None:
    second = 10**9
    assert settled(5 * second + 1, 5 * second + 100_000_000)
    assert not settled(5 * second + 1, 5 * second + 40_000_000)
    assert not settled(5 * second, 6 * second)  # a disk that counts whole seconds
    assert settled(5 * second, 8 * second)
    assert not settled(9 * second, 5 * second)  # its clock is ahead of ours


@pytest.fixture
def unprivileged_folder() -> Iterator[Path]:
    """A folder of a user who is not root, as whom the test goes on."""
    with tempfile.TemporaryDirectory(prefix="pv-test-") as name:
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
            os.seteuid(NOBODY)
            try:
                yield Path(name)
            finally:
                os.seteuid(0)
        else:
            yield Path(name)


def test_a_folder_closed_and_opened_again_is_read_again(unprivileged_folder: Path) -> None:
    inner = unprivileged_folder / "o"
    inner.mkdir()
    (inner / "a.md").write_text("x")
    scan = Scan(Root(unprivileged_folder))
    assert len(scan.prompts()) == 1
    inner.chmod(0)
    assert scan.prompts() == []
    inner.chmod(0o700)
    assert len(scan.prompts()) == 1


def test_a_root_that_goes_is_an_error_and_comes_back(tmp_path: Path) -> None:
    root = tmp_path / "inbox"
    (root / "o").mkdir(parents=True)
    (root / "o/a.md").write_text("x")
    scan = Scan(Root(root))
    assert len(scan.prompts()) == 1
    root.rename(tmp_path / "aside")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            scan.prompts()
    (tmp_path / "aside").rename(root)
    assert len(scan.prompts()) == 1
