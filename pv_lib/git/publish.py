"""Delivery of a job's work: the commit, the diff, the push, the pull request.

Called by the job's own thread when its agent has ended, and again after a crash: every step finds
what an earlier attempt has done. A failure here never loses the work: it is on the branch, or its
work tree is kept, and the result says which. Knows nothing of agents or of the queue.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pv_lib.git.command import NETWORK_SECONDS, Done, Git, GitFailed, reason, scrub
from pv_lib.git.worktree import Change, Workspace, WorkTree
from pv_lib.jobs.job import Record
from pv_lib.settings.config import Config
from pv_lib.system import files, space

_PAUSES = (0.5, 2.5)  # seconds between attempts that use the network
_TITLE_CHARS = 72
_BODY_BYTES = 60_000  # a forge accepts 65,536 characters, a program's argument 128 KiB
_THERE = "already exists"  # in the message of gh when an earlier attempt has opened it
_ADDRESS = re.compile(r"https?://[!-~]{1,2000}")
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class Work:
    """One job's work to deliver: where it is, and the texts of its commit.

    `partial` is whether the agent ended before its turn was complete; `run` is the run folder.
    """

    record: Record
    tree: WorkTree
    run: Path
    title: str
    message: str
    partial: bool


def bring_home(
    work: Work,
    config: Config,
    workspace: Workspace,
    git: Git,
    report: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Commit, diff and publish what the agent left; the record's `result`.

    `report` is called with the result so far, before anything uses the network. Raises what
    `git.tick` raises, and OSError where the disk is full; call it again then.
    """
    tree, known = work.tree, work.record.result or {}
    if tree.branch is None:
        why = "no git repository: the agent worked in the folder itself, nothing was committed"
        return {"branch": None, "commit": None, "notes": [why]}
    try:
        git = workspace.hardened(tree, git)
        branch, message = work.record.branch or "", _commit_message(work)
        change = workspace.harvest(tree, branch, message, _ended(work), git)
        _write_diff(work, change, workspace, git)
    except GitFailed as error:
        space.raise_if_full(tree.path, tree.repository)
        return kept(work, error.detail)
    result = _result(known, tree, change, partial=work.partial)
    if not change.complete:
        space.raise_if_full(tree.path, tree.repository)
        result["work_tree"] = str(tree.path)
        result["notes"] = [*result["notes"], f"the rest is kept in {tree.path}"]
    else:
        try:
            workspace.discard(replace(tree, base=change.base), git, keep=change.commit)
        except (GitFailed, OSError) as error:
            why = f"{tree.path} could not be removed ({error}): remove it by hand"
            result["notes"] = [*result.get("notes", []), why]
    report(result)
    if change.commit and not work.partial and config.publish != "none":
        result |= _published(work, config, git)
    return result


def kept(work: Work, why: str) -> dict[str, Any]:
    """The result of work that could not be committed, because of `why`, and stays in its tree."""
    path = work.tree.path
    said = f"the work could not be committed ({why}); it is kept in {path}"
    known = {**(work.record.result or {}), "branch": None, "commit": None}
    return {**known, "work_tree": str(path), "publish_error": said}


def title_of(prompt: str) -> str:
    """The subject of the commit: the prompt's first line with text in it."""
    lines = (_NOT_TEXT.sub(" ", line).strip().lstrip("#").strip() for line in prompt.splitlines())
    title = " ".join(next((line for line in lines if line.strip("-=*_ ")), "").split())
    return title if len(title) <= _TITLE_CHARS else title[: _TITLE_CHARS - 1].rstrip() + "…"


def _commit_message(work: Work) -> str:
    job_id = work.record.job_id
    partly = ["This is what the agent had done when it ended early."] if work.partial else []
    said = _NOT_TEXT.sub("", work.message).strip()
    parts = [work.title or f"Job {job_id}", *partly, said, f"Job {job_id}, run by Prompt Valet."]
    return "\n\n".join([*filter(None, parts), f"Prompt-Valet-Job: {job_id}"]) + "\n"


