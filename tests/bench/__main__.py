"""Benchmarks, a command of their own: `python3 tests/bench [SECTION …] [--small] [--save]`.

Rates are ratios to a bare http.server handler in the same run, so that machines can differ; times
are of this run. Nothing in the test suite asserts them. `--small` only shows that it works;
`--save` keeps the figures for the next run in tests/bench.json, draws ops/performance.svg and
writes the table into ops/performance.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_TESTS), str(_TESTS.parent)]

from bench import plot  # noqa: E402 - the path comes first
from bench.figures import Figures  # noqa: E402
from bench.sections import FULL, SECTIONS, SMALL  # noqa: E402
from harness import TREE  # noqa: E402

_MARK, _END = "<!-- figures -->", "<!-- end -->"


def _fill_in(document: Path, table: str) -> None:
    start, mark, rest = document.read_text().partition(_MARK)
    end = rest[rest.index(_END) :]
    document.write_text(f"{start}{mark}\n{table}\n{end}")


def main() -> int:
    """Build, measure, tell; 1 where a bound was missed."""
    parser = argparse.ArgumentParser(prog="tests/bench", description=__doc__)
    parser.add_argument("section", nargs="*", help=f"of {', '.join(SECTIONS)}; all of them")
    parser.add_argument("--small", action="store_true", help="a little, to see that it works")
    parser.add_argument("--save", action="store_true", help="keep the figures and draw the plot")
    options = parser.parse_args()
    unknown = [name for name in options.section if name not in SECTIONS]
    if unknown:
        parser.error(f"{unknown[0]} is no section: there is {', '.join(SECTIONS)}")
    subprocess.run([str(TREE / "build.sh")], check=True, stdout=subprocess.DEVNULL)
    figures = Figures(_TESTS / "bench.json")
    for name in options.section or SECTIONS:
        SECTIONS[name](figures, SMALL if options.small else FULL)
    if options.save:
        figures.save()
        (TREE / "ops" / "performance.svg").write_text(plot.svg(figures.curves))
        _fill_in(TREE / "ops" / "performance.md", figures.table())
    missed = [figure.name for figure in figures.all if not figure.good]
    if options.small:
        plot.svg(figures.curves)
        return 0
    print(f"{len(figures.all)} figures, {len(missed)} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
