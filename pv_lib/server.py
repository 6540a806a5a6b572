"""The HTTP server: sockets, limits, deadlines, the gate, and bytes in and out.

ThreadingHTTPServer accepts and gives each connection a thread; the head is read and parsed by our
own strict rules (`wire`), the answer comes from `api`. Nothing here knows what a job is.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import urlsplit

from pv_lib import wire
from pv_lib.errors import (
    Busy,
    Forbidden,
    HeadTooLarge,
    Invalid,
    MethodNotAllowed,
    Misdirected,
    Timeout,
    TooLarge,
    Unauthorized,
    ValetError,
)
from pv_lib.journal import Journal
from pv_lib.wire import Head, Request, Response

MAX_HEAD = 32 << 10  # bytes of request line and headers
MAX_CONNECTIONS = 256
IDLE_SECONDS = 30.0  # a keep-alive connection without a request
HEAD_SECONDS = 10.0  # from a request's first byte to its blank line
BODY_SECONDS = 60.0  # from the blank line to the body's last byte
SEND_SECONDS = 60.0  # one write to a client that does not read
LINGER_SECONDS = 2.0  # how long, and how many bytes, a refused client may still send
LINGER_BYTES = 64 << 20
_NO_DESCRIPTOR_PAUSE = 0.1
_READ = 1 << 16
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Follow:
    """A route's answer that is a live stream: the socket goes to `hand_over` behind the head."""

    hand_over: Callable[[socket.socket], None]


Answer = Response | Follow


@dataclass(frozen=True)
class Gate:
    """Who gets in. `hosts` are names without port; `token` None means none is needed."""

    hosts: frozenset[str]
    token: str | None

    def check(self, head: Head) -> None:
        """Raise Misdirected, Forbidden or Unauthorized for a request without right.

        In this order: Host (DNS rebinding), Origin, Sec-Fetch-Site (foreign pages), token.
        """
        host = head.headers.get("host", "").lower()
        if _host_name(host) not in self.hosts:
            raise Misdirected(
                f"the Host {host[:100]!r} is not served here: add it to PV_ALLOWED_HOSTS"
            )
        origin = head.headers.get("origin")
        if origin is not None and not self._own(origin, host):
            raise Forbidden("the request comes from a page of another origin")
        site = head.headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin"):
            raise Forbidden("the browser says that the request comes from another site")
        if self.token is not None:
            given = head.headers.get("authorization", "")
            wanted = f"Bearer {self.token}"
            if not hmac.compare_digest(given.encode("latin-1"), wanted.encode()):
                raise Unauthorized("a bearer token is needed: Authorization: Bearer …")

    def _own(self, origin: str, host: str) -> bool:
        try:
            return urlsplit(origin).netloc.lower() == host
        except ValueError:
            return False


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
        max_body: int,
        journal: Journal,
    ) -> None:
        self.routes = routes
        self.gate = gate
        self.max_body = max_body
        self.journal = journal
        self._count = threading.Lock()  # guards connections
        self.connections = 0
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

    def get_request(self) -> tuple[Any, Any]:
        """Accept; without a descriptor to spare, wait a little instead of spinning."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(_NO_DESCRIPTOR_PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or turn it away when there are too many."""
        with self._count:
            full = self.connections >= MAX_CONNECTIONS
            self.connections += not full
        if full:
            self._turn_away(request, "too many connections: try again in a second")
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            with self._count:
                self.connections -= 1
            self._turn_away(request, "the system allows no further thread: try again in a second")

    def _turn_away(self, request: Any, why: str) -> None:
        busy = _problem(Busy(why))
        busy.headers["Retry-After"] = "1"
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
            with self._count:
                self.connections -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Only a defect of ours comes here: connections that break are the clients' business."""
        self.journal.error(f"a connection: unexpected {sys.exc_info()[1]!r}")


class _Gone(Exception):
    """The client has closed or reset the connection."""


