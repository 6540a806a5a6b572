"""Both guides, command by command as they stand, on machines where nothing is set up yet.

The commands come out of the texts: all of the original guide, and what stands in `bash` blocks in
ops/guide.md (the others need npm, a person who logs in, or Caddy). What was not run by the end is a
wrong figure. The operator is an ordinary user with sudo.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from appliance.box import ROOT, URL, WATCHER, Box, build_variant
from appliance.machine import OPERATOR, Machine
from chaos.common import Figures
from harness import REPO, TREE, until

HOME = f"/home/{OPERATOR}"
CLONE = f"{HOME}/prompt-valet"
GO = f"{ROOT}/go"
# Speaks plain text, and waits for a file before it ends.
AGENT = f"""\
#!/bin/sh
echo "working"
while [ ! -e {GO} ]; do sleep 0.05; done
echo made > made.txt
echo "done"
"""
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Guide:
    """A guide's commands, by the heading they stand under, and which of them have been run."""

    def __init__(self, path: Path, box: Box, languages: tuple[str, ...]) -> None:
        self._box = box
        self._blocks: dict[str, list[str]] = {}
        for section in re.split(r"^#+ ", path.read_text(), flags=re.MULTILINE)[1:]:
            heading, _, body = section.partition("\n")
            found = [
                re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
                for indent, language, text in _FENCE.findall(body)
                if language in languages
            ]
            self._blocks[heading] = found
        self._left = {(h, n) for h, blocks in self._blocks.items() for n in range(len(blocks))}

    def text(self, heading: str, number: int = 0, job_id: str = "") -> str:
        """One block as it is to be run; it counts as tried."""
        self._left.discard((heading, number))
        return self._blocks[heading][number].replace("{job_id}", job_id)

    def play(
        self,
        heading: str,
        number: int = 0,
        *,
        where: str = HOME,
        job_id: str = "",
        first: str = ":",
    ) -> str:
        """Run one block as the operator, in the folder `where`; what it printed."""
        text = self.text(heading, number, job_id)
        return self._box.sh(f"cd {where}\n{first}\n{text}", user=OPERATOR)

    def watch(self, heading: str, number: int, awaited: str) -> bool:
        """Run a block that does not end by itself until it prints something with `awaited`."""
        text = self.text(heading, number)
        with self._box.machine.background("bash", "-c", text, user=OPERATOR) as process:
            assert process.stdout is not None
            return any(awaited in line for line in process.stdout)

    def left(self, *headings: str) -> list[str]:
        """Of the sections named, or of all, the blocks that nobody has run."""
        return [f"{h!r}, block {n}" for h, n in sorted(self._left) if not headings or h in headings]


class Origin:
    """The forge, here on loopback: what git finds under https://github.com/."""

    def __init__(self, machine: Machine) -> None:
        folder = "/srv/forge"
        bare = f"{folder}/{REPO}.git"
        machine.sh(
            f"git init -q --bare -b main {bare}; git clone -q {bare} /tmp/seed 2>/dev/null; "
            "cd /tmp/seed; git config user.name Test; git config user.email test@localhost; "
            "echo start >README.md; git add .; git commit -qm start; git push -q origin HEAD:main; "
            f"git -C {bare} update-server-info; cd /; rm -r /tmp/seed; "
            "git config --system url.http://127.0.0.1:8090/.insteadOf https://github.com/"
        )
        serve = ("python3", "-m", "http.server", "8090", "--bind", "127.0.0.1", "--directory")
        self._running = machine.background(*serve, folder)
        self._running.__enter__()
        ask = ("curl", "-s", "http://127.0.0.1:8090/")
        until(lambda: machine.try_run(*ask).code == 0, "the forge")

    def close(self) -> None:
        """Stop it."""
        self._running.__exit__(None, None, None)


def put_agent(box: Box) -> None:
    """The agent as `codex`, and nobody has told it to end."""
    path = box.machine.path("/usr/local/bin/codex")
    path.write_text(AGENT)
    path.chmod(0o755)


