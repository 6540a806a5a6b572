"""The name and path of a prompt file, and what they mean. Pure: nothing here opens a file.

<name>.prompt.md or .md     dropped
<name>-<job_id>.prompt.md   queued
<name>-<job_id>.running.md  claimed
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from pv_lib.jobs.job import State

QUEUED, CLAIMED = ".prompt.md", ".running.md"
ARCHIVED = {State.SUCCEEDED: ".done.md", State.FAILED: ".error.md", State.ABORTED: ".aborted.md"}
_ID_SUFFIX = re.compile(r"(?P<stem>.*)-(?P<id>[0-9a-f]{32})")
_SUFFIXES = (QUEUED, CLAIMED, *ARCHIVED.values(), ".md")
STEM_BYTES = 160  # with job id, suffix and a temporary dot well below the 255 bytes of a file name


@dataclass(frozen=True)
class Prompt:
    """A prompt file found in the inbox.

    `folders` are the names between the inbox root and the file: owner, repository, and the
    parts of the branch; a misplaced file has others. `stem` is the name without job id and
    suffix. `job_id` is None for a dropped file.
    """

    path: Path
    folders: tuple[str, ...]
    stem: str
    job_id: str | None
    claimed: bool
    signature: tuple[int, int, int]  # inode, mtime in ns, size

    @property
    def repo(self) -> str:
        """`owner/name`, from the path."""
        return "/".join(self.folders[:2])

    @property
    def branch(self) -> str:
        """The branch, from the path."""
        return "/".join(self.folders[2:])

    @property
    def filename(self) -> str:
        """The name without the job id."""
        return self.stem + QUEUED


def prompt_at(root: Path, parts: tuple[str, ...], info: os.stat_result) -> Prompt | None:
    """The prompt at the path `parts` below the inbox `root`; None where it is no prompt file."""
    name = parts[-1]
    if not stat.S_ISREG(info.st_mode) or name.startswith(".") or not name.endswith(".md"):
        return None
    suffix = next(end for end in _SUFFIXES if name.endswith(end))
    stem = name.removesuffix(suffix)
    match = _ID_SUFFIX.fullmatch(stem)
    ours = suffix in (QUEUED, CLAIMED)  # an archived file that was moved back is a new drop
    return Prompt(
        path=root.joinpath(*parts),
        folders=parts[:-1],
        stem=match["stem"] if match else stem,
        job_id=match["id"] if match and ours else None,
        claimed=suffix == CLAIMED and match is not None,
        signature=(info.st_ino, info.st_mtime_ns, info.st_size),
    )


def tidy_stem(filename: str) -> str:
    """The stem for our own file names: no suffix, no control characters, at most STEM_BYTES."""
    stem = filename.removesuffix(".md").removesuffix(".prompt")
    text = stem.encode("utf-8", "replace").decode()
    text = "".join(c if c.isprintable() and c != "/" else "_" for c in text).lstrip(".") or "prompt"
    return text.encode()[:STEM_BYTES].decode("utf-8", "ignore")
