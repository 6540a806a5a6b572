"""The HTTP server: one listening socket, and one thread for each connection up to the quota.

ThreadingHTTPServer accepts; `connection` reads requests and writes answers. Nothing here knows a
request, or what a job is.
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
from pv_lib.httpd.idle import IdleConnections
from pv_lib.httpd.limits import Limits
from pv_lib.httpd.wire import Request
from pv_lib.system.journal import Journal

_EVICT_SECONDS = 0.25  # how long a new connection waits for an evicted one to end
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
        self.idle = IdleConnections()
        self.alive: Callable[[], None] = lambda: None  # called between two connections
        self._ended = threading.Condition()  # notified when a connection ends; guards no field
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Connection)

    def server_bind(self) -> None:
        """Bind without the getfqdn of http.server, which can block for half a minute."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def stop(self) -> None:
        """Stop accepting; shutting the socket down wakes the accepting thread at once."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self.server_close()

    def service_actions(self) -> None:
        """Called by the accepting thread in each round, at least twice a second."""
        self.alive()

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; without a free descriptor, wait a little instead of spinning."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(_NO_DESCRIPTOR_PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or refuse it when all threads are at work."""
        if not self._take():
            self._refuse(request, "too many connections: try again in a second")
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            self._release()
            self._refuse(request, "the system allows no further thread: try again in a second")

    def _take(self) -> bool:
        """Take quota for one connection; at the limit, evict the oldest idle one first."""
        if self.limits.connections.take():
            return True
        oldest = self.idle.pop_oldest()
        if oldest is None:
            return False
        connection, how = oldest
        connection.evict(how)
        with self._ended:
            return self._ended.wait_for(self.limits.connections.take, _EVICT_SECONDS)

    def _release(self) -> None:
        self.limits.connections.release()
        with self._ended:
            self._ended.notify_all()

    def _refuse(self, request: Any, why: str) -> None:
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
        """Run one connection; the body of its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a defect of this program: broken connections are handled in `connection`."""
        self.journal.error(f"a connection: unexpected {sys.exc_info()[1]!r}")
