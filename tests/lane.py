"""One of the pytest processes that share the suite: `lane.py QUEUE ALONE REPORTS [pytest's words]`.

The three are descriptors. A lane collects all tests, says so, and then takes one part of them
after the other from the queue until that is closed. A part is a test function with all its
parameters, one of them alone where it is `long`, or a whole file that is marked `together`, because
its tests share a fixture. What is marked `alone` comes by the second queue, once the other lanes
are done.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
import sys
from collections.abc import Iterator
from typing import Any

import pytest

NUMBER = struct.Struct("=I")  # one entry of a queue: a part


def _part(item: pytest.Item) -> str:
    """What part the test belongs to."""
    if item.get_closest_marker("together"):
        return item.nodeid.partition("::")[0]
    if item.get_closest_marker("long"):
        return item.nodeid
    return item.nodeid.partition("[")[0]


class Lane:
    """A pytest plugin that runs the parts it takes, and reports each test when it is over."""

    def __init__(self, queues: list[int], reports: int) -> None:
        self._queues = queues
        self._reports = reports
        self._phases: list[pytest.TestReport] = []

    def _say(self, **message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._reports, data) :]

    def _taken(self) -> Iterator[int]:
        for queue in self._queues:
            while entry := os.read(queue, NUMBER.size):
                yield NUMBER.unpack(entry)[0]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        parts = [list(tests) for _, tests in itertools.groupby(session.items, _part)]
        self._say(
            parts=[[item.nodeid for item in part] for part in parts],
            long=[bool(part[0].get_closest_marker("long")) for part in parts],
            alone=[bool(part[0].get_closest_marker("alone")) for part in parts],
        )
        for number in self._taken():
            for item, after in itertools.zip_longest(parts[number], parts[number][1:]):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        return True

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._phases = []
        self._say(begins=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._phases.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        failed = [phase for phase in self._phases if phase.failed]
        skipped = [phase for phase in self._phases if phase.skipped]
        outcome = "failed" if failed else "skipped" if skipped else "passed"
        text = "\n".join(_account(phase) for phase in failed)
        for phase in skipped[:1]:
            reason = phase.longrepr[2] if isinstance(phase.longrepr, tuple) else phase.longrepr
            text = text or str(reason).removeprefix("Skipped: ")
        seconds = sum(phase.duration for phase in self._phases)
        self._say(ended=nodeid, outcome=outcome, text=text, seconds=seconds)


def _account(phase: pytest.TestReport) -> str:
    """A failure as pytest shows it, with what was printed."""
    shown = [f"_____ {phase.when} of {phase.nodeid} _____", phase.longreprtext]
    shown += [f"----- {title} -----\n{text}" for title, text in phase.sections]
    return "\n".join(shown)


if __name__ == "__main__":
    *queues, reports = map(int, sys.argv[1:4])
    for fd in (*queues, reports):
        os.set_inheritable(fd, False)  # what a test starts and leaves must not hold a queue open
    sys.exit(pytest.main(sys.argv[4:], plugins=[Lane(queues, reports)]))
