"""A client's socket with a deadline on every wait: receive, send, send a file, linger, close.

Each wait is registered with `idle`, so that the connection can be evicted while it waits. The only
part of HTTP known here is the framing of chunks: no head, no request, no route.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator

from pv_lib.errors import Busy
from pv_lib.httpd.idle import IdleConnections
from pv_lib.httpd.limits import SEND_RATE, SEND_SECONDS

LINGER_SECONDS = 2.0  # limits on what is read and discarded in a lingering close
LINGER_BYTES = 64 << 20
_PAUSE_STEP = 0.05
_READ = 1 << 16
_SEND_BUFFER = 1 << 18  # bytes: a list of jobs is sent in one call


class Gone(Exception):
    """The client closed or reset the connection, did not read in time, or was evicted."""


class Transport:
    """One accepted socket. Its own thread uses it; only `evict` is called from others.

    The socket is blocking and the kernel times the waits: that costs no system call per request.
    """

    def __init__(self, sock: socket.socket, idle: IdleConnections) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.buffer = bytearray()  # received, not yet consumed
        self.accepted = False  # a request of this client has passed the gate
        self.evicted = False
        self._socket = sock
        self._idle = idle
        self._receive_seconds = 0.0
        self._set_timeout(socket.SO_SNDTIMEO, SEND_SECONDS)

    def evict(self, how: int) -> None:
        """End the wait for the client, to free the connection's place. From another thread.

        `how` is the side of the socket to shut down.
        """
        self.evicted = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(how)

    def detach(self) -> socket.socket:
        """The socket, which belongs to the caller from here on."""
        return socket.socket(fileno=self._socket.detach())

    def begin_wait(self, how: int) -> None:
        """Count as idle from now on; an eviction shuts down the side `how` of the socket."""
        self._idle.add(self, accepted=self.accepted, how=how)

    def end_wait(self) -> None:
        """No longer count as idle."""
        self._idle.remove(self)

    @contextlib.contextmanager
    def waiting(self, how: int) -> Iterator[None]:
        """Count as idle inside the block."""
        self.begin_wait(how)
        try:
            yield
        finally:
            self.end_wait()

    def pause(self, seconds: float) -> None:
        """Do nothing for a while; an eviction ends it."""
        end = time.monotonic() + seconds
        with self.waiting(socket.SHUT_RD):
            while not self.evicted and time.monotonic() < end:
                time.sleep(_PAUSE_STEP)

    def receive(self, seconds: float) -> bool:
        """Append received bytes to `buffer`; False at the client's end of stream.

        Raises TimeoutError after `seconds`, Gone for a broken connection and Busy after an
        eviction.
        """
        if seconds <= 0:
            raise TimeoutError
        if seconds != self._receive_seconds:
            self._receive_seconds = seconds
            self._set_timeout(socket.SO_RCVTIMEO, seconds)
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            raise TimeoutError from None
        except ConnectionError:
            raise Gone from None
        self.buffer += data
        if self.evicted:
            raise Busy("the connection was closed to make room for another: try again in a second")
        return bool(data)

    def send(self, data: bytes) -> None:
        """Send all of `data`. Raises Gone when the client does not read it in time."""
        self._send_rest(data, self._send_now(data))

    def send_pair(self, head: bytes, body: bytes) -> None:
        """Send both in one call where they fit the send buffer, without copying a large body."""
        sent = self._send_now(head, body)
        if sent < len(head) + len(body):
            self._send_rest(head + body, sent)

    def send_chunks(self, chunks: Iterable[bytes], *, framed: bool) -> None:
        """Send data of unknown length: in the chunked coding, or unframed until the close."""
        for chunk in filter(None, chunks):  # an empty chunk would mark the end
            self.send(b"%x\r\n%b\r\n" % (len(chunk), chunk) if framed else chunk)
        if framed:
            self.send(b"0\r\n\r\n")

    def send_file(self, fd: int, start: int, length: int) -> None:
        """Send `length` bytes of a file. Raises Gone when it has become shorter."""
        end = start + length
        if not length:
            return
        for _ in self._turns(length):
            sent = os.sendfile(self._socket.fileno(), fd, start, end - start)
            start += sent
            if not sent:
                raise Gone
            if start == end:
                return

    def linger(self) -> None:
        """Half-close and discard what still arrives: closing at once could reset the answer."""
        deadline = time.monotonic() + LINGER_SECONDS
        left = LINGER_BYTES
        with contextlib.suppress(OSError), self.waiting(socket.SHUT_RD):
            self._socket.shutdown(socket.SHUT_WR)
            while left > 0 and (seconds := deadline - time.monotonic()) > 0:
                self._set_timeout(socket.SO_RCVTIMEO, seconds)
                data = self._socket.recv(_READ)
                if not data:
                    return
                left -= len(data)

    def _send_now(self, *data: bytes) -> int:
        """How many bytes the send buffer took without waiting."""
        try:
            return self._socket.sendmsg(data, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def _send_rest(self, data: bytes, sent: int) -> None:
        view = memoryview(data)[sent:]
        if not view:
            return
        for _ in self._turns(len(data)):
            view = view[self._socket.send(view) :]
            if not view:
                return

    def _turns(self, length: int) -> Iterator[None]:
        """One turn for each part of `length` bytes, until the time allowed for them is over."""
        deadline = time.monotonic() + SEND_SECONDS + length / SEND_RATE
        with self.waiting(socket.SHUT_RDWR):
            while time.monotonic() < deadline and not self.evicted:
                yield
                self.end_wait()  # a client that makes progress is the youngest again
                self.begin_wait(socket.SHUT_RDWR)
        raise Gone

    def _set_timeout(self, option: int, seconds: float) -> None:
        whole = int(seconds)
        timeval = struct.pack("@ll", whole, max(1, int((seconds - whole) * 1e6)))
        self._socket.setsockopt(socket.SOL_SOCKET, option, timeval)
