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
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from pv_lib.errors import JobFailed, ValetError
from pv_lib.git.command import LOCAL_SECONDS, Git, GitFailed, reason, scrub
from pv_lib.git.repos import Repos, git_folders, is_git
from pv_lib.system import space

NETWORK_SECONDS = 600.0  # a fetch or a push
CLONE_SECONDS = 3600.0
_SLUG_CHARS = 40
_CLONING = ".pv-clone-"
_MOST_NOTES = 20
_OURS = re.compile(r"[0-9a-f]{32}")
_SHORTSTAT = re.compile(r"(\d+) (file|insertion|deletion)")


@dataclass(frozen=True)
class WorkTree:
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
    complete: bool = True  # whether the work tree has nothing that the commit lacks


class Workspace:
    """Every job's work tree, under the work root."""

    def __init__(self, root: Path, repos: Repos) -> None:
        self.root = root
        self._repos = repos
        self._guard = threading.Lock()  # guards _locks and _fetched
        self._locks: dict[str, threading.Lock] = {}  # by what git must not do twice at once
        self._fetched: dict[str, tuple[float, str]] = {}  # when a fetch began, why it failed

    def tree(self, repo: str, filename: str | None, job_id: str, base: str | None) -> WorkTree:
        """The work tree that a job has or would have; nothing is touched."""
        repository = self._repos.root / repo
        if repository.exists() and not is_git(repository):
            return WorkTree(repository, repository, None, None)
        return WorkTree(self.root / job_id, repository, branch_name(filename, job_id), base)

    def prepare(
        self, repo: str, branch: str, filename: str | None, job_id: str, git: Git
    ) -> WorkTree:
        """A fresh work tree from the newest head of `branch`.

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
                return tree
            git = git.closed_to(tree.repository)
            tree = self._fetch(tree, branch, git)
            tree = replace(tree, base=self._newest(tree, repo, branch, git))
            with self._alone(_key(tree.repository), git):
                self._remove(tree, git)
                path, base = str(tree.path), tree.base or ""
                how = ("--quiet", "--no-checkout", "--no-track", "-B", tree.branch or "")
                git.ask("worktree", "add", *how, "--", path, base, cwd=tree.repository)
            git = self.closed_to(tree, git)
            git.ask("reset", "--hard", "--quiet", cwd=tree.path, env=tree.where())
        except JobFailed:
            raise
        except GitFailed as error:
            space.raise_if_full(self.root, self._repos.root)
            why = f"no work tree of {repo} could be made: {error.detail}"
            raise JobFailed("workspace_failed", why) from error
        except ValetError as error:
            raise JobFailed("unknown_target", error.detail) from error
        return replace(tree, notes=(*tree.notes, *_left_empty(tree, git)))

    def closed_to(self, tree: WorkTree, git: Git) -> Git:
        """`git`, closed to what the configuration names, in the clone and in the work tree."""
        if not git.settings:
            git = git.closed_to(tree.repository)
        if git.is_conditional and tree.path.is_dir() and tree.admin.is_dir():
            git = git.closed_to(tree.path, tree.where())
        return git

    def harvest(self, tree: WorkTree, branch: str, message: str, when: float, git: Git) -> Change:
        """Everything the agent left, as commits on the job's branch.

        `branch` is the one it began from; `message` and `when` (Unix time) are those of the commit
        that holds what the agent did not commit itself. The same work gives the same commit, so
        that one cut short by a crash is made again, not a second one. Raises GitFailed; nothing
        is lost then.
        """
        there = tree.path.is_dir() and not tree.path.is_symlink() and tree.admin.is_dir()
        filled = tree.base is not None or (tree.admin / "index").exists()
        if not (there and filled):  # git writes the index when all files are there
            return self._counted(tree, branch, self._tip(tree, git), git)
        for name in ("index.lock", "HEAD.lock"):  # of a git that was killed with the agent
            (tree.admin / name).unlink(missing_ok=True)
        (git_folders(tree.repository)[1] / f"refs/heads/{tree.branch}.lock").unlink(missing_ok=True)
        here = tree.where()
        notes = _tidy(tree.path, git)
        entries = _entries(tree, git)
        notes += _clear_submodules(tree, _gitlinks(entries), git)
        if any(tag in b"Sabcdefghijklmnopqrstuvwxyz" for tag, _, _ in entries):
            git.ask(
                "read-tree", "HEAD", cwd=tree.path, env=here
            )  # files marked not to be looked at
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
            made = git.run(*argv, cwd=tree.path, feed=text, env={**here, **dates})
            if made.status:
                raise GitFailed(reason(made))
            head = made.text
        git.ask("update-ref", f"refs/heads/{tree.branch}", head, cwd=tree.repository)
        change = self._counted(tree, branch, head, git)
        return replace(change, notes=tuple(notes), complete=done.status == 0)

    def diff(self, change: Change, repository: Path, git: Git, into: IO[bytes]) -> None:
        """The change as `git show` would print it. Raises GitFailed."""
        ends = (change.base or "", change.commit or "")
        plain = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", *ends, "--")
        done = git.run(*plain, cwd=repository, into=into)
        if done.status:
            raise GitFailed(reason(done))

    def discard(self, tree: WorkTree, git: Git, *, keep: str | None) -> None:
        """Remove the work tree and, where there is no commit to `keep`, its branch.

        Raises GitFailed or OSError with what is left.
        """
        with self._alone(_key(tree.repository), git):
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
                    with self._alone(_key(tree.repository), git):
                        self._remove(tree, git)
                except (GitFailed, OSError) as error:
                    faults.append(f"{tree.path} is left over and cannot be removed: {error}")
        for path in self._repos.root.glob(f"*/{_CLONING}*"):
            if not wanted(path.name.removeprefix(_CLONING)):
                with contextlib.suppress(GitFailed, OSError):
                    _delete(path, git)
        return faults

    def _registered(self) -> Iterator[WorkTree]:
        """The work trees of ours that the repositories know of."""
        for repo in self._repos.names():
            repository = self._repos.root / repo
            for place in (git_folders(repository)[1] / "worktrees").glob("*/gitdir"):
                with contextlib.suppress(OSError):
                    path = Path(place.read_text("utf-8", "replace").strip()).parent
                    if path.parent == self.root and path.name == place.parent.name:
                        yield WorkTree(path, repository, "", None)

    def _lying_about(self) -> Iterator[WorkTree]:
        """The folders of the work root that a job had."""
        for path in sorted(self.root.iterdir()):
            if _OURS.fullmatch(path.name):
                yield WorkTree(path, path, "", None)

    def _clone(self, repo: str, job_id: str, git: Git) -> None:
        target = self._repos.root / repo
        target.parent.mkdir(exist_ok=True)
        git = git.closed_to(target.parent)
        with self._alone(_key(target), git):
            if target.exists():  # another job has just done it
                return
            temp = target.parent / f"{_CLONING}{job_id}"
            _delete(temp, git)
            url = self._repos.clone_url(repo)
            argv = ("clone", "--quiet", "--no-recurse-submodules", "--end-of-options", url)
            done = git.run(*argv, str(temp), cwd=target.parent, seconds=CLONE_SECONDS)
            if done.status:
                _delete(temp, git)
                raise GitFailed(f"{scrub(url)} could not be cloned: {reason(done)}")
            temp.rename(target)

    def _fetch(self, tree: WorkTree, branch: str, git: Git) -> WorkTree:
        """What origin has of `branch` by now. Where it cannot be had, what is known must do."""
        url = git.settings.get("remote.origin.url")
        if not url:
            return tree
        refs = f"+refs/heads/{branch}:refs/remotes/origin/{branch}"
        how = ("--quiet", "--no-tags", "--no-write-fetch-head", "--upload-pack=git-upload-pack")
        key = f"{_key(tree.repository)} {refs}"
        asked = time.monotonic()
        with self._alone(key, git):
            began, failed = self._fetched.get(key, (-1.0, ""))
            if began < asked:  # nobody fetched it while we waited
                began, failed = time.monotonic(), ""
                argv = ("fetch", *how, "--end-of-options", url, refs)
                try:
                    done = git.run(*argv, cwd=tree.repository, seconds=NETWORK_SECONDS)
                    failed = reason(done) if done.status else ""
                except GitFailed as error:
                    failed = error.detail
                self._fetched[key] = (began, failed)
        if failed:
            why = f"origin could not be fetched ({failed}): it began from what was known"
            return replace(tree, notes=(*tree.notes, why))
        return tree

    def _newest(self, tree: WorkTree, repo: str, branch: str, git: Git) -> str:
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

    def _tip(self, tree: WorkTree, git: Git) -> str | None:
        ref = f"refs/heads/{tree.branch}"
        if not tree.repository.is_dir():
            return None
        done = git.run("rev-parse", "--verify", "--quiet", ref, cwd=tree.repository)
        return done.text if done.status == 0 else None

    def _counted(self, tree: WorkTree, branch: str, commit: str | None, git: Git) -> Change:
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
    def _alone(self, key: str, git: Git) -> Iterator[None]:
        """Hold a lock; wait for it as `git` waits for its calls."""
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        while not lock.acquire(timeout=0.1):
            git.tick()
        try:
            yield
        finally:
            lock.release()

    def _remove(self, tree: WorkTree, git: Git) -> None:
        """The work tree's folder, then what git knows of it; nothing where there is nothing."""
        _delete(tree.path, git)
        if tree.repository != tree.path and tree.admin.exists():
            argv = ("worktree", "remove", "--force", "--force", "--", str(tree.path))
            git.ask(*argv, cwd=tree.repository)


