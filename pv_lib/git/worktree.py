"""One job's work tree: made from the newest branch head, committed to a branch of its own, removed.

    work/<job_id>                  where the agent works
    codex/<name>-<8 hex digits>    the branch that its change is committed to

Every step can be repeated after a crash: half-made work is made anew, finished work is reused.
git is given the paths of its own files and never searches the tree for them, because the agent may
have written anything there. Knows nothing of records or agents; pushes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from pv_lib.errors import JobFailed, ValetError
from pv_lib.git.command import Git, GitFailed, reason
from pv_lib.git.fetch import Fetcher
from pv_lib.git.locks import Locks, key_of
from pv_lib.git.repos import Repos, git_folders, is_git
from pv_lib.git.tidy import clear_submodules, delete, tidy
from pv_lib.system import space

_SLUG_CHARS = 40
_OURS = re.compile(r"[0-9a-f]{32}")
_SHORTSTAT = re.compile(r"(\d+) (file|insertion|deletion)")
_SKIPPED = b"Sabcdefghijklmnopqrstuvwxyz"  # tags of files that git was told to skip


@dataclass(frozen=True)
class WorkTree:
    """Where one job works. Without git `branch` is None and `path` is the folder itself.

    `base` is the commit it began from, None where it is not known. `notes` are sentences for the
    reader of the result.
    """

    path: Path
    repository: Path
    branch: str | None
    base: str | None
    notes: tuple[str, ...] = ()

    @property
    def git(self) -> bool:
        """Whether it is a work tree of a git repository."""
        return self.branch is not None

    @property
    def admin(self) -> Path:
        """git's administrative folder for this work tree, named after it by `git worktree add`."""
        return git_folders(self.repository)[1] / "worktrees" / self.path.name

    def where(self) -> dict[str, str]:
        """The variables that point git at this tree, whatever the tree contains."""
        return {"GIT_DIR": str(self.admin), "GIT_WORK_TREE": str(self.path)}


@dataclass(frozen=True)
class Change:
    """The result of a work tree: its last commit, None where nothing changed, and counts."""

    base: str | None
    commit: str | None
    files_changed: int = 0
    insertions: int = 0
    deletions: int = 0
    notes: tuple[str, ...] = ()
    complete: bool = True  # whether the commit has everything that the work tree has


