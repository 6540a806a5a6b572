"""The composition root: `serve` and `watch` build the parts, start the threads, wait for a signal.

The only module that imports every room of the server. It parses no command line and prints no
error: `cli.main` does both.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import replace

from pv_lib import stamp
from pv_lib.agent import process, registry
from pv_lib.api import openapi
from pv_lib.api.handlers import Api
from pv_lib.api.routes import TABLE, Router
from pv_lib.api.status import Overview
from pv_lib.api.view import Views
from pv_lib.errors import ConfigFault, ValetError
from pv_lib.git.command import Git
from pv_lib.git.repos import Repos
from pv_lib.git.worktree import Workspace
from pv_lib.httpd.follow import Followers
from pv_lib.httpd.gate import Gate
from pv_lib.httpd.limits import Limits
from pv_lib.httpd.server import Server
from pv_lib.inbox.inbox import Inbox
from pv_lib.inbox.intake import Intake
from pv_lib.jobs.index import Index
from pv_lib.jobs.store import Runs
from pv_lib.runner.runner import Services
from pv_lib.settings import config as settings
from pv_lib.settings.config import Config
from pv_lib.system import journal, parent
from pv_lib.system.journal import Journal
from pv_lib.system.notify import Notifier
from pv_lib.system.signals import Signals
from pv_lib.watcher.watcher import Watcher

_WATCHER_DIED = 0  # put among the signals, whose numbers begin at 1


def serve(*, no_watcher: bool) -> int:
    """Answer HTTP and, unless the watcher is off, run the jobs, until a signal; the exit code."""
    site = _Site(os.environ, no_watcher=no_watcher)
    signals = Signals()
    watcher = site.watcher() if site.config.watcher else None
    followers = Followers(site.journal)
    server = _bind(site, watcher, followers)
    if watcher:
        watcher.acquire()
    else:
        server.alive = site.notifier.alive
    site.index.start(site.journal.error)
    if watcher:
        _start_watcher(watcher, site.journal, signals)
    followers.start()
    accepting = threading.Thread(target=server.serve_forever, name="accept", daemon=True)
    accepting.start()
    host = f"[{server.server_name}]" if ":" in server.server_name else server.server_name
    where = f"http://{host}:{server.server_port}"
    role = "with the watcher" if watcher else "without a watcher"
    site.journal.info(f"Prompt Valet {stamp.FULL} listening on {where}, {role}")
    site.notifier.ready()
    code = _run_until_signal(watcher, site, signals)
    server.stop()
    followers.stop()
    return code


def watch() -> int:
    """Run the jobs, without HTTP, until a signal; the exit code."""
    site = _Site(os.environ)
    signals = Signals()
    watcher = site.watcher()
    watcher.acquire()
    site.index.start(site.journal.error)
    _start_watcher(watcher, site.journal, signals)
    site.journal.info(f"Prompt Valet {stamp.FULL} watching {site.config.inbox_root}")
    site.notifier.ready()
    return _run_until_signal(watcher, site, signals)


class _Site:
    """The parts that `serve` and `watch` share, made from the environment.

    Raises ConfigFault for settings and folders that cannot be used.
    """

    def __init__(self, environ: Mapping[str, str], *, no_watcher: bool = False) -> None:
        os.umask(0o077)
        parent.die_with_runuser(environ)
        config, faults = settings.read(environ)
        faults += settings.make_folders(config)
        if faults:
            raise ConfigFault(faults)
        self.config: Config = replace(config, watcher=config.watcher and not no_watcher)
        self.environ = environ
        self.journal = Journal(priorities=journal.listens(environ))
        runs = Runs(self.config.runs_root)
        self.index = Index(runs)
        runs.on_write = self.index.note_write
        self.notifier = Notifier(environ, lambda: _status_line(self.index.counts()))
        self.inbox = Inbox(self.config.inbox_root, self.config.finished_root)
        self.repos = Repos(self.config.repos_root, Git(environ), self.config.git_clone_url)
        self.intake = Intake(self.config, self.index, self.inbox, self.repos)

    def watcher(self) -> Watcher:
        """The watcher, with the services that its jobs share; it does not hold its lock yet."""
        services = Services(
            config=self.config,
            runs=self.index.runs,
            inbox=self.inbox,
            repos=self.repos,
            workspace=Workspace(self.config.work_root, self.repos),
            journal=self.journal,
            environ=self.environ,
            agent=registry.make(self.config),
            launcher=process,
        )
        return Watcher(services, self.intake, self.index, self.notifier.alive)


def _status_line(counts: Mapping[str, int]) -> str:
    """How many jobs are in each state, as `systemctl status` shows it."""
    return ", ".join(f"{number} {state}" for state, number in counts.items())


def _bind(site: _Site, watcher: Watcher | None, followers: Followers) -> Server:
    """The HTTP server with its routes, bound to its port; it does not accept yet."""
    config = site.config
    host = f"[{config.bind_host}]" if ":" in config.bind_host else config.bind_host
    gate = Gate(frozenset({*config.allowed_hosts, host}), config.api_token)
    limits = Limits(8 * config.max_prompt_bytes + (1 << 20))  # JSON can write one byte as six
    operations = [route.operation for route in TABLE]
    document = openapi.document(operations, stamp.FULL, secured=config.api_token is not None)
    views = Views(site.index.runs, config.stall_threshold_seconds)
    started = time.time()
    overview = Overview(config, site.index, site.repos, views, limits, stamp.FULL, started)
    api = Api(
        index=site.index,
        intake=site.intake,
        views=views,
        overview=overview,
        followers=followers,
        gate=gate,
        limits=limits,
        wake=watcher.wake if watcher else lambda _: None,
        version=stamp.FULL,
        document=json.dumps(document, ensure_ascii=False).encode(),
    )
    address = ("127.0.0.1" if host == "localhost" else config.bind_host, config.bind_port)
    try:
        return Server(
            address, Router(api), gate, limits, site.journal, access_log=config.access_log
        )
    except OSError as error:
        raise ValetError(
            f"PV_BIND_HOST={config.bind_host} PV_BIND_PORT={config.bind_port} cannot be bound "
            f"({error.strerror}): stop the program that has it, or choose another"
        ) from error


def _start_watcher(watcher: Watcher, journal: Journal, signals: Signals) -> None:
    """Start its thread; an unexpected error in it ends the process."""

    def run() -> None:
        try:
            watcher.run()
        except Exception as error:  # noqa: BLE001 - the top of a thread
            journal.error(f"the watcher died: {type(error).__name__}: {error}")
            signals.put(_WATCHER_DIED)

    threading.Thread(target=run, name="watcher", daemon=True).start()


def _run_until_signal(watcher: Watcher | None, site: _Site, signals: Signals) -> int:
    """Wait for a signal, then leave the jobs running or, on SIGINT, abort them; the exit code."""
    number = signals.get()
    if watcher and number == signal.SIGINT:
        _abort_all(watcher, site.journal, signals)
    site.notifier.stopping()
    site.journal.info("stopping")
    if watcher:
        watcher.stop()
    return 1 if number == _WATCHER_DIED else 0


def _abort_all(watcher: Watcher, journal: Journal, signals: Signals) -> None:
    """Abort every running job and wait for its end; a second signal kills the agents at once."""
    ids = watcher.abort_running()
    if ids:
        journal.info(f"aborting {', '.join(ids)}; press Ctrl-C again to kill at once")
    while not watcher.idle(0.1):
        if not signals.empty():
            for job_id in ids:
                process.end(job_id, 0)
            watcher.idle(1)
            return
