"""Secrets of the server, planted where they may lie: they are found nowhere else."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from harness import DEADLINE, REPO, Valet, git

from pv_lib.api.routes import TABLE

TOKEN = "canary-token-3f9a1c7e5b2d8064"
SECRET = "canary-secret-77aa55cc33ee1100"
DUMP = "#!/bin/sh\nenv >>{dump}\necho ---- >>{dump}\n{then}\n"


def recorder(folder: Path, name: str, dump: Path, then: str) -> Path:
    """A program that notes its environment, then does what it stands for."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(DUMP.format(dump=dump, then=then))
    path.chmod(0o755)
    return path


def test_canaries_are_found_in_no_child_log_record_or_answer(
    make_valet: Callable[..., Valet], tmp_path: Path
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "token").write_text(TOKEN)
    (secrets / "token").chmod(0o600)
    dumps = {name: tmp_path / f"{name}.env" for name in ("git", "agent", "forge")}
    tools = tmp_path / "tools"
    recorder(tools, "git", dumps["git"], f'exec {shutil.which("git")} "$@"')
    forge = recorder(tmp_path / "forge", "forge", dumps["forge"], "echo https://forge.test/1")
    valet = make_valet(
        PV_API_TOKEN_FILE=str(secrets / "token"),
        PV_PUBLISH="pr",
        PV_PR_COMMAND=str(forge),
        AWS_SECRET_ACCESS_KEY=SECRET,
        DATABASE_URL=f"postgres://me:{SECRET}@db.test/x",
        MY_PASSWORD=SECRET,
        PV_TOKEN=SECRET,
        PYTHONPATH="/nowhere",
    )
    valet.environ["PATH"] = f"{tools}:{valet.environ['PATH']}"
    origin = tmp_path / "origin.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(valet.repo), str(origin))
    git(valet.repo, "remote", "add", "origin", f"file://{origin}")
    valet.environ["CODEX_FAKE_YARD"] = str(tmp_path)
    process = valet.start()
    planted = Path(f"/proc/{process.popen.pid}/environ").read_bytes()
    assert planted.count(SECRET.encode()) == 4
    token = {"Authorization": f"Bearer {TOKEN}"}
    markdown = {"Content-Type": "text/markdown", **token}
    changes = socket.create_connection(("127.0.0.1", valet.port), timeout=DEADLINE)
    head = f"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    changes.sendall(f"{head}\r\n".encode())
    steps = f"fake: env {dumps['agent'].name}\nfake: write new.txt x\n"
    steps += "fake: sh env >shell.txt\nfake: stderr odd\n"
    path = f"/api/v1/jobs?repo={REPO}&branch=main"
    first = valet.ask("POST", path, steps.encode(), markdown).json["job_id"]
    second = valet.ask("POST", path, b"fake: fail-turn no\n", markdown).json["job_id"]
    for job_id in (first, second):
        url = f"/api/v1/jobs/{job_id}/log/stream"
        assert b"event: end" in valet.ask("GET", url, headers=token).body
    answers = []
    for route in TABLE:
        if route.operation.name == "changes":  # it has no end until the server stops
            continue
        url = route.operation.path.replace("{job_id}", first)
        answers.append(valet.ask(route.operation.method, url, headers=token))
        answers.append(valet.ask(route.operation.method, url))
        answers.append(valet.ask(route.operation.method, f"{url}?odd=1", b"{", markdown))
    heads = "".join(str(dict(answer.headers)) for answer in answers)
    seen = b"".join(answer.body for answer in answers) + heads.encode()
    assert valet.ask("GET", f"/api/v1/jobs/{first}", headers=token).json["result"]["pull_request"]
    valet.stop()
    with changes:
        while more := changes.recv(1 << 16):
            seen += more
    assert b"event: job" in seen
    for name, dump in dumps.items():
        assert "PATH=" in dump.read_text(), f"{name} ran and told its environment"
    for place in [tmp_path / "server.log", *dumps.values(), *tmp_path.rglob("*")]:
        if place.is_file() and secrets not in place.parents:
            seen += place.read_bytes()
    assert b"PV_JOB_ID" in seen and b"new.txt" in seen
    for canary in (TOKEN, SECRET):
        assert canary.encode() not in seen
    assert b"PV_API_TOKEN" not in dumps["agent"].read_bytes() + dumps["git"].read_bytes()
    log = subprocess.run(
        ["git", "-C", str(origin), "log", "-p", "--all"], capture_output=True, check=True
    ).stdout
    assert b"shell.txt" in log and SECRET.encode() not in log and TOKEN.encode() not in log
