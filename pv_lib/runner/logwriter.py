"""The writer of a job's log: the agent's raw output is read, its text appended to job.log.

What the text looks like is the transcript's business; reading the log is `jobs.logfile`'s.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from pv_lib.agent.transcript import Transcript


class LogWriter:
    """Turns raw output into job.log; what the log already has is made again and skipped.

    `raw` is read from its start, `log` appended to; both are unbuffered. One job's log has one
    writer, its runner.
    """

    def __init__(self, raw: BinaryIO, log: BinaryIO, seen: Transcript) -> None:
        self._raw, self._log, self._seen = raw, log, seen
        self._skip = log.tell()
        self.taken = 0  # bytes of raw output that were read
        self.unwritten = b""  # text that could not be written, as on a full disk
        self.fault = OSError()  # the reason

    def pump(self, limit: int) -> int:
        """Read and write what is new, `limit` bytes at most; how many were read."""
        data = os.read(self._raw.fileno(), limit)
        self._write(self._seen.feed(data))
        self.taken += len(data)
        return len(data)

    @property
    def size(self) -> int:
        """Bytes of raw output on the disk."""
        return os.fstat(self._raw.fileno()).st_size

    def finish(self) -> None:
        """Write a last line that has no newline."""
        self._write(self._seen.finish())

    def flush(self) -> None:
        """Try again to write what could not be written."""
        try:
            while self.unwritten:
                self.unwritten = self.unwritten[os.write(self._log.fileno(), self.unwritten) :]
        except OSError as error:
            self.fault = error

    def _write(self, text: bytes) -> None:
        skipped = min(self._skip, len(text))
        self._skip -= skipped
        self.unwritten += text[skipped:]
        self.flush()