class Connection(BaseHTTPRequestHandler):
    """One client's requests, one after the other."""

    server: Server
    request: socket.socket

    def setup(self) -> None:
        """No buffered files: the socket is read and written here alone."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._buffer = bytearray()

    def finish(self) -> None:
        """Nothing to flush; the server closes the socket."""

    def handle(self) -> None:
        """Answer requests until one side wants no more."""
        try:
            while self._one():
                pass
        except (_Gone, OSError):
            return

    def _one(self) -> bool:
        """One request and its answer; whether another may follow."""
        head = None
        try:
            data = self._read_head()
            if data is None:
                return False
            head = wire.parse_head(data)
            self.server.gate.check(head)
            request = self._read_request(head)
        except ValetError as error:  # the rest of the connection cannot be trusted
            self._send(_problem(error), close=True, bare=bool(head and head.method == "HEAD"))
            self._linger()
            return False
        answer = self._answer(request)
        if isinstance(answer, Follow):
            return self._follow(answer, bare=head.method == "HEAD")
        self._send(answer, close=not head.keep_alive, bare=head.method == "HEAD")
        return head.keep_alive

    def _answer(self, request: Request) -> Answer:
        try:
            return self.server.routes(request)
        except ValetError as error:
            return _problem(error)
        except Exception as error:  # noqa: BLE001 - the top of a request: a decided outcome
            what = f"{type(error).__name__}: {error}"
            where = "/".join(request.segments)
            self.server.journal.error(f"{request.method} /{where}: unexpected {what}")
            return _problem(ValetError("an unexpected fault; the server's log has the reason"))

    def _read_head(self) -> bytes | None:
        """The next head without its blank line; None when the client has no more to ask."""
        deadline = time.monotonic() + (HEAD_SECONDS if self._buffer else IDLE_SECONDS)
        started = bool(self._buffer)
        searched = 0
        while True:
            while self._buffer[:2] == b"\r\n":  # a stray line end between two requests
                del self._buffer[:2]
            end = self._buffer.find(b"\r\n\r\n", max(0, searched - 3))
            if end > MAX_HEAD or (end < 0 and len(self._buffer) > MAX_HEAD):
                raise HeadTooLarge(f"the request's head has more than {MAX_HEAD} bytes")
            if end >= 0:
                data = bytes(self._buffer[:end])
                del self._buffer[: end + 4]
                return data
            searched = len(self._buffer)
            if self._buffer and not started:
                started, deadline = True, time.monotonic() + HEAD_SECONDS
            try:
                more = self._receive(deadline)
            except TimeoutError:
                if not self._buffer:
                    return None
                raise Timeout(f"the head did not come within {HEAD_SECONDS:g} s") from None
            if not more:
                if not self._buffer:
                    return None
                raise Invalid("the request's head ended in the middle")

    def _read_request(self, head: Head) -> Request:
        if head.length > self.server.max_body:
            limit = self.server.max_body
            raise TooLarge(f"the body has {head.length} bytes; at most {limit} are taken")
        segments = wire.decode_path(head.path)
        query = wire.decode_query(head.query)
        expected = head.headers.get("expect", "").lower()
        if expected == "100-continue" and head.length and not self._buffer:
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        deadline = time.monotonic() + BODY_SECONDS
        while len(self._buffer) < head.length:
            try:
                more = self._receive(deadline)
            except TimeoutError:
                raise Timeout(f"the body did not come within {BODY_SECONDS:g} s") from None
            if not more:
                raise Invalid("the body is shorter than its Content-Length")
        body = bytes(self._buffer[: head.length])
        del self._buffer[: head.length]
        return Request(head.method, segments, query, head.headers, body)

    def _receive(self, deadline: float) -> bool:
        """More bytes into the buffer; False at the client's end. Raises TimeoutError."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.request.settimeout(left)
        try:
            data = self.request.recv(_READ)
        except ConnectionError:
            raise _Gone from None
        self._buffer += data
        return bool(data)

    def _send(self, response: Response, *, close: bool, bare: bool) -> None:
        head = wire.encode_head(response, time.time(), close=close)
        self.request.settimeout(SEND_SECONDS)
        try:
            if bare or response.file is None:
                self.request.sendall(head if bare else head + response.body)
            else:
                self.request.sendall(head)
                self._send_file(response)
        finally:
            if response.file is not None:
                response.file.close()

    def _send_file(self, response: Response) -> None:
        file = cast(Any, response.file)
        if response.length and self.request.sendfile(file, file.tell(), response.length) != (
            response.length
        ):
            raise _Gone  # the file shrank: an honest end is a broken connection

    def _follow(self, answer: Follow, *, bare: bool) -> bool:
        self.request.settimeout(SEND_SECONDS)
        self.request.sendall(wire.encode_stream_head(time.time()))
        if not bare:
            answer.hand_over(socket.socket(fileno=self.request.detach()))
        return False

    def _linger(self) -> None:
        """Let the client read the refusal: close in its face, and a reset may eat it."""
        try:
            self.request.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + LINGER_SECONDS
            left = LINGER_BYTES
            while left > 0 and (pause := deadline - time.monotonic()) > 0:
                self.request.settimeout(pause)
                data = self.request.recv(_READ)
                if not data:
                    return
                left -= len(data)
        except OSError:
            return


def _problem(error: ValetError) -> Response:
    body = json.dumps(wire.problem(error), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    response = Response(error.status, body, "application/problem+json")
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = error.allow
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _host_name(host: str) -> str:
    """A Host header without its port: `[::1]:8888` is `[::1]`."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host
