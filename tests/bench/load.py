"""The client of the benchmarks: one thread, many kept connections, one request on each."""

from __future__ import annotations

import re
import select
import socket
import time

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


class Client:
    """One connection, and what is still to come of the answer it waits for."""

    def __init__(self, port: int, request: bytes) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._request = request
        self._head = b""
        self._left = -1  # of the body; -1: its head is not complete

    def ask(self) -> None:
        """Send the request."""
        self.sock.sendall(self._request)

    def hear(self) -> bool:
        """Take in what has come; whether the answer is complete."""
        data = self.sock.recv(1 << 20)
        if not data:
            raise ConnectionError("the server ended a kept connection")
        if self._left < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return False
            if self._head[9:10] != b"2":
                raise AssertionError(self._head[:200])
            found = _LENGTH.search(self._head, 0, end + 2)
            self._left = int(found[1]) - (len(self._head) - end - 4) if found else 0
            self._head = b""
        else:
            self._left -= len(data)
        if self._left > 0:
            return False
        self._left = -1
        return True


def rate(port: int, request: bytes, clients: int = 8, seconds: float = 2.0) -> float:
    """Answers a second that `clients` get who each send the next request after the last answer."""
    poll = select.epoll()
    everybody = {}
    for _ in range(clients):
        client = Client(port, request)
        everybody[client.sock.fileno()] = client
        poll.register(client.sock.fileno(), select.EPOLLIN)
        client.ask()
    answers = 0
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        for fd, _ in poll.poll():
            client = everybody[fd]
            if client.hear():
                answers += 1
                client.ask()
    took = time.monotonic() - began
    for client in everybody.values():
        client.sock.close()
    poll.close()
    return answers / took


def get(path: str) -> bytes:
    """A request as small as curl's."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n".encode()
