"""The whole suite, in several pytest processes at once: `python3 tests [pytest's words]`.

The archive is built once. Each process is a lane (see lane.py): they take the parts of the suite
from one queue, the long ones first, and what is marked `alone` runs after all others. A failure
is shown whole when it happens. The last line sums up. The exit code is 1 if a test failed or did
not run, if a lane died, or if there was no test at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from lane import NUMBER

TREE = Path(__file__).resolve().parent.parent
LANES = int(os.environ.get("TEST_LANES", 0)) or 2 * (os.cpu_count() or 1)
PATIENCE = 60.0  # seconds that a lane has to clean up after an interruption
_WIDTH = 80


class Lane:
    """One pytest process, seen from outside."""

    def __init__(self, number: int, place: Path, queues: list[int], words: list[str]) -> None:
        self.log = place / f"lane-{number}.log"
        self.reports, theirs = os.pipe()
        self.doing = ""  # the test it is in
        self._read = b""
        fds = [*queues, theirs]
        argv = [sys.executable, str(TREE / "tests" / "lane.py"), *map(str, fds)]
        argv += [f"--basetemp={place / f'lane-{number}'}", "-p", "no:cacheprovider", *words]
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                argv,
                cwd=TREE,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # an interruption comes to it from here, and once
            )
        os.close(theirs)

    def heard(self) -> list[dict[str, Any]] | None:
        """What it reports now; None once it is over."""
        data = os.read(self.reports, 1 << 16)
        if not data:
            return None
        *lines, self._read = (self._read + data).split(b"\n")
        return [json.loads(line) for line in lines]


class Suite:
    """What is to run, what has run, and how it went."""

    def __init__(self) -> None:
        self.parts: list[list[str]] | None = None
        self.outcomes: dict[str, str] = {}
        self.skips: dict[str, int] = {}
        self.faults: list[str] = []
        self._column = 0

    def show(self, text: str) -> None:
        print(("\n" if self._column else "") + text, flush=True)
        self._column = 0

    def end(self, test: str, outcome: str, text: str) -> None:
        self.outcomes[test] = outcome
        if outcome == "failed":
            self.show(text)
            return
        if outcome == "skipped":
            self.skips[text] = self.skips.get(text, 0) + 1
        print({"passed": ".", "skipped": "s"}[outcome], end="", flush=True)
        self._column = (self._column + 1) % _WIDTH
        if not self._column:
            print()

    def fault(self, text: str) -> None:
        self.faults.append(text)
        self.show(text)

    def sum_up(self, seconds: float) -> int:
        """Print the last lines and give the exit code."""
        tests = [test for part in self.parts or [] for test in part]
        for test in tests:
            if test not in self.outcomes:
                self.end(test, "failed", f"{test} did not run")
        if not tests:
            self.fault("there was no test to run")
        counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
        for outcome in self.outcomes.values():
            counts[outcome] += 1
        for text, times in sorted(self.skips.items()):
            self.show(f"skipped {times}: {text}")
        for test in sorted(test for test, how in self.outcomes.items() if how == "failed"):
            self.show(f"FAILED {test}")
        self.show(f"{len(tests)} tests in {seconds:.0f} s")
        line = f"{counts['passed']} passed, {counts['failed']} failed"
        print(line + (f", {counts['skipped']} skipped" if counts["skipped"] else ""))
        return 1 if counts["failed"] or self.faults else 0


class Run:
    """The lanes over their two queues."""

    def __init__(self, suite: Suite, place: Path, words: list[str]) -> None:
        self._suite = suite
        self._alone: list[int] = []  # the parts that may have no other beside them
        shared, self._shared_end = os.pipe()
        alone, self._alone_end = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        self.lanes = [
            Lane(n, place, [shared, nothing if n else alone], words) for n in range(LANES)
        ]
        for fd in (shared, alone, nothing):
            os.close(fd)

    def follow(self) -> None:
        """Hand out the parts and hear the reports until all lanes are over."""
        with selectors.DefaultSelector() as selector:
            for lane in self.lanes:
                selector.register(lane.reports, selectors.EVENT_READ, lane)
            while running := len(selector.get_map()):
                if running == 1 and self._suite.parts is not None and self._alone_end >= 0:
                    self._alone_end = _fill(self._alone_end, self._alone)
                for key, _ in selector.select():
                    messages = key.data.heard()
                    for message in messages or []:
                        self._take(key.data, message)
                    if messages is None:
                        selector.unregister(key.fd)
                        self._over(key.data)

    def _take(self, lane: Lane, message: dict[str, Any]) -> None:
        if "parts" in message:
            self._collected(message)
        elif "begins" in message:
            lane.doing = message["begins"]
        else:
            lane.doing = ""
            self._suite.end(message["ended"], message["outcome"], message["text"])

    def _collected(self, found: dict[str, Any]) -> None:
        """Fill the queue with what the first lane has found; the others must find the same."""
        parts = found["parts"]
        if self._suite.parts is None:
            self._suite.parts = parts
            order = sorted(range(len(parts)), key=lambda part: not found["long"][part])
            self._alone = [part for part in order if found["alone"][part]]
            together = [part for part in order if not found["alone"][part]]
            self._shared_end = _fill(self._shared_end, together)
        elif parts != self._suite.parts:
            self._suite.fault("two lanes have found different tests")

    def _over(self, lane: Lane) -> None:
        code = lane.popen.wait()
        os.close(lane.reports)
        if lane.doing:
            self._suite.end(lane.doing, "failed", f"a lane died in {lane.doing}")
        if lane.doing or code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            said = lane.log.read_text("utf-8", "replace")
            self._suite.fault(f"a lane ended with {code}:\n{said}")

    def interrupt(self) -> None:
        """End all lanes, and let them end what they have started."""
        for lane in self.lanes:
            if lane.popen.poll() is None:
                lane.popen.send_signal(signal.SIGINT)
        end = time.monotonic() + PATIENCE
        for lane in self.lanes:
            try:
                lane.popen.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                lane.popen.kill()


def _fill(queue: int, parts: list[int]) -> int:
    """Put the parts into a queue and close it."""
    with contextlib.suppress(BrokenPipeError):  # no lane is left that would take them
        os.write(queue, b"".join(map(NUMBER.pack, parts)))
    os.close(queue)
    return -1


def _interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(words: list[str]) -> int:
    """Run the suite; gives the exit code."""
    signal.signal(signal.SIGTERM, _interrupted)
    start = time.monotonic()
    subprocess.run([str(TREE / "build.sh")], check=True)
    os.environ["TEST_ARCHIVE"] = str(TREE / "dist" / "pv.pyz")
    place = Path(tempfile.mkdtemp(prefix="pv-tests-"))
    suite = Suite()
    run = Run(suite, place, words)
    try:
        run.follow()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        run.interrupt()
        print("\ninterrupted")
        return 130
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return suite.sum_up(time.monotonic() - start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