class Workspace:
    """Every job's work tree, under the work root."""

    def __init__(self, root: Path, repos: Repos) -> None:
        self.root = root
        self._repos = repos
        self._locks = Locks()
        self._fetcher = Fetcher(repos, self._locks)

    def tree(self, repo: str, filename: str | None, job_id: str, base: str | None) -> WorkTree:
        """The work tree that a job has or would have; nothing is touched."""
        repository = self._repos.root / repo
        if repository.exists() and not is_git(repository):
            return WorkTree(repository, repository, None, None)
        return WorkTree(self.root / job_id, repository, branch_name(filename, job_id), base)

    def prepare(
        self, repo: str, branch: str, filename: str | None, job_id: str, git: Git
    ) -> WorkTree:
        """A fresh work tree from the newest head of `branch`; a missing repository is cloned first.

        Raises JobFailed: `unknown_target` where the repository or the branch does not exist,
        `workspace_failed` with git's own reason; OSError where the system lacks a resource.
        """
        try:
            self._repos.full_name(repo)
            if self._repos.is_missing(repo):
                self._fetcher.clone(repo, job_id, git)
            tree = self.tree(repo, filename, job_id, None)
            if tree.branch is None:
                self._repos.check_branch(repo, branch)
                return tree
            return self._make(tree, repo, branch, git)
        except JobFailed:
            raise
        except GitFailed as error:
            space.raise_if_full(self.root, self._repos.root)
            why = f"no work tree of {repo} could be made: {error.detail}"
            raise JobFailed("workspace_failed", why) from error
        except ValetError as error:
            raise JobFailed("unknown_target", error.detail) from error

    def _make(self, tree: WorkTree, repo: str, branch: str, git: Git) -> WorkTree:
        """Add the work tree at the newest commit and check it out. Raises GitFailed."""
        git = git.hardened(tree.repository)
        failed = self._fetcher.fetch(tree.repository, branch, git)
        old = f"origin could not be fetched ({failed}): the job began from the last known commit"
        base = self._fetcher.newest(repo, branch, git)
        tree = replace(tree, base=base, notes=(old,) if failed else ())
        with self._locks.hold(key_of(tree.repository), git):
            _remove(tree, git)
            how = ("--quiet", "--no-checkout", "--no-track", "-B", tree.branch or "")
            git.ask("worktree", "add", *how, "--", str(tree.path), base, cwd=tree.repository)
        git = self.hardened(tree, git)
        git.ask("reset", "--hard", "--quiet", cwd=tree.path, env=tree.where())
        return replace(tree, notes=(*tree.notes, *_left_empty(tree, git)))

    def hardened(self, tree: WorkTree, git: Git) -> Git:
        """`git`, hardened against the configuration of the clone and of the work tree."""
        if not git.settings:
            git = git.hardened(tree.repository)
        if git.has_conditional_includes and tree.path.is_dir() and tree.admin.is_dir():
            git = git.hardened(tree.path, tree.where())
        return git

    def harvest(self, tree: WorkTree, branch: str, message: str, when: float, git: Git) -> Change:
        """Everything the agent left, as commits on the job's branch.

        `branch` is the one it began from; `message` and `when` (Unix time) are those of the commit
        for what the agent did not commit itself. The same work gives the same commit, so a repeat
        after a crash adds no second one. Raises GitFailed; nothing is lost then.
        """
        present = tree.path.is_dir() and not tree.path.is_symlink() and tree.admin.is_dir()
        filled = tree.base is not None or (tree.admin / "index").exists()
        if not (present and filled):  # git writes the index once every file is checked out
            return _counted(tree, branch, _tip(tree, git), git)
        _release_locks(tree)
        notes = tidy(tree.path, git)
        entries = _entries(tree, git)
        notes += clear_submodules(tree.path, _gitlinks(entries), git)
        fault = _stage(tree, entries, git)
        if fault:
            notes.append(f"not everything could be committed: {fault}")
        head = _commit(tree, message, when, git)
        git.ask("update-ref", f"refs/heads/{tree.branch}", head, cwd=tree.repository)
        change = _counted(tree, branch, head, git)
        return replace(change, notes=tuple(notes), complete=not fault)

    def diff(self, change: Change, repository: Path, git: Git, into: IO[bytes]) -> None:
        """Write the change to `into` as `git diff` prints it. Raises GitFailed."""
        ends = (change.base or "", change.commit or "")
        plain = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", *ends, "--")
        done = git.run(*plain, cwd=repository, into=into)
        if done.status:
            raise GitFailed(reason(done))

    def discard(self, tree: WorkTree, git: Git, *, keep: str | None) -> None:
        """Remove the work tree and, where there is no commit to `keep`, its branch.

        Raises GitFailed or OSError that names what could not be removed.
        """
        with self._locks.hold(key_of(tree.repository), git):
            _remove(tree, git)
            if keep is None and tree.base and _tip(tree, git) == tree.base:
                ref = f"refs/heads/{tree.branch}"
                git.ask("update-ref", "-d", ref, tree.base, cwd=tree.repository)

    def clear(self, wanted: Callable[[str], bool], git: Git) -> list[str]:
        """Remove what crashes left: work trees of no job that is `wanted`, half-made clones.

        Returns a sentence for each work tree that could not be removed.
        """
        faults = []
        for tree in [*self._registered(), *self._unregistered()]:
            if not wanted(tree.path.name):
                try:
                    with self._locks.hold(key_of(tree.repository), git):
                        _remove(tree, git)
                except (GitFailed, OSError) as error:
                    faults.append(f"{tree.path} is left over and cannot be removed: {error}")
        self._fetcher.clear(wanted, git)
        return faults

    def _registered(self) -> Iterator[WorkTree]:
        """Our work trees that a repository has on its list."""
        for repo in self._repos.names():
            repository = self._repos.root / repo
            for link in (git_folders(repository)[1] / "worktrees").glob("*/gitdir"):
                with contextlib.suppress(OSError):
                    path = Path(link.read_text("utf-8", "replace").strip()).parent
                    if path.parent == self.root and path.name == link.parent.name:
                        yield WorkTree(path, repository, "", None)

    def _unregistered(self) -> Iterator[WorkTree]:
        """The folders of the work root that are named after a job."""
        for path in sorted(self.root.iterdir()):
            if _OURS.fullmatch(path.name):
                yield WorkTree(path, path, "", None)


def branch_name(filename: str | None, job_id: str) -> str:
    """The job's branch: `codex/<slug of the filename>-<8 hex digits of the id's hash>`."""
    stem = (filename or "").removesuffix(".md").removesuffix(".prompt").lower()
    slug = re.sub(r"[^a-z0-9]+", "-", stem)[:_SLUG_CHARS].strip("-") or "job"
    return f"codex/{slug}-{hashlib.sha256(job_id.encode()).hexdigest()[:8]}"


