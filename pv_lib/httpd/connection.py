"""One client's connection: requests read and answers written, with a deadline on each.

The head is parsed by our own strict rules (`wire`), let in by `gate`, and answered by the routes.
While a connection waits for its client it says so (`limits.Patience`), for then it may have to make
room for another. Nothing here listens, or knows what a job is.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
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
from pv_lib.httpd.limits import (
    BODY_SECONDS,
    HEAD_SECONDS,
    IDLE_SECONDS,
    MAX_HEAD,
    SEND_RATE,
    SEND_SECONDS,
    SMALL_BODY,
    Limits,
    Patience,
)
from pv_lib.httpd.wire import Head, Request, Response
from pv_lib.system.journal import Journal

GUESS_SECONDS = 0.5  # what a wrong token costs its sender
LINGER_SECONDS = 2.0  # how long, and how many bytes, a refused client may still send
LINGER_BYTES = 64 << 20
_PAUSE_STEP = 0.05
_READ = 1 << 16
_SEND_BUFFER = 1 << 18  # bytes: a list of jobs goes out in one call


@dataclass(frozen=True)
class Follow:
    """A route's answer that is a live stream: the socket goes to `hand_over` behind the head.

    `drop` is called instead where it cannot: either of them, once. `greeting` are its first bytes.
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
    patience: Patience
    journal: Journal
    access_log: bool


class _Gone(Exception):
    """The client has closed or reset the connection, or it had to give way."""


