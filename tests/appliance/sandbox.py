"""The units as systemd judges them, and the real Codex at work under them in its own sandbox."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from appliance.box import API, ROOT, WATCHER, Box
from chaos.common import Figures
from harness import PROGRAMS, REPO, until

EXPOSURE = 3.5
MODEL_PORT = 8091
CONFIG = f"""\
model = "gpt-5.5"
model_provider = "local"
[model_providers.local]
name = "local"
base_url = "http://127.0.0.1:{MODEL_PORT}/v1"
wire_api = "responses"
"""
SPOOF = (
    'python3 -c "import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)'
    ".sendto(b'STATUS=spoofed', '/run/systemd/notify')\"; sleep 2"
)
OUTSIDE = (f"{ROOT}/outside.txt", "/var/tmp/outside.txt", f"{ROOT}/repos/{REPO}/.git/outside.txt")


def put_codex(box: Box) -> None:
    """The real one, without Node: its package brings a static program and what belongs to it."""
    found = shutil.which("codex")
    if not found:
        sys.exit("tests/appliance: needs the real Codex: npm install -g @openai/codex")
    launcher = Path(found).resolve()
    (program,) = [p for p in launcher.parents[2].rglob("vendor/*/bin/codex") if p.is_file()]
    target = box.machine.path("/opt/codex")
    shutil.copytree(program.parents[1], target)
    box.sh("ln -s /opt/codex/bin/codex /usr/local/bin/codex")
    home = f"{ROOT}/.codex"
    box.sh(f"install -d -o prompt-valet -g prompt-valet -m 0700 {home}")
    box.machine.path(f"{home}/config.toml").write_text(CONFIG)
    box.copy(PROGRAMS / "scripted_model.py", "/usr/local/lib/scripted_model.py")


def judgement(box: Box, figures: Figures) -> None:
    """What systemd-analyze says of the units."""
    for unit in (API, WATCHER):
        said = box.machine.try_run("systemd-analyze", "verify", f"/etc/systemd/system/{unit}")
        clean = not said.code and not said.out and not said.err
        figures.say(f"systemd-analyze verify {unit}", said.err or "clean", good=clean)
        table = box.machine.try_run("systemd-analyze", "security", "--no-pager", unit).out
        found = re.search(r"Overall exposure level.*: ([\d.]+)", table)
        level = float(found[1]) if found else 10.0
        figures.say(f"systemd-analyze security {unit}", level, good=level <= EXPOSURE)


def write_inside_and_out(box: Box) -> tuple[list[str], int]:
    """A job that writes into its work tree and at OUTSIDE.

    Which of the latter are there, and how many times the job was told that it may not.
    """
    box.sh(f"rm -f {' '.join(OUTSIDE)}")
    tries = "".join(f"model: run (echo out > {p}) 2>>refused.txt; true\n" for p in OUTSIDE)
    job_id = box.submit(f"# Write\nmodel: run echo in > in.txt\n{tries}model: patch two.txt two\n")
    record = box.await_end(job_id)
    branch = (record["result"] or {}).get("branch", "none")
    show = f"runuser -u prompt-valet -- git -C {ROOT}/repos/{REPO} show {branch}:"
    assert box.sh(f"{show}in.txt") == "in\n" and box.sh(f"{show}two.txt") == "two\n", record
    there = [path for path in OUTSIDE if box.machine.path(path).exists()]
    return there, box.sh(f"{show}refused.txt").count("Read-only file system")


def spoof(box: Box) -> bool:
    """Whether systemd takes a job's message for the service's: then a job could disturb it."""
    job_id = box.submit(f"# Spoof\nmodel: run {SPOOF}\n")
    seen = set()
    while box.job(job_id)["finished_at"] is None:
        seen.add(box.run("systemctl", "show", "-P", "StatusText", API).strip())
    return "spoofed" in seen


def run(box: Box, figures: Figures) -> None:
    """All of it on one machine."""
    box.install()
    put_codex(box)
    box.clone()
    box.start()
    judgement(box, figures)
    model = ("python3", "/usr/local/lib/scripted_model.py", "--port", str(MODEL_PORT))
    with box.machine.background(*model) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://")
        there, refused = write_inside_and_out(box)
        figures.say("real Codex: files in its work tree", "both in the job's commit")
        figures.none("real Codex: files outside it", there, len(OUTSIDE))
        figures.say("real Codex: refusals it was told of", refused, good=refused == len(OUTSIDE))
        taken = spoof(box)
        figures.say("real Codex: its message to systemd taken", taken, good=not taken)
        job_id = box.submit("# Late\nmodel: run sleep 4; echo late > late.txt; cat late.txt\n")
        until(lambda: "sleep 4" in box.log(job_id), "the command at work")
        box.run("systemctl", "restart", API)
        record = box.await_end(job_id)
        files = (record["result"] or {}).get("files_changed")
        good = record["state"] == "succeeded" and files == 1
        figures.say("real Codex over a restart", f"{record['state']}, {files} file", good=good)
        box.set_env(PV_CODEX_SANDBOX="danger-full-access")
        box.run("systemctl", "restart", API)
        there, _ = write_inside_and_out(box)
        good = set(there) == set(OUTSIDE) and spoof(box)
        figures.say("without its sandbox: files, message", f"{len(there)}, taken", good=good)
