"""The status of the whole server, as JSON: jobs, queue, folders, limits, and problems for a person.

Reads and reports; changes nothing and knows no HTTP.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pv_lib.api.view import Views
from pv_lib.git.repos import Repos
from pv_lib.httpd.limits import Limits
from pv_lib.jobs import job
from pv_lib.jobs.index import Index
from pv_lib.jobs.job import State
from pv_lib.settings.config import SETTINGS, Config
from pv_lib.system import space

_ALIVE_POLLS = 5  # poll intervals without a heartbeat after which the watcher counts as gone
_LOOK_SECONDS = 0.5  # for which a look at the disk is good


@dataclass(frozen=True)
class _Look:
    """The half of the status that takes dozens of system calls, and the Unix time it was read at.

    `start` is JSON without the closing brace.
    """

    at: float
    start: bytes
    complaints: list[str]


class Overview:
    """Makes the status of the parts it is given. `started` is Unix time."""

    def __init__(
        self,
        config: Config,
        index: Index,
        repos: Repos,
        views: Views,
        limits: Limits,
        version: str,
        started: float,
    ) -> None:
        self._config = config
        self._index = index
        self._repos = repos
        self._views = views
        self._limits = limits
        self._version = version
        self._started = started
        self._looked: _Look | None = None

    def encode(self, now: float) -> bytes:
        """The status as JSON; `now` is Unix time."""
        counts = self._index.counts()
        look = self._look(now)
        plain = {
            "uptime_seconds": round(now - self._started, 3),
            "jobs": {
                "counts": counts,
                "total": sum(counts.values()),
                "stalled_running": sum(self._views.stalled(r, now) for r in self._index.running()),
            },
            "queue": {
                "waiting": counts[State.CREATED.value],
                "running": counts[State.RUNNING.value],
                "slots": self._config.max_running,
            },
            "limits": self._limits.shown(),
            "problems": [*self._index.problems(), *look.complaints],
        }
        return b"%b, %b\n" % (look.start, _json(plain)[1:])

    def _look(self, now: float) -> _Look:
        """The last look at the disk, or a new one when that is half a second old."""
        last = self._looked
        if last is not None and last.at <= now < last.at + _LOOK_SECONDS:
            return last
        config = self._config
        roots = {name: _root(path) for name, path in config.roots.items()}
        plain = {
            "version": self._version,
            "started_at": job.stamp(self._started),
            "config": {
                **{f"{name}_root": str(path) for name, path in config.roots.items()},
                **{s.field: getattr(config, s.field) for s in SETTINGS if s.shown},
            },
            "roots": roots,
            "watcher": self._watcher(now),
            "targets": {"count": sum(1 for _ in self._repos.all())},
        }
        complaints = [*self._index.runs.watcher_complaints(), *self._complaints(roots)]
        self._looked = _Look(now, _json(plain)[:-1], complaints)
        return self._looked

    def _watcher(self, now: float) -> dict[str, Any]:
        beat = self._index.runs.watcher_beat()
        limit = max(_ALIVE_POLLS * self._config.poll_interval_seconds, 2)
        return {
            "mode": "built in" if self._config.watcher else "apart",
            "heartbeat_at": job.stamp(beat) if beat else None,
            "alive": beat is not None and now - beat < limit,
        }

    def _complaints(self, roots: dict[str, dict[str, Any]]) -> list[str]:
        limit = self._config.min_free_bytes
        found = []
        for name, root in roots.items():
            if not root["exists"]:
                found.append(f"the {name} root {root['path']} is not there")
            elif not root["writable"]:
                found.append(f"the {name} root {root['path']} is not writable")
            elif name in ("inbox", "runs") and space.is_low(self._config.roots[name], limit):
                found.append(f"the {name} root has less than PV_MIN_FREE_BYTES={limit} free")
        return found


def _root(path: Path) -> dict[str, Any]:
    exists = path.is_dir()
    return {
        "path": str(path),
        "exists": exists,
        "writable": os.access(path, os.W_OK | os.X_OK),
        "free_bytes": space.free_bytes(path) if exists else None,
    }


def _json(plain: dict[str, Any]) -> bytes:
    return json.dumps(plain, ensure_ascii=False).encode("utf-8", "replace")
