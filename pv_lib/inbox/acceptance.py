"""The acceptance check: whether a submission can be run, and every reason why not.

A submission is checked when it comes in. The text of a queued prompt is checked by the same rules
again when its job is started, for it may have been edited in between. Nothing here writes.
"""

from __future__ import annotations

import re
from dataclasses import replace

from pv_lib.errors import Invalid, TooLarge
from pv_lib.git.repos import Repos
from pv_lib.inbox.prompt import QUEUED, tidy_stem
from pv_lib.jobs import options
from pv_lib.jobs.submission import Submission

_MAX_NAME = 200  # characters of a filename
FILENAME = re.compile(r"[^./\x00-\x1f\x7f-\x9f][^/\x00-\x1f\x7f-\x9f]{0,196}\.md")
NOT_BLANK = re.compile(r"[^\s\x1c-\x1f\x85\ufeff]")  # \s as Python and as JavaScript have it


def check(submission: Submission, max_bytes: int, repos: Repos) -> Submission:
    """`submission` with its full repository name and a tidy filename.

    `max_bytes` is PV_MAX_PROMPT_BYTES. Raises TooLarge, Invalid with every fault, and NotFound
    for an unknown repository or branch.
    """
    faults: list[tuple[str, str]] = []
    try:
        check_text(submission.text, max_bytes)
    except Invalid as error:
        faults += error.fields
    name = submission.filename
    faults += [("filename", why) for why in [_filename_fault(name)] if why]
    faults += options.faults(submission.options)
    if faults:
        raise Invalid.of(faults)
    repo = repos.full_name(submission.repo)
    repos.check_branch(repo, submission.branch)
    return replace(submission, repo=repo, filename=tidy_stem(name) + QUEUED)


def check_text(text: bytes, max_bytes: int) -> None:
    """Check a prompt without its front matter block; `max_bytes` is PV_MAX_PROMPT_BYTES.

    Raises TooLarge for a longer text, and Invalid for one that is blank or is not UTF-8. The
    error has one field, with the reason.
    """
    if len(text) > max_bytes:
        why = f"has {len(text)} bytes; PV_MAX_PROMPT_BYTES is {max_bytes}"
        raise TooLarge(f"markdown_text: {why}", [("markdown_text", why)])
    try:
        blank = not NOT_BLANK.search(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        why = f"is not UTF-8 (byte {error.start})"
        raise Invalid.of([("markdown_text", why)]) from None
    if blank:
        raise Invalid.of([("markdown_text", "must not be blank: say what is to be done")])


def max_file_bytes(max_bytes: int) -> int:
    """The size of the largest file that is read for a prompt of `max_bytes`: with front matter."""
    return 2 * max_bytes + 65536


def _filename_fault(name: str) -> str | None:
    if FILENAME.fullmatch(name):
        return None
    if name.startswith("."):
        return "must not begin with a dot"
    if not name.endswith(".md"):
        return "must end in .md"
    if len(name) > _MAX_NAME:
        return f"must not be longer than {_MAX_NAME} characters"
    return "must be a plain name without slashes or control characters"
