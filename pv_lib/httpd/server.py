"""The HTTP server: one listening socket, a thread for each connection, and no more than may be.

ThreadingHTTPServer accepts; what a connection says and hears is `connection`'s. Nothing here
reads or writes a request, or knows what a job is.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from typing import Any

from pv_lib.errors import Busy
from pv_lib.httpd import wire
from pv_lib.httpd.connection import Answer, Connection, problem
from pv_lib.httpd.gate import Gate
from pv_lib.httpd.limits import Limits, Patience
from pv_lib.httpd.wire import Request
from pv_lib.system.journal import Journal

_GIVE_WAY_SECONDS = 0.25  # how long a new connection waits for an old one to make room
_NO_DESCRIPTOR_PAUSE = 0.1


class Server(ThreadingHTTPServer):
    """One listening socket. `routes` turns a Request into a Response or a Follow."""

    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True

    def __init__(
        self,
        address: tuple[str, int],
        routes: Callable[[Request], Answer],
        gate: Gate,
        limits: Limits,
        journal: Journal,
        access_log: bool,
    ) -> None:
        self.access_log = access_log
        self.routes = routes
        self.gate = gate
        self.limits = limits
        self.journal = journal
        self.patience = Patience()
        self.alive: Callable[[], None] = lambda: None  # called between two connections
        self._changed = threading.Condition()  # told when a connection ends
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Connection)

    def server_bind(self) -> None:
        """Bind without the getfqdn of http.server, which can stall for half a minute."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def stop(self) -> None:
        """Accept nothing more; to shut the socket wakes the accepting thread at once."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self.server_close()

    def service_actions(self) -> None:
        """At each turn of the accepting thread, twice a second at least."""
        self.alive()

    def get_request(self) -> tuple[Any, Any]:
        """Accept; without a descriptor to spare, wait a little instead of spinning."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(_NO_DESCRIPTOR_PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or turn it away when all are at work."""
        if not self._enter():
            self._turn_away(request, "too many connections: try again in a second")
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            self._leave()
            self._turn_away(request, "the system allows no further thread: try again in a second")

    def _enter(self) -> bool:
        """Take a place; where there is none, that of the oldest that waits for its client."""
        if self.limits.connections.enter():
            return True
        oldest = self.patience.oldest()
        if oldest is None:
            return False
        connection, how = oldest
        connection.give_way(how)
        with self._changed:
            return self._changed.wait_for(self.limits.connections.enter, _GIVE_WAY_SECONDS)

    def _leave(self) -> None:
        self.limits.connections.leave()
        with self._changed:
            self._changed.notify_all()

    def _turn_away(self, request: Any, why: str) -> None:
        self.limits.connections.refuse()
        busy = problem(Busy(why))
        request.settimeout(0.1)
        try:
            request.sendall(wire.encode_head(busy, time.time(), close=True) + busy.body)
        except OSError:
            pass
        finally:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The connection's thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Only a defect of ours comes here: connections that break are the clients' business."""
        self.journal.error(f"a connection: unexpected {sys.exc_info()[1]!r}")
