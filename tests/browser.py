"""A real browser for tests, a site that means harm, and a wire to a server that can be tapped.

Chromium is driven through its DevTools pipe: JSON over a socket it inherits, no port, no client.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from harness import DEADLINE, PROGRAMS, until
from needs import need

EVIL = "evil.test"  # a name of the network that leads to this machine
Json = dict[str, Any]
# The socket becomes 3 and 4, which Chromium reads from and writes to.
_START = (
    "import os,sys\nfor n in 3,4: os.dup2(int(sys.argv[1]),n)\nos.execv(sys.argv[2],sys.argv[2:])"
)
_OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Popups open and hidden pages run, as they would where the reader clicks and looks.
    "--disable-popup-blocking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    # What Chromium itself keeps from the local network other browsers let through.
    "--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets",
    f"--host-resolver-rules=MAP {EVIL} 127.0.0.1",
    "--remote-debugging-pipe",
]


class Chromium:
    """One headless browser; each profile in it has cookies of its own."""

    def __init__(self, home: Path) -> None:
        path = need(shutil.which("chromium"), "Chromium", "apt-get install chromium")
        self.log = home / "chromium.log"
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(DEADLINE)
        self._ids = itertools.count(1)
        self._read = b""
        start = [sys.executable, "-I", "-S", "-c", _START, str(theirs.fileno()), path]
        with theirs, self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                [*start, *_OPTIONS, f"--user-data-dir={home / 'profile'}", "about:blank"],
                env={**os.environ, "HOME": str(home)},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def ask(self, method: str, page: str | None = None, **params: object) -> Json:
        """One DevTools command to the browser, or to a `page` that was `held`."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if page:
            message["sessionId"] = page
        self._socket.sendall(json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._read:
                more = self._socket.recv(1 << 16)
                assert more, f"Chromium ended: {self.log.read_text('utf-8', 'replace')}"
                self._read += more
            line, _, self._read = self._read.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])

    @contextlib.contextmanager
    def profile(self) -> Iterator[str]:
        """A profile for a while; its pages are closed with it."""
        name = self.ask("Target.createBrowserContext")["browserContextId"]
        try:
            yield name
        finally:
            self.ask("Target.disposeBrowserContext", browserContextId=name)

    def open(self, url: str, profile: str) -> str:
        """Open a page in a window of its own and leave it alone; gives its target."""
        made = self.ask("Target.createTarget", url=url, browserContextId=profile, newWindow=True)
        return str(made["targetId"])

    def hold(self, url: str, profile: str, *, csp: bool = False) -> str:
        """Open a page to run scripts in, by default past its Content-Security-Policy."""
        target = self.open("about:blank", profile)
        held = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.ask("Page.setBypassCSP", held, enabled=not csp)
        gone = self.ask("Page.navigate", held, url=url)
        assert "errorText" not in gone, gone
        script = "return location.href !== 'about:blank' && document.readyState === 'complete'"

        def is_there() -> bool:
            with contextlib.suppress(AssertionError):  # while one document gives way to the other
                return bool(self.run(held, script))
            return False

        until(is_there, f"a page at {url}")
        return str(held)

    def run(self, page: str, script: str) -> Any:
        """The value of an async function's body, run in a page that was `held`."""
        wrapped = f"(async () => {{ {script} }})()"
        done = self.ask(
            "Runtime.evaluate", page, expression=wrapped, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def close(self) -> None:
        """End it, and what it started."""
        with contextlib.suppress(OSError, AssertionError):
            self.ask("Browser.close")
        self._socket.close()
        try:
            self._popen.wait(timeout=DEADLINE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)


class Site(ThreadingHTTPServer):
    """A web server with the attacker's page, which passes /~NAME/… on to `behind`.

    What it passes on goes without the headers that `hides` names, and with those in `sets`.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, behind: int, hides: tuple[str, ...] = (), **sets: str) -> None:
        super().__init__(("127.0.0.1", 0), _Visit)
        self.behind = behind
        self.hides = hides
        self.sets = sets
        self.reports: dict[str, Json] = {}
        self.cookies: set[str] = set()  # hosts under which the page was asked for with one
        self.answers: dict[str, list[tuple[str, int]]] = {}  # by NAME: method and status
        self.go = threading.Event()  # the pages may leave
        self.lock = threading.Lock()  # guards the above
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def page(self, host: str, plan: Json, path: str = "/") -> str:
        """The address of the attacker's page with its plan."""
        return f"http://{host}:{self.server_port}{path}#{quote(json.dumps(plan))}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers break connections."""


class _Visit(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.0"

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(1 << 16)
        self.close_connection = True
        if not self.raw_requestline or not self.parse_request():
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        if url.path.startswith("/~"):
            name, _, rest = self.path[2:].partition("/")
            self._pass_on(name, f"/{rest}", body)
        elif url.path == "/report":
            report = json.loads(body)
            self._give(204)
            with self.server.lock:
                self.server.reports[report["label"]] = report
        elif url.path == "/go":
            self.server.go.wait(DEADLINE)
            self._give(204)
        elif url.path == "/bounce":
            there = {"Location": parse_qs(url.query)["to"][0]}
            there["Access-Control-Allow-Origin"] = self.headers.get("Origin", "*")
            there["Access-Control-Allow-Credentials"] = "true"
            self._give(307, b"", there)
        elif url.path in ("/", "/sandboxed"):
            if "pv_session=" in self.headers.get("Cookie", ""):
                with self.server.lock:
                    self.server.cookies.add(self.headers.get("Host", "").partition(":")[0])
            page = (PROGRAMS / "attacker.html").read_bytes()
            sandbox = "sandbox allow-scripts allow-forms allow-popups"
            policy = {"Content-Security-Policy": sandbox} if url.path != "/" else {}
            self._give(200, page, {"Content-Type": "text/html", **policy})
        else:
            self._give(404)

    def _give(self, status: int, body: bytes = b"", headers: Json | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _pass_on(self, name: str, path: str, body: bytes) -> None:
        lines = [f"{self.command} {path} HTTP/1.1"]
        for header, value in self.headers.items():
            lower = header.lower()
            kept = self.server.sets.get(lower, value)
            if lower == "connection":
                kept += ", close"
            if not lower.startswith(self.server.hides or ("\0",)):
                lines.append(f"{header}: {kept}")
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        with socket.create_connection(("127.0.0.1", self.server.behind), DEADLINE) as there:
            there.sendall(head + body)
            answer = there.recv(1 << 16)
            self.connection.sendall(answer)
            with self.server.lock:
                status = int(answer.split()[1])
                self.server.answers.setdefault(name, []).append((self.command, status))
            while answer:
                answer = there.recv(1 << 16)
                self.connection.sendall(answer)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
