"""The inbox and finished folders: the queue as files. Drop, scan, settle, claim, archive.

    inbox/<owner>/<repo>/<branch…>/    what waits (`prompt` has the names)
    finished/<same path>/<name>-<job_id>.{done,error,aborted}.md

Ownership is a rename: whoever moved the file has it. Nobody else opens a path of these two
folders, and it is done by handles only (`beneath`). Nothing here knows records or decides whether
a text is acceptable; links, FIFOs, devices and half-written files are never opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path

from pv_lib.errors import Invalid
from pv_lib.inbox.prompt import ARCHIVED, CLAIMED, QUEUED, Prompt, prompt_at, tidy_stem
from pv_lib.inbox.scan import MAX_DEPTH, Scan
from pv_lib.jobs.job import State
from pv_lib.system import beneath, files
from pv_lib.system.beneath import Root

_NAME_BYTES = 255
_TEMP_SECONDS = 3600.0  # a dot-name this old belongs to no submission that still goes on


class Inbox:
    """The two folders, and which dropped files have held still."""

    def __init__(self, root: Path, finished: Path) -> None:
        self.root = root
        self._queue = Root(root)
        self._scan = Scan(self._queue)
        self._finished = Root(finished)
        self._looks: dict[Path, tuple[tuple[int, int, int], float]] = {}
        self._stuck: set[Path] = set()  # dropped files that could not be moved
        self.unsettled = False  # whether one is being watched until it holds still

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

    def places(self, inbox_path: str | None, job_id: str) -> list[Path]:
        """Where the file of the job with this record can be: queued, claimed or archived."""
        queued = self.place(inbox_path, job_id)
        claimed = queued.with_name(queued.name.removesuffix(QUEUED) + CLAIMED)
        return [queued, claimed, *(self._archived(queued, state) for state in ARCHIVED)]

    def drop(self, folder: Path, prompts: Sequence[tuple[str, bytes]]) -> None:
        """Queue new files, as (name, bytes), durably: all or (on an error: OSError) none.

        Every byte is on the disk under dot-names before the first file gets its name.
        """
        with self._queue.folder(folder, make=True) as there:
            try:
                for name, data in prompts:
                    files.write_new(_staged(name), data, dir_fd=there.fd)
                for name, _ in prompts:
                    os.rename(_staged(name), name, src_dir_fd=there.fd, dst_dir_fd=there.fd)
                os.fsync(there.fd)
            except OSError:
                for name in (*(name for name, _ in prompts), *(_staged(n) for n, _ in prompts)):
                    with contextlib.suppress(OSError):  # a name that stays must not keep others
                        beneath.unlink(name, there.fd)
                raise

    def read(self, path: Path, limit: int) -> bytes:
        """A prompt's file, wherever it is by now.

        Raises OSError where it is not there, TooLarge over `limit`, and Invalid for what is not
        taken: see `_fault`.
        """
        tree = self._queue if self.root in path.parents else self._finished
        with tree.folder(path.parent) as folder:

            def check(info: os.stat_result) -> None:
                fault = _fault(info, folder.foreign_uid_of(info))
                if fault:
                    raise Invalid(f"{path.name} {fault}")

            try:
                return files.read_regular(path.name, limit, dir_fd=folder.fd, check=check)
            except PermissionError as error:  # for ever, as far as we can know
                why = f"user id {os.geteuid()} may not read it: give it that right"
                raise Invalid(f"{path.name} cannot be read: {why}") from error

    def replace(self, path: Path, data: bytes) -> None:
        """Write a queued file anew, durably."""
        self._queue.replace(path, data)

    def holds(self, path: Path) -> bool:
        """Whether something is at `path`. Where that cannot be known now it is held to be."""
        try:
            self._queue.stat(path)
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        return True

    def closed(self) -> list[str]:
        """The folders of the inbox that we may not read, as far as the last scan knows."""
        return self._scan.closed()

    def scan(self, *, thorough: bool = False) -> list[Prompt]:
        """Every prompt file in the inbox, by folder and name. Links are not followed.

        With `thorough` no folder waits for its turn.
        """
        return self._scan.prompts(thorough=thorough)

    def look_at(self, path: Path) -> Prompt | None:
        """The prompt at `path`, None when there is none."""
        with contextlib.suppress(OSError):
            return prompt_at(self.root, path.relative_to(self.root).parts, self._queue.stat(path))
        return None

    def settled(
        self, drops: Sequence[Prompt], now: float, wall: float, still: float
    ) -> list[Prompt]:
        """Those of `drops` that have held still, oldest first.

        A file settles when two looks find the same inode, size and mtime, and `still` seconds
        have gone by since its last write or, where its mtime says nothing (it lies in the
        future), since the first look. None overtakes an older one that is not settled yet: a
        scan may see the later of two renames and miss the earlier. What is not carried away is
        settled at the next call too. `now` is monotonic, `wall` Unix time.
        """
        looks, self._looks, self.unsettled = self._looks, {}, False
        self._stuck &= {prompt.path for prompt in drops}
        done: list[Prompt] = []
        for prompt in sorted(drops, key=self._turn):
            signature, since = looks.get(prompt.path, (None, now))
            same = signature == prompt.signature
            quiet = now - since >= still or wall - prompt.signature[1] / 1e9 >= still
            self._looks[prompt.path] = (prompt.signature, since if same else now)
            if same and quiet and not self.unsettled:
                done.append(prompt)
            else:
                self.unsettled = True
        return done

    def _turn(self, prompt: Prompt) -> tuple[bool, int, Path]:
        """Oldest first; but many that cannot be moved must not hold up all others."""
        return prompt.path in self._stuck, prompt.signature[1], prompt.path

    def carry(self, prompt: Prompt, job_id: str) -> Path:
        """Rename a dropped file so that it carries its job id; from here on it is ours."""
        target = prompt.path.with_name(f"{tidy_stem(prompt.stem)}-{job_id}{QUEUED}")
        self._stuck.add(prompt.path)
        self._queue.move(prompt.path, self._queue, target)
        self._stuck.discard(prompt.path)
        self._looks.pop(prompt.path, None)
        return target

    def claim(self, path: Path) -> Path:
        """Take a queued file for running. FileNotFoundError: it was withdrawn just now.

        One that was claimed before, its folder not yet synced, is claimed.
        """
        target = path.with_name(path.name.removesuffix(QUEUED).removesuffix(CLAIMED) + CLAIMED)
        if self.holds(target) and (path == target or not self.holds(path)):
            with self._queue.folder(target.parent) as folder:
                os.fsync(folder.fd)
        else:
            self._queue.move(path, self._queue, target)
        return target

    def archive(self, path: Path, state: State) -> Path:
        """Move a file of a terminal job to its place under the finished root."""
        target = self._archived(path, state)
        self._queue.move(path, self._finished, target)
        return target

    def _archived(self, path: Path, state: State) -> Path:
        stem = path.name.removesuffix(QUEUED).removesuffix(CLAIMED)
        place = self._finished.root / path.parent.relative_to(self.root)
        return place / (stem + ARCHIVED[state])

    def clear_temps(self, wall: float) -> None:
        """Remove what crashed submissions left: dot-names of ours that are an hour old."""
        root = os.path.realpath(self.root)  # fwalk enters no link, not even the root
        for folder, inner, names, fd in os.fwalk(root):
            deep = folder.count("/") - root.count("/") >= MAX_DEPTH
            inner[:] = [] if deep else [name for name in inner if not name.startswith(".")]
            for name in names:
                if name.startswith(".") and name.endswith(".tmp"):
                    with contextlib.suppress(OSError):
                        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                        if wall - info.st_mtime > _TEMP_SECONDS:
                            os.unlink(name, dir_fd=fd)


def _staged(name: str) -> str:
    """A new file's dot-name until all of its bytes are on the disk."""
    return f".{name}.tmp"


def _fault(info: os.stat_result, stranger: int | None) -> str | None:
    """Why a prompt's open file is not read: its text may be another's secret, or a trespasser's."""
    if info.st_nlink > 1:
        return "is a hard link to a file with further names: copy it instead"
    if stranger is not None:
        return (
            f"comes from user id {stranger}, through a folder that everybody may write to; there "
            f"only files of root and of user id {os.geteuid()} are taken: take that right from "
            "the folder (chmod o-w)"
        )
    return None
