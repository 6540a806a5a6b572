"""The inbox and finished folders: the queue as files. Drop, scan, settle, claim, archive.

    inbox/<owner>/<repo>/<branch…>/<name>.prompt.md            dropped by a person
                                   <name>-<job_id>.prompt.md   queued
                                   <name>-<job_id>.running.md  claimed
    finished/<same path>/<name>-<job_id>.{done,error,aborted}.md

Ownership is a rename: whoever moved the file has it. Nothing here knows records or decides
whether a prompt is acceptable; links, FIFOs, devices and half-written files are never opened.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pv_lib import files
from pv_lib.job import State

QUEUED, CLAIMED = ".prompt.md", ".running.md"
ARCHIVED = {State.SUCCEEDED: ".done.md", State.FAILED: ".error.md", State.ABORTED: ".aborted.md"}
_ID_SUFFIX = re.compile(r"(?P<stem>.*)-(?P<id>[0-9a-f]{32})")
_SUFFIXES = (QUEUED, CLAIMED, *ARCHIVED.values(), ".md")
STEM_BYTES = 160  # with id, suffix and a temp's dot well under the 255 bytes of a name
_MAX_DEPTH = 32
_NAME_BYTES = 255
_TEMP_SECONDS = 3600.0  # a dot-name this old belongs to no submission that still goes on


@dataclass(frozen=True)
class Prompt:
    """A prompt file found in the inbox.

    `folders` are the names between the inbox root and the file: owner, repository, and the
    branch's parts; fewer or odd ones where a person misplaced the file. `stem` is the name
    without id and suffix, `job_id` None as long as the file carries none.
    """

    path: Path
    folders: tuple[str, ...]
    stem: str
    job_id: str | None
    claimed: bool
    signature: tuple[int, int, int]  # inode, mtime in ns, size

    @property
    def repo(self) -> str:
        """`owner/name` by the file's place."""
        return "/".join(self.folders[:2])

    @property
    def branch(self) -> str:
        """The branch by the file's place."""
        return "/".join(self.folders[2:])

    @property
    def filename(self) -> str:
        """The name as its author knows it."""
        return self.stem + QUEUED


