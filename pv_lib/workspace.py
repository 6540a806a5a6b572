"""One job's work tree: from the newest branch head to a commit on a branch of its own.

    work/<job_id>                  where the agent works
    codex/<name>-<8 hex digits>    the branch that its change comes back on

Every step can be repeated after a crash: what is half-made is made anew, what is there is taken.
git is told where the work tree's own files lie, never asked to find them through the tree, for
the agent may have written there whatever it likes. Knows nothing of records or agents; pushes
nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from pv_lib.errors import JobFailed, ValetError
from pv_lib.git import Git, GitFailed, reason, scrub
from pv_lib.repos import Repos, git_folders, is_git

NETWORK_SECONDS = 600.0  # a fetch or a push
CLONE_SECONDS = 3600.0
_SLUG_CHARS = 40
_CLONING = ".pv-clone-"
_OURS = re.compile(r"[0-9a-f]{32}")
_SHORTSTAT = re.compile(r"(\d+) (file|insertion|deletion)")


@dataclass(frozen=True)
class Tree:
    """Where one job works. Without git `branch` is None and `path` is the folder itself.

    `base` is the commit it began from; None where it was forgotten. `notes` are sentences for
    whoever reads the result.
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
        """git's own folder for this work tree, named after it by `git worktree add`."""
        return git_folders(self.repository)[1] / "worktrees" / self.path.name

    def where(self) -> dict[str, str]:
        """The variables that point git at this tree, whatever lies in it."""
        return {"GIT_DIR": str(self.admin), "GIT_WORK_TREE": str(self.path)}


@dataclass(frozen=True)
class Change:
    """What came of a work tree: its last commit, None where nothing changed, and counts."""

    base: str | None
    commit: str | None
    files_changed: int = 0
    insertions: int = 0
    deletions: int = 0
    notes: tuple[str, ...] = ()