def branch_name(filename: str | None, job_id: str) -> str:
    """The job's branch: `codex/<slug of the filename>-<8 hex digits of the id's hash>`."""
    stem = (filename or "").removesuffix(".md").removesuffix(".prompt").lower()
    slug = re.sub(r"[^a-z0-9]+", "-", stem)[:_SLUG_CHARS].strip("-") or "job"
    return f"codex/{slug}-{hashlib.sha256(job_id.encode()).hexdigest()[:8]}"


def _key(repository: Path) -> str:
    """What stands for a repository, however many paths lead to it."""
    return os.path.realpath(git_folders(repository)[1] if is_git(repository) else repository)


def _entries(tree: WorkTree, git: Git) -> list[tuple[bytes, bytes, bytes]]:
    """The work tree's index: tag (`H`, or how git was told to pass it over), mode, path."""
    listing = git.run("ls-files", "--stage", "-v", "-z", cwd=tree.path, env=tree.where()).output
    parts = (entry.partition(b"\t") for entry in listing.split(b"\0") if entry)
    return [(how[:1], how[2:8], path) for how, _, path in parts]


def _gitlinks(entries: list[tuple[bytes, bytes, bytes]]) -> list[str]:
    """The paths of the submodules."""
    return [os.fsdecode(path) for _, mode, path in entries if mode == b"160000"]


