"""500 slow and idle clients, who come back a second after they were sent away, and healthy ones."""

from __future__ import annotations

import contextlib
import http.client
import os
import selectors
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from chaos.common import Chaos
from harness import Valet, program, until

from pv_lib.httpd.limits import BODY_SECONDS, MAX_CONNECTIONS

CROWD = 500
AWAY = 1.0  # seconds
FIXED_THREADS = 8  # main, accept, watcher, follow and a few that come and go
HEAD = b"GET /api/v1/healthz HTTP/1.1\r\nHost: localhost\r\n"
BODY = (
    b"POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 100000\r\n\r\n"
)
KINDS = (b"", b"GET /", HEAD, BODY, HEAD + b"\r\n")
DRIPS = (None, b"a", b"X", b" ", None)  # what each sends now and then; None: nothing more


@dataclass
class Crowd:
    """The clients and the thread that drips and reconnects for all of them."""

    port: int
    comebacks: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run)
        for number in range(CROWD):
            self._connect(number % len(KINDS))
        self._thread.start()

    def _connect(self, kind: int) -> None:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        client.setblocking(False)
        client.send(KINDS[kind])
        self._selector.register(client, selectors.EVENT_READ, kind)

    def _run(self) -> None:
        next_drip = 0.0
        away: deque[tuple[float, int]] = deque()  # when each comes back, as what
        while not self.over.is_set():
            for key, _ in self._selector.select(0.05):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    if client.recv(65536):
                        continue
                self._selector.unregister(client)
                client.close()
                away.append((time.monotonic() + AWAY, key.data))
            while away and away[0][0] < time.monotonic():
                self.comebacks += 1
                with contextlib.suppress(OSError):
                    self._connect(away.popleft()[1])
            if time.monotonic() > next_drip:
                next_drip = time.monotonic() + 0.5
                for key in list(self._selector.get_map().values()):
                    drip = DRIPS[key.data]
                    if drip and isinstance(key.fileobj, socket.socket):
                        with contextlib.suppress(OSError):
                            key.fileobj.send(drip)

    def fall_silent(self) -> None:
        """Send nothing more, come back no more, and keep every connection open."""
        self.over.set()
        self._thread.join()

    def leave(self) -> None:
        """Close them all."""
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()


def run(chaos: Chaos) -> None:
    """Print the figures."""
    valet = Valet(chaos.root / "crowd", program())
    process = valet.start()
    task = f"/proc/{process.popen.pid}/task"
    crowd = Crowd(valet.port)
    kept, fresh, threads = [], [], []
    healthy = http.client.HTTPConnection("127.0.0.1", valet.port, timeout=10)
    refused = 0
    end = time.monotonic() + (3 if chaos.short else 20)
    while time.monotonic() < end:
        began = time.monotonic()
        try:
            healthy.request("GET", "/api/v1/healthz")
            refused += healthy.getresponse().read()[:14] != b'{"status": "ok'
        except (OSError, http.client.HTTPException):
            refused += 1
            healthy.close()
        kept.append(time.monotonic() - began)
        began = time.monotonic()
        refused += valet.ask("GET", "/api/v1/healthz").status != 200
        fresh.append(time.monotonic() - began)
        threads.append(len(os.listdir(task)))
        time.sleep(0.01)
    valet.await_end(valet.submit("fake: say x")["job_id"])
    crowd.fall_silent()
    silent = time.monotonic()
    if not chaos.short:
        alone = lambda: valet.get("/api/v1/status")["limits"]["connections"]["now"] == 1  # noqa: E731
        until(alone, "every slow connection ended", 2 * BODY_SECONDS)
    recovered = time.monotonic() - silent
    crowd.leave()
    until(lambda: len(os.listdir(task)) <= FIXED_THREADS, "the threads given back")
    figures = chaos.figures
    figures.say("crowd: slow clients, and how often one came back", f"{CROWD}, {crowd.comebacks}")
    for name, times in (("a kept connection", kept), ("a new one each time", fresh)):
        times.sort()
        p99 = times[len(times) * 99 // 100]
        figures.say(f"crowd: healthz p99, {name}", f"{p99 * 1000:.1f} ms", good=p99 < 0.1)
    figures.say(
        "crowd: healthy requests refused", f"{refused} of {2 * len(kept)}", good=not refused
    )
    most = max(threads)
    cap = MAX_CONNECTIONS + FIXED_THREADS
    figures.say("crowd: most threads", f"{most} (cap {cap})", good=most <= cap)
    good = recovered < BODY_SECONDS + 5
    figures.say("crowd: seconds until the last was let go", f"{recovered:.1f}", good=good)
    valet.clear()
