"""The work tree made fit to commit: what git would skip, hang on or mistake for another repository.

Inner repositories become plain folders, special files are removed, submodules emptied, unreadable
files and folders made readable. Owns the walk over untrusted files and their deletion, neither of
which follows a symbolic link. Commits nothing; knows nothing of branches.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from pv_lib.git.command import LOCAL_SECONDS, Git, GitFailed, reason

_MOST_NOTES = 20


def tidy(root: Path, git: Git) -> list[str]:
    """Remove what git must not see below `root`; a note for each thing removed.

    A repository made inside becomes a plain folder: git would commit it as an empty link, and run
    git inside it with the configuration that the agent wrote there. Unreadable folders and files
    are made readable, or git would skip them. FIFOs and other special files are removed: git cannot
    commit them, and blocks for ever on one named .gitattributes.
    """
    notes = []
    for path, mode in _walk(str(root)):
        shown = os.path.relpath(path, root)
        if os.path.basename(path) == ".git":
            if os.path.dirname(path) != str(root):
                delete(Path(path), git)
                inner = os.path.dirname(shown)
                notes.append(f"{inner} was a repository: its files are kept, not its history")
        elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            os.unlink(path)
            notes.append(f"{shown} is not a regular file and was left out")
    return notes[:_MOST_NOTES]


def clear_submodules(root: Path, links: Sequence[str], git: Git) -> list[str]:
    """Empty each submodule's folder, since its commits belong to another repository; the notes."""
    notes = []
    for link in links:
        path = root / link
        way = [folder for folder in (path, *path.parents) if root in folder.parents]
        if any(folder.is_symlink() for folder in way):  # it leads out of the work tree
            continue
        if path.is_dir() and any(path.iterdir()):
            delete(path, git)
            path.mkdir()
            notes.append(f"what the agent did in the submodule {link} is not kept")
    return notes


def delete(path: Path, git: Git) -> None:
    """Remove `path` and everything below it, unreadable folders too. Raises GitFailed.

    Symbolic links are removed, not followed.
    """
    if not os.path.lexists(path):
        return
    argv = ("rm", "-rf", "--", str(path))
    done = git.call(argv, path.parent, seconds=LOCAL_SECONDS)
    if done.status:
        list(_walk(str(path)))  # makes every folder accessible
        done = git.call(argv, path.parent, seconds=LOCAL_SECONDS)
    if done.status:
        raise GitFailed(reason(done))


def _walk(root: str) -> Iterator[tuple[str, int]]:
    """Everything below `root` with its mode; unreadable entries are made readable on the way.

    Without recursion: an agent can nest folders deeper than Python's stack.
    """
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        with contextlib.suppress(OSError):  # owned by another user: git will report it
            _grant(folder, os.lstat(folder).st_mode, 0o700)
            with os.scandir(folder) as listing:
                entries = list(listing)
            for entry in entries:
                mode = entry.stat(follow_symlinks=False).st_mode
                yield entry.path, mode
                if stat.S_ISDIR(mode) and entry.name != ".git":
                    waiting.append(entry.path)
                elif stat.S_ISREG(mode):
                    _grant(entry.path, mode, 0o400)


def _grant(path: str, mode: int, wanted: int) -> None:
    """Add the permission bits `wanted` where they are missing."""
    if mode & wanted != wanted:
        os.chmod(path, stat.S_IMODE(mode) | wanted)
