"""The house: imports follow the table, pure modules stay pure, no module grows out of hand."""

from __future__ import annotations

import ast
import sys
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from harness import TREE, built

from pv_lib.cli.commands import COMMANDS

CODE = TREE / "pv_lib"
FILES = sorted(CODE.rglob("*.py"))


def _name(path: Path) -> str:
    """`pv_lib/jobs/job.py` as `jobs.job`; a package's own file as `jobs`."""
    parts = path.relative_to(CODE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


TREES = {_name(path): ast.parse(path.read_text("utf-8"), str(path)) for path in FILES}
ROOMS = sorted(path.name for path in CODE.iterdir() if any(path.glob("*.py")))
# Who may import whom. `errors` and `stamp` are free to all; a room may import its own modules.
# The wings httpd + api and agent + runner + watcher share what stands below both, and meet on disk.
FREE = ("errors", "stamp")
ALLOWED: dict[str, set[str]] = {
    "system": set(),
    "settings": set(),
    "client": set(),
    "jobs": {"system"},
    "git": {"jobs", "settings", "system"},
    "agent": {"jobs", "settings", "system"},
    "inbox": {"git", "jobs", "settings", "system"},
    "runner": {"agent", "git", "inbox", "jobs", "settings", "system"},
    "watcher": {"runner", "agent", "git", "inbox", "jobs", "system"},
    "httpd": {"system"},
    "api": {"httpd", "git", "inbox", "jobs", "settings", "system"},
    "install": {"client", "settings", "system"},
    "app": {
        *("watcher", "runner", "agent", "api", "httpd"),
        *("inbox", "git", "jobs", "settings", "system"),
    },
    "cli": {"app", "client", "install", "agent", "jobs", "settings", "system"},
}
PURE_AGENT = ("agent.transcript", "agent.adapter", "agent.codex")
PURE = (
    *PURE_AGENT,
    "errors",
    "httpd.wire",
    "inbox.frontmatter",
    "jobs.job",
    "jobs.options",
    "jobs.submission",
    "settings.values",
)
EDGES = frozenset({"socket", "socketserver", "subprocess", "threading", "select", "selectors"})
MOST_LINES = 450


def _room(name: str) -> str:
    return name.partition(".")[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """What every import in `tree` names, in full, as `pv_lib.jobs.job` and `pv_lib.jobs.job.State`.

    A name that is no module is given as well: whoever asks knows which modules there are.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield start
            yield from (f"{start}.{alias.name}" for alias in node.names)


def of_the_house(name: str) -> set[str]:
    """The house's modules that the module `name` imports."""
    inside = {full.removeprefix("pv_lib.") for full in imported(TREES[name])}
    return {module for module in inside & TREES.keys() if module not in ("", *ROOMS)}


def everything_below(name: str) -> set[str]:
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        fresh = of_the_house(waiting.pop()) - seen
        seen |= fresh
        waiting += fresh
    return seen


def test_every_room_is_read() -> None:
    assert set(ROOMS) == {name.partition(".")[0] for name in TREES if "." in name}
    assert len(ROOMS) == 12 and all(room in TREES for room in ROOMS)


def test_the_graph_of_imports_is_read() -> None:
    assert {"settings.config", "jobs.job"} <= of_the_house("agent.codex")
    assert {"watcher.watcher", "httpd.server"} <= of_the_house("app")
    assert not of_the_house("errors")


def test_no_import_is_relative() -> None:
    assert not [name for name in TREES for full in imported(TREES[name]) if full.startswith(".")]


def test_imports_between_rooms_follow_the_table() -> None:
    against = [
        f"{name} imports {below}"
        for name in TREES
        for below in of_the_house(name)
        if _room(below) not in {_room(name), *ALLOWED[_room(name)], *FREE}
    ]
    assert not against


def test_the_table_has_every_room_and_runs_one_way() -> None:
    rooms = {_room(name) for name in TREES if name not in ("", *FREE)}
    assert set(ALLOWED) == rooms
    assert set(TopologicalSorter(ALLOWED).static_order()) == rooms


def test_the_commands_load_modules_that_the_table_allows() -> None:
    for command in COMMANDS:
        name = command.module.removeprefix("pv_lib.")
        assert _room(name) in {"cli", *ALLOWED["cli"]}
        functions = [n.name for n in TREES[name].body if isinstance(n, ast.FunctionDef)]
        assert command.function in functions


def test_imports_form_no_circle() -> None:
    order = TopologicalSorter({name: of_the_house(name) for name in TREES}).static_order()
    assert set(order) == set(TREES)


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_touches_no_socket_process_or_thread(name: str) -> None:
    allowed = {"threading"} if name == "jobs.job" else set()  # its ids are made under a lock
    first = {full.partition(".")[0] for full in imported(TREES[name])}
    assert not first & EDGES - allowed
    for below in everything_below(name) - {"settings.config"}:  # whose settings are data to it
        assert below in PURE


@pytest.mark.parametrize("name", [*PURE_AGENT, "inbox.frontmatter", "httpd.wire"])
def test_a_pure_module_opens_no_file_and_reads_no_clock(name: str) -> None:
    assert not {"os", "time", "shutil", "tempfile", "signal"} & set(imported(TREES[name]))
    calls = [node.func for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "open"]


@pytest.mark.parametrize("name", TREES)
def test_imports_stand_at_the_top_of_the_module(name: str) -> None:
    top = {id(node) for node in TREES[name].body}
    inner = [
        node.lineno
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in top
    ]
    assert not inner, f"{name} imports in line {inner}, inside a function or a branch"


@pytest.mark.parametrize("name", TREES)
def test_only_the_standard_library_is_imported(name: str) -> None:
    first = {full.partition(".")[0] for full in imported(TREES[name])}
    assert first <= {*sys.stdlib_module_names, "pv_lib"}


@pytest.mark.parametrize("name", TREES)
def test_a_module_says_what_it_is_for(name: str) -> None:
    assert len(ast.get_docstring(TREES[name]) or "") > 20


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_names_its_modules_and_holds_no_code(room: str) -> None:
    named = [line.split()[0] for line in (ast.get_docstring(TREES[room]) or "").splitlines()[2:]]
    assert sorted(named) == sorted(p.stem for p in (CODE / room).glob("[a-z]*.py"))
    assert len(TREES[room].body) == 1


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_a_module_stays_readable_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MOST_LINES, f"{path.name} has {lines} lines: it wants to be two modules"


def test_the_archive_holds_every_module_and_nothing_else() -> None:
    sources = {path.relative_to(TREE).as_posix() for path in FILES} | {"__main__.py"}
    shipped = {p.relative_to(TREE).as_posix() for p in TREE.glob("ops/*/*") if p.is_file()}
    expected = sources | {f"{name}c" for name in sources} | shipped
    with zipfile.ZipFile(built()) as archive:
        assert set(archive.namelist()) == expected


def test_the_entry_is_covered_as_well() -> None:
    entry = ast.parse((TREE / "pv.py").read_text("utf-8"))
    assert ast.get_docstring(entry)
    named = {name.rpartition(".")[0] or name for name in imported(entry)}
    assert named <= {
        "pv_lib",
        "pv_lib.cli",
        "pv_lib.cli.main",
        "sys",
        "importlib",
        "importlib.util",
        "__future__",
    }
