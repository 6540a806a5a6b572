"""The guide's commands, taken from ops/guide.md as they stand, against the built archive."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import TREE, Valet, until
from needs import need

GUIDE = (TREE / "ops/guide.md").read_text()


# Here the operator is the service's user; tests/appliance has a machine with both.
SUDO = 'sudo() { [ "$1" = -u ] && shift 2; "$@"; }\n'


class Operator:
    """Somebody at a shell who follows the guide."""

    def __init__(self, valet: Valet) -> None:
        self.valet = valet
        self.receipt = valet.root / "pv-job.json"

    def run(self, heading: str, number: int = 0, job_id: str = "") -> str:
        """Run one block of a section, with this valet's port and folders; what it printed."""
        section = GUIDE.partition(f"### {heading}\n")[2].partition("\n### ")[0]
        block = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[number]
        text = block.replace("127.0.0.1:8888", f"127.0.0.1:{self.valet.port}")
        text = text.replace("/srv/prompt-valet", str(self.valet.root))
        text = SUDO + text.replace("/tmp/pv-job.json", str(self.receipt)).replace(
            "{job_id}", job_id
        )
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", text],
            capture_output=True,
            timeout=60,
            check=True,
        )
        return done.stdout.decode()


@pytest.fixture
def operator(make_valet: Callable[..., Valet]) -> Operator:
    for tool in ("curl", "jq", "bash"):
        need(shutil.which(tool), tool, f"apt-get install {tool}")
    agent = Path(make_valet().root) / "agent"
    agent.write_text(AGENT)
    agent.chmod(0o755)
    valet = make_valet(PV_CODEX_BIN=str(agent), PV_STALL_THRESHOLD_SECONDS="1")
    valet.start()
    return Operator(valet)


# Speaks plain text, and waits for a file `go` before it ends.
AGENT = """\
#!/bin/sh
echo "working"
while [ ! -e "$CODEX_FAKE_YARD/go" ]; do sleep 0.05; done
echo made > made.txt
echo "done"
"""


def documents(text: str) -> list[dict[str, object]]:
    """The JSON documents that jq printed one after the other."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while place < len(text.rstrip()):
        plain, place = decoder.raw_decode(text, place)
        place += len(text[place:]) - len(text[place:].lstrip())
        found.append(plain)
    return found


def test_the_day_to_day_commands(operator: Operator) -> None:
    valet = operator.valet
    assert json.loads(operator.run("Health check"))["status"] == "ok"
    operator.run("Submit a job")
    receipt = json.loads(operator.receipt.read_text())
    job_id = receipt["job_id"]
    assert Path(receipt["inbox_path"]).name.endswith(".prompt.md") and receipt["created_at"]
    valet.await_state(job_id, "running")
    listed, record, status = documents(operator.run("List jobs and observe state", 0, job_id))
    assert record["state"] == "running" and listed["jobs"] and "config" in status
    assert isinstance(status["jobs"], dict)
    assert status["jobs"]["counts"]["running"] == 1
    until(lambda: "working" in valet.log(job_id), "the log")
    (valet.repo / "go").touch()
    printed = operator.run("Stream logs", 0, job_id)
    assert printed.startswith("working\n")
    assert "data: working\n" in printed and "data: done\n" in printed
    assert 'event: end\ndata: {"state": "succeeded"' in printed
    assert valet.log(job_id) == "working\ndone\n"
    ended = valet.await_end(job_id)
    printed = operator.run("Take up the change", 0, job_id)
    result, rest = json.JSONDecoder().raw_decode(printed)
    assert result == ended["result"] and result["branch"].startswith("codex/demo-")
    assert "+made" in printed[rest:] and result["branch"] in printed[rest:]


def test_the_other_ways_in_and_the_second_run(operator: Operator) -> None:
    valet = operator.valet
    (valet.repo / "go").touch()
    second = json.loads(operator.run("Submit a job", 1))
    assert second["filename"] == "second.prompt.md"
    operator.run("Submit a job", 2)
    until(lambda: len(valet.get("/api/v1/jobs")["jobs"]) == 2, "the dropped file as a job")
    for job in valet.get("/api/v1/jobs")["jobs"]:
        assert valet.await_end(job["job_id"])["state"] == "succeeded"
    again = json.loads(operator.run("Run it again", 0, second["job_id"]))
    assert valet.await_end(again["job_id"])["retry_of"] == second["job_id"]


def test_abort_and_the_diagnosis_of_a_stall(operator: Operator) -> None:
    valet = operator.valet
    operator.run("Submit a job")
    job_id = json.loads(operator.receipt.read_text())["job_id"]
    valet.await_state(job_id, "running")
    answer = json.loads(operator.run("Abort a job", 0, job_id))
    assert answer["previous_state"] == "running" and answer["abort_requested_at"]
    assert valet.await_end(job_id)["state"] == "aborted"
    assert json.loads((valet.runs / job_id / "job.json").read_text())["state"] == "aborted"
    stuck = valet.runs / "stuck_job"
    stuck.mkdir()
    old = {"state": "running", "heartbeat_at": "2020-01-01T00:00:00Z"}
    (stuck / "job.json").write_text(json.dumps(old))
    until(lambda: len(valet.get("/api/v1/jobs")["jobs"]) == 2, "the record from another hand")
    printed = operator.run("Diagnose stalled jobs")
    found, rest = json.JSONDecoder().raw_decode(printed)
    assert [job["job_id"] for job in found["jobs"]] == ["stuck_job"]
    assert '"stalled_running": 1' in printed[rest:]
