"""What an agent may leave in its work tree to lose its work, to hang us, or to reach out of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import REPO, Valet, git, make_repository, program, until


def end(valet: Valet, text: str, **fields: object) -> dict[str, Any]:
    return valet.await_end(valet.submit(text, **fields)["job_id"])


def test_a_submodule_behind_a_link_reaches_nobody(valet: Valet) -> None:
    inner = make_repository(valet.root / "inner")
    add = ("-c", "protocol.file.allow=always", "submodule", "add", "--quiet")
    git(valet.repo, *add, str(inner), "lib/inner")
    git(valet.repo, "commit", "--quiet", "--message", "submodule")
    outside = valet.root / "outside" / "inner"
    outside.mkdir(parents=True)
    (outside / "precious").write_text("x")
    (valet.repo / "lib" / "inner" / "mine").write_text("x")
    for target in (outside.parent, valet.repo / "lib"):
        assert end(valet, f"fake: sh rm -rf lib; ln -s {target} lib")["state"] == "succeeded"
    assert (outside / "precious").exists() and (valet.repo / "lib" / "inner" / "mine").exists()


def test_a_work_tree_that_became_a_link_is_not_followed(valet: Valet) -> None:
    other = make_repository(valet.root / "other" / "repo")
    text = f'fake: sh p="$PWD"; cd /; rm -rf "$p"; ln -s {other.parent} "$p"'
    assert end(valet, text)["reason"] == "no_changes"
    assert (other / ".git").is_dir() and not list((valet.root / "work").iterdir())


def test_a_disk_that_fills_while_the_work_is_committed(small_disk: Path) -> None:
    valet = Valet(small_disk, program(), PV_MIN_FREE_BYTES="0")
    try:
        valet.start()
        steps = "fake: sh head -c 1500000 /dev/urandom > big; echo small > s.txt\nfake: wait go"
        job_id = valet.submit(steps)["job_id"]
        until(lambda: (valet.tree(job_id) / "s.txt").exists(), "the agent's work")
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            left = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
            file.write(bytes(left - 300_000))
        (valet.repo / "go").touch()
        valet.processes[-1].await_line("cannot be brought home")
        ballast.unlink()
        record = valet.await_end(job_id)
        assert record["result"]["files_changed"] == 2 and "notes" not in record["result"]
        assert valet.show(record, "s.txt") == "small\n"
    finally:
        valet.clear()


def test_a_disk_that_is_too_full_for_a_work_tree(small_disk: Path) -> None:
    valet = Valet(small_disk, program(), PV_MIN_FREE_BYTES="0")
    try:
        (valet.repo / "big").write_bytes(os.urandom(800_000))
        git(valet.repo, "add", "--all")
        git(valet.repo, "commit", "--quiet", "--message", "big")
        valet.start()
        ballast = small_disk / "ballast"
        info = os.statvfs(small_disk)
        ballast.write_bytes(bytes(info.f_bavail * info.f_frsize - 400_000))
        job_id = valet.submit("fake: write x y")["job_id"]
        valet.processes[-1].await_line("cannot go on")
        ballast.unlink()
        assert valet.show(valet.await_end(job_id), "x") == "y"
    finally:
        valet.clear()


def test_what_git_will_not_take_is_kept_where_it_is(valet: Valet) -> None:
    steps = "fake: sh echo '*.txt working-tree-encoding=UTF-16' > .gitattributes; echo x > a.txt"
    record = end(valet, steps)
    assert (record["state"], record["reason"]) == ("succeeded", "completed")
    assert "not everything could be committed" in str(record["result"]["notes"])
    assert (Path(record["result"]["work_tree"]) / "a.txt").read_text() == "x\n"
    valet.processes[-1].stop()
    valet.start()
    end(valet, "fake: say x")
    assert (Path(record["result"]["work_tree"]) / "a.txt").exists()


def test_closed_files_and_folders_are_committed(unprivileged_valet: Valet) -> None:
    valet = unprivileged_valet
    valet.start()
    steps = """fake: sh echo secret > secret; chmod 000 secret
