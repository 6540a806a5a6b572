"""The leftovers of a crash: work trees that no job needs, and temporary files of submissions.

They are removed once after each start, in a thread of its own, for that may take a while. Nothing
here changes a job.
"""

from __future__ import annotations

from collections.abc import Callable

from pv_lib.errors import BadRecord
from pv_lib.git.command import Git
from pv_lib.runner.runner import Services


def clear(services: Services, is_active: Callable[[str], bool]) -> None:
    """Remove them; the journal names what cannot be removed. `is_active`: the job has a runner."""

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
