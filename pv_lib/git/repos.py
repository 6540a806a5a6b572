"""Repositories: which exist, with which branches. Changes nothing in them.

Branches are read from git's own files where these are plain text, so that a submission starts no
process, else by running git. Knows nothing of prompts, records, agents or work trees.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pv_lib.errors import Invalid, NotFound
from pv_lib.git.command import Git, GitFailed
from pv_lib.jobs.job import BRANCH, OWNER, REPO

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REFS = ("heads", "remotes/origin")
PLAIN_BRANCH = "main"  # the one branch that a folder without git counts as having


class Repos:
    """The operator's clones under the repos root, as `<owner>/<name>`.

    `clone_url` is PV_GIT_CLONE_URL: with it, missing repositories are accepted too.
    """

    def __init__(self, root: Path, git: Git, clone_url: str | None = None) -> None:
        self.root = root
        self._root = os.fspath(root)
        self._git = git
        self._clone_url = clone_url

    def names(self) -> Iterator[str]:
        """Every owner/name under the root, sorted."""
        for owner in _folders(self.root):
            repos = (f"{owner}/{name}" for name in _folders(self.root / owner))
            yield from (repo for repo in repos if REPO.fullmatch(repo))

    def all(self) -> Iterator[tuple[str, str]]:
        """Every (repo, branch) pair that a submission may name, sorted."""
        for repo in self.names():
            for branch in sorted(self._branches(self.root / repo)):
                yield repo, branch

    def full_name(self, repo: str) -> str:
        """`owner/name` for what a person wrote; a bare `name` will do where one owner has it.

        Raises Invalid for a malformed name or one that several owners have, NotFound for one
        that no owner has.
        """
        if OWNER.fullmatch(repo):
            owners = [owner for owner in _folders(self.root) if (self.root / owner / repo).is_dir()]
            if len(owners) > 1:
                names = ", ".join(f"{owner}/{repo}" for owner in owners)
                raise Invalid.of([("repo", f"several owners have {repo}: name one of {names}")])
            repo = f"{owners[0]}/{repo}" if owners else repo
        elif not REPO.fullmatch(repo):
            raise Invalid.of([("repo", "must be owner/name, of letters, digits, dot, - and _")])
        if "/" in repo and (self._clone_url or os.path.isdir(f"{self._root}/{repo}")):
            return repo
        ways = "clone it there, or set PV_GIT_CLONE_URL and name it as owner/name"
        why = f"there is no repository {repo} in {self.root}: {ways}"
        raise NotFound(why, [("repo", why)])

    def is_missing(self, repo: str) -> bool:
        """Whether `repo`, an owner/name, has yet to be cloned."""
        return not (self.root / repo).exists()

    def clone_url(self, repo: str) -> str:
        """The address to clone `repo` from, an owner/name that `full_name` has accepted."""
        owner, _, name = repo.partition("/")
        return (self._clone_url or "").replace("{owner}", owner).replace("{repo}", name)

    def check_branch(self, repo: str, branch: str) -> None:
        """Check that `repo`, an owner/name, has `branch`. Raises Invalid or NotFound.

        For a repository that has yet to be cloned any branch is accepted.
        """
        if not BRANCH.fullmatch(branch):
            raise Invalid.of([("branch", "is not a branch name that git would take")])
        refs = f"{self._root}/{repo}/.git/refs"
        loose = any(os.path.isfile(f"{refs}/{where}/{branch}") for where in _REFS)
        if loose or branch in self._branches(self.root / repo) or self.is_missing(repo):
            return
        why = f"the repository {repo} has no branch {branch}"
        raise NotFound(why, [("branch", why)])

    def exclusive(self, repo: str) -> str | None:
        """The real path of a folder without git, which two jobs must not share; else None."""
        path = self.root / repo
        try:
            return None if is_git(path) or not path.exists() else os.path.realpath(path)
        except (OSError, ValueError):  # a record written by another program may name anything
            return repo

    def head(self, repo: str, ref: str) -> str | None:
        """The commit that the full name `ref` points to in `repo`; None where it does not exist.

        Raises GitFailed or OSError where it cannot be read.
        """
        path = self.root / repo
        common = git_folders(path)[1]
        if (common / "reftable").exists():
            done = self._git.run("rev-parse", "--verify", "--quiet", ref, cwd=path)
            return done.text or None
        try:
            text = (common / ref).read_text("utf-8", "replace").strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            text = _packed_commit(common / "packed-refs", ref)
        if not text or _COMMIT.fullmatch(text):
            return text or None
        return self._git.ask("rev-parse", "--verify", ref, cwd=path)  # a symbolic ref

    def _branches(self, path: Path) -> set[str]:
        """The local branches, those of origin, and the unborn branch of an empty repository."""
        if not path.is_dir():
            return set()
        if not is_git(path):
            return {PLAIN_BRANCH}
        own, common = git_folders(path)
        if (common / "reftable").exists():
            names = self._refs_by_git(path)
        else:
            names = _packed(common / "packed-refs") | _loose(common / "refs")
        names.add(_head_branch(own) or "")
        return {name for name in names if BRANCH.fullmatch(name)}

    def _refs_by_git(self, path: Path) -> set[str]:
        """The branches of a repository whose refs are in the reftable format."""
        refs = ("refs/heads", "refs/remotes/origin")
        try:
            text = self._git.ask("for-each-ref", "--format=%(refname)", *refs, cwd=path)
        except GitFailed:  # git hangs on it or is not installed: no branch can be used
            return set()
        return {name for name in map(_branch_of, text.splitlines()) if name}


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as listing:
            return sorted(i.name for i in listing if not i.name.startswith(".") and i.is_dir())
    except OSError:
        return []


def is_git(path: Path) -> bool:
    """Whether `path` is a clone, a linked work tree or a bare repository."""
    return (path / ".git").exists() or _is_bare(path)


def git_folders(path: Path) -> tuple[Path, Path]:
    """The folders that hold HEAD and the refs; they differ in a linked work tree."""
    own = path if _is_bare(path) else path / ".git"
    try:
        if own.is_file():
            own = path / own.read_text("utf-8", "replace").strip().removeprefix("gitdir: ")
        common = own / (own / "commondir").read_text("utf-8", "replace").strip()
    except OSError:
        common = own
    return own, common


def _is_bare(path: Path) -> bool:
    return (path / "HEAD").is_file() and (path / "objects").is_dir() and (path / "refs").is_dir()


def _packed(path: Path) -> set[str]:
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return set()
    refs = (line.partition(" ")[2] for line in lines if line[:1] not in ("#", "^"))
    return {name for name in map(_branch_of, refs) if name}


def _packed_commit(path: Path, ref: str) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return ""
    end = data.find(b" " + ref.encode() + b"\n")
    return data[data.rfind(b"\n", 0, end) + 1 : end].decode() if end >= 0 else ""


def _loose(refs: Path) -> set[str]:
    names = set()
    for base in (refs / "heads", refs / "remotes" / "origin"):
        for folder, _, found in os.walk(base):
            names |= {os.path.relpath(os.path.join(folder, name), base) for name in found}
    return names


def _branch_of(ref: str) -> str | None:
    for prefix in ("refs/heads/", "refs/remotes/origin/"):
        if ref.startswith(prefix):
            return ref.removeprefix(prefix)
    return None


def _head_branch(own: Path) -> str | None:
    try:
        text = (own / "HEAD").read_text("utf-8", "replace").strip()
    except OSError:
        return None
    return text.removeprefix("ref: refs/heads/") if text.startswith("ref: refs/heads/") else None