class Workspace:
    """Every job's work tree, under the work root."""

    def __init__(self, root: Path, repos: Repos) -> None:
        self.root = root
        self._repos = repos
        self._guard = threading.Lock()  # guards _locks and _fetched
        self._locks: dict[str, threading.Lock] = {}  # by repository: what git must not do at once
        self._fetched: dict[tuple[str, str], float] = {}  # when a branch's last fetch began

    def tree(self, repo: str, filename: str | None, job_id: str, base: str | None) -> Tree:
        """The work tree that a job has or would have; nothing is touched."""
        repository = self._repos.root / repo
        if repository.exists() and not is_git(repository):
            return Tree(repository, repository, None, None)
        return Tree(self.root / job_id, repository, branch_name(filename, job_id), base)

    def prepare(
        self, repo: str, branch: str, filename: str | None, job_id: str, git: Git
    ) -> tuple[Tree, Git]:
        """A fresh work tree from the newest head of `branch`, and the git to use with it.

        A repository that is missing is cloned first. Raises JobFailed: `unknown_target` where
        repository or branch are not there, `workspace_failed` with git's own reason; OSError
        where the system is short of something.
        """
        try:
            self._repos.full_name(repo)
            if self._repos.is_missing(repo):
                self._clone(repo, job_id, git)
            tree = self.tree(repo, filename, job_id, None)
            if tree.branch is None:
                self._repos.check_branch(repo, branch)
                return tree, git
            git = git.closed_to(tree.repository)
            tree = self._fetch(tree, branch, git)
            tree = replace(tree, base=self._newest(tree, repo, branch, git))
            with self._alone(tree.repository, git):
                self._remove(tree, git)
                path, base = str(tree.path), tree.base or ""
                how = ("--quiet", "--no-checkout", "--no-track", "-B", tree.branch or "")
                git.ask("worktree", "add", *how, "--", path, base, cwd=tree.repository)
            git.ask("reset", "--hard", "--quiet", cwd=tree.path, env=tree.where())
        except JobFailed:
            raise
        except GitFailed as error:
            why = f"no work tree of {repo} could be made: {error.detail}"
            raise JobFailed("workspace_failed", why) from error
        except ValetError as error:
            raise JobFailed("unknown_target", error.detail) from error
        return replace(tree, notes=(*tree.notes, *_left_empty(tree, git))), git

    def harvest(self, tree: Tree, branch: str, message: str, when: float, git: Git) -> Change:
        """Everything the agent left, as commits on the job's branch.

        `branch` is the one it began from; `message` and `when` (Unix time) are those of the commit
        that holds what the agent did not commit itself. The same work gives the same commit, so
        that one cut short by a crash is made again, not a second one. Raises GitFailed; nothing
        is lost then.
        """
        if not (tree.path.is_dir() and tree.admin.is_dir()):
            return self._counted(tree, branch, self._tip(tree, git), git)
        for name in ("index.lock", "HEAD.lock"):  # of a git that was killed with the agent
            (tree.admin / name).unlink(missing_ok=True)
        (git_folders(tree.repository)[1] / f"refs/heads/{tree.branch}.lock").unlink(missing_ok=True)
        here = tree.where()
        links = _gitlinks(tree, git)
        notes = [*_clear_submodules(tree, links), *_open_nested(tree.path)]
        done = git.run("add", "--all", "--ignore-errors", cwd=tree.path, env=here)
        if done.status:
            notes.append(f"not everything could be committed: {reason(done)}")
        left = git.ask("write-tree", cwd=tree.path, env=here)
        try:
            head, known = git.ask(
                "rev-parse", "HEAD", "HEAD^{tree}", cwd=tree.path, env=here
            ).split()
        except GitFailed:  # the agent left no valid HEAD
            head, known = tree.base or "", ""
        if left != known:
            parents = ["-p", head] if head else []
            text = message.encode("utf-8", "replace")
            argv = ("commit-tree", *parents, "-F", "-", left)
            date = f"@{int(when)} +0000"
            dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
            done = git.run(*argv, cwd=tree.path, feed=text, env={**here, **dates})
            if done.status:
                raise GitFailed(reason(done))
            head = done.text
        git.ask("update-ref", f"refs/heads/{tree.branch}", head, cwd=tree.repository)
        change = self._counted(tree, branch, head, git)
        return replace(change, notes=tuple(notes))

    def diff(self, change: Change, repository: Path, git: Git, into: IO[bytes]) -> None:
        """The change as `git show` would print it. Raises GitFailed."""
        plain = ("diff", "--no-ext-diff", "--no-textconv", "--no-color")
        ends = (change.base or "", change.commit or "")
        done = git.run(*plain, *ends, "--", cwd=repository, into=into)
        if done.status:
            raise GitFailed(reason(done))

    def discard(self, tree: Tree, git: Git, *, keep: str | None) -> None:
        """Remove the work tree and, where there is no commit to `keep`, its branch.

        Raises GitFailed or OSError with what is left.
        """
        with self._alone(tree.repository, git):
            self._remove(tree, git)
            if keep is None and tree.base and self._tip(tree, git) == tree.base:
                ref = f"refs/heads/{tree.branch}"
                git.ask("update-ref", "-d", ref, tree.base, cwd=tree.repository)

    def clear(self, wanted: Callable[[str], bool], git: Git) -> list[str]:
        """Remove what crashes left: work trees of no job that is `wanted`, half-made clones.

        Returns a sentence for each that could not be removed.
        """
        faults = []
        for tree in [*self._registered(), *self._lying_about()]:
            if not wanted(tree.path.name):
                try:
                    with self._alone(tree.repository, git):
                        self._remove(tree, git)
                except (GitFailed, OSError) as error:
                    faults.append(f"{tree.path} is left over and cannot be removed: {error}")
        for path in self._repos.root.glob(f"*/{_CLONING}*"):
            if not wanted(path.name.removeprefix(_CLONING)):
                shutil.rmtree(path, ignore_errors=True)
        return faults

    def _registered(self) -> Iterator[Tree]:
        """The work trees of ours that the repositories know of."""
        for repo in self._repos.names():
            repository = self._repos.root / repo
            for place in (git_folders(repository)[1] / "worktrees").glob("*/gitdir"):
                with contextlib.suppress(OSError):
                    path = Path(place.read_text("utf-8", "replace").strip()).parent
                    if path.parent == self.root and path.name == place.parent.name:
                        yield Tree(path, repository, "", None)

    def _lying_about(self) -> Iterator[Tree]:
        """The folders of the work root that a job had."""
        for path in sorted(self.root.iterdir()):
            if _OURS.fullmatch(path.name):
                yield Tree(path, path, "", None)

    def _clone(self, repo: str, job_id: str, git: Git) -> None:
        target = self._repos.root / repo
        target.parent.mkdir(exist_ok=True)
        git = git.closed_to(target.parent)
        with self._alone(target, git):
            if target.exists():  # another job has just done it
                return
            temp = target.parent / f"{_CLONING}{job_id}"
            shutil.rmtree(temp, ignore_errors=True)
            url = self._repos.clone_url(repo)
            argv = ("clone", "--quiet", "--no-recurse-submodules", "--end-of-options", url)
            done = git.run(*argv, str(temp), cwd=target.parent, seconds=CLONE_SECONDS)
            if done.status:
                shutil.rmtree(temp, ignore_errors=True)
                raise GitFailed(f"{scrub(url)} could not be cloned: {reason(done)}")
            temp.rename(target)

    def _fetch(self, tree: Tree, branch: str, git: Git) -> Tree:
        """What origin has of `branch` by now. Where it cannot be had, what is known must do."""
        url = git.settings.get("remote.origin.url")
        if not url:
            return tree
        asked = time.monotonic()
        with self._alone(tree.repository, git):
            if self._fetched.get((str(tree.repository), branch), -1.0) >= asked:
                return tree  # another job fetched it while we waited
            began = time.monotonic()
            refs = f"+refs/heads/{branch}:refs/remotes/origin/{branch}"
            how = ("--quiet", "--no-tags", "--no-write-fetch-head", "--end-of-options")
            try:
                done = git.run(
                    "fetch", *how, url, refs, cwd=tree.repository, seconds=NETWORK_SECONDS
                )
                failed = reason(done) if done.status else ""
            except GitFailed as error:
                failed = error.detail
            if failed:
                why = f"origin could not be fetched ({failed}): it began from what was known"
                return replace(tree, notes=(*tree.notes, why))
            self._fetched[(str(tree.repository), branch)] = began
        return tree

    def _newest(self, tree: Tree, repo: str, branch: str, git: Git) -> str:
        """The commit to begin from: origin's, unless the local branch has it already and more."""
        local, remote = f"refs/heads/{branch}", f"refs/remotes/origin/{branch}"
        found = ((ref, self._repos.head(repo, ref)) for ref in (local, remote))
        heads = {ref: commit for ref, commit in found if commit}
        if remote not in heads or heads.get(local) == heads[remote]:
            if local in heads:
                return heads[local]
            self._repos.check_branch(repo, branch)
            raise GitFailed(f"its branch {branch} has no commit yet: make a first one")
        if local in heads:
            ends = (heads[remote], heads[local])
            done = git.run("merge-base", "--is-ancestor", *ends, cwd=tree.repository)
            return heads[remote] if done.status else heads[local]
        return heads[remote]

    def _tip(self, tree: Tree, git: Git) -> str | None:
        ref = f"refs/heads/{tree.branch}"
        if not tree.repository.is_dir():
            return None
        done = git.run("rev-parse", "--verify", "--quiet", ref, cwd=tree.repository)
        return done.text if done.status == 0 else None

    def _counted(self, tree: Tree, branch: str, commit: str | None, git: Git) -> Change:
        base = tree.base
        if base is None and commit:
            refs = (f"refs/remotes/origin/{branch}", f"refs/heads/{branch}")
            for ref in refs:
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

    @contextlib.contextmanager
    def _alone(self, repository: Path, git: Git) -> Iterator[None]:
        """Hold the repository's lock; wait for it as `git` waits for its calls."""
        key = os.path.realpath(git_folders(repository)[1] if is_git(repository) else repository)
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        while not lock.acquire(timeout=0.1):
            git.tick()
        try:
            yield
        finally:
            lock.release()

    def _remove(self, tree: Tree, git: Git) -> None:
        """The work tree's folder, then what git knows of it; nothing where there is nothing."""
        if tree.path.exists() or tree.path.is_symlink():
            _delete(tree.path)
        if tree.repository != tree.path and tree.admin.exists():
            argv = ("worktree", "remove", "--force", "--force", "--", str(tree.path))
            git.ask(*argv, cwd=tree.repository)