def _left_empty(tree: WorkTree, git: Git) -> list[str]:
    known = (tree.path / ".gitmodules").exists()  # without it git need not be asked
    names = ", ".join(_gitlinks(_entries(tree, git))) if known else ""
    return [f"submodules are empty folders in the work tree: {names}"] if names else []


def _clear_submodules(tree: WorkTree, links: list[str], git: Git) -> list[str]:
    """Empty each submodule's folder: its commits belong into another repository."""
    notes = []
    for link in links:
        path = tree.path / link
        way = [folder for folder in (path, *path.parents) if tree.path in folder.parents]
        if any(folder.is_symlink() for folder in way):  # it leads out of the work tree
            continue
        if path.is_dir() and any(path.iterdir()):
            _delete(path, git)
            path.mkdir()
            notes.append(f"what the agent did in the submodule {link} is not kept")
    return notes


def _tidy(root: Path, git: Git) -> list[str]:
    """Make what the agent left safe for git, and whole: links are not followed.

    A repository made inside becomes a plain folder: git would commit it as an empty link, and run
    git inside it with whatever configuration the agent wrote there. Folders and files closed to us
    are opened, or git would pass them over. Pipes and the like are removed: git cannot commit
    them, and waits for ever on one that is called .gitattributes.
    """
    notes = []
    for path, kind in _walk(str(root)):
        shown = os.path.relpath(path, root)
        if os.path.basename(path) == ".git":
            if os.path.dirname(path) != str(root):
                _delete(Path(path), git)
                inner = os.path.dirname(shown)
                notes.append(f"{inner} was a repository: its files are kept, not its history")
        elif not (stat.S_ISREG(kind) or stat.S_ISDIR(kind) or stat.S_ISLNK(kind)):
            os.unlink(path)
            notes.append(f"{shown} is no file and was left out")
    return notes[:_MOST_NOTES]


def _walk(root: str) -> Iterator[tuple[str, int]]:
    """Everything below `root` with its mode; what is closed to us is opened on the way.

    Without recursion: an agent can nest folders deeper than that could go.
    """
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        with contextlib.suppress(OSError):  # not ours to open: git will say so
            _open(folder, os.lstat(folder).st_mode, 0o700)
            with os.scandir(folder) as listing:
                entries = list(listing)
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                yield entry.path, mode
                if stat.S_ISDIR(mode) and entry.name != ".git":
                    waiting.append(entry.path)
                elif stat.S_ISREG(mode):
                    _open(entry.path, mode, 0o400)


def _open(path: str, mode: int, wanted: int) -> None:
    if mode & wanted != wanted:
        os.chmod(path, stat.S_IMODE(mode) | wanted)


def _delete(path: Path, git: Git) -> None:
    """Remove whatever is at `path`, closed folders too. Links are not followed."""
    if not os.path.lexists(path):
        return
    argv = ("rm", "-rf", "--", str(path))
    done = git.call(argv, path.parent, seconds=LOCAL_SECONDS)
    if done.status:
        list(_walk(str(path)))  # opens what is closed to us
        done = git.call(argv, path.parent, seconds=LOCAL_SECONDS)
    if done.status:
        raise GitFailed(reason(done))
