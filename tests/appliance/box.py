"""Prompt Valet on the machine: installed, asked, given jobs, judged.

What the scenes share. Each brings an agent of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from appliance.machine import OPERATOR, Failed, Machine
from harness import REPO, TERMINAL, TREE, until

ROOT = "/srv/prompt-valet"
ENV = "/etc/prompt-valet/pv.env"
API, WATCHER = "prompt-valet-api.service", "prompt-valet-watcher.service"
URL = "http://127.0.0.1:8888"
NEWS = f"/home/{OPERATOR}/pv.pyz"  # the one file, as it was copied over

# A child that a server has just forked looks like one until it is another program.
_SERVERS = """
import glob
parents = {}
for path in glob.glob('/proc/[0-9]*'):
    try:
        words = open(path + '/cmdline', 'rb').read().split(b'\\0')
        fields = open(path + '/stat').read().rpartition(')')[2].split()
    except OSError:
        continue
    if words[0].endswith(b'python3') and b'/opt/prompt-valet/pv.pyz' in words:
        parents[path.split('/')[2]] = fields[1]
print(*(pid for pid, parent in parents.items() if parent not in parents))
"""


class Box:
    """One machine, and what an operator does on it."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.run = machine.run
        self.sh = machine.sh

    def copy(self, source: Path, inside: str, mode: int = 0o755) -> None:
        """Copy a file in; everybody may read it."""
        target = self.machine.path(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        target.chmod(mode)

    def install(self, *arguments: str, archive: Path | None = None) -> str:
        """Copy the one file in and install it; what that printed."""
        self.copy(archive or TREE / "dist" / "pv.pyz", NEWS)
        return self.run("sudo", "python3", NEWS, "install", *arguments, user=OPERATOR)

    def set_env(self, **settings: str) -> None:
        """Change settings as an editor would: the line that is there, else a further one."""
        path = self.machine.path(ENV)
        lines = [
            line for line in path.read_text().splitlines() if line.split("=")[0] not in settings
        ]
        path.write_text("\n".join([*lines, *(f"{k}={v}" for k, v in settings.items())]) + "\n")

    def clone(self, repo: str = REPO) -> None:
        """A repository with one commit where the service finds it."""
        where = f"{ROOT}/repos/{repo}"
        self.sh(
            f"runuser -u prompt-valet -- sh -e -c 'umask 077; mkdir -p {where}; cd {where}; "
            "git init -q -b main; git config user.name Test; git config user.email test@localhost; "
            "echo start >README.md; git add .; git commit -qm start'"
        )

    def start(self) -> None:
        """Start the service; it is ready when this returns."""
        self.run("systemctl", "start", API)

    def ask(self, path: str, *arguments: str) -> Any:
        """The JSON of an answer, by the machine's own curl."""
        said = self.run("curl", "-sS", "--max-time", "20", *arguments, f"{URL}{path}")
        return json.loads(said)

    def submit(self, text: str, key: str | None = None) -> str:
        """Queue a prompt, with an Idempotency-Key where one is given; its job id."""
        headers = ["-H", "Content-Type: text/markdown"]
        headers += ["-H", f"Idempotency-Key: {key}"] if key else []
        path = f"/api/v1/jobs?repo={REPO}&branch=main"
        answer = self.ask(path, *headers, "--data-binary", text)
        return str(answer["job_id"])

    def at_rest(self) -> bool:
        """Whether no job waits or runs."""
        counts = self.ask("/api/v1/status")["jobs"]["counts"]
        return bool(counts["created"] == counts["running"] == 0)

    def job(self, job_id: str) -> dict[str, Any]:
        """The record, from the disk: the server may be down."""
        return dict(json.loads(self.machine.path(f"{ROOT}/runs/{job_id}/job.json").read_text()))

    def log(self, job_id: str) -> str:
        """The job's log so far."""
        path = self.machine.path(f"{ROOT}/runs/{job_id}/job.log")
        return path.read_text() if path.exists() else ""

    def await_state(self, job_id: str, *states: str, seconds: float = 60) -> dict[str, Any]:
        """The record once it is in one of the states."""

        def look() -> dict[str, Any] | None:
            record = self.job(job_id)
            if record["state"] in states:
                return record
            if record["state"] in TERMINAL:
                raise Failed(f"job {job_id} ended: {record}")
            return None

        return until(look, f"job {job_id} in {states}", seconds)

    def await_end(self, job_id: str, seconds: float = 60) -> dict[str, Any]:
        """The record of the ended job."""
        return self.await_state(job_id, *TERMINAL, seconds=seconds)

    def servers(self) -> list[int]:
        """The machine's pids of every server that runs."""
        return [int(pid) for pid in self.run("python3", "-c", _SERVERS).split()]

    def host_pid(self, pid: int) -> int:
        """The host's number of one of the machine's processes."""
        inside = self.machine.namespace("pid")
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                numbers = re.search(r"^NSpid:.*$", (path / "status").read_text(), re.MULTILINE)
                ours = os.readlink(path / "ns" / "pid") == inside
                if ours and numbers and numbers[0].split()[-1] == str(pid):
                    return int(path.name)
        raise Failed(f"no process of the machine has the pid {pid}")

    def main_pid(self) -> int:
        """systemd's MainPID: runuser's."""
        return int(self.run("systemctl", "show", "-P", "MainPID", API))

    def is_active(self) -> bool:
        """Whether systemd counts the service as running."""
        return self.machine.try_run("systemctl", "is-active", API).out.strip() == "active"

    def await_health(self, seconds: float = 60) -> None:
        """Wait until the port answers."""
        ask = ("curl", "-sf", "--max-time", "5", f"{URL}/api/v1/healthz")
        until(lambda: self.machine.try_run(*ask).code == 0, "an answer at the port", seconds)

    def said(self, unit: str = API) -> str:
        """What the unit has said in the journal."""
        return self.run("journalctl", "-u", unit, "-o", "cat", "--no-pager")


def build_variant(target: Path, version: str, change: dict[str, tuple[str, str]]) -> Path:
    """Another build of this tree as `target`: its version, and texts replaced in its files."""
    tree = target.with_suffix(".tree")
    shutil.copytree(TREE / "pv_lib", tree / "pv_lib", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copytree(TREE / "ops", tree / "ops")
    for name in ("pv.py", "build.sh"):
        shutil.copy(TREE / name, tree)
    changes = {"pv_lib/stamp.py": ('VERSION = "', f'VERSION = "{version}.'), **change}
    for name, (old, new) in changes.items():
        text = (tree / name).read_text()
        assert text.count(old) == 1, f"{name} has {text.count(old)} times {old!r}"
        (tree / name).write_text(text.replace(old, new))
    subprocess.run([str(tree / "build.sh")], check=True, stdout=subprocess.DEVNULL)
    shutil.move(tree / "dist" / "pv.pyz", target)
    shutil.rmtree(tree)
    return target
