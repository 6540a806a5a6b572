"""The queue as files in the inbox and finished folders: drop, scan, settle, claim, archive.

    inbox/<owner>/<repo>/<branch…>/    waiting prompts (`prompt` has the names)
    finished/<same path>/<name>-<job_id>.{done,error,aborted}.md

Ownership is a rename: the process that moved the file owns it. No other module opens a path in
these two folders, and paths are opened by handles only (`beneath`). Links, FIFOs, devices and
half-written files are never opened. Nothing here knows records or checks a text.
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
_TEMP_SECONDS = 3600.0  # a dot-name older than this belongs to no submission in progress


class Inbox:
    """The two folders, and the debounce of dropped files."""

    def __init__(self, root: Path, finished: Path) -> None:
        self.root = root
        self._queue = Root(root)
        self._scan = Scan(self._queue)
        self._finished = Root(finished)
        self._looks: dict[Path, tuple[tuple[int, int, int], float]] = {}
        self._stuck: set[Path] = set()  # dropped files that could not be moved
        self.unsettled = False  # whether a dropped file has not settled yet

    def queue_path(self, job_id: str, repo: str, branch: str, filename: str) -> Path:
        """The path at which a submission with this job id is queued."""
        name = f"{tidy_stem(filename)}-{job_id}{QUEUED}"
        return self.root.joinpath(*repo.split("/"), *branch.split("/"), name)

    def place(self, inbox_path: str | None, job_id: str) -> Path:
        """A record's inbox_path if it can belong to this job; else a path that never exists.

        Other programs write records too: theirs must not make us claim or read another file.
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
        """The paths at which the job's file can be: queued, claimed or archived."""
        queued = self.place(inbox_path, job_id)
        claimed = queued.with_name(queued.name.removesuffix(QUEUED) + CLAIMED)
        return [queued, claimed, *(self._archived(queued, state) for state in ARCHIVED)]

    def drop(self, folder: Path, prompts: Sequence[tuple[str, bytes]]) -> None:
        """Queue new files, as (name, bytes), durably: all or none. Raises OSError.

        Every byte is on the disk under a dot-name before the first file gets its name.
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
                    with contextlib.suppress(OSError):  # one that stays must not stop the rest
                        beneath.unlink(name, there.fd)
                raise

    def read(self, path: Path, limit: int) -> bytes:
        """The bytes of a prompt file in the inbox or in the finished folder.

        Raises OSError where it does not exist, TooLarge above `limit` bytes, and Invalid for a
        file that is not taken: see `_fault`.
        """
        tree = self._queue if self.root in path.parents else self._finished
        with tree.folder(path.parent) as folder:

            def check(info: os.stat_result) -> None:
                fault = _fault(info, folder.foreign_uid_of(info))
                if fault:
                    raise Invalid(f"{path.name} {fault}")

            try:
                return files.read_regular(path.name, limit, dir_fd=folder.fd, check=check)
            except PermissionError as error:  # permanent, as far as we can know
                why = f"user id {os.geteuid()} may not read it: change its owner or mode"
                raise Invalid(f"{path.name} cannot be read: {why}") from error

    def replace(self, path: Path, data: bytes) -> None:
        """Replace the bytes of a queued file, durably."""
        self._queue.replace(path, data)

    def holds(self, path: Path) -> bool:
        """Whether `path` exists. An error that leaves it open counts as yes."""
        try:
            self._queue.stat(path)
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        return True

    def closed(self) -> list[str]:
        """The folders of the inbox that the scans so far could not read."""
        return self._scan.closed()

    def scan(self, *, thorough: bool = False) -> list[Prompt]:
        """Every prompt file in the inbox, by folder and name. Links are not followed.

        With `thorough` every folder is checked, also the quiet ones.
        """
        return self._scan.prompts(thorough=thorough)

    def look_at(self, path: Path) -> Prompt | None:
        """The prompt at `path`; None where there is none."""
        with contextlib.suppress(OSError):
            return prompt_at(self.root, path.relative_to(self.root).parts, self._queue.stat(path))
        return None

    def settled(
        self, drops: Sequence[Prompt], now: float, wall: float, still: float
    ) -> list[Prompt]:
        """Those of `drops` that have settled, oldest first: the debounce of dropped files.

        A file has settled when two calls find the same inode, size and mtime, and `still` seconds
        have passed since its last write or, where its mtime is in the future, since the first
        call. No file overtakes an older one that has not settled: a scan may see the later of two
        renames and miss the earlier. A file that is not carried stays settled. `now` is
        monotonic, `wall` is Unix time.
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
        """Sorts by age; files that could not be moved come last, so that they block no other."""
        return prompt.path in self._stuck, prompt.signature[1], prompt.path

    def carry(self, prompt: Prompt, job_id: str) -> Path:
        """Rename a dropped file so that it carries its job id. That adopts it."""
        target = prompt.path.with_name(f"{tidy_stem(prompt.stem)}-{job_id}{QUEUED}")
        self._stuck.add(prompt.path)
        self._queue.move(prompt.path, self._queue, target)
        self._stuck.discard(prompt.path)
        self._looks.pop(prompt.path, None)
        return target

    def claim(self, path: Path) -> Path:
        """Claim a queued file for running. Raises FileNotFoundError where it was withdrawn.

        A file that is claimed already has its folder synced: a crash may have prevented that.
        """
        target = path.with_name(path.name.removesuffix(QUEUED).removesuffix(CLAIMED) + CLAIMED)
        if self.holds(target) and (path == target or not self.holds(path)):
            with self._queue.folder(target.parent) as folder:
                os.fsync(folder.fd)
        else:
            self._queue.move(path, self._queue, target)
        return target

    def archive(self, path: Path, state: State) -> Path:
        """Move the file of a terminal job into the finished folder. Returns the new path."""
        target = self._archived(path, state)
        self._queue.move(path, self._finished, target)
        return target

    def _archived(self, path: Path, state: State) -> Path:
        stem = path.name.removesuffix(QUEUED).removesuffix(CLAIMED)
        place = self._finished.root / path.parent.relative_to(self.root)
        return place / (stem + ARCHIVED[state])

    def clear_temps(self, wall: float) -> None:
        """Remove temporary files of crashed submissions: our dot-names that are an hour old."""
        root = os.path.realpath(self.root)  # fwalk follows no link, not even the root's
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
    """The temporary name of a new file, until all its bytes are on the disk."""
    return f".{name}.tmp"


def _fault(info: os.stat_result, foreign_uid: int | None) -> str | None:
    """Why an open prompt file is not read; None where it is.

    A hard link could show a file that its author may not read; in a folder that everybody may
    write to, a foreign user could submit jobs.
    """
    if info.st_nlink > 1:
        return "is a hard link to a file with further names: copy it instead"
    if foreign_uid is not None:
        return (
            f"comes from user id {foreign_uid}, through a folder that everybody may write to; "
            f"there only files of root and of user id {os.geteuid()} are taken: remove that right "
            "from the folder (chmod o-w)"
        )
    return None