class Connection(BaseHTTPRequestHandler):
    """One client's requests, one after the other."""

    server: ServerParts  # type: ignore[assignment]
    request: socket.socket

    def setup(self) -> None:
        """No buffered files: the socket is read and written here alone.

        It blocks, and the kernel ends a wait: that costs no call for each request.
        """
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._wait_seconds = 0.0
        self._allow_wait(IDLE_SECONDS)
        self._set_timeout(socket.SO_SNDTIMEO, SEND_SECONDS)
        self._buffer = bytearray()
        self._let_in = False  # the gate has let a request of this client in
        self._gave_way = False
        self._counted = 0  # bytes of the body that limits.bodies knows of
        self._came = time.monotonic()  # when the head of this request was read
        self._last = b""  # the last request without a body, let in until `_until`
        self._until = 0.0
        self._head: Head
        self._request: Request

    def finish(self) -> None:
        """Nothing to flush; the server closes the socket."""

    def give_way(self, how: int) -> None:
        """End the wait for the client: `how` says which side of the socket; from another thread."""
        self._gave_way = True
        with contextlib.suppress(OSError):
            self.request.shutdown(how)

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
            self._came = time.monotonic()
            if data == self._last and time.time() < self._until:  # as kept connections ask again
                return self._respond(self._head, self._request)
            head = wire.parse_head(data)
            until = self.server.gate.check(head, time.time())
            self._let_in = True
            if head.length:
                return self._take_body(head)
            request = self._asked(head, b"")
            self._last, self._until, self._head, self._request = data, until, head, request
            return self._respond(head, request)
        except ValetError as error:  # the rest of the connection cannot be trusted
            if isinstance(error, Unauthorized) and error.guess:
                self._pause(GUESS_SECONDS)
            self._note(head, error.status)
            self._send(problem(error), head, close=True)
            return False

    def _note(self, head: Head | None, status: int) -> None:
        """The line of the access log, where it is on; the time is until the answer begins."""
        if self.server.access_log:
            where = f"{head.path}?{head.query}".rstrip("?") if head else ""
            asked = f"{head.method} {where}" if head else "what is no request"
            took = (time.monotonic() - self._came) * 1000
            who = self.client_address[0]
            self.server.journal.info(f"{who} {asked}: {status} in {took:.1f} ms")

    def _asked(self, head: Head, body: bytes) -> Request:
        segments, query = wire.decode_path(head.path), wire.decode_query(head.query)
        return Request(head.method, segments, query, head.headers, body, self.client_address[0])

    def _respond(self, head: Head, request: Request) -> bool:
        answer = self._answer(request)
        if isinstance(answer, Follow):
            return self._follow(answer, head)
        keep = head.keep_alive and not self._gave_way
        self._note(head, answer.status)
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
        """The next head without its blank line; None when the client has no more to ask."""
        buffer = self._buffer
        started = time.monotonic() if buffer else None
        searched, stray = 0, False
        self.server.patience.begin(self, known=self._let_in, how=socket.SHUT_RD)
        try:
            while True:
                if buffer[:2] == b"\r\n" and not stray:  # some send one between two requests
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
                if buffer and buffer != b"\r":
                    wire.check_start(bytes(buffer))
                if started is None:
                    self._allow_wait(IDLE_SECONDS)
                else:
                    self._allow_wait(started + HEAD_SECONDS - time.monotonic())
                try:
                    more = self._receive()
                except (Busy, TimeoutError) as error:
                    if not buffer:
                        return None
                    if isinstance(error, Busy):
                        raise
                    raise Timeout(f"the head did not come within {HEAD_SECONDS:g} s") from None
                if not more:
                    if not buffer:
                        return None
                    raise Invalid("the request's head ended in the middle")
                started = started or time.monotonic()
        finally:
            self.server.patience.end(self)

    def _take_body(self, head: Head) -> bool:
        """Read the body and answer; it is counted as long as it is in memory."""
        limits = self.server.limits
        if head.length > limits.max_body:
            most = limits.max_body
            raise TooLarge(f"the body has {head.length} bytes; at most {most} are taken")
        try:
            return self._respond(head, self._asked(head, self._read_body(head)))
        finally:
            limits.bodies.leave(self._counted)
            self._counted = 0

    def _read_body(self, head: Head) -> bytes:
        expects = head.headers.get("expect", "").lower() == "100-continue"
        if expects and head.version == "HTTP/1.1" and not self._buffer:
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        deadline = time.monotonic() + BODY_SECONDS
        with self._patient(socket.SHUT_RD):
            while len(self._buffer) < head.length:
                self._allow_wait(deadline - time.monotonic())
                try:
                    more = self._receive()
                except TimeoutError:
                    raise Timeout(f"the body did not come within {BODY_SECONDS:g} s") from None
                if not more:
                    raise Invalid("the body is shorter than its Content-Length")
                self._count_body()
        body = bytes(self._buffer[: head.length])
        del self._buffer[: head.length]
        return body

    def _count_body(self) -> None:
        """What has come is counted when it is more than small; many small ones are no danger."""
        bodies, come = self.server.limits.bodies, len(self._buffer)
        if come > SMALL_BODY:
            if not bodies.enter(come - self._counted):
                bodies.refuse()
                raise Busy("too many large bodies at once: try again in a second")
            self._counted = come

    def _allow_wait(self, seconds: float) -> None:
        """How long the next `_receive` may wait; nothing at all raises TimeoutError there."""
        if seconds != self._wait_seconds:
            self._wait_seconds = seconds
            if seconds > 0:
                self._set_timeout(socket.SO_RCVTIMEO, seconds)

    def _set_timeout(self, option: int, seconds: float) -> None:
        whole = int(seconds)
        moment = struct.pack("@ll", whole, max(1, int((seconds - whole) * 1e6)))
        self.request.setsockopt(socket.SOL_SOCKET, option, moment)

    def _receive(self) -> bool:
        """More bytes into the buffer; False at the client's end. Raises TimeoutError."""
        if self._wait_seconds <= 0:
            raise TimeoutError
        try:
            data = self.request.recv(_READ)
        except BlockingIOError:
            raise TimeoutError from None
        except ConnectionError:
            raise _Gone from None
        self._buffer += data
        if self._gave_way:
            raise Busy("others waited for this connection's place: try again in a second")
        return bool(data)

    def _send(self, response: Response, head: Head | None, *, close: bool) -> None:
        version = head.version if head else "HTTP/1.1"
        data = wire.encode_head(response, time.time(), close=close, version=version)
        bare = head is not None and head.method == "HEAD"
        file, chunks = (None, None) if bare else (response.file, response.chunks)
        try:
            if bare or file or chunks or not response.body:
                self._write(data)
            else:
                self._write_both(data, response.body)
            if chunks:
                self._send_chunks(chunks, framed=version == "HTTP/1.1")
            elif file:
                self._send_file(file.fileno(), file.tell(), response.length)
        finally:
            if response.file is not None:
                response.file.close()
        if close:
            self._linger()

    def _write_both(self, head: bytes, body: bytes) -> None:
        """One call for the usual answer, and no copy of a large one."""
        try:
            sent = self.request.sendmsg((head, body), (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent < len(head) + len(body):
            self._write((head + body)[sent:])

    def _write(self, data: bytes) -> None:
        try:
            sent = self.request.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        view = memoryview(data)[sent:]
        if not view:
            return
        for _ in self._sending(len(data)):
            view = view[self.request.send(view) :]
            if not view:
                return

    def _send_chunks(self, chunks: Iterable[bytes], *, framed: bool) -> None:
        """Send what nobody knows the length of; without frames, the connection's end ends it."""
        for chunk in filter(None, chunks):  # an empty one would say that this is the end
            self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if framed else chunk)
        if framed:
            self._write(b"0\r\n\r\n")

    def _send_file(self, fd: int, start: int, length: int) -> None:
        """Send a part of a file; if it shrank, an honest end is a broken connection."""
        end = start + length
        if not length:
            return
        for _ in self._sending(length):
            sent = os.sendfile(self.request.fileno(), fd, start, end - start)
            start += sent
            if not sent:
                raise _Gone
            if start == end:
                return

    def _sending(self, length: int) -> Iterator[None]:
        """A turn for each piece of `length` bytes, until the time that they earn is up."""
        deadline = time.monotonic() + SEND_SECONDS + length / SEND_RATE
        with self._patient(socket.SHUT_RDWR):
            while time.monotonic() < deadline and not self._gave_way:
                yield
                self.server.patience.end(self)  # who makes headway is the youngest again
                self.server.patience.begin(self, known=self._let_in, how=socket.SHUT_RDWR)
        raise _Gone

    @contextlib.contextmanager
    def _patient(self, how: int) -> Iterator[None]:
        """While the client takes its time: `how` ends the wait for it, see `give_way`."""
        self.server.patience.begin(self, known=self._let_in, how=how)
        try:
            yield
        finally:
            self.server.patience.end(self)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        with self._patient(socket.SHUT_RD):
            while not self._gave_way and time.monotonic() < end:
                time.sleep(_PAUSE_STEP)

    def _follow(self, answer: Follow, head: Head) -> bool:
        bare = head.method == "HEAD"
        try:
            self._write(wire.encode_stream_head(time.time()) + (b"" if bare else answer.greeting))
        except (OSError, _Gone):
            answer.drop()
            raise
        self._note(head, 200)
        if bare:
            answer.drop()
        else:
            answer.hand_over(socket.socket(fileno=self.request.detach()))
        return False

    def _linger(self) -> None:
        """Let the client read the answer: close in its face, and a reset may eat it."""
        deadline = time.monotonic() + LINGER_SECONDS
        left = LINGER_BYTES
        with contextlib.suppress(OSError), self._patient(socket.SHUT_RD):
            self.request.shutdown(socket.SHUT_WR)
            while left > 0 and (pause := deadline - time.monotonic()) > 0:
                self._set_timeout(socket.SO_RCVTIMEO, pause)
                data = self.request.recv(_READ)
                if not data:
                    return
                left -= len(data)


def problem(error: ValetError) -> Response:
    """An error as the response that tells of it."""
    body = json.dumps(wire.problem(error), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    response = Response(error.status, body, "application/problem+json")
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = error.allow
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Busy):
        response.headers["Retry-After"] = "1"
    return response
