"""The same with the real Codex CLI, driven by a scripted model on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import PROGRAMS, Valet, carriers, git, until
from needs import real_codex

CONFIG = """\
model = "gpt-5.5"
model_provider = "local"
[analytics]
enabled = false
[tools]
update_plan = {{ enabled = true }}
[model_providers.local]
name = "local"
base_url = "{url}"
wire_api = "responses"
"""


@pytest.fixture
def codex_settings(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which Codex talks to a scripted model."""
    binary = real_codex()
    model = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "scripted_model.py")], stdout=subprocess.PIPE, text=True
    )
    assert model.stdout is not None
    home = tmp_path / "codex-home"
    home.mkdir()
    (home / "config.toml").write_text(CONFIG.format(url=model.stdout.readline().strip()))
    yield {"PV_CODEX_BIN": binary, "CODEX_HOME": str(home), "HOME": str(home)}
    model.terminate()
    model.wait()
    model.stdout.close()


@pytest.fixture
def valet(make_valet: Callable[..., Valet], codex_settings: dict[str, str]) -> Valet:
    valet = make_valet(**codex_settings)
    valet.start()
    return valet


def test_codex_writes_the_file_it_was_asked_for(valet: Valet) -> None:
    steps = (
        "# Greet\n"
        "model: plan Write; Check\n"
        "model: run echo hello > hello.txt && cat hello.txt\n"
        "model: patch second.txt text\n"
        "model: say I wrote two files.\n"
    )
    job_id = valet.submit(steps)["job_id"]
    record = valet.await_end(job_id)
    assert (record["state"], record["reason"]) == ("succeeded", "completed"), valet.log(job_id)
    assert valet.show(record, "hello.txt") == "hello\n"
    assert valet.show(record, "second.txt") == "text\n"
    assert record["result"]["files_changed"] == 2
    assert git(valet.repo, "status", "--porcelain") == ""
    assert len(record["thread_id"]) == 36
    assert record["usage"]["input_tokens"] == 4 * 1200
    log = valet.log(job_id)
    assert "$ echo hello > hello.txt && cat hello.txt\nhello\n[exit 0]\n" in log
    assert "  [ ] Write\n" in log and "second.txt\n" in log and "\nI wrote two files.\n" in log
    assert "tokens: 4800 in (800 cached), 136 out\n" in log
    assert valet.ask("GET", f"/api/v1/jobs/{job_id}/message").body == b"I wrote two files."


def test_the_commit_holds_exactly_what_codex_did(valet: Valet) -> None:
    (valet.repo / "old.txt").write_text("old\n")
    git(valet.repo, "add", "--all")
    git(valet.repo, "commit", "--quiet", "--message", "old")
    steps = "model: run echo new > added.txt; echo more >> README.md; rm old.txt; git status\n"
    steps += "model: run git commit -qam mine || echo refused\nmodel: say I changed three files.\n"
    record = valet.await_end(valet.submit(steps)["job_id"])
    result = record["result"]
    assert (result["files_changed"], result["insertions"], result["deletions"]) == (3, 2, 1)
    shown = git(valet.repo, "show", "--format=%B", "--name-status", result["commit"])
    assert shown.startswith("model: run echo new") and "\n\nI changed three files.\n\n" in shown
    assert shown.split("\n\n")[-1].lstrip() == "M\tREADME.md\nA\tadded.txt\nD\told.txt\n"
    assert git(valet.repo, "rev-list", f"{result['base']}..{result['branch']}").split() == [
        result["commit"]
    ]
    assert "refused" in valet.log(record["job_id"])
    assert git(valet.repo, "status", "--porcelain") == ""


def test_a_command_that_fails_is_shown_with_its_status(valet: Valet) -> None:
    steps = "model: run sh -c 'echo out; exit 3'\nmodel: say It failed.\n"
    job_id = valet.submit(steps)["job_id"]
    assert valet.await_end(job_id)["state"] == "succeeded"
    assert "out\n[exit 3]\n" in valet.log(job_id)


def test_the_stream_is_live_while_codex_works(valet: Valet) -> None:
    steps = "model: run sleep 2; echo slow\nmodel: say done\n"
    job_id = valet.submit(steps)["job_id"]
    for _, _, data, _ in valet.events(job_id):
        if data.startswith("$ sleep 2"):
            record = valet.job(job_id)
            assert record["state"] == "running"
            until(
                lambda: valet.job(job_id)["activity"] == "running: sleep 2; echo slow", "activity"
            )
            break
    assert valet.await_end(job_id)["state"] == "succeeded"


@pytest.mark.parametrize(
    ("step", "reason", "error"),
    [
        ("model: fail 400 The request is bad.", "turn_failed", "The request is bad."),
        ("model: limit", "usage_limit", "hit your usage limit"),
    ],
)
def test_a_turn_that_fails(valet: Valet, step: str, reason: str, error: str) -> None:
    record = valet.await_end(valet.submit(step)["job_id"])
    assert (record["state"], record["reason"], record["exit_code"]) == ("failed", reason, 1)
    assert error in record["error"]


def test_an_abort_in_mid_command_leaves_nothing_behind(valet: Valet) -> None:
    job_id = valet.submit("model: run echo $$ > pid.txt; sleep 300\n")["job_id"]
    note = valet.tree(job_id) / "pid.txt"
    until(lambda: note.exists() and note.read_text(), "pid")
    assert len(carriers(job_id)) >= 3
    assert valet.ask("POST", f"/api/v1/jobs/{job_id}/abort").status == 200
    record = valet.await_end(job_id)
    assert (record["state"], record["reason"]) == ("aborted", "abort_requested")
    assert carriers(job_id) == []
    with pytest.raises(ProcessLookupError):
        os.kill(record["pid"], 0)


def test_codex_outlives_a_killed_server(
    make_valet: Callable[..., Valet], codex_settings: dict[str, str]
) -> None:
    valet = make_valet(**codex_settings)
    process = valet.start()
    steps = "model: run touch up; while [ ! -e go ]; do sleep 0.1; done; echo on > on.txt\n"
    job_id = valet.submit(steps + "model: say went on\n")["job_id"]
    until((valet.tree(job_id) / "up").exists, "the command running")
    process.stop(signal.SIGKILL)
    (valet.tree(job_id) / "go").touch()
    valet.start()
    record = valet.await_end(job_id)
    assert (record["state"], record["exit_code"]) == ("succeeded", 0)
    assert valet.show(record, "on.txt") == "on\n"
    assert record["usage"] and record["thread_id"]
    assert "\nwent on\n" in valet.log(job_id)


def test_codex_that_cannot_start_says_why(
    make_valet: Callable[..., Valet], codex_settings: dict[str, str]
) -> None:
    (Path(codex_settings["CODEX_HOME"]) / "config.toml").write_text('model = "unclosed')
    valet = make_valet(**codex_settings)
    valet.start()
    record = valet.await_end(valet.submit("anything")["job_id"])
    assert (record["state"], record["reason"]) == ("failed", "spawn_failed")
    assert "Error loading config.toml" in record["error"]
    valet.environ["PV_CODEX_ARGS"] = "--no-such-flag"
    valet.processes[-1].stop()
    valet.start()
    record = valet.await_end(valet.submit("anything")["job_id"])
    assert record["reason"] == "spawn_failed" and "--no-such-flag" in record["error"]