def _release_locks(tree: WorkTree) -> None:
    """Remove the lock files of a git that was killed with the agent."""
    for name in ("index.lock", "HEAD.lock"):
        (tree.admin / name).unlink(missing_ok=True)
    (git_folders(tree.repository)[1] / f"refs/heads/{tree.branch}.lock").unlink(missing_ok=True)


def _entries(tree: WorkTree, git: Git) -> list[tuple[bytes, bytes, bytes]]:
    """The work tree's index: tag (`H`, or how git was told to skip the file), mode, path."""
    listing = git.run("ls-files", "--stage", "-v", "-z", cwd=tree.path, env=tree.where()).output
    parts = (entry.partition(b"\t") for entry in listing.split(b"\0") if entry)
    return [(how[:1], how[2:8], path) for how, _, path in parts]


def _gitlinks(entries: Sequence[tuple[bytes, bytes, bytes]]) -> list[str]:
    """The paths of the submodules."""
    return [os.fsdecode(path) for _, mode, path in entries if mode == b"160000"]


def _left_empty(tree: WorkTree, git: Git) -> list[str]:
    """The note that names the submodules, which are not checked out."""
    known = (tree.path / ".gitmodules").exists()  # without it there is no submodule
    names = ", ".join(_gitlinks(_entries(tree, git))) if known else ""
    return [f"submodules are empty folders in the work tree: {names}"] if names else []


def _stage(tree: WorkTree, entries: Sequence[tuple[bytes, bytes, bytes]], git: Git) -> str:
    """Add every file to the index; why some could not be added, or an empty string."""
    if any(tag in _SKIPPED for tag, _, _ in entries):
        git.ask("read-tree", "HEAD", cwd=tree.path, env=tree.where())  # clears the skip flags
    done = git.run("add", "--all", "--ignore-errors", cwd=tree.path, env=tree.where())
    return reason(done) if done.status else ""


def _commit(tree: WorkTree, message: str, when: float, git: Git) -> str:
    """Commit the index where it differs from HEAD; the commit that HEAD should be."""
    here = tree.where()
    staged = git.ask("write-tree", cwd=tree.path, env=here)
    try:
        names = git.ask("rev-parse", "HEAD", "HEAD^{tree}", cwd=tree.path, env=here)
        head, committed = names.split()
    except GitFailed:  # the agent left no valid HEAD
        head, committed = tree.base or "", ""
    if staged == committed:
        return head
    parents = ["-p", head] if head else []
    date = f"@{int(when)} +0000"
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    argv = ("commit-tree", *parents, "-F", "-", staged)
    text = message.encode("utf-8", "replace")
    done = git.run(*argv, cwd=tree.path, feed=text, env={**here, **dates})
    if done.status:
        raise GitFailed(reason(done))
    return done.text


def _tip(tree: WorkTree, git: Git) -> str | None:
    """The commit of the job's branch; None where there is no such branch."""
    ref = f"refs/heads/{tree.branch}"
    if not tree.repository.is_dir():
        return None
    done = git.run("rev-parse", "--verify", "--quiet", ref, cwd=tree.repository)
    return done.text if done.status == 0 else None


def _counted(tree: WorkTree, branch: str, commit: str | None, git: Git) -> Change:
    """The change from the base to `commit`, with its counts."""
    base = tree.base
    if base is None and commit:
        for ref in (f"refs/remotes/origin/{branch}", f"refs/heads/{branch}"):
            done = git.run("merge-base", commit, ref, cwd=tree.repository)
            base = base or (done.text if done.status == 0 else None)
    if commit is None or commit == base:
        return Change(base, None)
    if base is None:
        return Change(None, commit)
    plain = ("diff", "--no-ext-diff", "--no-textconv", "--shortstat", base, commit, "--")
    text = git.ask(*plain, cwd=tree.repository)
    counts = {word: int(number) for number, word in _SHORTSTAT.findall(text)}
    files, plus, minus = (counts.get(word, 0) for word in ("file", "insertion", "deletion"))
    return Change(base, commit, files, plus, minus)


def _remove(tree: WorkTree, git: Git) -> None:
    """Delete the work tree's folder, then its registration in the repository, where present."""
    delete(tree.path, git)
    if tree.repository != tree.path and tree.admin.exists():
        argv = ("worktree", "remove", "--force", "--force", "--", str(tree.path))
        git.ask(*argv, cwd=tree.repository)