fake: sh mkdir -p d/e; echo f > d/f; echo g > d/e/g; chmod 000 d/e; chmod 300 d
fake: sh chmod 300 ."""
    record = end(valet, steps)
    for path, text in (("secret", "secret\n"), ("d/f", "f\n"), ("d/e/g", "g\n")):
        assert valet.show(record, path) == text
    assert "notes" not in record["result"] and not list((valet.root / "work").iterdir())


def test_files_that_git_was_told_to_pass_over_are_committed(valet: Valet) -> None:
    for flag in ("--skip-worktree", "--assume-unchanged"):
        record = end(valet, f"fake: sh git update-index {flag} README.md; echo m >> README.md")
        assert valet.show(record, "README.md") == "# Example\nm\n"


def test_a_sparse_clone_commits_what_lies_outside_of_it(valet: Valet) -> None:
    git(valet.repo, "sparse-checkout", "set", "in")
    record = end(valet, "fake: sh mkdir brandnew in; echo p > brandnew/p; echo i > in/new")
    assert valet.show(record, "brandnew/p") == "p\n" and valet.show(record, "in/new") == "i\n"


def test_folders_nested_deeper_than_a_recursion_goes(valet: Valet) -> None:
    record = end(valet, "fake: sh mkdir -p $(printf 'a/%.0s' $(seq 1500)); echo x > y")
    assert valet.show(record, "y") == "x\n"
    assert not list((valet.root / "work").iterdir())


@pytest.mark.parametrize("name", [".gitattributes", ".gitignore", "plain"])
def test_a_pipe_holds_nobody_up(valet: Valet, name: str) -> None:
    record = end(valet, f"fake: sh mkfifo {name}; echo x > y")
    assert (
        valet.show(record, "y") == "x\n" and "is not a regular file" in record["result"]["notes"][0]
    )


@pytest.mark.parametrize("said", ["a\\u0000b", "\\ud800", "字" * 50_000])
def test_a_pull_request_whatever_the_agent_said(
    make_valet: Callable[..., Valet], tmp_path: Path, said: str
) -> None:
    gh = tmp_path / "gh"
    gh.write_text("#!/bin/sh\necho https://user:secret@forge.example/pull/1\n")
    gh.chmod(0o755)
    valet = make_valet(PV_PUBLISH="pr", PV_PR_COMMAND=str(gh))
    git(valet.root, "clone", "--quiet", "--bare", str(valet.repo), str(valet.root / "origin.git"))
    git(valet.repo, "remote", "add", "origin", str(valet.root / "origin.git"))
    valet.start()
    item = '{"id":"i","type":"agent_message","text":"' + said + '"}'
    text = f'fake: raw {{"type":"item.completed","item":{item}}}\nfake: write x y'
    result = end(valet, text)["result"]
    assert result["pull_request"] == "https://forge.example/pull/1", result


@pytest.mark.parametrize("condition", ["onbranch:codex/**", "gitdir:**/worktrees/**"])
def test_configuration_that_holds_in_the_work_tree_only(valet: Valet, condition: str) -> None:
    proof = valet.root / "proof"
    evil = valet.repo / ".git" / "evil.inc"
    evil.write_text(f'[filter "evil"]\nclean = touch {proof}\nsmudge = touch {proof}\n')
    git(valet.repo, "config", f"includeIf.{condition}.path", str(evil))
    (valet.repo / ".gitattributes").write_text("* filter=evil\n")
    git(valet.repo, "add", "--all")
    git(valet.repo, "commit", "--quiet", "--message", "attributes")
    record = end(valet, "fake: write x y")
    assert valet.show(record, "x") == "y" and not proof.exists()


def test_a_remote_named_by_its_address_names_no_program(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_PUBLISH="push")
    bare, proof = valet.root / "origin.git", valet.root / "proof"
    git(valet.root, "clone", "--quiet", "--bare", str(valet.repo), str(bare))
    address = f"file://{bare}"
    git(valet.repo, "config", "remote.origin.url", address)
    for key in ("uploadpack", "receivepack"):
        git(valet.repo, "config", f"remote.{address}.{key}", f"touch {proof}; git-{key}")
    git(valet.repo, "config", f"remote.{address}.url", address)
    valet.start()
    assert end(valet, "fake: write x y")["result"]["pushed"]
    assert not proof.exists()


def test_a_password_with_odd_characters_is_not_written_down(
    make_valet: Callable[..., Valet],
) -> None:
    valet = make_valet(PV_PUBLISH="push", PV_GIT_CLONE_URL="http://bob:hunter2@host/{repo}")
    done = subprocess.run(
        [*valet.program, "serve"], env=valet.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "hunter2" not in done.stderr
    del valet.environ["PV_GIT_CLONE_URL"]
    address = "http://somebody:sec@ret'word@127.0.0.1:9/x.git"
    git(valet.repo, "remote", "add", "origin", address)
    valet.start()
    record = end(valet, "fake: write x y")
    assert "127.0.0.1:9" in record["result"]["publish_error"]
    assert "word" not in str(record["result"])


def test_one_hanging_origin_holds_up_no_job_that_is_over(make_valet: Callable[..., Valet]) -> None:
    valet = make_valet(PV_MAX_RUNNING="2")
    git(valet.repo, "remote", "add", "origin", str(valet.root / "origin.git"))
    git(valet.root, "clone", "--quiet", "--bare", str(valet.repo), str(valet.root / "origin.git"))
    valet.start()
    first = valet.submit("fake: write x y\nfake: say up\nfake: wait go")["job_id"]
    until(lambda: valet.job(first)["activity"] == "up", "the agent's activity")
    shutil.rmtree(valet.root / "origin.git")
    os.mkfifo(valet.root / "fifo")
    git(valet.repo, "config", "remote.origin.url", "ssh://x@127.0.0.1/x")
    slow = valet.root / "ssh"
    slow.write_text("#!/bin/sh\nsleep 60\n")
    slow.chmod(0o755)
    valet.processes[-1].stop()
    valet.environ["GIT_SSH_COMMAND"] = str(slow)
    valet.start()
    second = valet.submit("fake: write x y")["job_id"]
    until(lambda: valet.job(second)["phase"] == "preparing", "the fetch that hangs")
    (valet.repo / "go").touch()
    assert valet.await_end(first)["result"]["commit"]
    assert valet.ask("POST", f"/api/v1/jobs/{second}/abort").status == 200
    assert valet.await_end(second)["state"] == "aborted"
    assert REPO in str(valet.job(second)["repo"])
