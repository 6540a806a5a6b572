"""What of install, upgrade and the units can be told without a machine to change.

tests/appliance does it all for real, on a Debian under systemd.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import NOBODY, TREE, built, program
from needs import git, need

from pv_lib.errors import ValetError
from pv_lib.install import machine
from pv_lib.install.archive import Archive
from pv_lib.system.notify import ALIVE_SECONDS

GUIDE = (TREE / "ops/guide.md").read_text()
UNITS = sorted((TREE / "ops/systemd").glob("*.service"))


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(path.read_text())
    return parser


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program(), *argv],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def has_user(name: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(name))
    return False


def test_a_dry_run_says_each_step_and_the_next_three_commands() -> None:
    git()
    need(shutil.which("systemctl"), "systemctl", "apt-get install systemd")
    need(
        None if Path("/opt/prompt-valet").exists() else "none", "a machine without it", "uninstall"
    )
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # as sudo has it, and a user of Debian has not
    done = run("install", "--dry-run", "--token", PATH=path)
    assert done.returncode == 0, done.stderr
    there = {  # an uninstall leaves both
        "create the user prompt-valet": has_user("prompt-valet"),
        "make the folder /srv/prompt-valet": Path("/srv/prompt-valet").exists(),
    }
    for words, already in there.items():
        step = f"{'not needed' if already else 'would'}: {words}"
        assert re.search(f"^{step}", done.stdout, re.MULTILINE), step
    for word in ("pv.pyz", "pv.env", *(u.name for u in UNITS)):
        assert re.search(rf"^would: .*{re.escape(word)}", done.stdout, re.MULTILINE), word
    assert done.stdout.count("\n  sudo ") == 3 and "done: " not in done.stdout
    assert not Path("/opt/prompt-valet").exists() and not Path("/etc/prompt-valet").exists()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder into which every user of the machine can look."""
    with tempfile.TemporaryDirectory(prefix="pv-test-") as name:
        yield Path(name)


@pytest.mark.parametrize("command", ["install", "upgrade", "uninstall"])
def test_only_root_may_change_a_machine(command: str, open_folder: Path) -> None:
    if os.geteuid():
        argv, user = [*program(), command], None
    else:
        open_folder.chmod(0o755)
        copy = shutil.copy(built(), open_folder / "pv.pyz")
        argv, user = ["/usr/bin/env", "python3", "-I", "-S", str(copy), command], NOBODY
        shutil.which("python3", path="/usr/bin") or pytest.skip("needs /usr/bin/python3")
    done = subprocess.run(
        argv, user=user, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stdout == ""
    assert (
        "run it as root; --dry-run only says the steps" in done.stderr
        and done.stderr.count("\n") == 1
    )


def test_an_archive_tells_its_version_and_brings_its_units() -> None:
    archive = Archive.read(built())
    assert run("--version").stdout == f"Prompt Valet {archive.version}\n"
    for path in UNITS:
        assert archive.unit(path.name) == path.read_bytes()
    assert (
        archive.shipped("ops/env/pv.env.example") == (TREE / "ops/env/pv.env.example").read_bytes()
    )


def test_what_is_no_archive_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("print('hello')\n")
    with zipfile.ZipFile(tmp_path / "other.pyz", "w") as other:
        other.writestr("__main__.py", "")
    (tmp_path / "torn.pyz").write_bytes(built().read_bytes()[:-1000])
    for name in ("text", "other.pyz", "torn.pyz", "missing"):
        done = run("upgrade", "--dry-run", str(tmp_path / name))
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        assert str(tmp_path / name) in done.stderr
    with pytest.raises(ValetError, match="build one with"):
        Archive.read(TREE / "pv.py")


def test_the_settings_are_read_as_systemd_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "pv.env"
    path.write_text(
        "# PV_ROOT=/no\n; PV_ROOT=/neither\n\nPV_ROOT=/srv/x\nPV_BIND_HOST='127.0.0.1'\n"
        'PV_GIT_AUTHOR="A B <a@b>"\n  PV_WATCHER = on  \nPV_ROOT=/srv/last\nnothing\n'
    )
    assert machine.read_env(path) == {
        "PV_ROOT": "/srv/last",
        "PV_BIND_HOST": "127.0.0.1",
        "PV_GIT_AUTHOR": "A B <a@b>",
        "PV_WATCHER": "on",
    }
    assert machine.read_env(tmp_path / "missing") == {}


def test_both_units_say_the_same_but_for_the_command() -> None:
    api, watcher = (dict(unit(path)["Service"]) for path in UNITS)
    assert api.pop("ExecStart").removesuffix("serve") == watcher.pop("ExecStart").removesuffix(
        "watch"
    )
    assert api == watcher


def test_install_knows_the_home_that_the_units_set() -> None:
    assert unit(UNITS[0])["Service"]["Environment"] == f"HOME={machine.home()}"


def test_the_watchdog_waits_for_several_missed_turns() -> None:
    for path in UNITS:
        assert float(unit(path)["Service"]["WatchdogSec"]) >= 4 * ALIVE_SECONDS


def test_every_alarm_has_a_remedy_in_the_guide() -> None:
    """The sentences that the status can show, by their fixed words."""
    shown = set()
    for name, pattern in (
        ("watcher/watcher", r'_notes\.add\(f"(.+?)"\)'),
        ("api/status", r'found\.append\(f"(.+?)"\)'),
        ("jobs/index", r'found\.append\(f"(.+?)"\)'),
    ):
        shown |= set(re.findall(pattern, (TREE / f"pv_lib/{name}.py").read_text()))
    assert len(shown) == 9
    section = GUIDE.partition("## Every alarm")[2].partition("\n## ")[0]
    told = set(re.findall(r"^\| `([^`]+)` \| \S", section, re.MULTILINE))
    assert {re.sub(r"\{.*?\}", "…", sentence) for sentence in shown} <= told
