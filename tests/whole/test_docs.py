"""The documents say what the build does."""

from __future__ import annotations

import re
import subprocess

import pytest
from harness import TREE, program

from pv_lib.api.routes import TABLE
from pv_lib.jobs import job
from pv_lib.jobs.job import State
from pv_lib.settings import config

CONTRACT = (TREE / "ops/CONTRACT.md").read_text()
GUIDE = (TREE / "ops/guide.md").read_text()
README = (TREE / "README.md").read_text()
EXAMPLE = (TREE / "ops/env/pv.env.example").read_text()


def test_every_setting_stands_in_the_contract_with_its_default() -> None:
    rows = dict(re.findall(r"^\| (PV_\w+) \| (.*?) \|", CONTRACT, re.MULTILINE))
    wanted = {s.name: s.default or "none" for s in config.SETTINGS}
    assert rows == wanted


def test_every_setting_stands_in_the_example_which_loads() -> None:
    values = dict(re.findall(r"^#?((?:PV_)\w+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert set(values) == {s.name for s in config.SETTINGS}
    defaults = config.load({})
    off = {name: value for name, value in values.items() if not name.startswith("PV_API_TOKEN")}
    assert config.load(off) == defaults
    active = dict(re.findall(r"^(PV_\w+)=(.*)$", EXAMPLE, re.MULTILINE))
    assert config.load(active) == defaults
    assert {"PV_REPOS_ROOT", "PV_RUNS_ROOT", "PV_BIND_HOST", "PV_API_USER"} <= set(active)


def test_help_shows_every_setting_and_command() -> None:
    text = subprocess.run([*program(), "--help"], capture_output=True, text=True, check=True).stdout
    for setting in config.SETTINGS:
        assert f"  {setting.name} " in text and setting.help in text
    for command in ("serve", "watch", "demo", "install", "upgrade", "uninstall"):
        assert re.search(
            rf"^    {command}\s", text, re.MULTILINE
        )  # a long one has a line of its own
        assert f"`{command}" in CONTRACT


def test_every_route_stands_in_the_contract() -> None:
    rows = set(re.findall(r"^\| (GET|POST|DELETE) (/\S+) \|", CONTRACT, re.MULTILINE))
    assert rows == {(r.operation.method, r.operation.path) for r in TABLE}


def test_every_field_and_state_stands_in_the_contract() -> None:
    section = CONTRACT.partition("## 3. The record")[2].partition("## 4.")[0]
    words = set(re.findall(r"\w+", section))
    assert set(job.to_dict(job.Record("x"))) <= words
    assert {state.value for state in State} <= words


def test_every_reason_the_code_gives_stands_in_the_contract() -> None:
    section = CONTRACT.partition("## 3. The record")[2].partition("## 4.")[0]
    documented = set(re.findall(r"`(\w+)`", section))
    pattern = r'(?:JobFailed\(|Verdict\(State\.\w+, |reason=|_end\([^"\n]*, )"(\w+)"'
    given = set()
    for path in (TREE / "pv_lib").rglob("*.py"):
        given |= set(re.findall(pattern, path.read_text()))
    assert {"lost", "timeout", "withdrawn"} <= given
    assert given <= documented


@pytest.mark.parametrize("name", ["pv.env.example", "prompt-valet-api.service"])
def test_the_guide_names_the_files_it_uses(name: str) -> None:
    assert name in GUIDE
    assert list(TREE.glob(f"ops/*/{name}"))


def test_the_readme_names_every_room() -> None:
    rooms = {path.parent.name for path in (TREE / "pv_lib").glob("*/__init__.py")}
    table = README.partition("| room of")[2].partition("\n")[2].partition("\n\n")[0]
    assert rooms == set(re.findall(r"`(\w+)/`", table))


def test_the_readme_has_exactly_two_commands_to_try() -> None:
    section = README.partition("## Try it")[2].partition("\n## ")[0]
    assert len(re.findall(r"^```\n(.+)\n```$", section, re.MULTILINE)) == 2
    assert section.count("```") == 4


def test_the_architecture_shows_every_room_module_thread_and_lock() -> None:
    page = (TREE / "ops/architecture.md").read_text()
    words = set(re.findall(r"\w+", page))
    code = {path: path.read_text() for path in (TREE / "pv_lib").rglob("*.py")}
    modules = {path.stem for path in code} - {"__init__", "schemas", "main", "commands"}
    beside = {
        path.stem for room in ("cli", "install") for path in (TREE / "pv_lib" / room).iterdir()
    }
    assert modules - beside <= words
    assert {path.parent.name for path in code} - {"pv_lib"} <= words
    for path, text in code.items():
        room = f"{path.parent.name}.{path.stem}"
        for name in re.findall(r"self\.(\w+) = threading\.(?:Lock|Condition)\(\)", text):
            assert re.search(rf"`{room}\.\w+\.{name}`", page), f"{room} has a lock {name}"
        for name in re.findall(r'Thread\(.*?name=f?"(\w+)', text, re.DOTALL):
            assert name in words, f"{room} starts a thread {name}"
