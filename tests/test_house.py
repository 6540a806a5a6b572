"""The house: imports point down, pure modules stay pure, and no module grows out of hand."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from harness import TREE

FILES = sorted((TREE / "pv_lib").glob("*.py"))
NAMES = frozenset(path.stem for path in FILES if path.stem != "__init__")
TREES = {path.stem: ast.parse(path.read_text("utf-8"), str(path)) for path in FILES}
PURE = ("codex", "errors", "frontmatter", "job", "wire")
EDGES = frozenset({"socket", "socketserver", "subprocess", "threading", "select", "selectors"})
MOST_LINES = 450


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules named by every import in `tree`, in full, as `pv_lib.job`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "pv_lib" if node.level else ""
            module = ".".join(filter(None, (start, node.module)))
            yield module
            if module == "pv_lib":
                yield from (f"pv_lib.{alias.name}" for alias in node.names)


def of_the_house(name: str) -> set[str]:
    """The house's modules that the module `name` imports."""
    found = (full.partition(".") for full in imported(TREES[name]))
    inside = {rest.partition(".")[0] for start, _, rest in found if start == "pv_lib"}
    return inside & NAMES


def everything_below(name: str) -> set[str]:
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        fresh = of_the_house(waiting.pop()) - seen
        seen |= fresh
        waiting += fresh
    return seen


def test_the_graph_of_imports_is_read() -> None:
    assert {"config", "job"} <= of_the_house("codex")
    assert {"api", "watcher", "server"} <= of_the_house("app")
    assert not of_the_house("errors")


def test_imports_form_no_circle() -> None:
    order = TopologicalSorter({name: of_the_house(name) for name in NAMES}).static_order()
    assert set(order) == NAMES


def test_api_and_watcher_meet_on_disk_only() -> None:
    assert "watcher" not in everything_below("api")
    assert "api" not in everything_below("watcher")


def test_only_the_top_imports_the_application() -> None:
    assert all("app" not in of_the_house(name) for name in NAMES)


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_touches_no_socket_process_or_thread(name: str) -> None:
    allowed = {"threading"} if name == "job" else set()  # its ids are made under a lock
    first = {full.partition(".")[0] for full in imported(TREES[name])}
    assert not first & EDGES - allowed
    for below in everything_below(name) - {"config"}:  # whose settings are data to it
        assert below in PURE


@pytest.mark.parametrize("name", ["codex", "frontmatter", "wire"])
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
    assert not inner, f"{name}.py imports in line {inner}, inside a function or a branch"


@pytest.mark.parametrize("name", TREES)
def test_only_the_standard_library_is_imported(name: str) -> None:
    first = {full.partition(".")[0] for full in imported(TREES[name])}
    assert first <= {*sys.stdlib_module_names, "pv_lib"}


@pytest.mark.parametrize("name", TREES)
def test_a_module_says_what_it_is_for(name: str) -> None:
    assert len(ast.get_docstring(TREES[name]) or "") > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_module_stays_readable_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= MOST_LINES, f"{path.name} has {lines} lines: it wants to be two modules"


def test_the_entry_is_covered_as_well() -> None:
    entry = ast.parse((TREE / "pv.py").read_text("utf-8"))
    assert ast.get_docstring(entry)
    assert set(imported(entry)) <= {"pv_lib", "pv_lib.app", "sys", "importlib.util", "__future__"}
