"""Repositories: which exist, with which branches, and a checkout for a job to work in.

Answers come from git's own files where they are plain, so that a submission costs no process;
git itself is asked for everything else, by argv, with the repository's hooks and monitors off.
Knows nothing of prompts, records or agents.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pv_lib.errors import Invalid, JobFailed, NotFound, ValetError
from pv_lib.job import BRANCH, OWNER, REPO

PLAIN_BRANCH = "main"  # the one branch that a folder without git is taken to have
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
_GIT_SECONDS = 60.0


@dataclass(frozen=True)
class Checkout:
    """Where a job works. `git` is false for a folder without git."""

    path: Path
    git: bool


class Repos:
    """The operator's clones under the repos root, as `<owner>/<name>`."""

    def __init__(self, root: Path, environ: Mapping[str, str]) -> None:
        self.root = root
        ours = {name: value for name, value in environ.items() if not name.startswith("PV_")}
        self._environ = {**ours, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"}

    def all(self) -> Iterator[tuple[str, str]]:
        """Every (repo, branch) pair that a submission may name, sorted."""
        for owner in _folders(self.root):
            for name in _folders(self.root / owner):
                repo = f"{owner}/{name}"
                if REPO.fullmatch(repo):
                    branches = _branches(self.root / repo, self._environ)
                    yield from ((repo, branch) for branch in sorted(branches))

    def full_name(self, repo: str) -> str:
        """`owner/name` for what a person wrote; a bare `name` serves where one owner has it.

        Raises Invalid for a name that cannot be or that several owners have, NotFound for one
        that nobody has.
        """
        if OWNER.fullmatch(repo):
            owners = [owner for owner in _folders(self.root) if (self.root / owner / repo).is_dir()]
            if len(owners) > 1:
                names = ", ".join(f"{owner}/{repo}" for owner in owners)
                raise Invalid.of([("repo", f"several owners have {repo}: name one of {names}")])
            repo = f"{owners[0]}/{repo}" if owners else repo
        elif not REPO.fullmatch(repo):
            raise Invalid.of([("repo", "must be owner/name, of letters, digits, dot, - and _")])
        if "/" not in repo or not (self.root / repo).is_dir():
            why = f"there is no repository {repo} in {self.root}: clone it there first"
            raise NotFound(why, [("repo", why)])
        return repo

    def check_branch(self, repo: str, branch: str) -> None:
        """See that `repo`, an existing owner/name, has `branch`: else Invalid or NotFound."""
        if not BRANCH.fullmatch(branch):
            raise Invalid.of([("branch", "is not a branch name that git would take")])
        path = self.root / repo
        loose = (Path(".git/refs", place, branch) for place in ("heads", "remotes/origin"))
        if any((path / ref).is_file() for ref in loose) or branch in _branches(path, self._environ):
            return
        why = f"the repository {repo} has no branch {branch}"
        raise NotFound(why, [("branch", why)])

    def checkout_key(self, repo: str) -> str:
        """What two jobs must not use at once: the same checkout, by its real path."""
        try:
            return os.path.realpath(self.root / repo)
        except ValueError:  # a record by other hands may name anything
            return repo

    def prepare(self, repo: str, branch: str) -> Checkout:
        """The repository's checkout, switched to `branch`.

        Raises JobFailed: `unknown_target` where the repository or branch is not there (any
        more), `workspace_failed` with git's own reason where the switch cannot be done.
        """
        path = self.root / repo
        try:
            self.check_branch(self.full_name(repo), branch)
        except ValetError as error:
            raise JobFailed("unknown_target", error.detail) from error
        if not _is_git(path):
            return Checkout(path, git=False)
        if _head_branch(path) != branch:
            done = _git(path, self._environ, "switch", "--quiet", branch, "--")
            if done.returncode:
                reason = _first_line(done.stderr)
                why = f"git could not switch {repo} to {branch}: {reason}"
                raise JobFailed("workspace_failed", why)
        return Checkout(path, git=True)


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as listing:
            return sorted(i.name for i in listing if not i.name.startswith(".") and i.is_dir())
    except OSError:
        return []


def _is_git(path: Path) -> bool:
    return (path / ".git").exists()


def _git_folders(path: Path) -> tuple[Path, Path]:
    """Where HEAD lies and where the refs lie: two places in a linked work tree."""
    own = path / ".git"
    try:
        if own.is_file():
            own = path / own.read_text("utf-8", "replace").strip().removeprefix("gitdir: ")
        common = own / (own / "commondir").read_text("utf-8", "replace").strip()
    except OSError:
        common = own
    return own, common


def _branches(path: Path, environ: Mapping[str, str]) -> set[str]:
    """The local branches, those of origin, and the one an empty repository is on."""
    if not _is_git(path):
        return {PLAIN_BRANCH}
    common = _git_folders(path)[1]
    if (common / "reftable").exists():
        names = _refs_by_git(path, environ)
    else:
        names = _packed(common / "packed-refs") | _loose(common / "refs")
    names.add(_head_branch(path) or "")
    return {name for name in names if BRANCH.fullmatch(name)}


def _packed(path: Path) -> set[str]:
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return set()
    refs = (line.partition(" ")[2] for line in lines if line[:1] not in ("#", "^"))
    return {name for name in map(_branch_of, refs) if name}


def _loose(refs: Path) -> set[str]:
    names = set()
    for base in (refs / "heads", refs / "remotes" / "origin"):
        for folder, _, found in os.walk(base):
            names |= {os.path.relpath(os.path.join(folder, name), base) for name in found}
    return names


def _refs_by_git(path: Path, environ: Mapping[str, str]) -> set[str]:
    """For the one format of refs that is not plain files."""
    refs = ("refs/heads", "refs/remotes/origin")
    try:
        done = _git(path, environ, "for-each-ref", "--format=%(refname)", *refs)
    except JobFailed:  # git hangs on it or is not there: no branch can be used
        return set()
    return {name for name in map(_branch_of, done.stdout.splitlines()) if name}


def _branch_of(ref: str) -> str | None:
    for prefix in ("refs/heads/", "refs/remotes/origin/"):
        if ref.startswith(prefix):
            return ref.removeprefix(prefix)
    return None


def _head_branch(path: Path) -> str | None:
    try:
        text = (_git_folders(path)[0] / "HEAD").read_text("utf-8", "replace").strip()
    except OSError:
        return None
    return text.removeprefix("ref: refs/heads/") if text.startswith("ref: refs/heads/") else None


def _git(path: Path, environ: Mapping[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [*_GIT, "-C", str(path), *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            env=environ,
            check=False,
        )
    except FileNotFoundError:
        raise JobFailed("workspace_failed", "git is not installed: install it") from None
    except subprocess.TimeoutExpired:
        why = f"git {argv[0]} in {path} took over {_GIT_SECONDS:.0f} s"
        raise JobFailed("workspace_failed", why) from None


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
