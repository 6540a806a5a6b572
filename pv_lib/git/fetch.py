"""The clone brought up to date: cloned where it is missing, fetched, its newest commit found.

A fetch that fails is a note on the result, not a failure: the job begins from the commits the
clone already has. Knows nothing of jobs or work trees, and never pushes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from pv_lib.git.command import NETWORK_SECONDS, Git, GitFailed, reason, scrub
from pv_lib.git.locks import Locks, key_of
from pv_lib.git.repos import Repos
from pv_lib.git.tidy import delete

CLONE_SECONDS = 3600.0
_CLONING = ".pv-clone-"


class Fetcher:
    """Clones and fetches the repositories under the repos root, each one at a time."""

    def __init__(self, repos: Repos, locks: Locks) -> None:
        self._repos = repos
        self._locks = locks
        # When the last fetch of a branch began and why it failed; guarded by the branch's lock.
        self._fetched: dict[str, tuple[float, str]] = {}

    def clone(self, repo: str, job_id: str, git: Git) -> None:
        """Clone `repo`, an owner/name. Raises GitFailed."""
        target = self._repos.root / repo
        target.parent.mkdir(exist_ok=True)
        git = git.hardened(target.parent)
        with self._locks.hold(key_of(target), git):
            if target.exists():  # another job has just cloned it
                return
            temp = target.parent / f"{_CLONING}{job_id}"
            delete(temp, git)
            url = self._repos.clone_url(repo)
            argv = ("clone", "--quiet", "--no-recurse-submodules", "--end-of-options", url)
            done = git.run(*argv, str(temp), cwd=target.parent, seconds=CLONE_SECONDS)
            if done.status:
                delete(temp, git)
                raise GitFailed(f"{scrub(url)} could not be cloned: {reason(done)}")
            temp.rename(target)

    def fetch(self, repository: Path, branch: str, git: Git) -> str:
        """Fetch `branch` from origin, if there is one; why that failed, or an empty string.

        `git` is hardened for the repository. A fetch by another job that began after this call
        counts as this one.
        """
        url = git.settings.get("remote.origin.url")
        if not url:
            return ""
        refs = f"+refs/heads/{branch}:refs/remotes/origin/{branch}"
        how = ("--quiet", "--no-tags", "--no-write-fetch-head", "--upload-pack=git-upload-pack")
        argv = ("fetch", *how, "--end-of-options", url, refs)
        key = f"{key_of(repository)} {refs}"
        asked = time.monotonic()
        with self._locks.hold(key, git):
            began, failed = self._fetched.get(key, (-1.0, ""))
            if began < asked:  # no other job fetched it while this one waited
                began, failed = time.monotonic(), ""
                try:
                    done = git.run(*argv, cwd=repository, seconds=NETWORK_SECONDS)
                    failed = reason(done) if done.status else ""
                except GitFailed as error:
                    failed = error.detail
                self._fetched[key] = (began, failed)
        return failed

    def newest(self, repo: str, branch: str, git: Git) -> str:
        """The commit to begin from: origin's, unless the local branch already contains it.

        Raises NotFound where there is no such branch, GitFailed where it has no commit.
        """
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
            cwd = self._repos.root / repo
            done = git.run("merge-base", "--is-ancestor", *ends, cwd=cwd)
            return heads[remote] if done.status else heads[local]
        return heads[remote]

    def clear(self, wanted: Callable[[str], bool], git: Git) -> None:
        """Remove the half-made clones of jobs that are not `wanted`."""
        for path in self._repos.root.glob(f"*/{_CLONING}*"):
            if not wanted(path.name.removeprefix(_CLONING)):
                with contextlib.suppress(GitFailed, OSError):
                    delete(path, git)
