"""One client's connection: its requests are read and answered one after the other.

`wire` parses a request's head, `gate` accepts it and the routes answer it; `transport` owns the
socket and its deadlines. Nothing here listens, or knows what a job is.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from socketserver import BaseRequestHandler
from typing import Protocol

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
from pv_lib.httpd import wire
from pv_lib.httpd.gate import Gate
from pv_lib.httpd.idle import IdleConnections
from pv_lib.httpd.limits import (
    BODY_SECONDS,
    HEAD_SECONDS,
    IDLE_SECONDS,
    MAX_HEAD,
    SMALL_BODY,
    Limits,
)
from pv_lib.httpd.transport import Gone, Transport
from pv_lib.httpd.wire import Head, Request, Response
from pv_lib.system.journal import Journal

GUESS_SECONDS = 0.5  # the delay before a wrong token is refused


@dataclass(frozen=True)
class Follow:
    """A route's answer that is a live stream: after the head, `hand_over` gets the socket.

    If that is not possible, `drop` is called instead; exactly one of them is called, once.
    `greeting` is sent right after the head.
    """

    hand_over: Callable[[socket.socket], None]
    drop: Callable[[], None]
    greeting: bytes = b""


Answer = Response | Follow


class ServerParts(Protocol):
    """What a connection needs of its server."""

    routes: Callable[[Request], Answer]
    gate: Gate
    limits: Limits
    idle: IdleConnections
    journal: Journal
    access_log: bool


class _LastHead:
    """The last accepted head without a body, and the request made from it.

    Clients that poll repeat their request byte for byte. Without this, `healthz` and `detail` in
    ops/performance.md fall from 3 times the bare handler to 1.5, where 2.5 is the bar.
    """

    def __init__(self) -> None:
        self._data = b""
        self._until = 0.0  # Unix time at which the gate's decision expires
        self._parsed: tuple[Head, Request] | None = None

    def get(self, data: bytes) -> tuple[Head, Request] | None:
        """What the head `data` was parsed into, if it is the last one and still accepted."""
        return self._parsed if data == self._data and time.time() < self._until else None

    def put(self, data: bytes, until: float, head: Head, request: Request) -> None:
        """Replace the last head."""
        self._data, self._until, self._parsed = data, until, (head, request)


class Connection(BaseRequestHandler):
    """One client's requests. socketserver makes it in the connection's thread."""

    server: ServerParts  # type: ignore[assignment]
    request: socket.socket

    def setup(self) -> None:
        """Prepare the socket."""
        self._transport = Transport(self.request, self.server.idle)
        self._last_head = _LastHead()
        self._began = time.monotonic()  # when the head of this request was complete
        self._counted = 0  # bytes of the body that are taken from limits.bodies

    def handle(self) -> None:
        """Answer requests until one side ends the connection."""
        try:
            while self._handle_one():
                pass
        except (Gone, OSError):
            return

    def _handle_one(self) -> bool:
        """Read one request and answer it; whether another may follow."""
        head = None
        try:
            data = self._read_head()
            if data is None:
                return False
            self._began = time.monotonic()
            repeated = self._last_head.get(data)
            if repeated:
                return self._respond(*repeated)
            head = wire.parse_head(data)
            until = self.server.gate.check(head, time.time())
            self._transport.accepted = True
            if head.length:
                return self._respond_to_body(head)
            request = self._decode(head, b"")
            self._last_head.put(data, until, head, request)
            return self._respond(head, request)
        except ValetError as error:  # where the next request begins is no longer certain
            if isinstance(error, Unauthorized) and error.guess:
                self._transport.pause(GUESS_SECONDS)
            self._log_access(head, error.status)
            self._send(problem(error), head, close=True)
            return False

    def _log_access(self, head: Head | None, status: int) -> None:
        """Write the access log's line, if it is on; the time is until the answer begins."""
        if self.server.access_log:
            target = f"{head.path}?{head.query}".rstrip("?") if head else ""
            what = f"{head.method} {target}" if head else "what is no request"
            milliseconds = (time.monotonic() - self._began) * 1000
            client = self.client_address[0]
            self.server.journal.info(f"{client} {what}: {status} in {milliseconds:.1f} ms")

    def _decode(self, head: Head, body: bytes) -> Request:
        segments, query = wire.decode_path(head.path), wire.decode_query(head.query)
        return Request(head.method, segments, query, head.headers, body, self.client_address[0])

    def _respond(self, head: Head, request: Request) -> bool:
        answer = self._answer(request)
        if isinstance(answer, Follow):
            return self._follow(answer, head)
        keep = head.keep_alive and not self._transport.evicted
        self._log_access(head, answer.status)
        self._send(answer, head, close=not keep)
        return keep

    def _answer(self, request: Request) -> Answer:
        try:
            return self.server.routes(request)
        except ValetError as error:
            return problem(error)
        except Exception as error:  # noqa: BLE001 - the top of a request: a decided outcome
            what = f"{type(error).__name__}: {error}"
            where = "/".join(request.segments)
            self.server.journal.error(f"{request.method} /{where}: unexpected {what}")
            return problem(ValetError("an unexpected fault; the server's log has the reason"))

    def _read_head(self) -> bytes | None:
        """The next head without its blank line; None when the client sends no more requests."""
        buffer = self._transport.buffer
        started = time.monotonic() if buffer else None
        searched, stray = 0, False
        self._transport.begin_wait(socket.SHUT_RD)
        try:
            while True:
                if buffer[:2] == b"\r\n" and not stray:  # some clients send one between requests
                    stray = True
                    del buffer[:2]
                end = buffer.find(b"\r\n\r\n", max(0, searched - 3))
                if end > MAX_HEAD or (end < 0 and len(buffer) > MAX_HEAD):
                    raise HeadTooLarge(f"the request's head has more than {MAX_HEAD} bytes")
                if end >= 0:
                    data = bytes(buffer[:end])
                    del buffer[: end + 4]
                    return data
                searched = len(buffer)
                if not self._receive_head(started):
                    return None
                started = started or time.monotonic()
        finally:
            self._transport.end_wait()

    def _receive_head(self, started: float | None) -> bool:
        """Receive more of a head that began at `started`; False when no request has begun."""
        buffer = self._transport.buffer
        if buffer and buffer != b"\r":
            wire.check_start(bytes(buffer))
        left = IDLE_SECONDS if started is None else started + HEAD_SECONDS - time.monotonic()
        try:
            if self._transport.receive(left):
                return True
        except Busy:
            if buffer:
                raise
        except TimeoutError:
            if buffer:
                raise Timeout(f"the head did not come within {HEAD_SECONDS:g} s") from None
        else:
            if buffer:
                raise Invalid("the request's head ended in the middle")
        return False

    def _respond_to_body(self, head: Head) -> bool:
        """Read the body and answer; its quota is held as long as it is in memory."""
        limits = self.server.limits
        if head.length > limits.max_body:
            most = limits.max_body
            raise TooLarge(f"the body has {head.length} bytes; at most {most} are taken")
        try:
            return self._respond(head, self._decode(head, self._read_body(head)))
        finally:
            limits.bodies.release(self._counted)
            self._counted = 0

    def _read_body(self, head: Head) -> bytes:
        buffer = self._transport.buffer
        expects = head.headers.get("expect", "").lower() == "100-continue"
        if expects and head.version == "HTTP/1.1" and not buffer:
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        deadline = time.monotonic() + BODY_SECONDS
        with self._transport.waiting(socket.SHUT_RD):
            while len(buffer) < head.length:
                try:
                    more = self._transport.receive(deadline - time.monotonic())
                except TimeoutError:
                    raise Timeout(f"the body did not come within {BODY_SECONDS:g} s") from None
                if not more:
                    raise Invalid("the body is shorter than its Content-Length")
                self._count_body()
        body = bytes(buffer[: head.length])
        del buffer[: head.length]
        return body

    def _count_body(self) -> None:
        """Take quota for what has arrived, unless it is small: many small bodies are harmless."""
        bodies, arrived = self.server.limits.bodies, len(self._transport.buffer)
        if arrived > SMALL_BODY:
            if not bodies.take(arrived - self._counted):
                bodies.refuse()
                raise Busy("too many large bodies at once: try again in a second")
            self._counted = arrived

    def _send(self, response: Response, head: Head | None, *, close: bool) -> None:
        version = head.version if head else "HTTP/1.1"
        data = wire.encode_head(response, time.time(), close=close, version=version)
        transport = self._transport
        try:
            if head is not None and head.method == "HEAD":
                transport.send(data)
            elif response.chunks:
                transport.send(data)
                transport.send_chunks(response.chunks, framed=version == "HTTP/1.1")
            elif response.file:
                transport.send(data)
                file = response.file
                transport.send_file(file.fileno(), file.tell(), response.length)
            else:
                transport.send_pair(data, response.body)
        finally:
            if response.file is not None:
                response.file.close()
        if close:
            transport.linger()

    def _follow(self, answer: Follow, head: Head) -> bool:
        bare = head.method == "HEAD"
        greeting = b"" if bare else answer.greeting
        try:
            self._transport.send(wire.encode_stream_head(time.time()) + greeting)
        except (OSError, Gone):
            answer.drop()
            raise
        self._log_access(head, 200)
        if bare:
            answer.drop()
        else:
            answer.hand_over(self._transport.detach())
        return False


def problem(error: ValetError) -> Response:
    """An error as an RFC 9457 response."""
    body = json.dumps(wire.problem(error), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    response = Response(error.status, body, "application/problem+json")
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = error.allow
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Busy):
        response.headers["Retry-After"] = "1"
    return response