def go(box: Box, on: bool) -> None:
    """Let the agents end, or wait."""
    box.sh(f"touch {GO}" if on else f"rm -f {GO}")


def documents(text: str) -> list[Any]:
    """The JSON documents that jq printed one after the other."""
    decoder, found, rest = json.JSONDecoder(), [], text.strip()
    while rest:
        plain, end = decoder.raw_decode(rest)
        found.append(plain)
        rest = rest[end:].strip()
    return found


def receipt(box: Box) -> str:
    """The job id that curl has written down."""
    return str(json.loads(box.run("cat", "/tmp/pv-job.json"))["job_id"])


def put_clone(box: Box) -> None:
    """A clone of this repository in the operator's home."""
    target = box.machine.path(CLONE)
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(TREE), str(target)], check=True)
    box.sh(f"chown -R {OPERATOR}: {CLONE}")


def day(guide: Guide, box: Box, figures: Figures, name: str) -> None:
    """The parts that both guides have: submit, look, stream, abort."""
    go(box, on=False)
    health = json.loads(guide.play("Health check"))
    figures.say(f"{name}: health check", health, good=health["status"] == "ok")
    guide.play("Submit a job")
    job_id = receipt(box)
    box.await_state(job_id, "running")
    listed, record, status = documents(guide.play("List jobs and observe state", job_id=job_id))
    good = record["state"] == "running" and status["jobs"]["counts"]["running"] == 1
    figures.say(f"{name}: list, job, status", status["jobs"], good=good and bool(listed["jobs"]))
    until(lambda: "working" in box.log(job_id), "the first line")
    go(box, on=True)
    streamed = guide.play("Stream logs", job_id=job_id)
    whole = "data: working\n" in streamed and "data: done\n" in streamed
    ended = 'event: end\ndata: {"state": "succeeded"' in streamed
    figures.say(
        f"{name}: log and stream", f"{streamed.count('data: ')} events", good=whole and ended
    )
    state = box.await_end(job_id)["state"]
    figures.say(f"{name}: the job", state, good=state == "succeeded")
    go(box, on=False)
    guide.play("Submit a job")
    second = receipt(box)
    box.await_state(second, "running")
    until(lambda: "working" in box.log(second), "the second job's first line")
    aborted = json.loads(guide.play("Abort a job", job_id=second))
    state = box.await_end(second)["state"]
    good = aborted["previous_state"] == "running" and state == "aborted"
    figures.say(f"{name}: abort", f"{aborted['previous_state']}, then {state}", good=good)


def stall(guide: Guide, box: Box, figures: Figures, name: str) -> None:
    """A watcher that is down, in the split form: diagnosed, restarted, adopted."""
    go(box, on=False)
    guide.play("Submit a job")
    job_id = receipt(box)
    box.await_state(job_id, "running")
    box.run("systemctl", "stop", WATCHER)
    until(lambda: box.ask("/api/v1/status")["jobs"]["stalled_running"], "the stall", 30)
    printed = guide.play("Diagnose stalled jobs")
    found, end = json.JSONDecoder().raw_decode(printed)
    seen = [job["job_id"] for job in found["jobs"]]
    good = seen == [job_id] and '"stalled_running": 1' in printed[end:]
    figures.say(f"{name}: a stalled job is found", seen, good=good)
    box.run("systemctl", "restart", WATCHER)
    until(lambda: not box.ask("/api/v1/status")["jobs"]["stalled_running"], "its end", 30)
    go(box, on=True)
    state = box.await_end(job_id)["state"]
    figures.say(f"{name}: the watcher's restart resolves it", state, good=state == "succeeded")


