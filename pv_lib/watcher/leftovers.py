"""What a crash left beside the jobs: work trees nobody needs, and half-made submissions.

Clears up once, after a start, in a thread of its own; it may take a while. Nothing here decides
about a job.
"""

from __future__ import annotations

from collections.abc import Callable

from pv_lib.errors import BadRecord
from pv_lib.git.command import Git
from pv_lib.runner.runner import Services


def clear(services: Services, is_active: Callable[[str], bool]) -> None:
    """Remove them; what cannot be removed is told to the journal."""

    def needs_tree(job_id: str) -> bool:
        if is_active(job_id):
            return True
        try:
            record = services.runs.read(job_id)
        except (BadRecord, OSError):
            return True
        return record is not None and (
            not record.state.terminal or "work_tree" in (record.result or {})
        )

    services.inbox.clear_temps(services.clock())
    for fault in services.workspace.clear(needs_tree, Git(services.environ)):
        services.journal.warn(fault)
