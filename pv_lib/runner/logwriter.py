"""Carries the agent's raw output, codex.jsonl, over into the readable job.log.

What the text looks like is the transcript's business; reading the log is `jobs.logfile`'s.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from pv_lib.agent.codex import Transcript


class LogWriter:
    """codex.jsonl into job.log: what the log has already is rendered again and skipped.

    `raw` is read from its start, `log` appended to; both are unbuffered. One job's log has one
    writer, its runner.
    """

    def __init__(self, raw: BinaryIO, log: BinaryIO, seen: Transcript) -> None:
        self._raw, self._log, self._seen = raw, log, seen
        self._skip = log.tell()
        self.taken = 0  # bytes of raw output so far
        self.unwritten = b""  # what a full disk kept from the log
        self.fault = OSError()  # the reason

    def pump(self, limit: int) -> int:
        """Carry over what is new, `limit` bytes at most; how many it read."""
        data = os.read(self._raw.fileno(), limit)
        self._write(self._seen.feed(data))
        self.taken += len(data)
        return len(data)

    @property
    def size(self) -> int:
        """Bytes of raw output on the disk."""
        return os.fstat(self._raw.fileno()).st_size

    def finish(self) -> None:
        """A last line without its end."""
        self._write(self._seen.finish())

    def flush(self) -> None:
        """Try to write what could not be written."""
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