def own(box: Box, figures: Figures) -> None:
    """ops/guide.md: set up by `install`, through the day, upgraded, restored, away."""
    guide = Guide(TREE / "ops/guide.md", box, ("bash",))
    origin = Origin(box.machine)
    put_agent(box)
    box.copy(TREE / "dist" / "pv.pyz", f"{HOME}/pv.pyz")
    guide.play("Install", 0)
    guide.play("Install", 1)
    go(box, on=True)
    printed = guide.play("First job")
    line = re.search(r"Status: \"(.*)\"", printed)
    figures.say("guide: first job, status line", line[1] if line else printed, good=bool(line))
    until(lambda: box.ask("/api/v1/status")["jobs"]["counts"]["succeeded"] == 1, "its end")
    day(guide, box, figures, "guide")
    go(box, on=True)
    newest = box.ask("/api/v1/jobs?state=succeeded")["jobs"][0]
    printed = guide.play("Take up the change", job_id=newest["job_id"])
    shown = newest["result"]["branch"] in printed and "+made" in printed
    figures.say("guide: the change", newest["result"]["branch"], good=shown)
    second = json.loads(guide.play("Submit a job", 1))["job_id"]
    guide.play("Submit a job", 2)
    again = json.loads(guide.play("Run it again", job_id=newest["job_id"]))["job_id"]
    until(lambda: box.ask("/api/v1/status")["jobs"]["counts"]["succeeded"] == 5, "three more jobs")
    states = [box.job(job_id)["state"] for job_id in (second, again)]
    figures.say("guide: markdown, drop, retry", states, good=set(states) == {"succeeded"})
    changing = f"while sleep 0.5; do curl -sX POST {URL}/api/v1/jobs/{second}/retry; done"
    with box.machine.background("sh", "-c", changing):
        told = guide.watch("Stream logs", 1, f'"retry_of": "{second}"')
    figures.say("guide: changes of all jobs", told, good=told)
    until(box.at_rest, "the end of these jobs")
    guide.play("Every alarm, and what to do")
    new = build_variant(box.machine.root.parent / "new.pyz", "9", {})
    box.copy(new, f"{HOME}/pv.pyz")
    guide.play("Upgrade")
    version = box.ask("/api/v1/healthz")["version"]
    figures.say("guide: upgrade", version, good=version.startswith("9."))
    restore(guide, box, figures)
    guide.play("Uninstall", 0)
    there = box.machine.path(ROOT).exists()
    guide.play("Uninstall", 1)
    gone = not box.machine.path(ROOT).exists() and box.machine.try_run("id", "prompt-valet").code
    figures.say("guide: uninstall, then the data", "gone", good=there and bool(gone))
    elsewhere = (
        *("Install by hand", "Deploy the API service", "Diagnose stalled jobs"),
        *("Who can reach it", "A proxy with TLS"),
    )  # in scenes of their own
    left = [what for what in guide.left() if not any(repr(h) in what for h in elsewhere)]
    figures.none("guide: blocks that were not run", left, 1)
    origin.close()


def restore(guide: Guide, box: Box, figures: Figures) -> None:
    """A backup with jobs running, queued and ended; everything removed; back from the archive.

    The user has another number then: somebody else has taken the old one.
    """
    go(box, on=False)
    running = [box.submit("one"), box.submit("two")]
    for job_id in running:
        box.await_state(job_id, "running")
    waiting = [box.submit("three"), box.submit("four")]
    before = {job["job_id"]: job["state"] for job in box.ask("/api/v1/jobs?limit=100")["jobs"]}
    box.sh(f"runuser -u prompt-valet -- install -m 0600 /dev/null {ROOT}/.codex-login")
    guide.play("Backup and restore", 0)
    go(box, on=True)
    for job_id in running + waiting:
        box.await_end(job_id)
    guide.play("Move to another box")
    box.run("sudo", "python3", "/opt/prompt-valet/pv.pyz", "uninstall")
    uid = box.run("id", "-u", "prompt-valet").strip()
    box.sh(f"rm -r {ROOT} /etc/prompt-valet; userdel prompt-valet; useradd -M -u {uid} other")
    guide.play("Backup and restore", 1)
    go(box, on=True)
    ends = {job_id: box.await_end(job_id) for job_id in before}
    kept = all(ends[k]["state"] == v for k, v in before.items() if v not in ("running", "created"))
    lost = [ends[job_id]["reason"] for job_id in running]
    ran = [ends[job_id]["state"] for job_id in waiting]
    good = lost == ["lost", "lost"] and ran == ["succeeded", "succeeded"]
    figures.say("guide: restored: ended jobs as they were", kept, good=kept)
    figures.say("guide: restored: the running, the queued", f"{lost}, {ran}", good=good)
    total = box.ask("/api/v1/status")["jobs"]["total"]
    figures.say("guide: restored: jobs, none twice", total, good=total == len(before))
    owners = box.sh(f"stat -c '%a %U' {ROOT} {ROOT}/.codex-login").split()
    good = owners == ["700", "prompt-valet", "600", "prompt-valet"]
    figures.say("guide: restored: modes and owners", owners, good=good)