def branch_name(filename: str | None, job_id: str) -> str:
    """The job's branch: `codex/<slug of the filename>-<8 hex digits of the id's hash>`."""
    stem = (filename or "").removesuffix(".md").removesuffix(".prompt").lower()
    slug = re.sub(r"[^a-z0-9]+", "-", stem)[:_SLUG_CHARS].strip("-") or "job"
    return f"codex/{slug}-{hashlib.sha256(job_id.encode()).hexdigest()[:8]}"


def _gitlinks(tree: Tree, git: Git) -> list[bytes]:
    """The paths of the submodules in the work tree's index."""
    listing = git.run("ls-files", "--stage", "-z", cwd=tree.path, env=tree.where()).output
    entries = (entry.partition(b"\t") for entry in listing.split(b"\0"))
    return [path for how, _, path in entries if how.startswith(b"160000 ")]


def _left_empty(tree: Tree, git: Git) -> list[str]:
    if not (tree.path / ".gitmodules").exists():
        return []
    names = ", ".join(os.fsdecode(path) for path in _gitlinks(tree, git))
    return [f"submodules are empty folders in the work tree: {names}"] if names else []


def _clear_submodules(tree: Tree, links: list[bytes]) -> list[str]:
    """Empty each submodule's folder: its commits belong into another repository."""
    notes = []
    for link in links:
        path = tree.path / os.fsdecode(link)
        if path.is_dir() and not path.is_symlink() and any(path.iterdir()):
            _delete(path)
            path.mkdir()
            notes.append(f"what the agent did in the submodule {os.fsdecode(link)} is not kept")
    return notes


def _open_nested(root: Path) -> list[str]:
    """Make plain folders of the repositories that the agent made in its tree.

    git would commit such a folder as an empty link, and would run git inside it, with whatever
    configuration the agent wrote there.
    """
    notes = []
    for folder, folders, names in os.walk(root):
        if folder != str(root) and ".git" in (*folders, *names):
            _delete(Path(folder, ".git"))
            shown = os.path.relpath(folder, root)
            notes.append(
                f"{shown} was a repository of its own: its files are kept, not its history"
            )
        folders[:] = [name for name in folders if name != ".git"]
    return notes


def _delete(path: Path) -> None:
    """Remove a file or a folder with all that is in it, closed folders too."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    try:
        shutil.rmtree(path)
    except PermissionError:
        path.chmod(0o700)
        for folder, folders, _ in os.walk(path):
            for name in folders:
                inner = Path(folder, name)
                if not inner.is_symlink():
                    inner.chmod(0o700)
        shutil.rmtree(path)
