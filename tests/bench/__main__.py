"""Benchmarks, a command of their own: `python3 tests/bench [JOBS]`. Prints one line a figure.

Times are of this machine and this run, rates are ratios to a bare http.server handler in the same
run; nothing in the test suite asserts them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_TESTS), str(_TESTS.parent)]

from bench import load  # noqa: E402 - the path comes first
from harness import TREE, Valet, program  # noqa: E402

# bash, because it knows the time without starting a program.
AGENT = """\
#!/bin/bash
echo "started $EPOCHREALTIME"
for i in {1..8}; do
    sleep 0.1
    echo "line $EPOCHREALTIME"
done
"""


def latencies(valet: Valet, jobs: int) -> tuple[list[float], list[float]]:
    """Milliseconds from the 201 to the agent's start, and from a line written to the client."""
    starts, lines = [], []
    for number in range(jobs):
        receipt = valet.submit(f"job {number}")
        answered = time.time()
        for name, _, data, arrived in valet.events(receipt["job_id"]):
            word, _, moment = data.partition(" ")
            if name == "message" and word == "started":
                starts.append(1000 * (float(moment) - answered))
            elif name == "message":
                lines.append(1000 * (arrived - float(moment)))
        valet.await_end(receipt["job_id"])
    return starts, lines


def row(name: str, values: list[float]) -> None:
    """One figure: median and 99th percentile in milliseconds."""
    values = sorted(values)
    worst = values[int(len(values) * 0.99)]
    print(f"{name:<34} median {statistics.median(values):6.1f} ms   p99 {worst:6.1f} ms")


def rates(valet: Valet, seconds: float) -> None:
    """Answers a second to 8 kept connections, each beside the floor measured just before."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", str(_TESTS / "bench" / "floor.py")], stdout=subprocess.PIPE
    ) as floor:
        assert floor.stdout is not None
        port = int(floor.stdout.readline())
        ids = [job["job_id"] for job in valet.get("/api/v1/jobs?limit=50")["jobs"]]
        log = valet.runs / ids[0] / "job.log"
        log.write_text("".join(f"line {number} of a log as logs are\n" for number in range(1000)))
        detail = f"/api/v1/jobs/{ids[0]}"
        paths = {
            "healthz": "/api/v1/healthz",
            "detail": detail,
            "log, 200 lines": f"{detail}/log",
            f"list of {len(ids)}": "/api/v1/jobs?limit=50",
            "status": "/api/v1/status",
        }
        for name, path in paths.items():
            bare = load.rate(port, load.get("/"), seconds=seconds)
            ours = load.rate(valet.port, load.get(path), seconds=seconds)
            print(f"{name:<34} {ours:8.0f} a second   {ours / bare:5.2f} x bare ({bare:.0f})")
        floor.terminate()


def main() -> None:
    """Build, start, measure, stop."""
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    subprocess.run([str(TREE / "build.sh")], check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory(prefix="pv-bench-") as root:
        agent = Path(root) / "agent"
        agent.write_text(AGENT)
        agent.chmod(0o755)
        valet = Valet(Path(root), program(), PV_CODEX_BIN=str(agent))
        valet.environ["PV_POLL_INTERVAL_SECONDS"] = "1"
        valet.start()
        try:
            starts, lines = latencies(valet, jobs)
            rates(valet, 0.1 * jobs)
        finally:
            valet.stop()
    row("201 to the agent's start", starts)
    row("a line written to the SSE client", lines)


if __name__ == "__main__":
    main()