def by_hand(box: Box, figures: Figures) -> None:
    """ops/guide.md: installed by hand, split in two, and the diagnosis of a stalled job."""
    guide = Guide(TREE / "ops/guide.md", box, ("bash",))
    origin = Origin(box.machine)
    put_agent(box)
    put_clone(box)
    guide.play("Install by hand", where=CLONE)
    guide.play("Deploy the API service", 0, where=CLONE)
    guide.play("Deploy the API service", 1, where=CLONE)
    tailed = guide.watch("Deploy the API service", 2, "listening on http://127.0.0.1:8888")
    figures.say("by hand: the journal shows the start", tailed, good=tailed)
    box.set_env(PV_WATCHER="off", PV_STALL_THRESHOLD_SECONDS="6")
    guide.play("Deploy the API service", 3, where=CLONE)
    figures.say("by hand, split: servers", len(box.servers()), good=len(box.servers()) == 2)
    stall(guide, box, figures, "by hand")
    left = guide.left("Install by hand", "Deploy the API service", "Diagnose stalled jobs")
    figures.none("by hand: blocks that were not run", left, 1)
    origin.close()


def original(box: Box, figures: Figures) -> None:
    """The operator guide that the project began with, whole."""
    guide = Guide(TREE / "tests/fixtures/operator-guide.md", box, ("", "bash"))
    put_agent(box)
    put_clone(box)
    # What that guide takes for granted: the program, its user and a repository.
    hand = Guide(TREE / "ops/guide.md", box, ("bash",))
    origin = Origin(box.machine)
    hand.play("Install by hand", where=CLONE)
    guide.play("Deploy the API service", 0, where=CLONE)
    guide.play("Deploy the API service", 1, where=CLONE)
    guide.play("Deploy the API service", 2, where=CLONE)
    tailed = guide.watch("Deploy the API service", 3, "listening on http://127.0.0.1:8888")
    figures.say("original: the journal shows the start", tailed, good=tailed)
    day(guide, box, figures, "original")
    # It names a prompt-valet-watcher.service: so the two run apart from here on.
    box.set_env(PV_WATCHER="off", PV_STALL_THRESHOLD_SECONDS="6")
    hand.play("Deploy the API service", 3, where=CLONE)
    stall(guide, box, figures, "original")
    wheels(box)
    first = "python3 -m venv ~/venv; export PATH=~/venv/bin:$PATH"
    first += " PIP_NO_INDEX=1 PIP_FIND_LINKS=~/wheels"
    guide.play("Install dependencies", where=CLONE, first=first)
    packages = box.sh("~/venv/bin/pip list --format=freeze", user=OPERATOR).split()
    figures.say(
        "original: pip install",
        f"{len(packages)} packages",
        good=any(p.startswith("pytest==") for p in packages),
    )
    figures.none("original: blocks that were not run", guide.left(), 1)
    origin.close()


def wheels(box: Box) -> None:
    """pip, and what it is to install: the machine has neither, the product needs neither."""
    folder = box.machine.path(f"{HOME}/wheels")
    argv = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder)]
    argv += [
        "--python-version",
        "3.11",
        "--only-binary=:all:",
        "setuptools>=61",
        "wheel",
        "pytest>=8",
    ]
    subprocess.run(argv, check=True)
    box.machine.add_packages("python3-venv")
