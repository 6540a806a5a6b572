"""The HTTP server: sockets, deadlines, and bytes in and out.

ThreadingHTTPServer accepts and gives each connection a thread; the head is read and parsed by our
own strict rules (`wire`), let in by `gate`, counted by `limits`, and answered by `api`. Nothing
here knows what a job is.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pv_lib import wire
from pv_lib.errors import (
    Busy,
    HeadTooLarge,
    Invalid,
    MethodNotAllowed,
    Timeout,
    TooLarge,
    Unauthorized,
    ValetError,
)
from pv_lib.gate import Gate
from pv_lib.journal import Journal
from pv_lib.limits import (
    BODY_SECONDS,
    HEAD_SECONDS,
    IDLE_SECONDS,
    MAX_HEAD,
    SEND_RATE,
    SEND_SECONDS,
    Limits,
)
from pv_lib.wire import Head, Request, Response

GUESS_SECONDS = 0.5  # what a wrong token costs its sender
LINGER_SECONDS = 2.0  # how long, and how many bytes, a refused client may still send
LINGER_BYTES = 64 << 20
_GIVE_WAY_SECONDS = 0.25  # how long a new connection waits for an old one to make room
_NO_DESCRIPTOR_PAUSE = 0.1
_PAUSE_STEP = 0.05
_READ = 1 << 16
_SMALL = 1 << 16  # bytes that go into a socket's buffer without waiting


@dataclass(frozen=True)
class Follow:
    """A route's answer that is a live stream: the socket goes to `hand_over` behind the head.

    `drop` is called instead where it cannot: either of them, once.
    """

    hand_over: Callable[[socket.socket], None]
    drop: Callable[[], None]


Answer = Response | Follow


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
    ) -> None:
        self.routes = routes
        self.gate = gate
        self.limits = limits
        self.journal = journal
        self._changed = threading.Condition()  # guards _patient; told when a connection ends
        self._patient: dict[Connection, None] = {}  # oldest first, as is the next
        self._strangers: dict[Connection, None] = {}  # those that have had no answer yet
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
        """Give the connection a thread, or turn it away when all are at work."""
        if not self._enter():
            self._turn_away(request, "too many connections: try again in a second")
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:
            self._leave()
            self._turn_away(request, "the system allows no further thread: try again in a second")

    @contextlib.contextmanager
    def patience(self, connection: Connection) -> Iterator[None]:
        """While the connection waits for its client: then it may have to make room for a new one.

        The oldest goes first, and those that were never answered before all others.
        """
        waiting = self._patient if connection.answered else self._strangers
        with self._changed:
            waiting[connection] = None
        try:
            yield
        finally:
            with self._changed:
                waiting.pop(connection, None)

    def _enter(self) -> bool:
        if self.limits.connections.enter():
            return True
        with self._changed:
            waiting = self._strangers or self._patient
            if not waiting:
                return False
            oldest = next(iter(waiting))
            del waiting[oldest]
            oldest.give_way()
            return self._changed.wait_for(self.limits.connections.enter, _GIVE_WAY_SECONDS)

    def _leave(self) -> None:
        self.limits.connections.leave()
        with self._changed:
            self._changed.notify_all()

    def _turn_away(self, request: Any, why: str) -> None:
        self.limits.connections.refused += 1
        busy = _problem(Busy(why))
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


class _Gone(Exception):
    """The client has closed or reset the connection, or it had to give way."""


class Connection(BaseHTTPRequestHandler):
    """One client's requests, one after the other."""

    server: Server
    request: socket.socket

    def setup(self) -> None:
        """No buffered files: the socket is read and written here alone."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._buffer = bytearray()
        self.answered = False
        self._gave_way = False
        self._is_sending = False

    def finish(self) -> None:
        """Nothing to flush; the server closes the socket."""

    def give_way(self) -> None:
        """End the wait for the client; from the accepting thread."""
        self._gave_way = True
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR if self._is_sending else socket.SHUT_RD)

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
            with self.server.patience(self):
                data = self._read_head()
            if data is None:
                return False
            head = wire.parse_head(data)
            self.server.gate.check(head, time.time())
            return self._respond(head, b"") if not head.length else self._take_body(head)
        except ValetError as error:  # the rest of the connection cannot be trusted
            if isinstance(error, Unauthorized) and error.guess:
                self._pause(GUESS_SECONDS)
            self._send(_problem(error), head, close=True)
            return False

    def _respond(self, head: Head, body: bytes) -> bool:
        segments, query = wire.decode_path(head.path), wire.decode_query(head.query)
        client = self.client_address[0]
        request = Request(head.method, segments, query, head.headers, body, client)
        answer = self._answer(request)
        if isinstance(answer, Follow):
            return self._follow(answer, bare=head.method == "HEAD")
        keep = head.keep_alive and not self._gave_way
        self._send(answer, head, close=not keep)
        self.answered = True
        return keep

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
            if self._buffer and self._buffer != b"\r":
                wire.check_start(bytes(self._buffer))
                if not started:
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

    def _take_body(self, head: Head) -> bool:
        """Read the body and answer; it is counted as long as it is in memory."""
        limits = self.server.limits
        if head.length > limits.max_body:
            most = limits.max_body
            raise TooLarge(f"the body has {head.length} bytes; at most {most} are taken")
        if not limits.bodies.enter(head.length):
            limits.bodies.refused += 1
            raise Busy("too many large bodies at once: try again in a second")
        try:
            with self.server.patience(self):
                body = self._read_body(head)
            return self._respond(head, body)
        finally:
            limits.bodies.leave(head.length)

    def _read_body(self, head: Head) -> bytes:
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
        return body

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
        if not data and self._gave_way:
            if not self._buffer:
                raise _Gone
            raise Busy("others waited for this connection's place: try again in a second")
        self._buffer += data
        return bool(data)

    def _send(self, response: Response, head: Head | None, *, close: bool) -> None:
        version = head.version if head else "HTTP/1.1"
        data = wire.encode_head(response, time.time(), close=close, version=version)
        bare = head is not None and head.method == "HEAD"
        file, chunks = (None, None) if bare else (response.file, response.chunks)
        try:
            if not bare and not file and not chunks:
                data += response.body
            self._write(data)
            if chunks:
                self._send_chunks(chunks, framed=version == "HTTP/1.1")
            elif file:
                self._send_file(file.fileno(), file.tell(), response.length)
        finally:
            if response.file is not None:
                response.file.close()
        if close:
            self._linger()

    def _write(self, data: bytes) -> None:
        self.request.settimeout(SEND_SECONDS + len(data) / SEND_RATE)
        if len(data) <= _SMALL:
            self.request.sendall(data)
        else:
            with self._sending():
                self.request.sendall(data)

    def _send_chunks(self, chunks: Iterator[bytes], *, framed: bool) -> None:
        """Send what nobody knows the length of; without frames, the connection's end ends it."""
        for chunk in filter(None, chunks):  # an empty one would say that this is the end
            self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if framed else chunk)
        if framed:
            self._write(b"0\r\n\r\n")

    def _send_file(self, fd: int, start: int, length: int) -> None:
        """Send a part of a file; if it shrank, an honest end is a broken connection."""
        deadline = time.monotonic() + SEND_SECONDS + length / SEND_RATE
        end = start + length
        poll = select.poll()
        poll.register(self.request, select.POLLOUT)
        with self._sending():
            while start < end:
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    raise _Gone
                with contextlib.suppress(BlockingIOError):
                    sent = os.sendfile(self.request.fileno(), fd, start, end - start)
                    if not sent:
                        raise _Gone
                    start += sent

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        """While a client takes its time to read."""
        self._is_sending = True
        with self.server.patience(self):
            yield
        self._is_sending = False

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self.server.patience(self):
            while not self._gave_way and time.monotonic() < end:
                time.sleep(_PAUSE_STEP)

    def _follow(self, answer: Follow, *, bare: bool) -> bool:
        try:
            self._write(wire.encode_stream_head(time.time()))
        except OSError:
            answer.drop()
            raise
        if bare:
            answer.drop()
        else:
            answer.hand_over(socket.socket(fileno=self.request.detach()))
        return False

    def _linger(self) -> None:
        """Let the client read the answer: close in its face, and a reset may eat it."""
        try:
            self.request.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + LINGER_SECONDS
            left = LINGER_BYTES
            with self.server.patience(self):
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
    if isinstance(error, Busy):
        response.headers["Retry-After"] = "1"
    return response