def _ended(work: Work) -> float:
    """When the agent last wrote output (Unix time): the same after every restart."""
    with contextlib.suppress(OSError):
        return (work.run / "codex.jsonl").stat().st_mtime
    return time.time()


def _write_diff(work: Work, change: Change, workspace: Workspace, git: Git) -> None:
    if not (change.base and change.commit and work.run.is_dir()):
        return
    temp = work.run / ".changes.diff"
    with temp.open("wb") as file:
        workspace.diff(change, work.tree.repository, git, file)
    temp.rename(work.run / "changes.diff")


def _result(
    known: dict[str, Any], tree: WorkTree, change: Change, *, partial: bool
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "branch": tree.branch if change.commit else None,
        "base": change.base,
        "commit": change.commit,
        "files_changed": change.files_changed,
        "insertions": change.insertions,
        "deletions": change.deletions,
    }
    if partial and change.commit:
        result["partial"] = True
    notes = [*known.get("notes", []), *change.notes]
    if notes:
        result["notes"] = list(dict.fromkeys(notes))
    return result


def _published(work: Work, config: Config, git: Git) -> dict[str, Any]:
    """The entries that publishing adds to the result: its success, or `publish_error`.

    A failure to publish does not fail the job, since the work is on the branch. Raises OSError
    where a later attempt can succeed.
    """
    try:
        return _publish(work, config, git)
    except GitFailed as error:
        return {"publish_error": error.detail}
    except OSError as error:
        if error.errno in files.TRANSIENT:
            raise
        return {"publish_error": f"{work.tree.branch} could not be published: {error}"}


def _publish(work: Work, config: Config, git: Git) -> dict[str, Any]:
    """Push the branch and, where PV_PUBLISH is `pr`, open a pull request. Raises GitFailed."""
    branch, repository = work.tree.branch or "", work.tree.repository
    url = git.settings.get("remote.origin.pushurl") or git.settings.get("remote.origin.url")
    if not url:
        raise GitFailed(f"{repository} has no remote origin to push {branch} to")
    ref = f"refs/heads/{branch}"
    how = ("--quiet", "--no-verify", "--receive-pack=git-receive-pack", "--end-of-options")
    push = ("git", "push", *how, url, f"{ref}:{ref}")
    done = _try(push, repository, git)
    if done.status:
        raise GitFailed(f"{branch} could not be pushed to {scrub(url)}: {reason(done)}")
    if config.publish != "pr":
        return {"pushed": True}
    said = _NOT_TEXT.sub("", work.message).strip().encode("utf-8", "replace")[:_BODY_BYTES]
    text = said.decode("utf-8", "ignore")
    body = f"{text}\n\nPrompt Valet job {work.record.job_id}".strip()
    where = ("--head", branch, "--base", work.record.branch or "")
    what = ("--title", work.title or f"Job {work.record.job_id}", "--body", body)
    return {
        "pushed": True,
        **_request([*config.pr_command, "pr", "create", *where, *what], repository, git),
    }


def _request(argv: Sequence[str], repository: Path, git: Git) -> dict[str, Any]:
    """The pull request's address, or why there is none; one that already exists counts."""
    try:
        done = _try(argv, repository, git)
    except GitFailed as error:
        return {"publish_error": f"no pull request: {error.detail}"}
    found = _ADDRESS.findall(scrub(done.text) + "\n" + done.complaint)
    if found and (done.status == 0 or _THERE in done.complaint):
        return {"pull_request": found[-1]}
    if done.status == 0:
        return {"publish_error": f"{argv[0]} named no address of a pull request"}
    return {"publish_error": f"no pull request: {argv[0]} said: {reason(done)}"}


def _try(argv: Sequence[str], cwd: Path, git: Git) -> Done:
    """Call a program that uses the network, again where it failed; the last result."""
    done = git.call(argv, cwd, seconds=NETWORK_SECONDS)
    for pause in _PAUSES:
        if done.status == 0 or _THERE in done.complaint:
            break
        until = time.monotonic() + pause
        while time.monotonic() < until:
            git.tick()
            time.sleep(0.05)
        done = git.call(argv, cwd, seconds=NETWORK_SECONDS)
    return done
