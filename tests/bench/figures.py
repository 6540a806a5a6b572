"""The figures of one run of the benchmarks: a table for people, JSON for the next run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One figure. `wanted` is the bound it should keep, as `>= 2.5` or `< 50`; empty: none."""

    name: str
    value: float
    unit: str
    wanted: str = ""
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether the bound is kept."""
        word, _, bound = self.wanted.partition(" ")
        if not word:
            return True
        return self.value >= float(bound) if word == ">=" else self.value < float(bound)


class Figures:
    """All of one run, each printed as it comes; `before` is the JSON of an earlier run."""

    def __init__(self, before: Path) -> None:
        self._path = before
        plain = json.loads(before.read_text()) if before.exists() else {"figures": []}
        self._before = {figure["name"]: figure["value"] for figure in plain["figures"]}
        self.all: list[Figure] = []
        self.curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
        print(f"{'figure':<54}{'now':>10}  {'unit':<14}{'wanted':<10}{'before':>10}")

    def say(self, name: str, value: float, unit: str, wanted: str = "", note: str = "") -> None:
        """Take one in and print it."""
        figure = Figure(name, round(value, 4), unit, wanted, note)
        self.all.append(figure)
        before = self._before.get(name)
        was = "" if before is None else f"{before:10.2f}"
        missed = "" if figure.good else "  MISSED"
        print(
            f"{name:<54}{value:10.2f}  {unit:<14}{wanted:<10}{was:>10}{missed}  {note}", flush=True
        )

    def curve(self, panel: str, line: str, x: float, y: float) -> None:
        """A point of a line that shows how a figure grows."""
        self.curves.setdefault(panel, {}).setdefault(line, []).append((x, round(y, 4)))

    def table(self) -> str:
        """All as a table in Markdown."""
        rows = ["| figure | now | wanted | before |", "|---|---|---|---|"]
        for figure in self.all:
            was = self._before.get(figure.name)
            before = "" if was is None else f"{was:.2f}"
            missed = "" if figure.good else " **missed**"
            now = f"{figure.value:.2f} {figure.unit}"
            rows.append(f"| {figure.name} | {now} | {figure.wanted}{missed} | {before} |")
        return "\n".join(rows)

    def save(self) -> None:
        """For the next run to compare with."""
        plain: dict[str, Any] = {
            "figures": [asdict(figure) for figure in self.all],
            "curves": self.curves,
        }
        self._path.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
