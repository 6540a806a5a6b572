"""The command `demo`: runs one job from end to end in a root of its own, and shows it.

It starts the real server as a child process and is an HTTP client of it. All it makes lies in one
folder, which is removed at the end unless `--keep` names it.
"""

from __future__ import annotations

import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from pv_lib.client import Client
from pv_lib.errors import ValetError

REPO, BRANCH = "nova-rey/example", "main"
JOB = {
    "repo": REPO,
    "branch": BRANCH,
    "markdown_text": "# Demo run\nAdd or modify files as requested.",
    "filename": "demo.prompt.md",
}
_ASK = "\nWrite a file DEMO.md with one sentence about what this repository is for.\n"
_SHOWN = ("job_id", "state", "reason", "error", "repo", "branch", "exit_code", "thread_id", "usage")
_PROBE_SECONDS = 20
_GIT = ("git", "-c", "user.name=Demo", "-c", "user.email=demo@localhost")


def demo(*, keep: Path | None) -> int:
    """Run the demo with the running pv.pyz; its exit code. It leaves its folder at `keep`."""
    program = [sys.executable, os.path.abspath(sys.argv[0])]
    return run(program, os.environ, keep, sys.stdout)


def run(program: list[str], environ: Mapping[str, str], keep: Path | None, out: TextIO) -> int:
    """Run the demo; 0 when the job succeeded, else 1. `program` starts the server.

    Raises ValetError where the demo itself fails.
    """
    codex, why_not = _find_codex(environ)
    if codex:
        _tell(out, f"demo: the agent is Codex ({codex})")
    else:
        _tell(out, f"demo: STAND-IN AGENT, no AI, because {why_not}")
    root = _make_root(keep)
    try:
        _make_repository(root)
        settings = _settings(environ, root, codex or _write_standin(root))
        return _with_server(program, settings, root, real=codex is not None, out=out)
    finally:
        if keep is None:
            shutil.rmtree(root, ignore_errors=True)
        else:
            _tell(out, f"demo: everything is kept in {root}")


def _with_server(
    program: list[str], settings: dict[str, str], root: Path, *, real: bool, out: TextIO
) -> int:
    log = root / "server.log"
    with log.open("wb") as stderr:
        server = subprocess.Popen(
            [*program, "serve"], env=settings, stdin=subprocess.DEVNULL, stderr=stderr
        )
    try:
        client = _await_server(server, log)
        return 0 if _one_job(client, root, real, out) == "succeeded" else 1
    finally:
        server.send_signal(signal.SIGINT)  # as Ctrl-C: a job still running is aborted
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _one_job(client: Client, root: Path, real: bool, out: TextIO) -> str:
    job = {**JOB, "markdown_text": JOB["markdown_text"] + (_ASK if real else "")}
    submitted = client.call("POST", "/api/v1/jobs", job)
    path = f"/api/v1/jobs/{submitted['job_id']}"
    _tell(out, f"demo: submitted job {submitted['job_id']}; its log, live:")
    for event in client.stream(path + "/log/stream"):
        if event.name == "message":
            _tell(out, "  | " + "".join(c if c.isprintable() else "?" for c in event.data))
    record: dict[str, Any] = client.call("GET", path)
    _tell(out, "demo: the record:")
    _tell(out, json.dumps({name: record[name] for name in _SHOWN}, indent=2))
    branch = (record["result"] or {}).get("branch")
    _tell(out, f"demo: the change in {REPO}, on its branch {branch}:")
    show = ("show", "--no-ext-diff", "--no-textconv", "--end-of-options", f"{branch}")
    _tell(out, _git(root / "repos" / REPO, *show).rstrip() if branch else "(none)")
    return str(record["state"])


def _await_server(server: subprocess.Popen[bytes], log: Path) -> Client:
    """Wait until the server logs where it listens; a client of it."""
    while True:
        text = log.read_text("utf-8", "replace")
        found = re.search(r"listening on http://([\d.]+):(\d+)", text)
        if found:
            return Client(found[1], int(found[2]))
        try:
            server.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        raise ValetError("the server did not start: " + text.strip().rpartition("\n")[2])


def _find_codex(environ: Mapping[str, str]) -> tuple[str | None, str]:
    """The path of a Codex that could run a job, else None and the reason."""
    name = environ.get("PV_CODEX_BIN") or "codex"
    program = shutil.which(name, path=environ.get("PATH"))
    if program is None:
        return None, f"there is no {name} in PATH"
    if "PV_CODEX_BIN" in environ or environ.get("CODEX_API_KEY") or _own_provider(environ):
        return program, ""
    try:
        probe = subprocess.run(
            [program, "login", "status"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{program} does not work ({error})"
    if probe.returncode:
        return None, f"{program} is not logged in (try: codex login)"
    return program, ""


def _own_provider(environ: Mapping[str, str]) -> bool:
    """Whether Codex's configuration names a provider that may need no login."""
    home = environ.get("CODEX_HOME") or os.path.join(environ.get("HOME", "/"), ".codex")
    try:
        text = Path(home, "config.toml").read_text("utf-8", "replace")
    except OSError:
        return False
    found = re.search(r'^\s*model_provider\s*=\s*"([^"]*)"', text, re.MULTILINE)
    return found is not None and found[1] != "openai"


def _settings(environ: Mapping[str, str], root: Path, agent: str) -> dict[str, str]:
    """The server's environment: the caller's, of whose settings only those of Codex are kept."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith("PV_") or name.startswith("PV_CODEX_")
    }
    ours = {"PV_ROOT": str(root), "PV_BIND_PORT": "0", "PV_CODEX_BIN": agent}
    return {**kept, **ours, "PV_MIN_FREE_BYTES": "1MiB", "PV_ABORT_GRACE_SECONDS": "4"}


def _make_root(keep: Path | None) -> Path:
    if keep is None:
        return Path(tempfile.mkdtemp(prefix="pv-demo-"))
    root = keep.absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        if any(root.iterdir()):
            raise ValetError(f"--keep {root} is not empty: name a folder that is")
    except OSError as error:
        raise ValetError(f"--keep {root} cannot be used: {error.strerror}") from error
    return root


def _make_repository(root: Path) -> None:
    repository = root / "repos" / REPO
    repository.mkdir(parents=True)
    (repository / "README.md").write_text("# Example\n\nA small repository for a first job.\n")
    _git(repository, "init", "--quiet", f"--initial-branch={BRANCH}")
    _git(repository, "add", "--all")
    _git(repository, "commit", "--quiet", "--message", "A small repository")


def _write_standin(root: Path) -> str:
    source = pkgutil.get_data("pv_lib.cli", "standin.py")
    if source is None:
        raise ValetError("the stand-in agent is missing from this build")
    agent = root / "stand-in-agent"
    agent.write_bytes(f"#!{sys.executable}\n".encode() + source)
    agent.chmod(0o700)
    return str(agent)


def _git(repository: Path, *argv: str) -> str:
    try:
        done = subprocess.run(
            [*_GIT, "-C", str(repository), *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        raise ValetError("git is not installed: install it first") from None
    if done.returncode:
        raise ValetError(f"git {argv[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _tell(out: TextIO, text: str) -> None:
    print(text, file=out, flush=True)
