"""Restarts, kills, ten starts at once, a stop, and a watcher that hangs: the jobs go on."""

from __future__ import annotations

import subprocess
import time

from appliance.box import API, ROOT, Box
from chaos.common import HERE, Figures, Task
from harness import hung_watcher, until

ROUNDS = 10
JOBS = 8
RUNS = f"{ROOT}/agent-runs"
WATCHDOG_SECONDS = 30.0
STOP_SECONDS = 5.0


def prepare(box: Box) -> None:
    """Installed and running, with an agent that prints, waits and exits as its prompt says."""
    box.copy(HERE / "agent.sh", "/usr/local/bin/codex")
    box.install()
    box.set_env(
        PV_MAX_RUNNING="9", PV_CODEX_ENV="", CODEX_CHAOS_RUNS=RUNS, PV_MIN_FREE_BYTES="1MiB"
    )
    box.clone()
    box.start()


def launch(box: Box, count: int, pause: float) -> dict[str, Task]:
    """`count` running jobs, each with an exit status of its own; all are at work."""
    found = {}
    for number in range(count):
        task = Task(f"task-{number}-{time.time_ns()}", 200, pause, number)
        found[box.submit(task.prompt)] = task
    for job_id in found:
        box.await_state(job_id, "running")
        until(lambda: "line 200 of" in box.log(job_id), "all of the first lines")  # noqa: B023
    return found


def judge(box: Box, figures: Figures, name: str, jobs: dict[str, Task]) -> None:
    """Every job ended with its own status and a whole log, and ran once."""
    wrong = []
    for job_id, task in jobs.items():
        record = box.await_end(job_id, 120)
        log = box.log(job_id).encode()
        if record["exit_code"] != task.status:
            wrong.append(f"{job_id}: exit {record['exit_code']}, not {task.status}: {record}")
        if sorted(log.splitlines()) != sorted(task.log.splitlines()):
            wrong.append(f"{job_id}: its log is not whole: {log[-300:]!r}")
    ran = box.machine.path(RUNS).read_text().split()
    wrong += [
        f"{task.token} ran {ran.count(task.token)} times"
        for task in jobs.values()
        if ran.count(task.token) != 1
    ]
    figures.none(f"{name}: jobs with a wrong end", wrong, len(jobs))


def restarts(box: Box, figures: Figures) -> None:
    """`systemctl restart` again and again under the same running jobs."""
    jobs = launch(box, JOBS, 2.5 * ROUNDS + 5)
    wrong = []
    slowest = 0.0
    for number in range(ROUNDS):
        began = time.monotonic()
        box.run("systemctl", "restart", API)
        slowest = max(slowest, time.monotonic() - began)
        servers = box.servers()
        if len(servers) != 1 or not box.is_active():
            wrong.append(f"restart {number}: servers {servers}")
        box.ask("/api/v1/healthz")  # at once: ready means that the port answers
    running = [job_id for job_id in jobs if box.job(job_id)["state"] == "running"]
    figures.say(
        "jobs still running behind the last restart",
        f"{len(running)} of {JOBS}",
        good=len(running) == JOBS,
    )
    figures.none("restarts without exactly one server", wrong, ROUNDS)
    figures.say("slowest restart", f"{slowest:.2f} s")
    judge(box, figures, f"{ROUNDS} restarts", jobs)


def kills(box: Box, figures: Figures) -> None:
    """SIGKILL of runuser, of the server, of both: one server again, and the jobs untouched."""
    jobs = launch(box, JOBS, 25)
    for name in ("runuser", "the server", "both"):
        server = box.servers()
        pids = {
            "runuser": [box.main_pid()],
            "the server": server,
            "both": [box.main_pid(), *server],
        }
        box.sh(f"kill -KILL {' '.join(map(str, pids[name]))}")
        began = time.monotonic()
        until(lambda: box.is_active() and box.servers() not in ([], server), "another server", 30)  # noqa: B023
        box.await_health()
        now = box.servers()
        figures.say(
            f"SIGKILL of {name}: servers afterwards",
            f"{len(now)}, answering after {time.monotonic() - began:.1f} s",
            good=len(now) == 1,
        )
    judge(box, figures, "SIGKILLs", jobs)


def ten_starts(box: Box, figures: Figures) -> None:
    """Ten starts at the same moment, by systemd and by hand, make one server."""
    box.run("systemctl", "stop", API)
    ten = [box.machine.argv("systemctl", "start", API) for _ in range(10)]
    started = [subprocess.Popen(argv) for argv in ten]
    codes = [process.wait(60) for process in started]
    figures.say(
        "10 starts at once: servers",
        len(box.servers()),
        good=len(box.servers()) == 1 and not any(codes),
    )
    command = "exec runuser -u prompt-valet -- python3 /opt/prompt-valet/pv.pyz serve"
    by_hand = f"set -a; . /etc/prompt-valet/pv.env; {command}"
    others = [
        subprocess.Popen(box.machine.argv("sh", "-c", by_hand), stderr=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in others]
    clear = [
        code == 1 and said.count("\n") == 1 and "cannot be bound" in said for said, code in ends
    ]
    figures.say(
        "10 more by hand: refused with one clear line", f"{sum(clear)} of 10", good=all(clear)
    )
    figures.say("and servers afterwards", len(box.servers()), good=len(box.servers()) == 1)


def stop(box: Box, figures: Figures) -> None:
    """A stop under load returns soon and leaves nothing half-written."""
    jobs = launch(box, JOBS, 12)
    began = time.monotonic()
    box.run("systemctl", "stop", API)
    took = time.monotonic() - began
    figures.say("systemctl stop under 8 jobs", f"{took:.2f} s", good=took < STOP_SECONDS)
    figures.say("servers behind it", len(box.servers()), good=not box.servers())
    half = box.sh(
        f"find {ROOT} -name '*.tmp' -o -name '.agent.exit' -o -size 0 -name job.json"
    ).split()
    figures.none("half-written files behind it", half, 1)
    torn = [job_id for job_id in jobs if box.job(job_id)["state"] != "running"]
    figures.none("records behind it that are not running", torn, JOBS)
    box.start()
    judge(box, figures, "a stop and a start", jobs)


def hang(box: Box, figures: Figures) -> None:
    """A watcher that hangs is noticed by systemd; one client that hangs is not."""
    jobs = launch(box, JOBS, 60)
    (server,) = box.servers()
    began = time.monotonic()
    silent = "exec 3<>/dev/tcp/127.0.0.1/8888; printf 'GET / HTTP/1.1\\r\\n' >&3; sleep 300"
    with box.machine.background("bash", "-c", silent), hung_watcher(box.host_pid(server)):
        box.ask("/api/v1/healthz")  # HTTP goes on: it is the watcher alone that hangs
        until(lambda: box.servers() not in ([], [server]), "another server", WATCHDOG_SECONDS + 20)
        box.await_health()
        took = time.monotonic() - began
    said = box.said()
    figures.say(
        "a watcher that hangs: another server after",
        f"{took:.1f} s (WatchdogSec={WATCHDOG_SECONDS:g})",
        good=took < WATCHDOG_SECONDS + 5 and "Watchdog timeout" in said,
    )
    figures.say("servers afterwards", len(box.servers()), good=len(box.servers()) == 1)
    judge(box, figures, "a hang", jobs)


def run(box: Box, figures: Figures) -> None:
    """All of it on one machine."""
    prepare(box)
    restarts(box, figures)
    kills(box, figures)
    ten_starts(box, figures)
    stop(box, figures)
    hang(box, figures)