class Inbox:
    """The two folders, and which dropped files have held still."""

    def __init__(self, root: Path, finished: Path) -> None:
        self.root = root
        self.finished = finished
        self._looks: dict[Path, tuple[tuple[int, int, int], float]] = {}

    def queue_path(self, job_id: str, repo: str, branch: str, filename: str) -> Path:
        """Where a submission with this id is queued."""
        name = f"{tidy_stem(filename)}-{job_id}{QUEUED}"
        return self.root.joinpath(*repo.split("/"), *branch.split("/"), name)

    def place(self, inbox_path: str | None, job_id: str) -> Path:
        """A record's inbox_path if it can be this job's; else a path where nothing is.

        Records can come from other hands: nothing else may be claimed or read for them.
        """
        path = Path(inbox_path or "")
        try:
            longest = max(len(os.fsencode(part)) for part in (*path.parts, "."))
        except UnicodeEncodeError:
            return self.root / ".nowhere"
        inside = self.root in path.parents and ".." not in path.parts and "\0" not in str(path)
        ours = path.name.endswith(f"-{job_id}{QUEUED}") and longest <= _NAME_BYTES
        return path if inside and ours else self.root / ".nowhere"

    def drop(self, prompts: Iterable[tuple[Path, bytes]]) -> None:
        """Queue new files durably, all or (on an error: OSError) none.

        Every byte is on the disk under dot-names before the first file gets its name.
        """
        staged: list[tuple[Path, Path]] = []
        try:
            for path, data in prompts:
                files.make_folder(path.parent)
                temp = path.with_name(f".{path.name}.tmp")
                staged.append((temp, path))
                files.write_new(temp, data)
            for temp, path in staged:
                temp.rename(path)
            for folder in {path.parent for _, path in staged}:
                files.sync_folder(folder)
        except OSError:
            for temp, path in staged:
                temp.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            raise

    def scan(self) -> list[Prompt]:
        """Every prompt file in the inbox, by folder and name. Links are not followed."""
        root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(self._walk(root, ()), key=lambda prompt: prompt.path)
        finally:
            os.close(root)

    def look_at(self, path: Path) -> Prompt | None:
        """The prompt at `path`, None when there is none."""
        with contextlib.suppress(OSError):
            return self._prompt(path.relative_to(self.root).parts, os.lstat(path))
        return None

    def settled(
        self, drops: Iterable[Prompt], now: float, wall: float, still: float
    ) -> list[Prompt]:
        """Those of `drops` that have held still, oldest first.

        A file settles when two looks find the same inode, size and mtime, and `still` seconds
        have gone by since its last write or, where its mtime says nothing (it lies in the
        future), since the first look. None overtakes an older one that is not settled yet: a
        scan may see the later of two renames and miss the earlier. `now` is monotonic, `wall`
        Unix time.
        """
        looks = self._looks
        self._looks = {}
        done: list[Prompt] = []
        for prompt in sorted(drops, key=lambda prompt: (prompt.signature[1], prompt.path)):
            signature, since = looks.get(prompt.path, (None, now))
            same = signature == prompt.signature
            quiet = now - since >= still or wall - prompt.signature[1] / 1e9 >= still
            if same and quiet and not self._looks:
                done.append(prompt)
            else:
                self._looks[prompt.path] = (prompt.signature, since if same else now)
        return done

    @property
    def unsettled(self) -> bool:
        """Whether a dropped file is being watched until it holds still."""
        return bool(self._looks)

    def carry(self, prompt: Prompt, job_id: str) -> Path:
        """Rename a dropped file so that it carries its job id; from here on it is ours."""
        target = prompt.path.with_name(f"{tidy_stem(prompt.stem)}-{job_id}{QUEUED}")
        files.rename(prompt.path, target)
        return target

    def claim(self, path: Path) -> Path:
        """Take a queued file for running. FileNotFoundError: it was withdrawn just now.

        One that was claimed before, its folder not yet synced, is claimed.
        """
        target = path.with_name(path.name.removesuffix(QUEUED).removesuffix(CLAIMED) + CLAIMED)
        if target.exists() and (path == target or not path.exists()):
            files.sync_folder(target.parent)
        else:
            files.rename(path, target)
        return target

    def archive(self, path: Path, state: State) -> Path:
        """Move a file of a terminal job to its place under the finished root."""
        stem = path.name.removesuffix(QUEUED).removesuffix(CLAIMED)
        place = self.finished / path.parent.relative_to(self.root)
        target = place / (stem + ARCHIVED[state])
        files.rename(path, target)
        return target

    def clear_temps(self, wall: float) -> None:
        """Remove what crashed submissions left: dot-names of ours that are an hour old."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                if name.startswith(".") and name.endswith(".tmp"):
                    path = Path(folder, name)
                    with contextlib.suppress(OSError):
                        if wall - path.lstat().st_mtime > _TEMP_SECONDS:
                            path.unlink()

    def _walk(self, folder: int, parts: tuple[str, ...]) -> Iterator[Prompt]:
        with os.scandir(folder) as listing:
            for item in listing:
                if item.name.startswith("."):
                    continue
                with contextlib.suppress(OSError):  # gone, or not ours to read: the next poll sees
                    if item.is_dir(follow_symlinks=False) and len(parts) < _MAX_DEPTH:
                        yield from self._descend(folder, (*parts, item.name))
                    elif item.name.endswith(".md"):
                        prompt = self._prompt((*parts, item.name), item.stat(follow_symlinks=False))
                        if prompt:
                            yield prompt

    def _descend(self, parent: int, parts: tuple[str, ...]) -> Iterator[Prompt]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        folder = os.open(parts[-1], flags, dir_fd=parent)
        try:
            yield from self._walk(folder, parts)
        finally:
            os.close(folder)

    def _prompt(self, parts: tuple[str, ...], info: os.stat_result) -> Prompt | None:
        name = parts[-1]
        if not stat.S_ISREG(info.st_mode) or name.startswith(".") or not name.endswith(".md"):
            return None
        suffix = next(end for end in _SUFFIXES if name.endswith(end))
        stem = name.removesuffix(suffix)
        match = _ID_SUFFIX.fullmatch(stem)
        ours = suffix in (QUEUED, CLAIMED)  # an archived file put back is a new drop
        return Prompt(
            path=self.root.joinpath(*parts),
            folders=parts[:-1],
            stem=match["stem"] if match else stem,
            job_id=match["id"] if match and ours else None,
            claimed=suffix == CLAIMED and match is not None,
            signature=(info.st_ino, info.st_mtime_ns, info.st_size),
        )


def tidy_stem(filename: str) -> str:
    """A filename's stem as it stands in our names: no suffix, no control characters, not long."""
    stem = filename.removesuffix(".md").removesuffix(".prompt")
    text = stem.encode("utf-8", "replace").decode()
    text = "".join(c if c.isprintable() and c != "/" else "_" for c in text).lstrip(".") or "prompt"
    return text.encode()[:STEM_BYTES].decode("utf-8", "ignore")
